"""Flags --dicom-out and --boxes-out of `plan-jax ground`."""

import json

import numpy as np
import pydicom
import pytest

from fakes import dicom as fake
from plan_jax.commands import ground

IDS = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4"}


@pytest.fixture(scope="module")
def radiographs(images, tmp_path_factory):
  """A folder of two DICOM images and one that is none."""
  folder = tmp_path_factory.mktemp("radiographs")
  for i in range(2):
    pixels = np.random.default_rng(i).integers(0, 255, (40, 56)).astype(np.uint8)
    (folder / f"a {i}.dcm").write_bytes(fake.image(pixels, **IDS))
  (folder / "plain.png").write_bytes((images / "0.png").read_bytes())
  return folder


def run_command(run, *arguments):
  ground.main([f"--workdir={run}", "--phrase=effusion", *map(str, arguments)])


@pytest.mark.parametrize("kind", ["binary", "fractional"])
def test_one_image(run, radiographs, tmp_path, kind, capsys):
  pytest.importorskip("highdicom")
  image, out, boxes = radiographs / "a 0.dcm", tmp_path / "out.dcm", tmp_path / "boxes.json"
  more = f"--dicom-out={out}", f"--dicom-type={kind}", f"--boxes-out={boxes}", "--phrase=edema"
  run_command(run, f"--image={image}", *more)
  printed = capsys.readouterr().out
  assert printed.endswith(f"segmentation: {out}\nboxes: {boxes}\n") and printed.count(str(out)) == 1
  data = pydicom.dcmread(out)
  assert data.SegmentationType == kind.upper() and (data.Rows, data.Columns) == (40, 56)
  assert [each.SegmentLabel for each in data.SegmentSequence] == ["effusion", "edema"]
  content = json.loads(boxes.read_text())
  assert [each["name"] for each in content["categories"]] == ["effusion", "edema"]
  assert content["images"][0]["file_name"] == str(image) and content["annotations"]
  if kind == "binary":
    regions = data.pixel_array[0]
    box = content["annotations"][0]["bbox"]
    assert regions[box[1] : box[1] + box[3], box[0] : box[0] + box[2]].any()


def test_a_folder_in_which_one_is_no_dicom(run, radiographs, tmp_path, capsys):
  pytest.importorskip("highdicom")
  flags = [f"--{flag}={tmp_path / flag}" for flag in ("out", "dicom-out")]
  flags.append(f"--boxes-out={tmp_path}/boxes.csv")
  with pytest.raises(SystemExit, match="^error: 1 without a DICOM Segmentation: no DICOM image$"):
    run_command(run, f"--image={radiographs}", *flags)
  printed = capsys.readouterr()
  assert "plain.png is no DICOM image, which a DICOM Segmentation" in printed.err
  lines = [f"results: {tmp_path}/out/grounding.csv", f"segmentations: {tmp_path}/dicom-out"]
  assert printed.out.splitlines() == [*lines, f"boxes: {tmp_path}/boxes.csv"]
  written = sorted(path.name for path in (tmp_path / "dicom-out").iterdir())
  assert written == ["00001-a_0.dcm", "00002-a_1.dcm"]
  assert "plain.png" in (tmp_path / "boxes.csv").read_text()


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--boxes-out=boxes.txt"], "name a .json or .csv file"),
    (["--dicom-out=out.png"], "name a .dcm file"),
    (["--dicom-out=IMAGE"], "exists: name another"),
    (["--dicom-out=a.dcm", "--image=PLAIN"], "plain.png is no DICOM image, which a DICOM Segm"),
  ],
)
def test_flags_are_checked_before_any_work(radiographs, tmp_path, flags, message):
  pytest.importorskip("highdicom")
  image = radiographs / "a 0.dcm"
  flags = [flag.replace("=IMAGE", f"={image}") for flag in flags]
  flags = [flag.replace("PLAIN", f"{radiographs}/plain.png") for flag in flags]
  with pytest.raises(SystemExit, match=message):
    run_command(tmp_path / "no run", f"--image={image}", *flags)


def test_without_highdicom(radiographs, tmp_path, monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(SystemExit, match=r"pip install 'plan_jax\[dicom\]'"):
    run_command(tmp_path, f"--image={radiographs}/a 0.dcm", f"--dicom-out={tmp_path}/a.dcm")


def test_one_image_that_cannot_be_referred_to_is_one_line(run, tmp_path, capsys):
  pytest.importorskip("highdicom")
  image, boxes = tmp_path / "a.dcm", tmp_path / "boxes.csv"
  image.write_bytes(fake.image(np.zeros((40, 56), np.uint8), StudyInstanceUID="1.2.3"))
  flags = f"--image={image}", f"--dicom-out={tmp_path}/out.dcm", f"--boxes-out={boxes}"
  with pytest.raises(SystemExit, match="^error: .*a.dcm has no SeriesInstanceUID") as caught:
    run_command(run, *flags)
  assert "\n" not in str(caught.value) and boxes.exists()
