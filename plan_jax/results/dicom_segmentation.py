"""Groundings of a DICOM image as a DICOM Segmentation, which viewers lay over that image.

A Segmentation (PS3.3, A.51) may refer to its source image alone, pixel for pixel, where that has no
frame of reference, as radiographs mostly have none; a Parametric Map may not. BINARY is what
viewers show; FRACTIONAL holds the map itself, in steps of 1/255, but OHIF leaves it aside.
"""

import io
import os
import uuid
import warnings
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import pydicom
from pydicom.sr.codedict import codes

import plan_jax
from input_pipeline.errors import UserError, one_line
from input_pipeline.example import UnreadableError
from input_pipeline.files import read_regular
from input_pipeline.readers.raw import dicom
from plan_jax.inference.grounding import Grounding

_IDENTIFIERS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
# An image must have these elements, but they may be empty; anonymised ones often lack them.
_MAY_BE_EMPTY = (
  *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate"),
  *("StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
_PLANE = ("ImageOrientationPatient", "PixelSpacing", "SliceThickness")
_LONG_STRING, _SHORT_TEXT = 64, 1024  # characters of the value representations LO and ST
_SERIES_NUMBER = 9000  # behind those of modalities


class SegmentationError(UserError):
  """Image or groundings of which no DICOM Segmentation can be made; the message says why."""


def to_segmentation(
  groundings: Sequence[Grounding],
  source: str | os.PathLike | pydicom.Dataset,
  model: str,
  threshold: float | None = 0.5,
) -> pydicom.Dataset:
  """Makes a Segmentation with a segment for each grounding of one DICOM image.

    model = plan_jax.load("runs/a")
    groundings = model.ground("image.dcm", ["left effusion", "cardiomegaly"])
    segmentation = to_segmentation(groundings, "image.dcm", fingerprint(model.variables))
    segmentation.save_as("segmentation.dcm")

  It has patient and study of the image, a series of its own, and UIDs made from its content, so
  that the same twice, but for its dates, is one instance for an archive.

  Args:
    groundings: of `source`, at least one.
    source: the image, which the result refers to; its pixels are not copied.
    model: name or fingerprint of the weights; transfer/encoder.py makes one.
    threshold: of a region, as of `Grounding.boxes`, BINARY; None for the map, FRACTIONAL.

  Raises:
    SegmentationError: `source` is no DICOM image, or cannot be referred to; the groundings are of
      another image; highdicom is not installed.
    InputError: `threshold` is not above 0 and at most 1.
  """
  try:
    import highdicom
  except ImportError:
    raise SegmentationError(
      "a DICOM Segmentation needs highdicom, which is not installed: pip install 'plan_jax[dicom]'"
    ) from None
  name, header, shown = _read(source)
  if not groundings or not all(np.array_equal(shown, each.image) for each in groundings):
    raise SegmentationError(f"{name}: the groundings are of another image; ground this very file")
  planes = [
    np.nan_to_num(each.map) if threshold is None else each.region(threshold) for each in groundings
  ]
  pixels = np.stack(planes, -1)[None]  # [1, H, W, segments]
  segments = _segments(groundings, model, threshold)
  content = [header.SOPInstanceUID, plan_jax.__version__, model, str(threshold)]
  content += [text for each in segments for text in (each.SegmentLabel, each.SegmentDescription)]
  identifier = sha256("\0".join(content).encode() + np.ascontiguousarray(pixels).tobytes())
  several = f"{len(groundings)} phrases" if len(groundings) > 1 else groundings[0].phrase
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of values of the source that break the standard
      segmentation = highdicom.seg.Segmentation(
        source_images=[header],
        pixel_array=pixels.astype(np.float32 if threshold is None else np.uint8),
        segmentation_type="FRACTIONAL" if threshold is None else "BINARY",
        segment_descriptions=segments,
        series_instance_uid=_uid("series", identifier.hexdigest()),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=_uid("instance", identifier.hexdigest()),
        instance_number=1,
        manufacturer="plan_jax",
        manufacturer_model_name="plan_jax",
        software_versions=plan_jax.__version__,
        device_serial_number=_clean(model, _LONG_STRING),
        content_label="PHRASE_GROUNDING",
        content_description="maps of phrases" if threshold is None else "regions of phrases",
        series_description=_clean(f"plan_jax: {several}", _LONG_STRING),
        specific_character_set="ISO_IR 192",  # UTF-8, of the phrases
        omit_empty_frames=False,  # a phrase that is nowhere has its segment
      )
  except Exception as error:  # highdicom raises many kinds for headers that break the standard
    raise SegmentationError(
      f"{name}: no Segmentation can refer to it ({type(error).__name__}: {one_line(error)[:300]});"
      " mend its header"
    ) from error
  # The same pixels, so rows and columns run the same way.
  segmentation.PatientOrientation = header.get("PatientOrientation", "")
  return segmentation


def _read(source) -> tuple[str, pydicom.Dataset, np.ndarray]:
  """Returns an image's name, header, and pixels as shown, uint8 [H, W]. Raises SegmentationError.

  The header has all that a Segmentation asks of its source, and no pixels.
  """
  name, content = "the DICOM dataset", source
  if not isinstance(source, pydicom.Dataset):
    name = os.fspath(source)
    try:
      content = read_regular(Path(source))
    except OSError as error:
      raise SegmentationError(f"{name} cannot be read ({error.strerror or error})") from error
    if not dicom.is_dicom(content):
      raise SegmentationError(f"{name} is no DICOM file: a Segmentation refers to a DICOM image")
  try:
    shown = dicom.to_pixels(content)
  except UnreadableError as error:
    raise SegmentationError(f"{name}: {error}") from error
  if isinstance(content, bytes):
    content = pydicom.dcmread(io.BytesIO(content))
  header = content[: pydicom.tag.Tag(0x7FE00000)]
  if missing := [keyword for keyword in _IDENTIFIERS if not header.get(keyword)]:
    raise SegmentationError(f"{name} has no {', '.join(missing)}: no viewer could match it")
  for keyword in _MAY_BE_EMPTY:
    if keyword not in header:
      setattr(header, keyword, "")
  if not all(header.get(keyword) for keyword in _PLANE):  # all or none, the source has the rest
    header.pop("ImagePositionPatient", None)
    header.pop("PixelSpacing", None)
  return name, header, shown


def _segments(groundings: Sequence[Grounding], model: str, threshold: float | None) -> list:
  import highdicom

  algorithm = highdicom.AlgorithmIdentificationSequence(
    name="plan_jax",
    family=codes.DCM.ArtificialIntelligence,
    version=plan_jax.__version__,
    source="plan_jax",
    parameters={"model": model} | ({} if threshold is None else {"threshold": f"{threshold:g}"}),
  )
  segments = []
  for number, grounding in enumerate(groundings, 1):
    segment = highdicom.seg.SegmentDescription(
      segment_number=number,
      segment_label=_clean(grounding.phrase, _LONG_STRING),
      segmented_property_category=codes.SCT.SpatialAndRelationalConcept,
      segmented_property_type=codes.NCIt.ImagingRegionOfInterest,  # a phrase may be anything
      algorithm_type="AUTOMATIC",
      algorithm_identification=algorithm,
    )
    segment.SegmentDescription = _clean(_describe(grounding, threshold), _SHORT_TEXT)
    segments.append(segment)
  return segments


def _describe(grounding: Grounding, threshold: float | None) -> str:
  """Says what the pixels of a segment are worth."""
  kind = "Map" if threshold is None else f"Region at {threshold:g} of the maximum of the map"
  lines = [
    f"{kind} of the phrase: {grounding.phrase[: _SHORT_TEXT // 2]}",
    "It is relative, with its maximum near 1 also where nothing is present: no probability",
    f"Presence score {grounding.score:.4f}"
    + ("" if grounding.quantile is None else f", quantile {grounding.quantile:.3f}"),
  ]
  if np.isnan(grounding.map).any():
    lines.append("The model does not see the margins, where all is 0")
  return ". ".join([*lines, grounding.warning]) if grounding.warning else ". ".join(lines)


def _clean(text: str, most: int) -> str:
  """Returns a text as one line of at most `most` characters that DICOM can hold."""
  text = "".join(c if c.isprintable() else " " for c in text.replace("\\", "/"))
  text = " ".join(text.split()) or "-"
  return text if len(text) <= most else f"{text[: most - 3]}..."


def _uid(kind: str, content: str) -> str:
  """Makes a UID from content: of a name-based UUID (PS3.5, B.2)."""
  return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'plan_jax {kind} {content}').int}"
