"""Time and peak memory of each step of the way at MIMIC-CXR's size: python -m benchmarks.scale.

Makes a folder in the publishers' layout, of as many patients, studies, reports and images (small
phantom JPEGs, each linked some hundred times), and takes the whole way with it, each step in
processes of its own:

  list         the reader opens the folder
  convert      to records, killed at 90 % of the shards
  resume       the same command again: it lists, finds what is whole and goes on
  check        one pass over the records
  first batch  from the start of a process to a batch of 256: indices, vocabulary, loader
  load         batches of 256 from there on, and from step 1,000,000 on
  evaluate     an untrained small model on the test split, all evaluators

Memory is the largest of one process. With --shares=.1,1 (the default) all is done at a tenth of the
size first, and the last column says by how many bytes an image memory grows in between. The folder
takes 4 GB and some 670,000 inodes.

  python -m benchmarks.scale --folder=scratch/scale --json=out.json
"""

import argparse
import csv
import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tabulate import tabulate

# The peak of a process is at least that of the one that starts it: libraries are imported late.

PATIENTS, STUDIES, IMAGES = 65_379, 227_835, 377_110  # of MIMIC-CXR-JPG 2.1
_DRAWN, _SIDE_PX = 400, 96
_BATCH, _LATE_STEP = 256, 1_000_000
_DATASET = "mimic_cxr"
_SMALL = (
  "--config=configs/mimic.py",
  "--config.runlocal=True",
  "--config.data.limit=0",
  "--config.train.steps=1",
  "--config.evaluation.every_steps=0",
  "--config.checkpoint.best_metric=",
  "--config.evaluation.rerank_top=0",
  "--config.evaluation.batch_size=64",
  "--config.evaluation.sets.ms_cxr.source=",
  "--config.evaluation.sets.mimic_5x200.source=",
)


