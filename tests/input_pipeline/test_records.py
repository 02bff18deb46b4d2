import dataclasses
import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from fakes.records import write
from input_pipeline import digests, records, serialization, shards
from input_pipeline.example import Example, Region


def png(width, height, seed=0):
  pixels = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
  return cv2.imencode(".png", pixels)[1].tobytes()


def bare(name="a"):
  return Example(png(5, 4), 5, 4, image_id=name, study_id="s", patient_id="p")


def full(name="b"):
  return Example(
    image=png(40, 30, seed=1),
    width=40,
    height=30,
    image_id=name,
    study_id="étude",
    patient_id="患者 7",
    view="AP Supine",
    sections={"": "Vor­spann", "findings": "Erguß links.\nKein Pneu.", "impression": "Œdème."},
    sentences=("Erguß links.", "Kein Pneu.", "Œdème."),
    labels={"effusion": 1, "pneumothorax": 0, "edema": -1},
    regions=(
      Region("mask only", "lungs", np.zeros((0, 4), np.float32), png(40, 30, seed=2)),
      Region(
        "two boxes", "opacity", np.array([[0, 0.25, 4, 5], [6, 7, 40, 30]], np.float32), b"ends\0\0"
      ),
      Region("one box", "nodule", np.array([[1, 2, 3.5, 4]], np.float32)),
    ),
    text_kind="labels",
  )


def assert_same(a, b):
  for field in dataclasses.fields(Example):
    if field.compare and field.name != "regions":
      assert getattr(a, field.name) == getattr(b, field.name), field.name
      assert type(getattr(a, field.name)) is type(getattr(b, field.name)), field.name
  assert list(a.sections) == list(b.sections)
  assert len(a.regions) == len(b.regions)
  for x, y in zip(a.regions, b.regions, strict=True):
    assert (x.phrase, x.label, x.mask) == (y.phrase, y.label, y.mask)
    assert x.boxes.dtype == y.boxes.dtype == np.float32
    np.testing.assert_array_equal(x.boxes, y.boxes)
    assert x.boxes.shape == y.boxes.shape


@pytest.fixture
def toy(tmp_path):
  train = [[bare("0"), full("1"), bare("2")], [], [full("3"), bare("4")]]
  write(tmp_path, {"train": train, "test": [[full("5")]]})
  return tmp_path


@pytest.mark.parametrize("example", [bare(), full()], ids=["bare", "full"])
def test_encode_decode_round_trip(example):
  assert_same(serialization.decode(serialization.encode(example)), example)


def test_encode_refuses_an_example_that_contradicts_itself():
  outside = Region("x", "nodule", np.array([[1, 2, 6, 4]], np.float32))
  with pytest.raises(ValueError, match="outside its 5 x 4 image"):
    serialization.encode(dataclasses.replace(bare(), regions=(outside,)))


def _digest(_):
  return serialization.encode(full())


def test_encode_gives_equal_bytes_in_every_process():
  with multiprocessing.get_context("spawn").Pool(2) as pool:
    assert set(pool.map(_digest, range(4), chunksize=1)) == {serialization.encode(full())}


def test_random_access_equals_sequential_order(toy):
  source = records.RecordSource(toy, "train")
  assert len(source) == 5
  assert [example.image_id for example in source] == ["0", "1", "2", "3", "4"]
  assert [source[i].image_id for i in (4, 0, np.int64(2), -1, 3)] == ["4", "0", "2", "4", "3"]
  assert_same(source[1], full("1"))
  with pytest.raises(IndexError):
    source[5]


def test_where_selects(toy):
  for where in ("text", "regions"):
    source = records.RecordSource(toy, "train", where=where)
    assert [example.image_id for example in source] == ["1", "3"]
  with pytest.raises(ValueError, match="where is 'boxes'"):
    records.RecordSource(toy, "train", where="boxes")


def test_source_pickles_after_reading_and_serves_threads(toy):
  source = records.RecordSource(toy, "train")
  assert source[1].image_id == "1"
  copy = pickle.loads(pickle.dumps(source))
  with ThreadPoolExecutor(8) as pool:
    got = list(pool.map(lambda i: copy[i % 5].image_id, range(200)))
  assert got == [str(i % 5) for i in range(200)]


