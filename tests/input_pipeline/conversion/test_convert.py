import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import tensorflow_datasets as tfds

from fakes.disk import full_disk
from fakes.images import image, manifest
from fakes.records import SMALL, content, image_folder
from input_pipeline import records, shards
from input_pipeline.conversion import __main__ as command
from input_pipeline.conversion.command import run
from input_pipeline.conversion.convert import ConvertError, convert
from input_pipeline.conversion.workers import WorkerError
from input_pipeline.digests import DamagedError
from input_pipeline.disk import DiskError
from input_pipeline.locks import LockedError, lock
from input_pipeline.phantom import radiograph
from input_pipeline.readers.by_name import READERS
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.source import Item, Source
from paths import REAL, ROOT

COMMAND = [sys.executable, "-m", "input_pipeline.conversion"]


def small(out, **changes):
  options = SMALL | {"shard_size": 6, "workers": 1, "progress": False} | changes
  return convert("phantom", out, **options)


@pytest.fixture
def raw(tmp_path):
  (tmp_path / "raw").mkdir()
  return tmp_path / "raw"


def test_phantom_arrives_as_it_was_drawn(tmp_path):
  summary = small(tmp_path / "out")
  assert summary["images"] == {"train": 20, "validation": 6} == records.splits(tmp_path / "out")
  assert summary["skipped"] == 0
  assert any("5 rounded up to 6" in note for note in summary["notes"])
  source = records.RecordSource(tmp_path / "out", "validation")
  for i, example in enumerate(source):
    expected = radiograph.example(0, 20 + i, 64)
    assert example.image == expected.image
    assert (example.image_id, example.sentences) == (expected.image_id, expected.sentences)
  builder = tfds.builder_from_directory(tmp_path / "out")
  assert builder.info.splits["train"].shard_lengths == [6, 6, 6, 2]


def test_phantom_reports_are_wrong_in_training_alone(tmp_path):
  small(tmp_path / "true")
  small(tmp_path / "wrong", wrong_sentence_fraction=1.0)

  def texts(name, split):
    return [example.sentences for example in records.RecordSource(tmp_path / name, split)]

  assert texts("true", "validation") == texts("wrong", "validation")
  assert sum(a != b for a, b in zip(texts("true", "train"), texts("wrong", "train"))) > 10  # noqa: B905


@pytest.mark.parametrize(
  ("options", "problem"),
  [
    ({"train_images": -1}, "train_images is -1"),
    ({"size_px": 8}, "size_px is 8; it must be 64 to 512"),
    ({"swapped_side_fraction": 1.5}, "swapped_side_fraction is 1.5"),
    ({"seed": -1}, "seed is -1"),
    ({"source": "x"}, "leave out source"),
  ],
)
def test_phantom_options_out_of_range(tmp_path, options, problem):
  with pytest.raises(SourceError, match=problem):
    small(tmp_path / "out", **options)
  assert not (tmp_path / "out").exists()


def test_same_bytes_whatever_the_worker_count(tmp_path):
  one, two = (small(tmp_path / str(n), workers=n) for n in (1, 2))
  assert content(tmp_path / "1") == content(tmp_path / "2")
  assert one["fingerprint"] == two["fingerprint"]
  assert small(tmp_path / "3", seed=1)["fingerprint"] != one["fingerprint"]


def _children(pid):
  return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _is_alive(pid):
  try:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
  except (FileNotFoundError, ProcessLookupError):
    return False


