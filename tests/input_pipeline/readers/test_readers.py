"""The contract that every reader keeps, on its fake data set."""

import dataclasses
import os
import pickle
import re
import resource
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from fakes import (
  chestx_det10,
  chexpert,
  folder,
  nih14,
  object_cxr,
  openi,
  padchest,
  padchest_gr,
  physionet,
  rsna,
  siim,
  vindr,
)
from fakes.images import batch, by_id, converted
from input_pipeline.example import UnreadableError, check
from input_pipeline.readers import mimic_cxr
from input_pipeline.readers.by_name import READERS, default_options, open_reader
from input_pipeline.readers.raw import folders
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.source import check_patients

PHANTOM = {"train_images": 4, "validation_images": 2, "test_images": 2, "size_px": 64}
IMAGE_SUFFIXES = (".png", ".jpg", ".dcm", ".dicom")


@dataclasses.dataclass(frozen=True)
class Fake:
  """A fake data set.

  Attributes:
    write: writes it to a folder.
    needed: pattern of the files without which nothing can be listed.
    options: the reader's options that take one of several names.
  """

  write: Callable[[Path], object]
  needed: str
  options: tuple[str, ...] = ()


def download(path):
  physionet.write(path, patients=8, size_px=64)


FAKES: Mapping[str, Fake] = {
  "chestx_det10": Fake(chestx_det10.write, "train.json"),
  "chexpert": Fake(chexpert.write, "*/*.csv", ("views",)),
  "folder": Fake(folder.write, "manifest.csv"),
  "mimic_cxr": Fake(download, "mimic-cxr-jpg/*/*-split.csv.gz", ("views", "labels", "ms_cxr")),
  "ms_cxr": Fake(download, "ms-cxr/*/*", ("boxes",)),
  "nih14": Fake(nih14.write, "test_list.txt"),
  "object_cxr": Fake(object_cxr.write, "dev.csv"),
  "openi": Fake(openi.write, "ecgen-radiology", ("views", "labels")),
  "padchest": Fake(padchest.write, "PADCHEST_*.csv", ("labels",)),
  "padchest_gr": Fake(padchest_gr.write, "master_table.csv", ("language",)),
  "rsna": Fake(rsna.write, "stage_2_train_labels.csv"),
  "siim": Fake(siim.write, "train-rle.csv"),
  "vindr": Fake(vindr.write, "annotations/annotations_test.csv", ("fusion",)),
}


@pytest.fixture(scope="module", params=FAKES)
def written(request, tmp_path_factory):
  """Name and folder of a data set that tests only read."""
  root = tmp_path_factory.mktemp(request.param)
  FAKES[request.param].write(root)
  return request.param, root


@pytest.fixture
def own(written, tmp_path):
  """Name and folder of a copy that a test may spoil."""
  folders.file_names.cache_clear()
  shutil.copytree(written[1], tmp_path / "raw", symlinks=True)
  return written[0], tmp_path / "raw"


def image_file(root, source, item):
  """Finds an item's image: the file whose damage makes the item unreadable."""
  for path in sorted(root.rglob("*")):
    if path.suffix in IMAGE_SUFFIXES and path.is_file():
      data = path.read_bytes()
      path.write_bytes(b"no image")
      try:
        source.read(item)
      except UnreadableError:
        return path
      path.write_bytes(data)
  raise AssertionError(f"no file of {item.key}")


def test_every_reader_has_a_fake():
  assert set(FAKES) == set(READERS) - {"phantom"}


def test_listing_and_examples_agree(written):
  name, root = written
  source = open_reader(name, str(root), {})
  assert source.name == name
  assert source.left_out == ()
  assert source.items == open_reader(name, str(root), {}).items
  check_patients(source.items)
  assert len({item.key for item in source.items}) == len(source.items) > 1
  read = pickle.loads(pickle.dumps(source.read))  # readers go to other processes
  image_ids = set()
  for item in source.items:
    example = read(pickle.loads(pickle.dumps(item)))
    check(example)
    assert example.image_id not in image_ids
    image_ids.add(example.image_id)
    assert example.image_id == item.image_id
    assert example.patient_id == item.patient_id
    assert item.view in ("", example.view)
    assert example.labels == dict(item.labels)


def test_from_files_to_a_batch(written, tmp_path):
  name, root = written
  summary, examples = converted(name, root, tmp_path / "out")
  assert summary["skipped"] == 0
  source = open_reader(name, str(root), {})
  assert set(by_id(examples)) == {item.image_id for item in source.items}
  for split, members in examples.items():
    expected = {item.image_id for item in source.items if item.split == split}
    assert {example.image_id for example in members} == expected
  first = list(by_id(examples).values())[:2]
  assert batch(first, tmp_path / "tokenizer")["image"].shape == (2, 64, 64, 1)


