"""Files that `plan-jax ground` writes beside its overlays: DICOM Segmentations, and boxes."""

import argparse
import importlib.util
import re
import sys
from pathlib import Path

from input_pipeline.errors import UserError
from input_pipeline.files import read_regular, replace_text, replacing
from input_pipeline.readers.raw import dicom
from plan_jax.commands.inputs import Failures, check_place, print_path
from plan_jax.inference.grounding import Grounding
from plan_jax.inference.predictor import Predictor
from plan_jax.results import box_files

_NO_DICOM = "is no DICOM image, which a DICOM Segmentation (--dicom-out) needs"


class GroundFiles:
  """Files of --boxes-out and --dicom-out."""

  def __init__(self, options: argparse.Namespace, single: bool):
    """Checks the flags; `single` says that they are of one image. Raises UserError."""
    self._options, self._single = options, single
    self._rows: list[box_files.PhraseBoxes] = []
    self._kept: list[Grounding] = []  # of one image, for its Segmentation
    self._images, self._model = 0, ""
    self._error: UserError | None = None  # the last of a Segmentation
    if boxes := options.boxes_out:
      check_new("--boxes-out", boxes, ".json", ".csv")
    if folder := options.dicom_out:
      if importlib.util.find_spec("highdicom") is None:
        raise UserError("--dicom-out needs highdicom: pip install 'plan_jax[dicom]'")
      check_new("--dicom-out", folder, *([".dcm"] if single else []))
      if single and not _may_be_dicom(Path(options.image)):
        raise UserError(f"{options.image} {_NO_DICOM}: leave the flag out, or name a .dcm file")

  def take(self, path: Path, grounding: Grounding) -> None:
    """Takes a grounding of an image."""
    if self._options.boxes_out:
      threshold = self._options.threshold
      self._rows.append(box_files.phrase_boxes(str(path), grounding, threshold))
    if self._options.dicom_out:
      self._kept.append(grounding)

  def add(self, model: Predictor, path: Path, failures: Failures) -> None:
    """Writes the Segmentation of an image, whose groundings were taken, or counts a failure."""
    self._images += 1
    groundings, self._kept = self._kept, []
    if not groundings:
      return
    if not _may_be_dicom(path):
      error = UserError(f"{path} {_NO_DICOM}")
      failures.add(str(path), error, "without a DICOM Segmentation: no DICOM image")
      return
    from plan_jax.results.dicom_segmentation import SegmentationError, to_segmentation
    from plan_jax.transfer.encoder import fingerprint

    self._model = self._model or fingerprint(model.variables)
    kind = None if self._options.dicom_type == "fractional" else self._options.threshold
    try:
      segmentation = to_segmentation(groundings, path, self._model, kind)
    except SegmentationError as error:
      self._error = error
      if not self._single:
        failures.add(str(path), error, "without a DICOM Segmentation")
      return
    out = Path(self._options.dicom_out)
    if not self._single:
      out /= f"{self._images:05}-{re.sub(r'[^A-Za-z0-9.]+', '_', path.stem)[:60]}.dcm"
    with replacing(out) as temporary:
      segmentation.save_as(temporary, enforce_file_format=True)

  def finish(self) -> None:
    """Writes the boxes, and prints the paths; not among the rows of JSON on stdout.

    Raises UserError where there is no Segmentation of the one image.
    """
    stream = sys.stderr if self._single and self._options.json else None
    if (out := self._options.dicom_out) and Path(out).exists():
      print_path("segmentation" if self._single else "segmentations", out, stream)
    if out := self._options.boxes_out:
      write = box_files.to_csv if out.lower().endswith(".csv") else box_files.to_coco
      replace_text(out, write(self._rows))
      print_path("boxes", out, stream)
    if self._single and self._error:
      raise self._error


def _may_be_dicom(path: Path) -> bool:
  """Tells whether a file is DICOM; of one that cannot be read, its reader says why."""
  try:
    return dicom.is_dicom(read_regular(path))
  except (OSError, ValueError):
    return True


def check_new(flag: str, out: str, *suffixes: str) -> None:
  """Raises UserError where a path exists, so that no image is lost, or cannot be written."""
  if suffixes and Path(out).suffix.lower() not in suffixes:
    raise UserError(f"{flag}={out}: name a {' or '.join(suffixes)} file")
  if Path(out).exists():
    raise UserError(f"{flag}={out} exists: name another, or delete it")
  check_place(flag, out)