def test_source_keeps_few_files_open(tmp_path, monkeypatch):
  write(tmp_path, {"train": [[bare(str(i))] for i in range(12)]})
  monkeypatch.setattr(records, "_OPEN_FILES", 3)
  source = records.RecordSource(tmp_path, "train")
  before = len(os.listdir("/proc/self/fd"))
  for _ in range(2):
    assert [example.image_id for example in source] == [str(i) for i in range(12)]
  assert len(os.listdir("/proc/self/fd")) <= before + 4


def _offsets(shard):
  return shards.read_index(shard)["offsets"]


@pytest.mark.parametrize(
  ("where", "problem"),
  [("data", "is damaged"), ("length", "damaged length"), ("length crc", "damaged length")],
)
def test_a_flipped_byte_names_file_and_record(toy, where, problem):
  shard = toy / "toy-train.tfrecord-00000-of-00003"
  start = _offsets(shard)[1]
  data = bytearray(shard.read_bytes())
  data[start + {"data": 200, "length": 1, "length crc": 9}[where]] ^= 0x10
  shard.write_bytes(data)
  source = records.RecordSource(toy, "train")
  assert [source[i].image_id for i in (0, 2, 3, 4)] == ["0", "2", "3", "4"]
  with pytest.raises(records.RecordError, match=problem) as error:
    source[1]
  assert f"{shard}: record 1 " in str(error.value)
  assert "python -m input_pipeline.conversion` again" in str(error.value)
  assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_every_single_flipped_byte_is_noticed(tmp_path):
  (shard,) = write(tmp_path, {"train": [[bare()]]})["train"]
  source, data = records.RecordSource(tmp_path, "train"), shard.read_bytes()
  for i in range(len(data)):
    with open(shard, "r+b") as file:
      file.write(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
    with pytest.raises(records.RecordError, match="record 0"):
      source[0]


def test_a_truncated_shard_names_file_and_record(toy):
  shard = toy / "toy-train.tfrecord-00002-of-00003"
  shard.write_bytes(shard.read_bytes()[:-3])
  source = records.RecordSource(toy, "train")
  assert source[3].image_id == "3"
  with pytest.raises(records.RecordError, match=r"00002-of-00003: record 1 is cut short"):
    source[4]


def test_an_intact_record_of_another_kind_is_an_error(toy):
  shard = toy / "toy-test.tfrecord-00000-of-00001"
  payload = b"no example"
  frame = shards.frame(payload)
  shard.write_bytes(frame)
  index = shards.read_index(shard) | {"offsets": [0, len(frame)]}
  shards.index_path(shard).write_text(digests.seal(index))
  with pytest.raises(records.RecordError, match="record 0 is intact but no record"):
    records.RecordSource(toy, "test")[0]


def test_frames_are_those_of_tensorflow():
  # Written by tf.io.TFRecordWriter of TensorFlow 2.21 for the record b"hello".
  written = bytes.fromhex("0500000000000000eab2043e68656c6c6fbb1f1c19")
  assert shards.frame(b"hello") == written
  assert shards.unframe(written, len(written)) == b"hello"


def test_missing_and_incomplete_folders(tmp_path):
  with pytest.raises(records.RecordError, match=r"nowhere: there is no such folder; run `python"):
    records.splits(tmp_path / "nowhere")
  with pytest.raises(records.RecordError, match="no records"):
    records.splits(tmp_path)
  (tmp_path / "convert.json").write_text("{}")
  with pytest.raises(records.RecordError, match="conversion has not finished; run"):
    records.splits(tmp_path)


def test_missing_split_shard_and_index(toy):
  with pytest.raises(records.RecordError, match="no split 'validation'; it has train, test"):
    records.RecordSource(toy, "validation")
  index = shards.index_path(toy / "toy-train.tfrecord-00002-of-00003")
  index.write_text(index.read_text()[:-9])
  with pytest.raises(records.RecordError, match=r"00002-of-00003\.index\.json: the index"):
    records.RecordSource(toy, "train")
  (toy / "toy-train.tfrecord-00001-of-00003").unlink()
  with pytest.raises(records.RecordError, match="1 shards of split 'train' are missing, first toy"):
    records.splits(toy)


def test_an_index_that_disagrees_with_the_metadata_is_an_error(toy):
  shard = toy / "toy-test.tfrecord-00000-of-00001"
  with shards.ShardWriter(shard) as writer:
    writer.write(bare("x"))
    writer.write(bare("y"))
  with pytest.raises(records.RecordError, match=r"lists 2 records, dataset_info\.json 1"):
    records.RecordSource(toy, "test")


def test_a_shard_is_seen_whole_or_not_at_all(tmp_path):
  path = tmp_path / shards.shard_name("toy", "train", 0, 1)
  with pytest.raises(RuntimeError), shards.ShardWriter(path) as writer:  # noqa: PT012
    writer.write(bare())
    (temporary,) = tmp_path.iterdir()
    assert temporary.name.startswith(f"{path.name}.tmp-")
    raise RuntimeError
  assert not list(tmp_path.iterdir())


def test_the_index_takes_its_name_before_the_shard(tmp_path, monkeypatch):
  renamed = []
  replace = os.replace
  monkeypatch.setattr(os, "replace", lambda a, b: (renamed.append(str(b)), replace(a, b)))
  path = tmp_path / shards.shard_name("toy", "train", 0, 1)
  with shards.ShardWriter(path) as writer:
    writer.write(bare())
  assert renamed == [f"{path}.index.json", str(path)]


def test_fingerprint_follows_the_records(tmp_path):
  for name in ("a", "b", "c"):
    (tmp_path / name).mkdir()
    write(tmp_path / name, {"train": [[bare("x"), full("z" if name == "c" else "y")]]})
  a, b, c = (records.fingerprint(tmp_path / name) for name in "abc")
  assert a == b != c
  assert len(a) == 16


def test_tfds_describes_the_folder_without_tensorflow(toy):
  builder = tfds.builder_from_directory(toy)
  assert builder.name == "toy"
  assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
    "train": 5,
    "test": 1,
  }
  assert builder.info.splits["train"].shard_lengths == [3, 0, 2]
  assert set(builder.info.features) == set(serialization.features())
  payload = serialization.encode(full())
  skip = {"image": tfds.decode.SkipDecoding()}
  got = builder.info.features.deserialize_example_np(payload, decoders=skip)
  assert got["patient_id"].decode() == full().patient_id
  assert records.splits(toy) == {"train": 5, "test": 1}