def test_a_killed_conversion_goes_on_and_gives_the_same_bytes(tmp_path):
  out, options = tmp_path / "out", {"train_images": 300, "validation_images": 6, "test_images": 0}
  flags = [f"--{name}={value}" for name, value in options.items()]
  flags += ["--dataset=phantom", f"--out={out}", "--size_px=64", "--shard_size=6", "--workers=2"]
  process = subprocess.Popen([*COMMAND, *flags], cwd=ROOT, stderr=subprocess.DEVNULL)
  deadline = time.monotonic() + 60
  while len(list(out.glob("*-of-?????"))) < 4:
    assert process.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.01)
  workers = _children(process.pid)
  process.send_signal(signal.SIGKILL)
  process.wait()
  while any(_is_alive(pid) for pid in workers):  # no worker outlives its parent
    assert time.monotonic() < deadline
    time.sleep(0.02)

  with pytest.raises(records.RecordError, match="conversion has not finished; run"):
    records.splits(out)
  finished = {path: path.stat().st_mtime_ns for path in out.glob("*-of-?????")}
  assert 4 <= len(finished) < 51
  for path in finished:
    assert google_crc32c.value(path.read_bytes()) == shards.read_index(path)["crc"]
  (out / "phantom-train.tfrecord-00049-of-00050.tmp-77").write_bytes(b"half")

  options |= {"size_px": 64, "shard_size": 6, "workers": 1, "progress": False}
  assert convert("phantom", out, **options)["images"] == {"train": 300, "validation": 6}
  assert {path: path.stat().st_mtime_ns for path in finished} == finished
  convert("phantom", tmp_path / "whole", **options)
  assert content(out) == content(tmp_path / "whole")


def test_interrupt_ends_with_one_line(tmp_path):
  flags = ["--dataset=phantom", f"--out={tmp_path / 'out'}", "--workers=2", "--shard_size=4"]
  process = subprocess.Popen(
    [*COMMAND, *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
  )
  deadline = time.monotonic() + 60
  while not list(tmp_path.glob("out/*-of-?????")):
    assert process.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.01)
  os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 1
  assert errors.rstrip().endswith("stopped; the same command goes on from here")
  assert "Traceback" not in errors
  assert not list(tmp_path.glob("out/*.tmp-*"))


def test_a_complete_folder_is_left_alone(tmp_path):
  first = small(tmp_path / "out")
  before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
  again = small(tmp_path / "out", workers=2)
  assert (first["already"], again["already"]) == (False, True)
  assert again["fingerprint"] == first["fingerprint"]
  assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_other_arguments_name_the_key(tmp_path):
  small(tmp_path / "out")
  with pytest.raises(ConvertError, match="begun with seed=0, not 1; give the same arguments"):
    small(tmp_path / "out", seed=1)
  with pytest.raises(ConvertError, match="begun with shard_size=6, not 7"):
    small(tmp_path / "out", shard_size=7)


def test_a_shard_that_was_deleted_is_written_again(tmp_path):
  small(tmp_path / "out")
  before = content(tmp_path / "out")
  (tmp_path / "out" / "phantom-train.tfrecord-00001-of-00004").unlink()
  assert not small(tmp_path / "out")["already"]
  assert content(tmp_path / "out") == before


def test_a_foreign_folder_and_a_second_conversion_are_refused(tmp_path):
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "thesis.txt").write_text("x")
  with pytest.raises(ConvertError, match="holds other files"):
    small(tmp_path / "mine")
  with pytest.raises(ConvertError, match="is a file"):
    small(tmp_path / "mine" / "thesis.txt")
  (tmp_path / "out").mkdir()
  with (
    lock(tmp_path / "out"),
    pytest.raises(LockedError, match=rf"out is in use by process {os.getpid()} on "),
  ):
    small(tmp_path / "out")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_the_same_arguments_go_on(tmp_path, workers):
  small(tmp_path / "wanted")
  out, message = tmp_path / "out", r"out/phantom-\w+\.tfrecord-\d+-of-\d+: File too large; raise"
  with full_disk(8_000), pytest.raises(DiskError, match=message):
    small(out, workers=workers)
  assert not [path.name for path in out.iterdir() if "tmp" in path.name or path.name[0] == "."]
  assert not (out / "dataset_info.json").exists()
  small(out, workers=workers)
  assert content(out) == content(tmp_path / "wanted")


def test_a_full_disk_at_the_end_of_a_conversion(tmp_path):
  small(tmp_path / "out")
  before = content(tmp_path / "out")
  (tmp_path / "out" / "dataset_info.json").unlink()
  with full_disk(1_500), pytest.raises(DiskError, match="File too large"):
    small(tmp_path / "out")
  assert not [path.name for path in (tmp_path / "out").iterdir() if path.name[0] == "."]
  assert not records.is_complete(tmp_path / "out")
  small(tmp_path / "out")
  assert content(tmp_path / "out") == before


