"""Everything that writes a file: on a full disk one line with its path, and nothing stays."""

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest

from fakes.disk import full_disk
from input_pipeline import features, shards
from input_pipeline.disk import DiskError
from input_pipeline.phantom import radiograph
from input_pipeline.text import tokenizer
from paths import ROOT
from plan_jax.metrics.detection import Image
from plan_jax.results import boxes, example_scores, report, rows
from plan_jax.results.example_scores import ExampleScores
from plan_jax.results.rows import Evaluation, Row
from plan_jax.transfer import drawing
from plan_jax.transfer.detection import coco

NOISE = np.random.default_rng(0)
PIXELS = NOISE.integers(0, 256, (64, 64), np.uint8)
SCORES = ExampleScores(
  [str(i) for i in range(200)], ["all"] * 200, ["p"] * 200, ("x",), NOISE.normal(size=(200, 1))
)
ROWS = [Row("t", "v1", "d/test", "all", f"m{i}", "run", 0.4, 0.3, 0.5, 2) for i in range(50)]
BOX, NUMBERS = NOISE.random((500, 4)).astype(np.float32), np.zeros(500, np.int32)
BOXES = Image("a", "p", 64, 64, BOX, NUMBERS, BOX, NOISE.random(500).astype(np.float32), NUMBERS)
VIEW = report.ImageView(PIXELS, "a", phrases=[("mass", "mass", None, PIXELS / 255)])


def write_shard(path):
  with shards.ShardWriter(path) as writer:
    for i in range(3):
      writer.write(radiograph.example(0, i, 64))


def write_features(path):
  with tempfile.TemporaryDirectory() as folder:
    shard = Path(folder) / path.name
    with shards.ShardWriter(shard):
      pass
    features.write(path.parent, shard, NOISE.random((3, 1, 32, 8)).astype(np.float16), "a")


def write_page(path):
  nothing = {"rows": [], "patients": {}, "curves": {}, "protocols": {}}
  report.write_report(path, head=report.Head("", "", {}), images=[VIEW], **nothing)


WRITERS = {
  "x.tfrecord": write_shard,
  "features.tfrecord": write_features,
  "scores.csv": lambda path: example_scores.write(path, SCORES),
  "evaluation.json": lambda path: rows.write(path, Evaluation(1, ROWS, {"d/test": "ab"})),
  "boxes.npz": lambda path: boxes.write(path, [BOXES], ["mass"]),
  "index.html": write_page,
  "overlays.png": lambda path: report.save_overlays(path, [VIEW]),
  "sheet.png": lambda path: drawing._write(path, {"a": drawing.Canvas(PIXELS).pixels}),
  "truth.json": lambda path: coco.write_coco(path.parent, [BOXES], ["mass"]),
}


@pytest.mark.parametrize("name", WRITERS)
def test_one_line_and_nothing_is_left(tmp_path, name):
  path = tmp_path / name
  with full_disk(), pytest.raises(DiskError, match=f"^{path}: File too large; raise the limit"):
    WRITERS[name](path)
  assert not list(tmp_path.iterdir())
  WRITERS[name](path)
  assert path.stat().st_size > 1024
  assert not list(tmp_path.glob("*tmp*"))


@pytest.mark.parametrize("how", ["train", "copy"])
def test_a_vocabulary_leaves_nothing(tmp_path, how):
  texts, (source, folder) = ["Heart size is normal."] * 3, (tmp_path / name for name in "ab")
  tokenizer.train(texts, source, vocabulary_size=60)
  before = set(tmp_path.rglob("*"))
  with full_disk(), pytest.raises(DiskError, match=f"^{folder}.*: File too large; raise the limit"):
    if how == "train":
      tokenizer.train(texts, folder, vocabulary_size=60)
    else:
      tokenizer.copy(source, folder)
  assert not [path for path in set(tmp_path.rglob("*")) - before if path != folder]


# Writes that have no name of their own yet: in a temporary folder, or of one that no one else sees.
PAST = {
  "input_pipeline/files.py",
  "input_pipeline/records.py",  # TFDS writes beside
  "launch/convert_beam.py",
  "launch/sweep.py",  # logs
  "plan_jax/commands/groundings.py",  # rows as they come, so that what is done stays
  "plan_jax/export.py",
  "plan_jax/runtime/processes.py",  # to nowhere
}


def test_files_are_written_whole_or_not_at_all():
  """By `replacing` and what is made of it."""
  raw = re.compile(
    r"\.write_(text|bytes)\(|os\.(replace|rename)\(|cv2\.imwrite|np\.save\w*\(\w+\.|"
    r"""open\([^)]*["'][wx]b?["']|\.to_csv\(|savefig"""
  )
  wrong = []
  for package in ("input_pipeline", "plan_jax", "launch"):
    for path in sorted((ROOT / package).rglob("*.py")):
      name = path.relative_to(ROOT).as_posix()
      for line in path.read_text().splitlines():
        if name not in PAST and raw.search(line) and "temporary" not in line:
          wrong.append(f"{name}: {line.strip()}")
  assert not wrong, "\n".join(wrong)
