r"""Record of a tiny seeded job, from shards to exported weights, by which a refactor is judged.

  python tests/record.py --out=tests/record.json             # run everything, write the record
  python tests/record.py --check=tests/record.json           # run everything, print what differs
  python tests/record.py --check=tests/record.json --exact   # on the machine that wrote the record
  python tests/record.py --check=tests/record.json --parts=phantom,export

Shards, names, shapes and counts must always be the same. Floats may differ by 1e-4 of their size,
for XLA compiles other code for other CPUs; with --exact they and all hashes must be the same. On
another CPU a rank may flip and change a metric that counts ranks by more: judge these by eye.

When something is invoked in another way, or lies elsewhere, change HOW and LAYOUT. When a name
changes on purpose, enter old and new in a table RENAMED_...: the tables are applied to the stored
record, which stays as it is. After the refactor, write the record anew and empty the tables.
"""

import argparse
import csv
import hashlib
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]

# --- how things are invoked ------------------------------------------------------------------

_PHANTOM = {
  "data.options.size_px": 64,
  "data.options.train_images": 48,
  "data.options.validation_images": 24,
  "data.options.test_images": 24,
  "text.vocabulary_size": 200,
  "text.max_tokens": 32,
  "text.max_words": 16,
  "model.image_px": 64,
  "model.embed_dim": 8,
  "model.image.width": 0.125,
  "model.image.stages": 2,
  "model.text.embed_dim": 16,
  "model.text.num_heads": 2,
  "model.text.mlp_dim": 16,
  "model.text.depth": 1,
  "model.text.dropout": 0.1,
  "curriculum.refine.gamma": 0.5,
  "train.steps": 8,
  "train.batch_size": 8,
  "train.log_every_steps": 1,
  "checkpoint.every_steps": 4,
  "evaluation.every_steps": 4,
  "evaluation.during_images": 8,
  "evaluation.batch_size": 8,
  "evaluation.resamples": 20,
  "evaluation.report_images": 2,
  "evaluation.compatibility": True,
  # Of the attached tasks only the cheap one; the others have parts of their own.
  "evaluation.transfer.detection.fractions": "()",
  "evaluation.transfer.segmentation.fractions": "()",
  "evaluation.transfer.classification.fractions": "()",
  "evaluation.transfer.probe.fractions": "(1.0,)",
}
_BASELINE = {
  **{key: value for key, value in _PHANTOM.items() if key.startswith("data.")},
  "evaluation.batch_size": 8,
  "evaluation.resamples": 20,
  "evaluation.report_images": 2,
  "evaluation.prompts": "('gloria',)",
}
_TASK = ["--workdir={work}/phantom", "--records={work}/phantom/records", "--resamples=20"]
_LEARN = [*_TASK, "--batch_size=8", "--steps=4", "--validate_every_steps=2"]


def _config(keys: dict) -> list[str]:
  return [f"--config.{key}={value}" for key, value in keys.items()]