@pytest.mark.parametrize(
  ("arguments", "problem"),
  [
    ({"dataset": "mimik"}, "no data set 'mimik'; known are .*folder, mimic_cxr"),
    ({"image_format": "gif"}, "image_format is 'gif', not one of keep, jpeg, png"),
    ({"image_px": 0}, "image_px is 0"),
    ({"shard_size": 0}, "shard_size is 0"),
    ({"max_skipped_fraction": 2}, "max_skipped_fraction is 2"),
    ({"max_decoded_px": 0}, "max_decoded_px is 0"),
    ({"image_px": "x"}, "image_px is 'x' of type str; it must be int"),
    ({"image_px": True}, "image_px is True of type bool; it must be int"),
    ({"max_decoded_px": "x"}, "max_decoded_px is 'x' of type str"),
    ({"shard_size": "x"}, "shard_size is 'x' of type str"),
    ({"limit": 1.5}, r"limit is 1.5 of type float; it must be int \| None"),
    ({"workers": "x"}, "workers is 'x' of type str"),
    ({"workers": -1}, "workers is -1; it must be 0 or more"),
    ({"max_skipped_fraction": "x"}, "max_skipped_fraction is 'x' of type str"),
    ({"source": None}, r"source is None of type NoneType; it must be str \| os.PathLike"),
    ({"source": 5}, "source is 5 of type int"),
    ({"selection": None}, "selection is None of type NoneType; it must be str"),
    ({"dataset": []}, r"dataset is \[\] of type list; it must be str"),
    ({"seed": "x"}, "seed is 'x' of type str; it must be int"),
    ({"small_only": 1}, "small_only is 1 of type int; it must be bool"),
    ({"wrong_sentence_fraction": "x"}, "wrong_sentence_fraction is 'x' of type str; it must be"),
    ({"images": 3}, "images: no option of reader 'phantom'; it has train_images"),
    ({"train_images": 0, "validation_images": 0, "test_images": 0}, "no image to convert"),
  ],
)
def test_wrong_arguments(tmp_path, arguments, problem):
  arguments = {"dataset": "phantom", "out": tmp_path / "out"} | arguments
  with pytest.raises(ConvertError, match=problem):
    convert(**arguments)
  assert not (tmp_path / "out").exists()


def test_wrong_arguments_of_a_complete_folder(tmp_path):
  small(tmp_path / "out")
  for arguments in ({"workers": -1}, {"workers": "x"}, {"limit": 1.5}):
    with pytest.raises(ConvertError, match=f"{min(arguments)} is "):
      small(tmp_path / "out", **arguments)
  with pytest.raises(ConvertError, match="out is None of type NoneType"):
    small(None)


def test_unreadable_images_are_skipped_counted_and_listed(tmp_path, raw):
  source = image_folder(raw, broken=(3,))
  (raw / "7.jpg").unlink()
  options = {"source": source, "max_skipped_fraction": 0.2, "shard_size": 5}
  summary = convert("folder", tmp_path / "out", workers=2, progress=False, **options)
  assert (summary["skipped"], summary["images"]) == (2, {"train": 10})
  lines = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
  first, second = map(json.loads, lines)
  assert first["path"] == "3.jpg (manifest.csv row 5)"
  assert "truncated" in first["reason"]
  assert second["path"] == "7.jpg (manifest.csv row 9)"
  assert "no such file" in second["reason"]
  kept = [example.image_id for example in records.RecordSource(tmp_path / "out", "train")]
  assert kept == [str(i) for i in range(12) if i not in (3, 7)]
  info = tfds.builder_from_directory(tmp_path / "out").info
  assert info.splits["train"].shard_lengths == [4, 4, 2]


