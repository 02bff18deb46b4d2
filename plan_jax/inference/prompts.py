"""Prompts: the sentences that stand for a finding in zero-shot classification.

A set of prompts is a JSON file, one of those in `plan_jax/inference/prompt_sets` or a user's own:

  {"source": what style the set is after, and whose words they are,
   "ensemble": "embeddings" (default), "similarities" or "highest", see `similarities`,
   "findings": {finding: {"positive": [...], "negative": [...]}, finding: another finding's name},
   "template": {"positive": ["There is {}."], "negative": ["There is no {}."]}}

A prompt is a text, or lists of parts that are put together in all ways: [["", "mild"], ["edema"]]
are the prompts "edema" and "mild edema". Labels are matched by name without case and
punctuation. The template is for all other labels, "{}" being the label as in a sentence. It is not
for labels that begin with "no", "normal" or "other", whose denial would say nothing. Either all of
a set have negative prompts, or none.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from input_pipeline.errors import UserError
from input_pipeline.files import read_regular
from input_pipeline.readers.raw.tables import parse_json
from input_pipeline.text import reports
from plan_jax.inference.inputs import InputError, check_phrases

FOLDER = Path(__file__).parent / "prompt_sets"
ENSEMBLES = ("embeddings", "similarities", "highest")
_KEYS = ("source", "ensemble", "findings", "template")
_SIDES = ("positive", "negative")
_NOT_FOR_TEMPLATES = ("no", "normal", "other")


class PromptsError(UserError):
  """A set of prompts cannot be used; the message names the file and the place in it."""


class Prompts(NamedTuple):
  """Texts for a finding that is present, and for one that is absent (may be empty)."""

  positive: tuple[str, ...]
  negative: tuple[str, ...]


@dataclass(frozen=True)
class PromptSet:
  """A set of prompts."""

  name: str  # of the file, without ".json"
  fingerprint: str  # six hexadecimal digits that change with the content of the file
  ensemble: str  # one of `ENSEMBLES`
  findings: dict[str, Prompts]  # normalised name of a finding -> its prompts
  template: Prompts | None  # for other labels, or None

  @property
  def has_negatives(self) -> bool:
    """Tells whether the findings have negative prompts: all have, or none."""
    return any(each.negative for each in (*self.findings.values(), self.template) if each)

  @classmethod
  def of_json(cls, content: dict[str, Any]) -> "PromptSet":
    """Makes a set of what `dataclasses.asdict` gave, after JSON."""

    def prompts(sides: Sequence[Sequence[str]]) -> Prompts:
      return Prompts(*map(tuple, sides))

    findings = {name: prompts(sides) for name, sides in content["findings"].items()}
    template = content["template"] and prompts(content["template"])
    return cls(**content | {"findings": findings, "template": template})

  def has_own(self, label: str) -> bool:
    """Tells whether a label has prompts of its own, and none from the template."""
    return _key(label) in self.findings

  def prompts(self, label: str) -> Prompts | None:
    """Looks up the prompts of a label; None where the set has none."""
    name = _key(label)
    if name in self.findings:
      return self.findings[name]
    if self.template is None or not name or name.split()[0] in _NOT_FOR_TEMPLATES:
      return None
    name = written(label)
    return Prompts(*(tuple(t.replace("{}", name) for t in side) for side in self.template))

  def of_pairs(self) -> "PromptSet":
    """Replaces the mean of embeddings, where none are compared, by the mean of similarities."""
    ensemble = "similarities" if self.ensemble == ENSEMBLES[0] else self.ensemble
    return replace(self, ensemble=ensemble)


class PairVectors:
  """A Predictor that scores pairs, in the place of one whose embeddings are compared.

  The vector of an image holds its scores with all the prompts, that of a prompt picks its own:
  their dot product is the score. Images are scored as they come, and their features not kept.

  Attributes:
    spec, variables: of the Predictor.
    has_local_scores: False.
  """

  has_local_scores = False

  def __init__(self, model: Any, texts: Iterable[str]):
    """Embeds the prompts, each once."""
    distinct = dict.fromkeys(texts)
    self._places = {text: place for place, text in enumerate(distinct)}
    self.spec, self.variables = model.spec, model.variables
    self._score = model.pair_scores([(text,) for text in distinct])

  def embed_images(self, images: Any) -> Float[np.ndarray, "N T"]:
    """Scores N images."""
    return self._score(images)

  def embed_prompts(self, texts: Sequence[Sequence[str]]) -> Float[np.ndarray, "M T"]:
    """Picks the places of M prompts, texts of one sentence each."""
    return np.eye(len(self._places), dtype=np.float32)[[self._places[text] for (text,) in texts]]


def load(names: Sequence[str]) -> list[PromptSet]:
  """Reads sets of prompts, each the name of one in `FOLDER` or a .json file.

  Raises PromptsError where one is missing or not as above, or two have the same name.
  """
  sets = [read(_path(name)) for name in names]
  for each in sets:
    if sum(other.name == each.name for other in sets) > 1:
      raise PromptsError(f"two sets are called {each.name!r}; rename one")
  return sets


def read(path: Path) -> PromptSet:
  """Reads the set of a file. Raises PromptsError."""
  try:
    raw = read_regular(path)
    content = parse_json(raw.decode("utf-8"))
  except (OSError, ValueError) as error:  # also of bytes that are no UTF-8
    raise PromptsError(f"{path} cannot be read: {error}") from error
  try:
    return _parse(path.stem, hashlib.sha256(raw).hexdigest()[:6], content)
  except ValueError as error:
    raise PromptsError(f"{path}: {error}") from error


def written(label: str) -> str:
  """Writes a label as in a sentence: "Nodule/Mass" becomes "nodule or mass", "ILD" stays."""
  words = label.replace("_", " ").replace("/", " or ").split()
  return " ".join(word if word.isupper() else word.lower() for word in words)


def similarities(images: np.ndarray, prompts: np.ndarray, ensemble: str) -> np.ndarray:
  """Compares images [N, D], unit norm, with prompts [P, D] of one finding: float64 [N].

  `ensemble` is "embeddings", "similarities" or "highest". Raises ValueError where one is NaN.
  """
  if ensemble == "embeddings":
    mean = prompts.astype(np.float64).mean(0)
    norm = np.linalg.norm(mean)
    similarity = images @ (mean / norm if norm > 1e-12 else mean)
  else:
    each = cosines(images, prompts)
    similarity = each.max(1) if ensemble == "highest" else each.mean(1)
  if np.isnan(similarity).any():
    raise ValueError("a similarity of image and prompt is NaN")
  return similarity


def cosines(images: np.ndarray, prompts: np.ndarray) -> np.ndarray:
  """Compares images [N, D], unit norm, with prompts [P, D] one by one: float64 [N, P]."""
  norms = np.linalg.norm(prompts, axis=1)
  is_unit = (norms < 1e-12) | (np.abs(norms - 1) < 1e-5)  # left as they are, to the bit
  return (images @ prompts.T).astype(np.float64) / np.where(is_unit, 1, norms)


def embed(model: Any, texts: Sequence[str]) -> dict[str, Float[np.ndarray, " D"]]:
  """Embeds prompts with a Predictor, each once, by their text."""
  distinct = list(dict.fromkeys(texts))
  if not distinct:
    return {}
  embeddings = np.asarray(model.embed_prompts([(text,) for text in distinct]), np.float32)
  return dict(zip(distinct, embeddings, strict=True))


def presence_scores(
  model: Any,
  images: np.ndarray,
  prompts: Prompts,
  embeddings: dict[str, np.ndarray],
  ensemble: str,
) -> np.ndarray:
  """Scores N embedded images [N, D] for a finding, float64 [N], as "zero-shot-v1" has it.

  With negative prompts exp(s+) / (exp(s+) + exp(s-)), else s+ alone, or the probability that the
  Predictor's model tells by it. `embeddings` are those of the prompts.
  """

  def similarity(texts: Sequence[str]) -> np.ndarray:
    return similarities(images, np.stack([embeddings[text] for text in texts]), ensemble)

  positive = similarity(prompts.positive)
  if not prompts.negative:
    if model.spec.probability is None:
      return positive
    return np.asarray(model.spec.probability(model.variables, positive), np.float64)
  return 1 / (1 + np.exp(similarity(prompts.negative) - positive))


def classifier(
  model: Any, classes: Sequence[str], name: str
) -> Callable[[Any], list[dict[str, float]]]:
  """Makes a function of images, each to {class: score}; the set's prompts are embedded once.

  Raises InputError for a class without prompts or without a known word, and PromptsError.
  """
  (chosen,) = load([name])
  classes = check_phrases(classes)
  if not classes:
    raise InputError("classes is empty: name at least one finding")
  knows = model.spec.texts.knows
  # Prompts of its own may spell out a name that means nothing by itself, such as "COPD".
  if unknown := [each for each in classes if not (chosen.has_own(each) or knows(each))]:
    raise InputError(f"the class {unknown[0]!r} has no word that the model knows")
  texts = {each: chosen.prompts(each) for each in classes}
  if silent := [each for each, prompts in texts.items() if prompts is None]:
    raise InputError(f"the prompts {chosen.name!r} have none for the class {silent[0]!r}")
  every = [text for each in texts.values() for side in each for text in side]
  if model.has_pair_scores:
    model, chosen = PairVectors(model, every), chosen.of_pairs()
  embeddings = embed(model, every)

  def classify(images: Any) -> list[dict[str, float]]:
    embedded = model.embed_images(images)
    columns = {
      each: presence_scores(model, embedded, prompts, embeddings, chosen.ensemble).tolist()
      for each, prompts in texts.items()
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

  return classify


def _key(label: str) -> str:
  return reports.normalise(label.replace("_", " "))


def _path(name: str) -> Path:
  if name.endswith(".json"):
    return Path(name)
  names = sorted(path.stem for path in FOLDER.glob("*.json"))
  if name not in names:
    raise PromptsError(
      f"there is no set {name!r}; it must be one of {', '.join(names)}, or a .json file"
    )
  return FOLDER / f"{name}.json"


def _parse(name: str, fingerprint: str, content) -> PromptSet:
  """Checks and parses the content. Raises ValueError, naming the place."""
  if not isinstance(content, dict):
    raise ValueError("must be a JSON object")
  if unknown := sorted(content.keys() - set(_KEYS)):
    raise ValueError(f"unknown keys {', '.join(unknown)}; there are {', '.join(_KEYS)}")
  if not isinstance(content.get("source"), str) or not content["source"].strip():
    raise ValueError("'source' must say what style the prompts are after")
  ensemble = content.get("ensemble", ENSEMBLES[0])
  if ensemble not in ENSEMBLES:
    raise ValueError(f"'ensemble' is {ensemble!r}; it must be one of {', '.join(ENSEMBLES)}")
  given = content.get("findings", {})
  if not isinstance(given, dict):
    raise ValueError("'findings' must be an object")
  template = _prompts("template", content["template"]) if "template" in content else None
  if template and not all("{}" in text for side in template for text in side):
    raise ValueError("'template': each prompt must hold {}, the place of the label")
  findings: dict[str, Prompts] = {}
  for label, entry in given.items():
    target = entry
    if isinstance(entry, str) and not isinstance(target := given.get(entry), dict):
      raise ValueError(f"{label!r} is the same as {entry!r}, which has no prompts of its own")
    key = _key(label)
    if not key or key in findings:
      raise ValueError(f"{label!r} has no name, or one that stands in the set already")
    findings[key] = _prompts(label, target)
  every = [*findings.values(), *([template] if template else [])]
  if not every:
    raise ValueError("there are neither 'findings' nor a 'template'")
  if len({bool(each.negative) for each in every}) > 1:
    raise ValueError("some have 'negative' prompts and some have none; their scores do not compare")
  return PromptSet(name, fingerprint, ensemble, findings, template)


def _prompts(place: str, entry) -> Prompts:
  if not isinstance(entry, dict) or not entry.keys() <= set(_SIDES) or "positive" not in entry:
    raise ValueError(f"{place!r} must be an object with 'positive' and, if any, 'negative'")
  sides = []
  for side in _SIDES:
    given = entry.get(side)
    if side in entry and (not isinstance(given, list) or not given):
      raise ValueError(f"{place!r}, {side!r} must be a list of prompts, not empty")
    texts = [text for item in given or () for text in _texts(f"{place!r}, {side!r}", item)]
    if len(set(texts)) < len(texts):
      twice = next(text for text in texts if texts.count(text) > 1)
      raise ValueError(f"{place!r}, {side!r}: {twice!r} stands twice")
    sides.append(tuple(texts))
  return Prompts(*sides)


def _texts(place: str, item) -> list[str]:
  """Expands an item: one text, or all that the lists of parts make."""
  parts = [[item]] if isinstance(item, str) else item
  if not isinstance(parts, list) or not all(
    isinstance(part, list) and part and all(isinstance(text, str) for text in part)
    for part in parts
  ):
    raise ValueError(f"{place}: {item!r} must be a text, or lists of texts to put together")
  texts = [" ".join(" ".join(words).split()) for words in itertools.product(*parts)]
  if not all(reports.normalise(text.replace("{}", "x")) for text in texts):
    raise ValueError(f"{place}: a prompt has no word")
  return texts
