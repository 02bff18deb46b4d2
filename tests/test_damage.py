"""One byte of any file that is read back: one line, and never another value."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from damage import for_each_damage
from input_pipeline import digests, features, records
from input_pipeline.conversion import convert
from plan_jax import compare
from plan_jax.inference.load import load_tokenizer
from plan_jax.metrics.detection import Image
from plan_jax.results import boxes, example_scores, model_card, rows
from plan_jax.results.example_scores import ExampleScores, example_id
from plan_jax.results.rows import Evaluation, Row
from plan_jax.runtime.checkpoints import Checkpoints
from plan_jax.runtime.logging import Scalars, curves
from plan_jax.runtime.workdir import Workdir
from plan_jax.training.assembly import assemble
from tiny_runs import untrained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run with all files that a run may have, and the shapes of its state."""
  path = tmp_path_factory.mktemp("damage")
  config, workdir = untrained(path, **{"data.records": str(path / "records")}), Workdir(path / "a")
  shapes = assemble(config, load_tokenizer(workdir)).abstract_state
  checkpoints = Checkpoints(workdir.checkpoints, best_metric="score")
  state = checkpoints.restore(shapes)
  checkpoints.save(1, state.replace(step=state.step + 1), {"score": 0.5})
  checkpoints.close()
  fingerprint = records.fingerprint(path / "records")
  (workdir.records_note).write_text(digests.seal({"fingerprint": fingerprint}))
  for shards in records.shard_lengths(path / "records").values():
    for shard, count in shards:
      features.write(path / "features", shard, np.ones((count, 1, 4, 3), np.float16), "a")
  workdir.weights.write_text(digests.seal({"text_encoder": {"source": "x", "sha256": "ab"}}))
  row = Row("grounding", "v1", "phantom/test", "all", "mIoU", "run", 0.4, 0.3, 0.5, 2)
  rows.write(workdir.evaluation, Evaluation(1, [row], {"phantom/test": fingerprint}))
  scores = ExampleScores(
    [example_id("a"), example_id("b")], ["all"] * 2, ["p", "q"], ("mIoU",), np.ones((2, 1))
  )
  example_scores.write(workdir.example_scores_of("grounding"), scores)
  example_scores.write(workdir.example_scores_of("grounding", "attached"), scores)
  box, one = np.array([[1, 2, 3, 4]], np.float32), np.zeros(1, np.int32)
  image = Image("a", "p", 9, 9, box, one, box, np.ones(1, np.float32), one)
  boxes.write(workdir.example_scores / "detection.npz", [image], ["mass"])
  digests.write_sums(workdir.example_scores)
  return workdir, config, shapes


def restore(workdir, config, shapes):
  checkpoints = Checkpoints(workdir.checkpoints, best_metric="score", create=False)
  try:
    return checkpoints.restore(shapes, 1)
  finally:
    checkpoints.close()


def read_records(workdir, config, shapes):
  for split in records.splits(config.data.records):
    source = records.RecordSource(config.data.records, split)
    assert [source[i].image_id for i in range(len(source))]


def read_features(workdir, config, shapes):
  folder = workdir.path.parent / "features"
  for split in records.splits(config.data.records):
    source = records.RecordSource(config.data.records, split, features=folder)
    assert all((source[i].features(0) == 1).all() for i in range(len(source)))


def started(config):
  """The config of a run whose text encoder started from weights."""
  config = ConfigDict(config.to_dict())
  config.model.text.weights = "x"
  return config


READERS = {  # files in the folder of the run and its records -> what reads them
  "a/config.json": lambda run, *_: run.load_config(),
  "a/records.json": lambda run, config, _: run.claim_records(
    config.data.records, records.fingerprint(config.data.records)
  ),
  "a/tokenizer/*": lambda run, *_: load_tokenizer(run),
  "a/weights.json": lambda run, config, _: model_card.text(run, started(config), 1, (2, 2)),
  "a/evaluation.json": lambda run, *_: rows.read(run.evaluation),
  "a/example_scores/**/*": lambda run, *_: compare.compare(run.path, run.path, resamples=2),
  "a/checkpoints/1/**/*": restore,
  "records/convert.json": lambda run, config, _: convert.convert(
    "phantom", run.path.parent / "records", progress=False, **config.data.options
  ),
  "records/*": read_records,
  "features/*": read_features,
}
UNREAD = {
  "a/checkpoints/1/_CHECKPOINT_METADATA",  # times (test_checkpoints.py has what Orbax refuses)
  "a/checkpoints/1/commit_success.txt",
}
ELSEWHERE = {"records/skipped.jsonl"}  # test_convert.py: here nothing is skipped


def files_of(root, pattern):
  files = {path.relative_to(root).as_posix() for path in root.glob(pattern) if path.is_file()}
  return sorted(files - UNREAD - ELSEWHERE - (READERS.keys() - {pattern}))


@pytest.mark.parametrize("pattern", READERS)
def test_damage_is_one_line(run, pattern):
  root = run[0].path.parent
  names = files_of(root, pattern)
  assert names
  for name in names:
    for_each_damage(
      root / name, lambda: READERS[pattern](*run), places=12 if len(names) == 1 else 4
    )


def test_every_file_of_a_run_has_a_reader(run):
  root = run[0].path.parent
  known = {name for pattern in READERS for name in files_of(root, pattern)}
  assert set(files_of(root, "**/*")) - known == set(files_of(root, "a/checkpoints/0/**/*"))


def test_a_damaged_line_of_the_curves_is_named(tmp_path, caplog):
  with Scalars(tmp_path, from_step=0) as scalars:
    for step in (1, 2, 3):
      scalars.write(step, {"train/loss": 9.4})
  path = tmp_path / "metrics.jsonl"
  whole = path.read_bytes()
  for i in range(len(whole)):
    path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
    caplog.clear()
    with caplog.at_level("WARNING", "plan_jax"):
      points = curves(path)["train/loss"]
    assert f"{path}, line " in caplog.text and "\n" not in caplog.messages[0]
    assert set(points) < {(1, 9.4), (2, 9.4), (3, 9.4)}


@pytest.mark.parametrize("name", sorted(UNREAD))
def test_files_that_are_not_read_do_not_matter(run, name):
  path = run[0].path.parent / name
  whole = path.read_bytes()
  path.write_bytes(b"[")
  try:
    restored = restore(*run)
    read_records(*run)
  finally:
    path.write_bytes(whole)
  jax.tree.map(np.testing.assert_array_equal, restored, restore(*run))