def test_names_that_no_file_can_have_are_skipped_and_cannot_forge_lines(tmp_path, raw, capsys):
  image_folder(raw)
  names = ["a\0.png", "x\ncomplete: \x1b[2K\r.png", "a\u2028\x85b.png", "../secret.png"]
  names = [f"{i}.jpg" for i in range(12)] + names
  rows = [{"image": name, "text": "", "split": "train", "\x1b[2Jnote\n": ""} for name in names]
  manifest(raw, rows)
  options = {"dataset": "folder", "source": str(raw), "workers": 1, "progress": False}
  run(out=tmp_path / "out", max_skipped_fraction=0.3, **options)
  printed = capsys.readouterr().out
  assert "skipped 4 images" in printed and r"left aside: \x1b[2Jnote" in printed
  assert all(line.isprintable() for line in printed.splitlines())
  lines = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
  assert [json.loads(line)["path"].rpartition(" (")[0] for line in lines] == [
    r"a\x00.png",
    r"x\ncomplete: \x1b[2K\r.png",
    r"a\u2028\x85b.png",
    "../secret.png",
  ]
  with pytest.raises(SystemExit) as error:
    run(out=tmp_path / "few", **options)
  message = str(error.value)
  assert message.startswith("error: 4 of 16 images cannot be read so far") and message.isprintable()


def test_too_many_unreadable_images_are_an_error_and_repairs_go_in(tmp_path, raw):
  source, out = image_folder(raw, broken=(3, 4)), tmp_path / "out"
  options = {"source": source, "shard_size": 3, "workers": 1, "progress": False}
  with pytest.raises(
    ConvertError, match=r"2 of 12 images cannot be read.*max_skipped_fraction=0\.1"
  ):
    convert("folder", out, max_skipped_fraction=0.1, **options)
  assert len((out / "skipped.jsonl").read_text().splitlines()) == 2
  assert not (out / "dataset_info.json").exists()
  image(raw / "3.jpg", 64, 48, seed=3)
  kept = (out / "folder-train.tfrecord-00000-of-00004").stat().st_mtime_ns
  summary = convert("folder", out, max_skipped_fraction=0.1, retry_skipped=True, **options)
  assert (summary["skipped"], summary["images"]) == (1, {"train": 11})
  assert (out / "folder-train.tfrecord-00000-of-00004").stat().st_mtime_ns == kept
  assert len((out / "skipped.jsonl").read_text().splitlines()) == 1
  image(raw / "4.jpg", 64, 48, seed=4)
  summary = convert("folder", out, retry_skipped=True, **options)
  assert (summary["skipped"], summary["images"]) == (0, {"train": 12})
  whole = tmp_path / "whole"
  convert("folder", whole, **options)
  assert content(out) == content(whole)


@pytest.mark.parametrize("workers", [1, 2])
def test_images_above_the_bound_are_listed_and_a_higher_bound_reads_them(tmp_path, raw, workers):
  source, out = image_folder(raw), tmp_path / "out"
  image(raw / "3.jpg", 128, 48, seed=3)
  options = {"source": source, "shard_size": 5, "max_skipped_fraction": 0.1, "progress": False}
  summary = convert("folder", out, workers=workers, max_decoded_px=64 * 48, **options)
  assert (summary["skipped"], summary["images"]) == (1, {"train": 11})
  (line,) = (out / "skipped.jsonl").read_text().splitlines()
  assert "128 x 48, 6144 pixels; max_decoded_px=3072" in json.loads(line)["reason"]
  summary = convert("folder", out, workers=workers, retry_skipped=True, **options)
  assert (summary["skipped"], summary["images"]) == (0, {"train": 12})
  convert("folder", tmp_path / "whole", workers=1, **options)
  assert content(out) == content(tmp_path / "whole")


def test_another_bound_on_pixels_is_told_and_mixes_nothing(tmp_path, raw):
  source, out = image_folder(raw), tmp_path / "out"
  image(raw / "3.jpg", 128, 48, seed=3)
  options = {"source": source, "shard_size": 5, "max_skipped_fraction": 0.1, "workers": 1}
  low, high = {"max_decoded_px": 64 * 48}, {"max_decoded_px": 200 * 48}

  def go(**changes):
    return convert("folder", out, progress=False, **options, **changes)

  assert go(**low)["skipped"] == 1
  with pytest.raises(ConvertError, match=r"with max_decoded_px=3072, not 9600.*--retry_skipped"):
    go(**high)
  (out / "dataset_info.json").unlink()
  with pytest.raises(ConvertError, match="with max_decoded_px=3072, not 9600"):
    go(**high)
  assert go(**high, retry_skipped=True)["skipped"] == 0
  for retry in (False, True):
    with pytest.raises(ConvertError, match=r"with max_decoded_px=9600, not 3072.*a new folder$"):
      go(**low, retry_skipped=retry)