_PYTHON = [sys.executable, "-m"]
# Part -> its commands, in order; {work} holds a folder for each part. All but mimic want phantom.
HOW = {
  "phantom": [
    [
      *_PYTHON,
      "plan_jax.main",
      "--config=configs/phantom.py:tasks",
      "--workdir={work}/phantom",
      *_config(_PHANTOM),
    ]
  ],
  "mimic": [
    [sys.executable, "-c", "from fakes import physionet; physionet.write('{work}/physionet')"],
    [
      *_PYTHON,
      "plan_jax.main",
      "--config=configs/mimic.py",
      "--workdir={work}/mimic",
      "--config.data.source={work}/physionet",
      "--config.runlocal=True",
    ],
  ],
  "detect": [
    [
      *_PYTHON,
      "plan_jax.transfer",
      "--task=detection",
      *_LEARN,
      "--channels=4",
      "--image_px=64",
      "--compatibility=True",
      "--out={work}/detect",
    ]
  ],
  "segment": [
    [
      *_PYTHON,
      "plan_jax.transfer",
      "--task=segmentation",
      *_LEARN,
      "--channels=4",
      "--image_px=64",
      "--out={work}/segment",
    ]
  ],
  "classify": [
    [*_PYTHON, "plan_jax.transfer", "--task=classification", *_LEARN, "--out={work}/classify"]
  ],
  "probe": [[*_PYTHON, "plan_jax.transfer", "--task=linear_probe", *_TASK, "--out={work}/probe"]],
  "export": [[*_PYTHON, "plan_jax", "export", "--workdir={work}/phantom", "--out={work}/export"]],
  "baseline": [
    [
      sys.executable,
      "-c",
      "import tiny_baselines; from pathlib import Path; from transformers import AutoTokenizer;"
      "words = AutoTokenizer.from_pretrained('{work}/phantom/tokenizer', local_files_only=True);"
      "tiny_baselines.mgca(Path('{work}'), words, 'mgca_vit')",
    ],
    [
      *_PYTHON,
      "plan_jax.main",
      "--mode=evaluate",
      "--config=configs/baselines.py:mgca_vit,phantom",
      "--workdir={work}/baseline",
      "--config.data.records={work}/phantom/records",
      "--config.baseline.weights={work}/mgca_vit.ckpt",
      "--config.baseline.tokenizer={work}/phantom/tokenizer",
      *_config(_BASELINE),
    ],
  ],
}
LAYOUT = {
  "checkpoints": "checkpoints",  # a folder that Orbax wrote, of dicts "params", "batch_stats", ...
  "optimizer": "opt_state",  # the part of it whose names do not count
  "records": "records",  # how the names of folders of shards begin
  "tokenizer": "tokenizer",
  "units": "example_scores",  # a folder of CSV files
  "rows": ("evaluation.json",),
  "metrics": ("metrics.jsonl",),
  "settings": ("config.json", "convert.json"),
  "tensors": "model.safetensors",
  "function": "grounding.jax",
}

# --- names that changed: old -> new ----------------------------------------------------------

# A whole path or whole components of it, such as {"image_encoder/stem": "film_tower/stem"}.
RENAMED_PARAMETERS = {}  # in checkpoints and in the exported tensors, "/" between
RENAMED_METRICS = {}  # names in metrics.jsonl, e.g. {"train/loss_term": "train/terms"}
RENAMED_FILES = {}  # below the folder of a part, e.g. {"units": "scores"}
RENAMED_CONFIG = {}  # keys of config.json and convert.json, "/" between
RENAMED_FIELDS = {}  # of rows of evaluation.json, e.g. {"model": "predictor"}
RENAMED_ROWS = {}  # new name of the field -> {old value: new}, e.g. {"task": {"terms": "words"}}
RENAMED_COLUMNS = {}  # of the files of per-example scores

# --- what changed on purpose, and why ----------------------------------------------------------

EXPECTED = {}  # "part: fact" -> the reason, "*" matches anything

# --- what is left out, and why ---------------------------------------------------------------

LEFT_OUT_FILES = (  # neither named nor hashed; "*" matches anything
  "*/checkpoints/*",  # Orbax's own files hold times; the arrays are recorded
  "checkpoints/*",
  "*tensorboard/*",  # names and contents hold the time; the same values stand in metrics.jsonl
)
NOT_HASHED = (  # named only
  "*.html",  # holds times, and is not content to preserve to the byte
  "README.md",  # the model card; the same
  "grounding.jax",  # holds names and lines of the source; what it computes is recorded
  "weights.json",  # of the baseline: the hash of a file that torch writes
  "model.safetensors",  # its tensors are recorded
)
LEFT_OUT_SETTINGS = ("run_weights",)  # a hash of parameters, which are recorded

# -------------------------------------------------------------------------------------------------

_RTOL, _ATOL = 1e-4, 1e-6
_XLA = "--xla_backend_optimization_level=0 --xla_cpu_multi_thread_eigen=false"
if tuple(map(int, metadata.version("jax").split(".")[:2])) < (0, 11):  # as in conftest.py
  _XLA += " --xla_cpu_use_fusion_emitters=false"