def test_tensorflow_reads_the_same(toy):
  pytest.importorskip("tensorflow")
  builder = tfds.builder_from_directory(toy)
  read = list(builder.as_dataset(split="train").as_numpy_iterator())
  source = records.RecordSource(toy, "train")
  assert len(read) == len(source)
  by_id = {read_back["image_id"].decode(): read_back for read_back in read}
  for example in source:
    read_back = by_id[example.image_id]
    pixels = cv2.imdecode(np.frombuffer(example.image, np.uint8), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(read_back["image"][:, :, 0], pixels)
    assert (read_back["width"], read_back["height"]) == (example.width, example.height)
    assert read_back["patient_id"].decode() == example.patient_id
    assert read_back["view"].decode() == example.view
    assert read_back["text_kind"].decode() == example.text_kind
    assert [s.decode() for s in read_back["sentences"]] == list(example.sentences)
    assert [s.decode() for s in read_back["section_names"]] == list(example.sections)
    assert [s.decode() for s in read_back["section_texts"]] == list(example.sections.values())
    names = [s.decode() for s in read_back["label_names"]]
    assert dict(zip(names, read_back["label_values"].tolist(), strict=True)) == example.labels
    assert [s.decode() for s in read_back["region_labels"]] == [r.label for r in example.regions]
    assert list(read_back["region_masks"]) == [r.mask for r in example.regions]
    boxes = [r.boxes for r in example.regions]
    np.testing.assert_array_equal(
      read_back["boxes"], np.concatenate(boxes) if boxes else np.zeros((0, 4))
    )
    np.testing.assert_array_equal(
      read_back["box_region"], [i for i, b in enumerate(boxes) for _ in b]
    )