@pytest.mark.parametrize(
  ("damage", "line"),
  [
    (lambda _: b"\xff\n", ", line 1: not as the converter writes it .*; give it back"),
    (lambda whole: whole[:-2], ", line 2: not as the converter writes it"),
    (lambda whole: whole.replace(b"\n", b"\x0b"), ", line 1: not as the converter writes it"),
    (lambda whole: whole + b"[1]\n", ", line 3: not as the converter writes it"),
    (lambda whole: whole + b"[" * 100_000, ", line 3: not as the converter writes it"),
    (lambda _: None, " is missing; .*run the conversion again with --retry_skipped"),
  ],
)
def test_a_damaged_list_of_the_skipped_is_one_line(tmp_path, raw, damage, line):
  options = {"source": image_folder(raw, broken=(3, 4)), "max_skipped_fraction": 0.2, "workers": 1}
  out, options = tmp_path / "out", options | {"progress": False}
  convert("folder", out, **options)
  path = out / "skipped.jsonl"
  whole = path.read_bytes()
  if (content := damage(whole)) is None:
    path.unlink()
  else:
    path.write_bytes(content)
  with pytest.raises(DamagedError) as error:
    convert("folder", out, **options)
  message = error.value.args[0]
  assert re.match(re.escape(str(path)) + line, message) and "\n" not in message
  assert convert("folder", out, retry_skipped=True, **options)["skipped"] == 2
  assert path.read_bytes() == whole
  assert convert("folder", out, **options)["skipped"] == 2


def test_a_split_of_which_nothing_is_left_is_an_error(tmp_path, raw):
  source = image_folder(raw, broken=range(3), count=3)
  with pytest.raises(ConvertError, match="no image of split 'train' can be read"):
    convert("folder", tmp_path / "out", source=source, max_skipped_fraction=1, progress=False)


def test_a_box_outside_its_image_stops_the_conversion_and_the_cure_goes_on(tmp_path, raw):
  source, out = image_folder(raw), tmp_path / "out"
  rows = [{"image": f"{i}.jpg", "text": "", "split": "train", "boxes": ""} for i in range(12)]
  rows[8]["boxes"] = '[{"label": "nodule", "x": 60, "y": 4, "w": 9, "h": 4}]'
  manifest(raw, rows)
  options = {"source": source, "shard_size": 4, "workers": 2, "progress": False}
  with pytest.raises(SourceError, match=r"row 10 \(8\.jpg\), column 'boxes'.*outside its 64 x 48"):
    convert("folder", out, **options)
  with pytest.raises(records.RecordError, match="has not finished"):
    records.splits(out)
  assert not list(out.glob("*.tmp-*"))
  first = out / "folder-train.tfrecord-00000-of-00003"
  kept = first.stat().st_mtime_ns
  rows[8]["boxes"] = rows[8]["boxes"].replace("60", "50")
  manifest(raw, rows)
  assert convert("folder", out, **options)["images"] == {"train": 12}
  assert first.stat().st_mtime_ns == kept
  (example,) = records.RecordSource(out, "train", where="regions")
  np.testing.assert_array_equal(example.regions[0].boxes, [[50, 4, 59, 8]])


def test_a_source_that_changed_leaves_no_old_shards(tmp_path, raw):
  source, out = image_folder(raw, count=6), tmp_path / "out"
  options = {"source": source, "shard_size": 2, "workers": 1, "progress": False}
  convert("folder", out, **options)
  rows = [{"image": f"{i}.jpg", "text": "Normal.", "split": "train"} for i in range(6)]
  rows[2]["text"] = "Abnorm."  # as long as before
  manifest(raw, rows)
  (out / "dataset_info.json").unlink()
  convert("folder", out, **options)
  assert records.RecordSource(out, "train")[2].sentences == ("Abnorm.",)
  image_folder(raw, count=7)
  (out / "dataset_info.json").unlink()
  assert convert("folder", out, **options)["images"] == {"train": 7}
  convert("folder", tmp_path / "whole", **options)
  assert content(out) == content(tmp_path / "whole")