if platform.machine() in ("x86_64", "AMD64"):
  _XLA += " --xla_cpu_max_isa=AVX2"  # what most have
ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "JAX_NUM_CPU_DEVICES": "1",
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  "XLA_FLAGS": _XLA,
  "OMP_NUM_THREADS": "1",  # sums do not depend on the number of cores
  "OPENBLAS_NUM_THREADS": "1",
  "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # else plan_jax.main starts itself once more
  "PYTHONPATH": os.pathsep.join(
    (str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "baselines"))
  ),
  "PYTHONHASHSEED": "0",
  "HF_HUB_OFFLINE": "1",
}


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument("--out", type=Path, help="write the record here")
  what.add_argument("--check", type=Path, help="compare with this record; exit status 1 if not")
  parser.add_argument("--exact", action="store_true", help="floats to the bit, and all hashes")
  parser.add_argument("--parts", default=",".join(HOW), help="default: all of %(default)s")
  parser.add_argument("--keep", type=Path, help="an empty folder for what is made (default: none)")
  options = parser.parse_args()
  parts = [name for name in HOW if name in options.parts.split(",")]
  if unknown := set(options.parts.split(",")) - set(HOW):
    parser.error(f"--parts: {', '.join(sorted(unknown))} is none of {', '.join(HOW)}")
  os.environ.update(ENVIRONMENT)
  work = options.keep or Path(tempfile.mkdtemp(prefix="plan_jax-record-"))
  work.mkdir(parents=True, exist_ok=True)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(work / "compiled")
  try:
    found = record(parts, work.resolve())
  finally:
    if not options.keep:
      shutil.rmtree(work, ignore_errors=True)
  if options.out:
    write(options.out, found)
    print(f"{options.out}: {options.out.stat().st_size / 1e3:.0f} kB")
  else:
    sys.exit(check(read(options.check), found, parts, options.exact))


def record(parts: list[str], work: Path) -> dict:
  """Runs the parts and gathers what they made; says how long each took."""
  found, began = {}, time.monotonic()
  for name, commands in HOW.items():
    needed = name == "phantom" and set(parts) - {"mimic"}
    if name not in parts and not needed:
      continue
    then = time.monotonic()
    for command in commands:
      _run([argument.replace("{work}", str(work)) for argument in command], name)
    ran = time.monotonic() - then
    if name in parts:
      found[name] = part(work / name, work)
    print(f"{name:9} {ran:4.0f} s, read in {time.monotonic() - then - ran:.0f} s", flush=True)
  print(f"in all    {time.monotonic() - began:4.0f} s", flush=True)
  return {"machine": _machine(), "parts": found}