def make_folder(root: Path, share: float) -> None:
  """Writes the download: tables, images, zipped reports; nothing where it is there already."""
  import cv2

  from input_pipeline import images
  from input_pipeline.phantom import radiograph
  from input_pipeline.readers.mimic_cxr import LABELS
  from input_pipeline.readers.raw.physionet import stem

  if (root / "whole").exists():
    return
  shutil.rmtree(root, ignore_errors=True)
  patients, studies, count = (round(share * n) for n in (PATIENTS, STUDIES, IMAGES))
  examples = [radiograph.example(0, i, _SIDE_PX) for i in range(_DRAWN)]
  jpg, rows = root / "mimic-cxr-jpg" / "2.1.0", []
  (root / "drawn").mkdir(parents=True)
  for i, example in enumerate(examples):
    cv2.imwrite(str(root / "drawn" / f"{i}.jpg"), images.decode(example.image))
  (root / "mimic-cxr").mkdir()
  texts = root / "mimic-cxr" / "mimic-cxr-reports.zip"
  with zipfile.ZipFile(texts, "w", zipfile.ZIP_DEFLATED) as archive:
    for study in range(studies):
      patient = study * patients // studies
      names = str(10_000_000 + 10_000_000 * patient // patients), str(50_000_000 + study)
      split = "test" if patient % 67 == 0 else "validate" if patient % 130 == 1 else "train"
      archive.writestr(f"files/{stem(*names)}.txt", _report(examples[study % _DRAWN]))
      folder = jpg / "files" / stem(*names)
      folder.mkdir(parents=True)
      views = ("AP" if study % 5 < 3 else "PA", "LATERAL")
      for view in views[: 1 + (study < count - studies)]:
        digest = hashlib.blake2b(f"{study} {view}".encode(), digest_size=20).hexdigest()
        name = "-".join(digest[i : i + 8] for i in range(0, 40, 8))
        os.link(root / "drawn" / f"{study % _DRAWN}.jpg", folder / f"{name}.jpg")
        rows.append((name, *names, split, view, study % _DRAWN))
  labels = [[example.labels.get(x.lower(), "") for x in LABELS] for example in examples]
  ids = ("dicom_id", "subject_id", "study_id")
  _table(jpg, "metadata", (*ids, "ViewPosition"), [(*row[:3], row[4]) for row in rows])
  _table(jpg, "split", (*ids, "split"), [row[:4] for row in rows])
  labelled = [(*row[1:3], *labels[row[5]]) for row in rows if row[4] != "LATERAL"]
  _table(jpg, "chexpert", (*ids[1:], *LABELS), labelled)
  (root / "whole").touch()


def _report(example) -> str:
  parts = (f"{name.upper()}:  {' '.join(texts)}" for name, texts in example.sections.items())
  return " " * 33 + "FINAL REPORT\n " + "\n \n ".join(parts) + "\n"


def _table(folder: Path, name: str, columns, rows) -> None:
  path = folder / f"mimic-cxr-2.0.0-{name}.csv.gz"
  with gzip.open(path, "wt", compresslevel=1, newline="") as file:
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows(rows)


# --- steps, each in processes of its own --------------------------------------------------------


def measure(root: Path, share: float, batches: int) -> Iterator[dict]:
  """Yields a row a step: name, number of images, seconds, peak MiB of one process."""
  source, out, workdir = root / "raw", root / "records", root / "run"
  _run(_part("make", root, f"--shares={share}"))
  for path in (out, workdir):
    shutil.rmtree(path, ignore_errors=True)
  count = round(share * STUDIES)  # frontal images

  def row(step: str, images: int, seconds: float, mib: float) -> dict:
    return {"step": step, "share": share, "images": images, "seconds": seconds, "mib": mib}

  yield row("list", count, *_run(_part("list", root)))
  convert = [sys.executable, "-m", "input_pipeline.conversion", f"--dataset={_DATASET}"]
  convert += [f"--source={source}", f"--out={out}", f"--workers={os.cpu_count()}"]
  last = 0.9 * -(-count // 256)
  yield row("convert", 0.9 * count, *_run(convert, until=lambda: _shards(out) >= last))
  left = count - 256 * _shards(out)
  yield row("resume", max(0, left), *_run(convert))
  count = sum(_splits(out).values())
  check = [sys.executable, "-m", "input_pipeline.checks", f"--records={out}"]
  yield row("check", count, *_run(check, allowed=(0, 1)))
  main = [sys.executable, "-m", "plan_jax.main", *_SMALL, f"--config.data.source={source}"]
  main += [f"--config.data.records={out}", f"--workdir={workdir}"]
  yield row("train a step", count, *_run([*main, "--mode=train"]))
  for step, most, start in (
    ("first batch", 1, 0),
    ("load", batches, 0),
    ("load from step 1,000,000", batches, _LATE_STEP),
  ):
    part = _part("load", root, f"--batches={most}", f"--start={start}")
    yield row(step, most * _BATCH, *_run(part))
  yield row("evaluate", _splits(out)["test"], *_run([*main, "--mode=evaluate"]))


def _shards(out: Path) -> int:
  return sum(path.suffix != ".json" for path in out.glob("*.tfrecord-*")) if out.is_dir() else 0


def _splits(out: Path) -> dict[str, int]:
  splits = json.loads((out / "dataset_info.json").read_bytes())["splits"]
  return {split["name"]: sum(map(int, split["shardLengths"])) for split in splits}


def _part(name: str, root: Path, *flags: str) -> list[str]:
  return [sys.executable, "-m", "benchmarks.scale", f"--part={name}", f"--folder={root}", *flags]


def _run(command, *, until=lambda: False, allowed=(0,)) -> tuple[float, float]:
  """Runs a command, and kills it when `until` holds: its seconds and peak MiB of one process.

  Raises SystemExit, with the end of its output, where its exit status is another than `allowed`.
  """
  began, killed = time.monotonic(), False
  with tempfile.TemporaryFile("w+") as log:
    process = subprocess.Popen(
      command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    while True:
      pid, status, usage = os.wait4(process.pid, os.WNOHANG)
      if pid:
        break
      if until() and not killed:
        killed = True
        os.killpg(process.pid, signal.SIGKILL)
      time.sleep(0.05)
    process.returncode = os.waitstatus_to_exitcode(status)
    if not killed and process.returncode not in allowed:
      log.seek(0)
      raise SystemExit(f"{' '.join(command)} failed:\n{log.read()[-2000:]}")
  return time.monotonic() - began, usage.ru_maxrss / 1024


def _list(root: Path) -> None:
  from input_pipeline.readers import by_name as readers

  source = readers.open_reader(_DATASET, str(root / "raw"), {})
  print(len(source.items), "images")


def _load(root: Path, batches: int, start: int) -> None:
  from configs import local, mimic
  from input_pipeline.records import RecordSource
  from plan_jax import train
  from plan_jax.inference.load import load_tokenizer
  from plan_jax.runtime.workdir import Workdir

  config = mimic.get_config()
  config.runlocal = True
  config = local.localised(config)
  config.train.batch_size = _BATCH
  words = load_tokenizer(Workdir(root / "run"))
  source = RecordSource(root / "records", "train", where="text")
  made = train.make_batches(config, words, source, start)
  for _ in range(batches):
    next(made)
  made.close()


def table(rows: list[dict]) -> str:
  """Formats rows, a line a step, and the memory that an image more takes."""
  shares = sorted({row["share"] for row in rows})
  lines = []
  for step in dict.fromkeys(row["step"] for row in rows):
    of = {row["share"]: row for row in rows if row["step"] == step}
    line = [step]
    for share in shares:
      line += [round(of[share]["images"]), of[share]["seconds"], of[share]["mib"]]
    if len(shares) > 1:
      small, large = of[shares[0]], of[shares[-1]]
      more = round((shares[-1] - shares[0]) * STUDIES)
      line.append((large["mib"] - small["mib"]) * 2**20 / more)
    lines.append(line)
  heads = ["step"]
  for share in shares:
    heads += [f"images, {share:g} of the size", "seconds", "peak, MiB"]
  heads += ["bytes an image more"] if len(shares) > 1 else []
  return tabulate(lines, heads, tablefmt="github", floatfmt=".1f")


def main() -> None:
  """Prints the table, and writes the JSON."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--folder", type=Path, required=True, help="for all that is made; it stays")
  parser.add_argument("--shares", default=".1,1", help="of MIMIC-CXR's size, one after another")
  parser.add_argument("--json", help="file to write all values to")
  parser.add_argument("--part", choices=("make", "list", "load"), help=argparse.SUPPRESS)
  parser.add_argument("--batches", type=int, default=200, help="of 256 images, to load")
  parser.add_argument("--start", type=int, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.part == "make":
    return make_folder(options.folder / "raw", float(options.shares))
  if options.part == "list":
    return _list(options.folder)
  if options.part == "load":
    return _load(options.folder, options.batches, options.start)
  rows = []
  for share in map(float, options.shares.split(",")):
    for row in measure(options.folder / f"{share:g}", share, options.batches):
      rows.append(row)
      print("{step}: {seconds:.1f} s, {mib:.0f} MiB, {images:.0f} images".format(**row), flush=True)
  print("\n" + table(rows))
  if options.json:
    Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
  main()