def test_limit_takes_the_first_of_every_split(tmp_path):
  assert small(tmp_path / "out", limit=4)["images"] == {"train": 4, "validation": 4}


def test_a_patient_in_two_splits_is_an_error(tmp_path, raw):
  image_folder(raw, count=4)
  splits = ["train", "test", "train", "train"]
  manifest(
    raw,
    [
      {"image": f"{i}.jpg", "text": "", "split": split, "patient_id": f"p{i % 2}"}
      for i, split in enumerate(splits)
    ],
  )
  message = (
    r"1 patients sit in two splits.*'p1': test by 1\.jpg \(manifest\.csv row 3\), train by 3"
  )
  with pytest.raises(SourceError, match=message):
    convert("folder", tmp_path / "out", source=str(raw), progress=False)
  assert not (tmp_path / "out").exists()


def test_a_runner_may_call_the_job_twice_and_elsewhere(tmp_path):
  """As clusters do that lose a worker: a shard that is finished stays."""
  names = []

  def runner(job, pending):
    for shard in reversed(pending):
      first = job(shard)
      written = shard.path.stat().st_mtime_ns
      assert pickle.loads(pickle.dumps(job))(pickle.loads(pickle.dumps(shard))) == first
      assert shard.path.stat().st_mtime_ns == written
      names.append(shard.path.name)
      yield first

  small(tmp_path / "out", runner=runner)
  assert len(names) == 5
  small(tmp_path / "local")
  assert content(tmp_path / "out") == content(tmp_path / "local")


def _die(item):
  os._exit(9)


def test_a_worker_that_dies_is_an_error(tmp_path, monkeypatch):
  items = [Item(str(i), "train", str(i), i) for i in range(8)]
  monkeypatch.setitem(READERS, "phantom", lambda source="": Source("phantom", items, _die))
  with pytest.raises(WorkerError, match="a worker process died.*with fewer workers"):
    convert("phantom", tmp_path / "out", shard_size=2, workers=2, progress=False)


def test_command_line(tmp_path, raw):
  flags = [
    "--dataset=folder",
    f"--source={image_folder(raw, broken=(1,))}",
    f"--out={tmp_path / 'out'}",
  ]
  flags += ["--max_skipped_fraction=0.1", "--shard_size=4", "--workers=2"]
  line = [sys.executable, "-W", "error", *COMMAND[1:], *flags]
  done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert "train 11" in done.stdout
  assert "skipped 1 images, listed in" in done.stdout
  assert "12/12" in done.stderr


def test_command_line_tells_its_options_and_errors(tmp_path, monkeypatch, capsys):
  def run(*flags):
    monkeypatch.setattr(sys, "argv", ["convert", *flags])
    with pytest.raises(SystemExit) as ended:
      command.main()
    return ended.value.code

  assert run("--help") == 0
  text = capsys.readouterr().out
  assert "options of --dataset=phantom" in text and "--train_images" in text
  error = run("--dataset=folder", "--source=nowhere", f"--out={tmp_path / 'new'}")
  assert error.startswith("error: nowhere: there is no such folder; it should hold manifest.csv")


@pytest.mark.skipif(not REAL.is_dir(), reason="the real images are not here")
def test_real_images_convert_whole(tmp_path):
  summary = convert("folder", tmp_path, source=str(REAL), workers=1, progress=False)
  assert (summary["images"], summary["skipped"]) == ({"train": 1117, "validation": 221}, 0)
  source = records.RecordSource(tmp_path, "train")
  example = source[0]
  assert example.image == (REAL / "images" / f"{example.image_id}.jpg").read_bytes()
  assert len(records.RecordSource(tmp_path, "train", where="regions")) == 212
