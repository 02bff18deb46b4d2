"""The house: floors, sizes, and the vocabulary of the field (CONTRIBUTING.md)."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from functools import cache
from pathlib import Path

import pytest

from paths import ROOT

PACKAGES = ("plan_jax", "input_pipeline", "configs", "launch", "benchmarks")
# From the ground up: a module imports from its own floor and from those before it, never upwards.
FLOORS = (
  "input_pipeline.terminal",
  "input_pipeline.errors",
  "input_pipeline.json_object",
  "input_pipeline.disk",
  "input_pipeline.files",
  "input_pipeline.locks",
  "input_pipeline.pages",
  "input_pipeline.text",
  "input_pipeline",
  "input_pipeline.phantom",
  "input_pipeline.readers",
  "input_pipeline.conversion",
  "input_pipeline.checks",
  "plan_jax",  # the version, and names that are imported when used
  "plan_jax.alignment",
  "plan_jax.metrics",
  "plan_jax.runtime",
  "plan_jax.models",
  "plan_jax.training",
  "plan_jax.inference",
  "plan_jax.baselines",
  "plan_jax.results",
  "plan_jax.evaluators",
  "plan_jax.transfer",
  "plan_jax.app",
  "configs",
  "plan_jax.config",
  "plan_jax.train",
  "plan_jax.evaluate",
  "plan_jax.compare",
  "plan_jax.export",
  "plan_jax.experiment",
  "plan_jax.suite",
  "plan_jax.main",
  "launch",
  "plan_jax.commands",
  "plan_jax.__main__",
  "benchmarks",
)
# Words of a private dialect, and the field's own instead.
WORDS = {
  "film": "image",
  "films": "images",
  "picture": "image",
  "pictures": "images",
  "piece": "token",
  "pieces": "tokens",
  "peer": "baseline",
  "peers": "baselines",
  "tower": "encoder",
  "figure": "metric",
  "figures": "metrics",
  "lit": "foreground",
  "unseen": "cropped",
  "looked": "attended",
  "normaliser": "log_partition",
}
# Names alone: as English words in a sentence they may stand.
NAMES = {"found", "some", "there", "one", "say", "said", "told", "look", "see", "seen", "heat"}
# Two encoders side by side are a dual-tower model.
EXCEPTIONS = {
  ("*", "BertWordPieceTokenizer"),  # of the library tokenizers
  ("input_pipeline/text/vocabulary.py", "piece"),  # of the library sentencepiece
  ("input_pipeline/text/vocabulary.py", "pieces"),
  ("*", "two_towers"),
  ("*", "TwoTowers"),
}
FIRST_WORDS = re.compile(r"(What|Of|Whether|As|Where|How|The same|If|By)\b")


@cache
def files() -> tuple[Path, ...]:
  return tuple(path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))


@cache
def tree(path: Path) -> ast.Module:
  return ast.parse(path.read_text())


def module_of(path: Path) -> str:
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
  return {module_of(path): path for path in files()}


def imports(path: Path) -> set[str]:
  """The modules of this repository that a file imports, wherever in the file."""
  names = set()
  for node in ast.walk(tree(path)):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and not node.level:
      for alias in node.names:
        full = f"{node.module}.{alias.name}"
        names.add(full if full in modules() else node.module)
  return {name for name in names if name in modules()}


def floor_of(module: str) -> int:
  fits = [floor for floor in FLOORS if module == floor or module.startswith(f"{floor}.")]
  return FLOORS.index(max(fits, key=len)) if fits else len(FLOORS)


def test_no_import_runs_up():
  up = [
    f"{module_of(path)} imports {name}"
    for path in files()
    for name in imports(path)
    if floor_of(name) > floor_of(module_of(path))
  ]
  assert not up, "\n".join(up)


def test_no_import_circles():
  graph = {module_of(path): imports(path) for path in files()}
  done, path = set(), []

  def visit(module):
    if module in path:
      pytest.fail(" -> ".join([*path[path.index(module) :], module]))
    if module not in done:
      path.append(module)
      for name in sorted(graph[module] - {module}):
        visit(name)
      path.pop()
      done.add(module)

  for module in graph:
    visit(module)


def test_only_their_own_files_know_orbax_grain_and_shard_map():
  homes = {
    "orbax": {"plan_jax.runtime.checkpoints", "plan_jax.runtime.processes"},
    "grain": {"input_pipeline.loader", "benchmarks.loader"},
    "tensorflow": set(),
    "torch": {"benchmarks.torch_steps", "benchmarks.local_loss", "plan_jax.models.weights.files"},
  }
  for path in files():
    for node in ast.walk(tree(path)):
      names = []
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        names = [node.module or ""]
      for name in names:
        top = name.split(".")[0]
        assert module_of(path) in homes.get(top, {module_of(path)}), f"{path} imports {name}"


def test_training_needs_neither_detectors_nor_coco():
  code = (
    "import sys, plan_jax.experiment, plan_jax.train;"
    " wrong = [m for m in sys.modules if m.split('.')[0] in ('pycocotools', 'tensorflow', 'torch')"
    " or m.startswith('plan_jax.transfer.detection')]; print(*wrong)"
  )
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_alignment_and_metrics_know_neither_flax_nor_files():
  for module, path in modules().items():
    if module.startswith(("plan_jax.alignment", "plan_jax.metrics")):
      text = path.read_text()
      assert not re.search(r"^(from|import) (flax|pathlib|os)\b", text, re.M), path


def test_what_stands_at_the_top_can_be_run():
  names = {path.name for path in (ROOT / "plan_jax").glob("*.py")}
  assert len(names) <= 10, names


def test_files_are_short():
  lengths = {path: len(path.read_text().splitlines()) for path in files()}
  assert not {str(path): length for path, length in lengths.items() if length > 400}


def test_functions_are_short_and_take_few_arguments():
  wrong = []
  for path in files():
    for node in ast.walk(tree(path)):
      if isinstance(node, ast.FunctionDef):
        arguments = node.args
        count = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs)
        count -= any(a.arg in ("self", "cls") for a in arguments.args[:1])
        if count > 8 or node.end_lineno - node.lineno >= 80:
          lines = node.end_lineno - node.lineno + 1
          wrong.append(
            f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {count}, {lines} lines"
          )
  assert not wrong, "\n".join(wrong)


def test_the_formatter_decides():
  marker = "# fmt" + ": skip"
  everything = [*files(), *(ROOT / "tests").rglob("*.py")]
  assert not [str(path) for path in everything if marker in path.read_text()]


def words_of(name: str) -> list[str]:
  return [w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def docstrings(path: Path):
  for node in ast.walk(tree(path)):
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
      text = ast.get_docstring(node)
      if text:
        yield getattr(node, "name", "module"), text


@pytest.mark.parametrize("package", PACKAGES)
def test_names_are_the_field_s(package):
  wrong = set()
  for path in files():
    place = path.relative_to(ROOT).as_posix()
    if not place.startswith(f"{package}/"):
      continue
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
      if token.type != tokenize.NAME or {(place, token.string), ("*", token.string)} & EXCEPTIONS:
        continue
      if token.string in NAMES or set(words_of(token.string)) & WORDS.keys():
        wrong.add(f"{place}: {token.string}")
  assert not wrong, "\n".join(sorted(wrong))


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_are_the_field_s(package):
  wrong = []
  for path in files():
    place = path.relative_to(ROOT).as_posix()
    if not place.startswith(f"{package}/"):
      continue
    for name, text in docstrings(path):
      if FIRST_WORDS.match(text):
        wrong.append(f"{place}: {name} begins with {text[:40]!r}")
      for word in sorted(set(re.findall(r"[a-z]+", text.lower())) & WORDS.keys()):
        if (place, word) not in EXCEPTIONS:
          wrong.append(f"{place}: {name} says {word!r}, not {WORDS[word]!r}")
  assert not wrong, "\n".join(wrong)
