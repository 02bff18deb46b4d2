"""Images of one finding each, given to the class of the most similar prompts.

The protocols, "zero-shot-classes-v1" and "compat-gloria", are written out in `zero_shot`.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from input_pipeline.example import Example
from input_pipeline.images import decode_batches, model_input
from plan_jax.evaluators.class_retrieval import single_finding
from plan_jax.evaluators.labelled_images import Images
from plan_jax.inference.predictor import Predictor
from plan_jax.inference.prompts import cosines, similarities
from plan_jax.metrics import bootstrap, classification
from plan_jax.metrics.bootstrap import MACRO
from plan_jax.results.example_scores import ExampleScores, example_id
from plan_jax.results.rows import RUN, Row

_GLORIA_PROMPTS, _GLORIA_SEED = 5, 6
_SIMILARITIES, _AS_GLORIA = "similarities", "compat-gloria"  # names of `Classes.parts`


@dataclass(frozen=True)
class Classes:
  """N images of one finding each, and k classes."""

  names: list[str]  # [k]
  classes: np.ndarray  # int [N], the class of each image
  similarities: np.ndarray  # float64 [N, k], to the positive prompts of each class
  as_gloria: np.ndarray  # float64 [N, k], those of "compat-gloria", or of "compat-gloria-global"
  ids: list[str]  # [N]
  patients: list[str]  # [N]
  has_local: bool  # the local similarity is in `as_gloria`

  def example_scores(self) -> ExampleScores:
    """Computes the accuracy of each image: 1, 0, or its share of a tie."""
    given = classification.top(self.similarities)
    right = np.take_along_axis(given, self.classes[:, None], axis=1)
    ids = [example_id(image_id) for image_id in self.ids]
    return ExampleScores(ids, ["all"] * len(ids), self.patients, ("accuracy",), right)

  def parts(self) -> dict[str, ExampleScores]:
    """Names both tables of similarities; the metrics are the classes, the groups the true ones."""
    ids = [example_id(image_id) for image_id in self.ids]
    classes = [self.names[i] for i in self.classes]
    common = ids, classes, self.patients, tuple(self.names)
    tables = {_SIMILARITIES: self.similarities, _AS_GLORIA: self.as_gloria}
    return {name: ExampleScores(*common, table) for name, table in tables.items()}

  @classmethod
  def of_parts(cls, parts: dict[str, ExampleScores], has_local: bool) -> "Classes":
    """Makes the images and classes again of `parts`."""
    first, names = parts[_SIMILARITIES], list(parts[_SIMILARITIES].metrics)
    return cls(
      names,
      np.array([names.index(name) for name in first.groups]),
      first.values,
      parts[_AS_GLORIA].values,
      [name.partition("\t")[0] for name in first.ids],
      first.patients,
      has_local,
    )


def class_names(images: Images) -> list[str]:
  """Lists the findings that at least two images have alone; none where it is one finding only."""
  each = [single_finding(labels) for labels in images.labels]
  names = sorted(name for name in set(each) - {""} if each.count(name) > 1)
  return names if len(names) > 1 else []


def class_scores(
  model: Predictor,
  images: Images,
  prompts: dict[str, Sequence[str]],
  embeddings: dict[str, np.ndarray],
  ensemble: str,
  local_examples: Callable[[], Iterable[Example]] | None = None,
) -> Classes:
  """Compares the images of one finding with the positive prompts of each class.

  Images of no class are left out. `prompts` are by class, `embeddings` the embeddings of each;
  `local_examples` gives the examples once more, for local similarities, and None does without.
  """
  names = list(prompts)
  classes = [single_finding(labels) for labels in images.labels]
  kept = [i for i, name in enumerate(classes) if name in prompts]
  ids = [images.ids[i] for i in kept]
  draw = random.Random(_GLORIA_SEED)
  drawn = [draw.sample(texts, min(_GLORIA_PROMPTS, len(texts))) for texts in prompts.values()]
  every = [text for texts in drawn for text in texts]
  each = cosines(images.embeddings[kept], np.stack([embeddings[text] for text in every]))
  has_local = local_examples is not None and model.has_local_scores
  if has_local:
    each = (each + image_similarities(model, local_examples(), ids, every)) / 2
  parts = np.split(each, np.cumsum([len(texts) for texts in drawn])[:-1], axis=1)
  by_class = [
    similarities(images.embeddings, np.stack([embeddings[text] for text in texts]), ensemble)[kept]
    for texts in prompts.values()
  ]
  return Classes(
    names,
    np.array([names.index(classes[i]) for i in kept]),
    np.stack(by_class, axis=1),
    np.stack([standardised(part.max(1)) for part in parts], axis=1),
    ids,
    [images.patients[i] for i in kept],
    has_local,
  )


def image_similarities(
  model: Predictor, examples: Iterable[Example], ids: Sequence[str], texts: Sequence[str]
) -> np.ndarray:
  """Compares N images with T prompts by words and pixels: float64 [N, T], in the order of `ids`.

  `examples` are the images in any order, others among them are passed over. Raises ValueError,
  naming it, where an image is unreadable or missing, or a similarity is NaN.
  """
  place = {image_id: i for i, image_id in enumerate(ids)}
  compare = model.local_similarities([(text,) for text in texts])
  similarities = np.full((len(ids), len(texts)), np.nan)
  wanted = (example for example in examples if example.image_id in place)
  for part, decoded in decode_batches(wanted, 64, model_input):
    similarities[[place[example.image_id] for example in part]] = compare(decoded)
  if np.isnan(similarities).any():
    first = ids[int(np.isnan(similarities).any(1).argmax())]
    raise ValueError(f"the local similarity of {first} is NaN, or the image is missing")
  return similarities


def standardised(values: np.ndarray) -> np.ndarray:
  """Brings values [N] to mean 0 and deviation 1; 0 where all are alike."""
  spread = values.std()
  return (values - values.mean()) / (spread if spread > 1e-12 else 1)


def class_rows(
  head: tuple[str, str, str], classes: Classes, table: np.ndarray, draws: dict[str, int]
) -> list[Row]:
  """Makes rows of accuracy, macro F1 and the F1 of each class, by the highest of a table [N, k]."""
  given, k = classification.top(table), len(classes.names)

  def measure(places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return classification.class_metrics(given[places], classes.classes[places], weights)

  everything = ["all"] * len(classes.ids)
  summaries = bootstrap.grouped_metrics(measure, 2 + k, everything, classes.patients, **draws)
  sizes = np.bincount(classes.classes, minlength=k)
  commonest = float(sizes.max() / sizes.sum())
  places = [
    ("all", "accuracy", {"chance": 1 / k, "constant": commonest}),
    (MACRO, "F1", {"constant": 2 * commonest / (1 + commonest) / k}),
    *((name, "F1", {}) for name in classes.names),
  ]
  rows = []
  for m, (group, metric, baselines) in enumerate(places):
    s, n = summaries["all"][m], int(sizes[m - 2]) if m >= 2 else len(everything)
    rows.append(Row(*head, group, metric, RUN, s.value, s.low, s.high, n))
    for name, value in baselines.items():
      rows.append(Row(*head, group, metric, name, value, np.nan, np.nan, n))
  return rows