def test_unreadable_images_are_counted_and_listed(own, tmp_path):
  name, root = own
  source = open_reader(name, str(root), {})
  item = source.items[0]
  path = image_file(root, source, item)
  summary, examples = converted(name, root, tmp_path / "out", max_skipped_fraction=0.9)
  assert summary["skipped"] == 1
  assert len(by_id(examples)) == len(source.items) - 1
  assert item.key in (tmp_path / "out" / "skipped.jsonl").read_text()
  path.unlink()
  with pytest.raises(UnreadableError, match=r"(?i)no such file") as error:
    source.read(item)
  assert path.name in str(error.value)


def test_links_that_lead_out_are_not_followed(own, tmp_path):
  name, root = own
  source = open_reader(name, str(root), {})
  path = image_file(root, source, source.items[0])
  path.unlink()
  (tmp_path / "elsewhere").write_bytes(b"secret")
  path.symlink_to(tmp_path / "elsewhere")
  with pytest.raises(UnreadableError, match="leads out of the source folder"):
    source.read(source.items[0])


def put_pipe(path):
  os.mkfifo(path)


def put_device(path):
  path.symlink_to("/dev/zero")


def put_folder(path):
  path.mkdir()


@pytest.fixture
def bounded():
  """Ends a test that hangs, or takes a gigabyte more."""

  def stop(*_):
    pytest.fail("it waits for a file that gives no end")

  before, limits = signal.signal(signal.SIGALRM, stop), resource.getrlimit(resource.RLIMIT_AS)
  pages = int(Path("/proc/self/statm").read_text().split()[0])
  resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, limits[1]))
  signal.alarm(60)
  yield
  signal.alarm(0)
  resource.setrlimit(resource.RLIMIT_AS, limits)
  signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("put", [put_pipe, put_device, put_folder])
def test_only_regular_files_are_opened(own, put, bounded):
  name, root = own
  whole = len(open_reader(name, str(root), {}).items)
  for path in sorted(path for path in root.rglob("*") if path.is_file()):
    data = path.read_bytes()
    path.unlink()
    put(path)
    folders.file_names.cache_clear()
    mimic_cxr._archive.cache_clear()
    try:
      source = open_reader(name, str(root), {})
    except SourceError as error:
      assert str(root) in str(error)
    else:
      unreadable = 0
      for item in source.items:
        try:
          source.read(item)
        except UnreadableError:
          unreadable += 1
      # Optional tables may be missed with a note.
      assert unreadable or source.left_out or len(source.items) < whole or source.notes, path
    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    path.write_bytes(data)


BOMBS = ("[" * 100_000, '{"a":' * 100_000, '["' + r"\ud800" + '"]', f"[{'9' * 5000}]")


@pytest.mark.parametrize(
  ("name", "file"),
  [
    ("chestx_det10", "test.json"),
    ("mimic_cxr", "radgraph/*/*.json"),
    ("ms_cxr", "ms-cxr/*/*.json"),
    ("padchest_gr", "grounded_reports_*.json"),
  ],
)
def test_json_that_cannot_be_right_is_one_line(tmp_path, name, file):
  FAKES[name].write(tmp_path)
  for table in tmp_path.glob("ms-cxr/*/*.csv"):  # which would be read instead
    table.unlink()
  (path,) = tmp_path.glob(file)
  for bomb in BOMBS:
    path.write_text(bomb)
    with pytest.raises(SourceError, match=re.escape(path.name)) as error:
      open_reader(name, str(tmp_path), {})
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 1000


def test_a_missing_table_is_named(own):
  name, root = own
  for path in root.glob(FAKES[name].needed):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  with pytest.raises(SourceError, match="there is no") as error:
    open_reader(name, str(root), {})
  assert str(root) in str(error.value)


def test_a_missing_source_is_refused(written):
  name, root = written
  with pytest.raises(SourceError, match="a source is needed"):
    open_reader(name, "", {})
  with pytest.raises(SourceError, match="nowhere: there is no such folder; it should hold"):
    open_reader(name, str(root / "nowhere"), {})


def test_options_are_checked(written):
  name, root = written
  assert set(default_options(name)) == set(FAKES[name].options)
  for option in FAKES[name].options:
    with pytest.raises(SourceError, match=f"{option} is 'other'; it must be one of "):
      open_reader(name, str(root), {option: "other"})
  with pytest.raises(SourceError, match=f"colour: no option of reader '{name}'; it has"):
    open_reader(name, str(root), {"colour": "red"})


def test_the_phantom_is_drawn():
  source = open_reader("phantom", "", PHANTOM)
  check_patients(source.items)
  assert len({item.key for item in source.items}) == 8
  for item in source.items:
    example = source.read(item)
    check(example)
    assert example.patient_id == item.patient_id
  with pytest.raises(SourceError, match="leave out source"):
    open_reader("phantom", "x", PHANTOM)
  for option, value in (("train_images", -1), ("size_px", 5), ("seed", -1)):
    with pytest.raises(SourceError, match=f"{option} is {value}; it must be "):
      open_reader("phantom", "", PHANTOM | {option: value})