def _run(command: list[str], name: str) -> None:
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  if done.returncode:
    sys.exit(f"{name} failed: {' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def _machine() -> dict[str, str]:
  """What the bits of floats depend on."""
  import jax

  info = Path("/proc/cpuinfo")
  lines = info.read_text().splitlines() if info.exists() else []
  names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  return {
    "cpu": (names or [platform.processor()])[0],
    "jax": jax.__version__,
    "numpy": np.__version__,
    "xla_flags": _XLA,
  }


# --- what a part made ------------------------------------------------------------------------


def part(folder: Path, work: Path) -> dict:
  """The record of one part's folder."""
  out = {key: {} for key in ("shards", "outputs", "settings", "metrics", "rows", "units")}
  names = []
  for path in sorted(p for p in folder.rglob("*") if p.is_file()):
    name = path.relative_to(folder).as_posix()
    if _matches(name, LEFT_OUT_FILES):
      continue
    # Attached tasks lie in folders whose names end with a hash of flags and weights.
    name = re.sub(r"-[0-9a-f]{6}(?=/)", "", name)
    names.append(name)
    folders = name.split("/")[:-1]
    if path.name in LAYOUT["rows"]:
      out["rows"][name] = rows_of(path)
    elif path.name in LAYOUT["metrics"]:
      out["metrics"][name] = metrics_of(path)
    elif path.name in LAYOUT["settings"]:
      out["settings"][name] = settings_of(path, work)
    elif any(x.startswith((LAYOUT["records"], LAYOUT["tokenizer"])) for x in folders) or (
      path.name.startswith((LAYOUT["records"], LAYOUT["tokenizer"]))
    ):
      out["shards"][name] = _sha(path.read_bytes().replace(str(work).encode(), b"WORK"))
    elif LAYOUT["units"] in folders and path.suffix == ".csv":
      out["units"][name] = units_of(path)
    elif path.name == LAYOUT["tensors"]:
      out["tensors"] = tensors_of(path)
    elif not _matches(name, NOT_HASHED):
      out["outputs"][name] = _sha(path.read_bytes())
    if path.name == LAYOUT["function"]:
      out["function"] = function_of(folder)
  if (folder / LAYOUT["checkpoints"]).is_dir():
    out |= state_of(folder / LAYOUT["checkpoints"])
  out["files"] = names
  return {key: value for key, value in out.items() if value}


def state_of(folder: Path) -> dict:
  """Parameters and statistics of the newest checkpoint; the optimizer's arrays without names."""
  import orbax.checkpoint as ocp

  manager = ocp.CheckpointManager(folder)
  steps = sorted(manager.all_steps())
  state = manager.restore(steps[-1], args=ocp.args.StandardRestore())
  manager.close()
  leaves = _leaves(state)
  moments = [leaf_of(x) for path, x in leaves.items() if path.startswith(LAYOUT["optimizer"])]
  return {
    "steps": steps,
    "parameters": {
      path: leaf_of(x) for path, x in leaves.items() if not path.startswith(LAYOUT["optimizer"])
    },
    "optimizer": {
      "leaves": len(moments),
      "norm": _digits(math.hypot(*(leaf[3] for leaf in moments))),
      "sha": _sha("".join(sorted(leaf[4] for leaf in moments)).encode()),
    },
  }


def _leaves(tree, prefix: str = "") -> dict:
  if not isinstance(tree, dict | list | tuple):
    return {} if tree is None else {prefix: np.asarray(tree)}
  items = tree.items() if isinstance(tree, dict) else enumerate(tree)
  out = {}
  for key, value in items:
    out |= _leaves(value, f"{prefix}/{key}" if prefix else str(key))
  return out


def leaf_of(x: np.ndarray) -> list:
  """Shape, dtype, sum, L2 norm, hash."""
  wide = np.asarray(x, np.float64)
  sum_, norm = _digits(wide.sum()), _digits(np.sqrt((wide * wide).sum()))
  return ["x".join(map(str, x.shape)), str(x.dtype), sum_, norm, _sha(x.tobytes())]


def tensors_of(path: Path) -> dict[str, list]:
  """Each tensor of the file as a leaf."""
  from safetensors import numpy as safetensors

  found = safetensors.load_file(path)
  return {name.replace(".", "/"): leaf_of(found[name]) for name in sorted(found)}


def function_of(folder: Path) -> dict[str, list]:
  """What the exported function gives for two pairs made up from a seed."""
  import jax
  from jax import export
  from safetensors import numpy as safetensors

  function = export.deserialize(bytearray((folder / LAYOUT["function"]).read_bytes()))
  inputs = json.loads((folder / "config.json").read_text())["inputs"]
  batch, rng = {}, np.random.default_rng(0)
  for name, x in inputs.items():
    shape = (2, *x["shape"][1:])
    if x["dtype"] == "int32":
      batch[name] = np.sort(rng.integers(0, 32, shape, np.int32), -1)
    elif x["dtype"] == "bool":
      batch[name] = np.arange(shape[-1]) < np.full(shape[:-1] + (1,), 16)
    else:
      batch[name] = rng.random(shape, x["dtype"])
  weights = safetensors.load_file(folder / LAYOUT["tensors"])
  found = jax.device_get(function.call(weights, batch))
  return {"inputs": inputs, "outputs": {name: leaf_of(found[name]) for name in sorted(found)}}


def metrics_of(path: Path) -> dict[str, list]:
  """Name -> its steps and its values."""
  out = {}
  for line in path.read_text().splitlines():
    row = json.loads(line)
    for name, value in row.items():
      if name not in ("step", "digest"):
        steps, values = out.setdefault(name, [[], []])
        steps.append(row["step"])
        values.append(value)
  return out


def rows_of(path: Path) -> dict:
  """The file without its rows, and the rows as a tree of their texts with numbers as leaves."""
  content = json.loads(path.read_text())
  rows = content.pop("rows")
  fields = list(dict.fromkeys(name for row in rows for name in row))
  texts = [name for name in fields if any(isinstance(row.get(name), str) for row in rows)]
  numbers = [name for name in fields if name not in texts]
  tree = {}
  for row in rows:
    *inner, last = (row[name] for name in texts)
    leaf = tree
    for text in inner:
      leaf = leaf.setdefault(text, {})
    if last in leaf:
      raise ValueError(f"{path}: two rows of {[*inner, last]}")
    leaf[last] = [row.get(name) for name in numbers]
    while leaf[last][-1] is None and len(leaf[last]) > 1:  # of what most rows do not have
      leaf[last].pop()
  return {"head": content, "texts": texts, "numbers": numbers, "count": len(rows), "tree": tree}


def units_of(path: Path) -> dict:
  """Hash, columns, and three hexadecimal digits for the numbers of each row."""
  with path.open(newline="") as file:
    head, *lines = csv.reader(file)
  columns, digests = {}, [""] * len(lines)
  for i, name in enumerate(head):
    cells = [line[i] for line in lines]
    try:
      values = np.array([float(cell) for cell in cells if cell])
    except ValueError:
      counts = {cell: cells.count(cell) for cell in sorted(set(cells))}
      columns[name] = counts if len(counts) < 12 else _sha("\n".join(cells).encode())
      continue
    digests = [f"{digest},{cell}" for digest, cell in zip(digests, cells, strict=True)]
    columns[name] = [len(values), _digits(values.sum()), _digits(np.sqrt((values**2).sum()))]
  each = "".join(_sha(digest.encode())[:3] for digest in digests)
  return {"sha": _sha(path.read_bytes()), "count": len(lines), "columns": columns, "each": each}


def settings_of(path: Path, work: Path) -> dict:
  """The file as {"a/b": value}; lists are texts."""
  tree = json.loads(path.read_text().replace(str(work), "WORK"))
  out = {}

  def add(tree, prefix):
    for key, value in tree.items():
      if isinstance(value, dict) and value:
        add(value, f"{prefix}{key}/")
      elif key not in LEFT_OUT_SETTINGS:
        out[prefix + key] = value if not isinstance(value, list | dict) else json.dumps(value)

  add(tree, "")
  return out


def _sha(data: bytes) -> str:
  """The first 16 digits of the SHA-256: short, and still nothing collides."""
  return hashlib.sha256(data).hexdigest()[:16]


def _digits(value: float) -> float:
  return float(f"{value:.7g}")


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
  return any(fnmatchcase(name, p) or fnmatchcase(name.split("/")[-1], p) for p in patterns)


# --- comparison ------------------------------------------------------------------------------

# What is compared is a fact: a name and one of
#   Same(value), equal everywhere; Bits(value), equal on one machine; Near(value, scale), a float.


class Same(tuple):
  """Equal on every machine."""


class Bits(tuple):
  """Equal on the same machine."""


class Near(tuple):
  """A float, and the size that its error is measured by."""


def facts(found: dict, *, stored: bool) -> dict:
  """All facts of a part, flat; of a stored one by their new names."""

  def new(name, table):
    return renamed(name, table) if stored else name

  def leaves(prefix, tree):
    for path, (shape, dtype, sum_, norm, sha) in tree.items():
      key = f"{prefix} {new(path, RENAMED_PARAMETERS)}"
      yield f"{key}: shape and dtype", Same((shape, dtype))
      yield f"{key}: sum", Near((sum_, norm))
      yield f"{key}: norm", Near((norm, norm))
      yield f"{key}: hash", Bits((sha,))

  def all_of():
    for name in found["files"]:
      yield f"file {new(name, RENAMED_FILES)}", Same(("there",))
    for kind, section in ((Same, "shards"), (Bits, "outputs")):
      for name, sha in found.get(section, {}).items():
        yield f"{section} {new(name, RENAMED_FILES)}: hash", kind((sha,))
    for name, values in found.get("settings", {}).items():
      for key, value in values.items():
        yield f"{new(name, RENAMED_FILES)}: {new(key, RENAMED_CONFIG)}", Same((value,))
    yield "steps of checkpoints", Same((found.get("steps"),))
    yield from leaves("parameter", found.get("parameters", {}))
    if "optimizer" in found:
      yield "optimizer: leaves", Same((found["optimizer"]["leaves"],))
      yield "optimizer: norm", Near((found["optimizer"]["norm"], 0))
      yield "optimizer: hash", Bits((found["optimizer"]["sha"],))
    yield from leaves("tensor", found.get("tensors", {}))
    if "function" in found:
      yield "function: inputs", Same((found["function"]["inputs"],))
      yield from leaves("function: output", found["function"]["outputs"])
    for name, curves in found.get("metrics", {}).items():
      for metric, (steps, values) in curves.items():
        for step, value in zip(steps, values, strict=True):
          key = f"{new(name, RENAMED_FILES)}: {new(metric, RENAMED_METRICS)} at step {step}"
          yield key, Near((value, 0))
    for name, content in found.get("rows", {}).items():
      yield from row_facts(new(name, RENAMED_FILES), content, stored)
    for name, content in found.get("units", {}).items():
      yield from unit_facts(new(name, RENAMED_FILES), content, stored)

  out = {}
  for key, fact in all_of():
    if key in out:
      raise ValueError(f"two facts are called {key!r}: the tables RENAMED_... join what was apart")
    out[key] = fact
  return out


def row_facts(name: str, content: dict, stored: bool):
  """A fact for every number of every row, named by the row's texts."""
  head, texts, numbers = (content[key] for key in ("head", "texts", "numbers"))
  if stored:
    texts, numbers = ([RENAMED_FIELDS.get(x, x) for x in some] for some in (texts, numbers))
  yield f"{name}: rows", Same((content["count"],))
  for key, value in head.items():
    if not isinstance(value, dict):
      yield f"{name}: {key}", Same((value,))
    else:
      for of, mark in value.items():
        of = RENAMED_ROWS.get(key, {}).get(of, of) if stored else of
        yield f"{name}: {key} of {of}", Same((mark,))

  def walk(tree, depth, row):
    if depth == len(texts):
      where = ", ".join(f"{field} {row[field]}" for field in sorted(row))
      for i, field in enumerate(numbers):
        value = tree[i] if i < len(tree) else None
        kind = Near((value, 0)) if isinstance(value, float) else Same((value,))
        yield f"{name}: {where}: {field}", kind
      return
    field = texts[depth]
    for text, inner in tree.items():
      text = RENAMED_ROWS.get(field, {}).get(text, text) if stored else text
      yield from walk(inner, depth + 1, row | {field: text})

  yield from walk(content["tree"], 0, {})


def unit_facts(name: str, content: dict, stored: bool):
  """A fact for every column, and one for the numbers of all rows."""
  yield f"{name}: lines", Same((content["count"],))
  changed = stored and set(content["columns"]) & set(RENAMED_COLUMNS)
  yield f"{name}: hash", Bits(("any" if changed else content["sha"],))
  yield f"{name}: each line", Bits((content["each"],))
  for column, value in content["columns"].items():
    column = RENAMED_COLUMNS.get(column, column) if stored else column
    if isinstance(value, list):
      count, sum_, norm = value
      yield f"{name}: {column}: cells", Same((count,))
      yield f"{name}: {column}: sum", Near((sum_, norm))
      yield f"{name}: {column}: norm", Near((norm, norm))
    elif isinstance(value, dict):
      values = RENAMED_ROWS.get(column, {}) if stored else {}
      counts = {values.get(text, text): n for text, n in value.items()}
      yield f"{name}: {column}", Same((dict(sorted(counts.items())),))
    else:
      yield f"{name}: {column}: hash", Same((value,))


def renamed(path: str, table: dict[str, str]) -> str:
  """The path with whole components replaced: all entries, longest first."""
  for old in sorted(table, key=len, reverse=True):
    path = f"/{path}/".replace(f"/{old}/", f"/{table[old]}/" if table[old] else "/").strip("/")
  return path


def check(before: dict, now: dict, parts: list[str], exact: bool) -> int:
  """Prints each difference; the exit status."""
  same_machine = before["machine"] == now["machine"]
  if not same_machine:
    print(f"another machine: the record is of {before['machine']}, this is {now['machine']}")
  count = bits = wrong = expected = 0
  for name in parts:
    if name not in before["parts"]:
      print(f"{name}: not in the record")
      wrong += 1
      continue
    old = facts(before["parts"][name], stored=True)
    new = facts(now["parts"][name], stored=False)
    for key in [*old, *(key for key in new if key not in old)]:
      count += 1
      if old.get(key) != new.get(key) and _matches(f"{name}: {key}", tuple(EXPECTED)):
        expected += 1
        continue
      if key not in old or key not in new:
        told = "is new" if key not in old else "is gone"
      elif type(old[key]) is Bits:
        if old[key] == new[key] or old[key] == ("any",):
          continue
        bits += 1
        if not exact:
          continue
        told = f"{_short(old[key][0])} before, {_short(new[key][0])} now"
      else:
        if _agree(old[key], new[key], exact):
          continue
        told = f"{_short(old[key][0])} before, {_short(new[key][0])} now"
      wrong += 1
      print(f"{name}: {key}: {told}")
  if bits and not exact:
    why = "but the machine is the same" if same_machine else "as they may on another machine"
    print(f"{bits} hashes of what holds floats differ, {why} (--exact names them)")
  if expected:
    print(f"{expected} facts changed on purpose, see EXPECTED")
  print(f"{wrong} differences in {count} facts")
  return 1 if wrong else 0


def _agree(old: tuple, new: tuple, exact: bool) -> bool:
  if exact or type(old) is not Near or type(new) is not Near:
    return old[0] == new[0]
  if old[0] is None or new[0] is None:
    return old[0] == new[0]
  size = max(abs(old[0]), abs(new[0]), old[1] or 0)
  return abs(old[0] - new[0]) <= _RTOL * size + _ATOL


def _short(value) -> str:
  text = str(value)
  return text if len(text) < 100 else f"{text[:60]}... ({_sha(text.encode())})"


# --- the file --------------------------------------------------------------------------------


def write(path: Path, found: dict) -> None:
  """Writes the record as JSON; numbers that several rows share (floors do) stand there once."""
  pool = {}

  def pooled(tree):
    if isinstance(tree, dict):
      return {key: pooled(value) for key, value in tree.items()}
    return pool.setdefault(json.dumps(tree, separators=(",", ":")), len(pool))

  parts = _with_trees(found["parts"], pooled)
  out = {"machine": found["machine"], "parts": parts}
  lines = ",\n".join(pool)
  path.write_text(f'{_dumped(out)[:-1].rstrip()},\n"pool":[\n{lines}]\n}}\n')


def read(path: Path) -> dict:
  """Reads what `write` wrote."""
  found = json.loads(path.read_text())
  pool = found.pop("pool")

  def whole(tree):
    return {k: whole(x) for k, x in tree.items()} if isinstance(tree, dict) else pool[tree]

  return found | {"parts": _with_trees(found["parts"], whole)}


def _with_trees(parts: dict, change) -> dict:
  out = {}
  for name, found in parts.items():
    rows = found.get("rows", {})
    changed = {file: x | {"tree": change(x["tree"])} for file, x in rows.items()}
    out[name] = found | ({"rows": changed} if rows else {})
  return out


def _dumped(value) -> str:
  """JSON with a line for what fits into 200 characters."""
  line = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
  if len(line) <= 200 or not isinstance(value, dict):
    return line
  items = (f"{json.dumps(key)}:{_dumped(x)}" for key, x in value.items())
  return "{\n" + ",\n".join(items) + "\n}"


if __name__ == "__main__":
  main()
