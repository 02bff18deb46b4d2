"""Zero-shot classification: is an image nearer to the sentence that a finding is there, or is not?

Protocol "zero-shot-v1" (task "zero-shot-SET", for each set of prompts):

- The unit is an image and a finding that its study labels 1 (present) or 0 (absent). Uncertain pairs
  (-1) are left out, as are images without a label of 1 or 0, findings that all images have or none
  has, and findings of which the prompts say nothing; all are counted and said.
- Image and prompts are compared by the cosine of their global embeddings. "ensemble" of a set makes
  one similarity of several prompts: "embeddings" (the mean of the prompts' embeddings, brought to
  unit norm), "similarities" (their mean) or "highest". With negative prompts the score is
  exp(s+) / (exp(s+) + exp(s-)), without a temperature (Tiu et al., "Expert-level detection of
  pathologies from unannotated chest X-ray images via self-supervised learning", Nature Biomedical
  Engineering 2022); without, it is s+ alone.
- AUC (see `auc`) and average precision (see `classification`) need no threshold. F1, accuracy, MCC,
  sensitivity and specificity take an image as positive where its score reaches the threshold, that of
  the highest F1 on the validation split ("threshold" tells it). A finding that is not both present
  and absent there has none of them, and is named. Where the set has no validation split, or is
  itself one, the threshold is .5 of a score from both kinds of prompts, and the metrics are called
  "F1 at .5" and so on; scores of positive prompts alone then have no threshold. A threshold stays
  as it is in the draws of the bootstrap.
- A finding scores by its own units, `macro` is the plain mean of the findings. "view PA" and so on
  is the macro AUC among the images of that view, where at least two views have 50 images; over the
  findings that are present and absent in each of these views, so that views can be compared.
- Floors: `chance` (AUC .5, average precision the share of positives, MCC 0), `constant` (the same
  answer for all images: F1 of "present", accuracy of the commoner answer).

Protocol "zero-shot-classes-v1" (task "zero-shot-classes-SET"): images with one finding, as in
"class-retrieval-v1" (`class_retrieval.single_finding`; classes of one image, and those without
prompts, are left out and counted), so the whole of a CheXpert-5x200 selection. An image is given the
class whose positive prompts are most similar; classes within 1e-6 share it. Accuracy ("all"), the
F1 of each class and their mean. Floors: `chance` (accuracy 1 / classes) and `constant` (every image
is of the commonest class).

With `config.evaluation.compatibility` also two published ways:

- "compat-test-threshold": as "zero-shot-v1", but the threshold is that of the highest F1 on the
  scored images themselves (as in MedKLIP's code): figures are too high by what that gains.
- "compat-gloria": as "zero-shot-classes-v1", but of five prompts a class, drawn with seed 6, the
  most similar counts, and a class's similarities are brought to mean 0 and deviation 1 over all
  images. The similarity is the mean of the cosine and the model's own local similarity, without the
  temperature of its loss (GLoRIA's code; its prompts are its own). The images are looked at again
  for it, some at a time. A model without a local similarity has "compat-gloria-global", by the
  cosine alone.

Intervals are 95 % percentile intervals of 1,000 bootstrap draws of patients.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from input_pipeline.example import Example
from plan_jax.evaluators import local_similarity
from plan_jax.evaluators.class_retrieval import single_finding
from plan_jax.evaluators.finding_rows import finding_rows, places_by_finding, view_rows
from plan_jax.evaluators.labelled_images import Images
from plan_jax.evaluators.prompts import PromptSet
from plan_jax.evaluators.retrieval import Embedder
from plan_jax.metrics import bootstrap, classification
from plan_jax.metrics.bootstrap import MACRO
from plan_jax.results.example_scores import SCORED, ExampleScores, example_id
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime.logging import log

PROTOCOL = "zero-shot-v1"
CLASSES_PROTOCOL = "zero-shot-classes-v1"
TEST_THRESHOLD = "compat-test-threshold"
GLORIA, GLORIA_GLOBAL = "compat-gloria", "compat-gloria-global"
_GLORIA_PROMPTS, _GLORIA_SEED = 5, 6


@dataclass(frozen=True)
class Scores:
  """What one set of prompts gives on the images of one set.

  Attributes:
    prompts: the set.
    units: scores of images and findings, with `units.SCORED` as metrics; None where no finding has
      both kinds and prompts.
    views: [U], of the units.
    thresholds: finding -> (threshold, validation images behind it); None where .5 takes their place.
    classes: of the images with one finding, or None.
  """

  prompts: PromptSet
  units: ExampleScores | None
  views: list[str]
  thresholds: dict[str, tuple[float, int]] | None
  classes: "Classes | None"


@dataclass(frozen=True)
class Classes:
  """N images of one finding each, and k classes.

  Attributes:
    names: [k].
    of: int [N], the class of each image.
    similarities: float64 [N, k], to the positive prompts of each class.
    as_gloria: float64 [N, k], the similarities of protocol "compat-gloria" or, without
      `has_local`, of "compat-gloria-global".
    ids, patients: [N].
    has_local: whether the local similarity is in `as_gloria`.
  """

  names: list[str]
  of: np.ndarray
  similarities: np.ndarray
  as_gloria: np.ndarray
  ids: list[str]
  patients: list[str]
  has_local: bool

  def units(self) -> ExampleScores:
    """The accuracy of each image: 1, 0, or its share of a tie."""
    given = classification.top(self.similarities)
    right = np.take_along_axis(given, self.of[:, None], axis=1)
    ids = [example_id(image_id) for image_id in self.ids]
    return ExampleScores(ids, ["all"] * len(ids), self.patients, ("accuracy",), right)


def score_zero_shot(
  model: Embedder,
  images: Images,
  prompts: PromptSet,
  validation: Images | None = None,
  *,
  again: Callable[[], Iterable[Example]] | None = None,
  tell: Callable[[str], None] = log.info,
) -> Scores:
  """Scores the images by a set of prompts; see the top of this file.

  Args:
    model: that embedded the images; each prompt is embedded once.
    images: of `embed`.
    prompts: the set.
    validation: images to choose thresholds on, of other patients; None for .5.
    again: gives the studies of the images once more, for local similarities; None does without.
    tell: takes what is left out.

  Raises ValueError where an embedding is NaN.
  """
  findings, classes = images.findings()[0], _classes(images)
  asked = {name: prompts.of(name) for name in sorted({*findings, *classes})}
  if silent := [name for name, said in asked.items() if said is None]:
    tell(f"zero-shot, prompts {prompts.name}: nothing is said of {', '.join(silent)}; left out")
  asked = {name: said for name, said in asked.items() if said}
  vectors = _embed_prompts(model, [t for p in asked.values() for t in (*p.positive, *p.negative)])

  def similarity(of: Images, texts: Sequence[str], ensemble: str = prompts.ensemble) -> np.ndarray:
    return similarities(of.vectors, np.stack([vectors[text] for text in texts]), ensemble)

  def score(of: Images, name: str) -> np.ndarray:
    found = similarity(of, asked[name].positive)
    if asked[name].negative:
      found = 1 / (1 + np.exp(similarity(of, asked[name].negative) - found))
    return found

  ids, groups, patients, views, values = [], [], [], [], []
  findings = [name for name in findings if name in asked]
  for name in findings:
    places, present = images.labelled(name)
    ids += [example_id(images.ids[i], name) for i in places]
    groups += [name] * len(places)
    patients += [images.patients[i] for i in places]
    views += [images.views[i] for i in places]
    values.append(np.stack([score(images, name)[places], present], axis=1))
  units = ExampleScores(ids, groups, patients, SCORED, np.concatenate(values)) if ids else None

  thresholds = None
  if validation is not None:
    thresholds = {}
    there = set(validation.findings()[0])
    for name in findings:
      if name in there:
        places, present = validation.labelled(name)
        found = classification.best_threshold(score(validation, name)[places], present)
        thresholds[name] = found, len(places)
    if without := [name for name in findings if name not in there]:
      tell(
        f"zero-shot, prompts {prompts.name}: not both present and absent in the validation split,"
        f" so without a threshold: {', '.join(without)}"
      )

  names = [name for name in classes if name in asked]
  if len(names) < 2:
    return Scores(prompts, units, views, thresholds, None)
  kept = [i for i, labels in enumerate(images.labels) if single_finding(labels) in names]
  ids = [images.ids[i] for i in kept]
  draw = random.Random(_GLORIA_SEED)
  drawn = [
    draw.sample(texts, min(_GLORIA_PROMPTS, len(texts)))
    for texts in (asked[name].positive for name in names)
  ]
  every = [text for texts in drawn for text in texts]
  each = (images.vectors[kept] @ np.stack([vectors[text] for text in every]).T).astype(np.float64)
  has_local = again is not None and model.has_local_scores
  if has_local:
    each = (each + local_similarity.of_images(model, again(), ids, every)) / 2
  parts = np.split(each, np.cumsum([len(texts) for texts in drawn])[:-1], axis=1)
  found = Classes(
    names,
    np.array([names.index(single_finding(images.labels[i])) for i in kept]),
    np.stack([similarity(images, asked[name].positive)[kept] for name in names], axis=1),
    np.stack([standardised(part.max(1)) for part in parts], axis=1),
    ids,
    [images.patients[i] for i in kept],
    has_local,
  )
  if left := len(images.ids) - len(kept):
    tell(
      f"zero-shot classes, prompts {prompts.name}: {left} of {len(images.ids)} images have no single"
      " finding with prompts and a second image, and are left out"
    )
  return Scores(prompts, units, views, thresholds, found)


def similarities(images: np.ndarray, prompts: np.ndarray, ensemble: str) -> np.ndarray:
  """Of images [N, D] to prompts [P, D] of one finding, unit norm each: float64 [N].

  Args:
    images, prompts: float32.
    ensemble: "embeddings", "similarities" or "highest".

  Raises ValueError where one is NaN.
  """
  if ensemble == "embeddings":
    mean = prompts.astype(np.float64).mean(0)
    norm = np.linalg.norm(mean)
    found = images @ (mean / norm if norm > 1e-12 else mean)
  else:
    each = (images @ prompts.T).astype(np.float64)
    found = each.max(1) if ensemble == "highest" else each.mean(1)
  if np.isnan(found).any():
    raise ValueError("a similarity of image and prompt is NaN")
  return found


def standardised(values: np.ndarray) -> np.ndarray:
  """Values [N] brought to mean 0 and deviation 1; 0 where all are alike."""
  spread = values.std()
  return (values - values.mean()) / (spread if spread > 1e-12 else 1)


def zero_shot_rows(
  scores: Scores,
  *,
  data: str,
  resamples: int = bootstrap.RESAMPLES,
  seed: int = 0,
  compatibility: bool = False,
) -> list[Row]:
  """Rows of both protocols, with `compatibility` also of the published ones; see `Scores`."""
  draws = {"resamples": resamples, "seed": seed}
  prompts, mark = scores.prompts, f"prompts {scores.prompts.mark}"
  rows = []
  if scores.example_scores is not None:
    head = (f"zero-shot-{prompts.name}", f"{PROTOCOL}, {mark}", data)
    thresholds, suffix = {}, ""
    if scores.thresholds is not None:
      thresholds = {name: value for name, (value, _) in scores.thresholds.items()}
    elif prompts.has_negatives:
      thresholds, suffix = dict.fromkeys(scores.example_scores.groups, 0.5), " at .5"
    rows += finding_rows(head, scores.example_scores, thresholds, draws, suffix=suffix)
    rows += [
      Row(*head, name, "threshold", RUN, value, np.nan, np.nan, images)
      for name, (value, images) in (scores.thresholds or {}).items()
    ]
    rows += view_rows(head, scores.example_scores, scores.views, draws)
    if compatibility:
      score, present = scores.example_scores.values.T
      chosen = {
        name: classification.best_threshold(score[places], present[places] == 1)
        for name, places in places_by_finding(scores.example_scores).items()
      }
      head = (head[0], f"{TEST_THRESHOLD}, {mark}", data)
      rows += finding_rows(head, scores.example_scores, chosen, draws, ranked=False)
  if scores.classes is not None:
    head = (f"zero-shot-classes-{prompts.name}", f"{CLASSES_PROTOCOL}, {mark}", data)
    rows += _class_rows(head, scores.classes, scores.classes.similarities, draws)
    if compatibility:
      way = GLORIA if scores.classes.has_local else GLORIA_GLOBAL
      head = (head[0], f"{way}, {mark}", data)
      rows += _class_rows(head, scores.classes, scores.classes.as_gloria, draws)
  return rows


def _classes(images: Images) -> list[str]:
  """The findings that at least two images have alone; none where it is one finding only."""
  each = [single_finding(labels) for labels in images.labels]
  names = sorted(name for name in set(each) - {""} if each.count(name) > 1)
  return names if len(names) > 1 else []


def _embed_prompts(model: Embedder, texts: list[str]) -> dict[str, np.ndarray]:
  different = list(dict.fromkeys(texts))
  if not different:
    return {}
  vectors = np.asarray(model.embed_texts([(text,) for text in different]), np.float32)
  return dict(zip(different, vectors, strict=True))


def _class_rows(
  head: tuple[str, str, str], classes: Classes, table: np.ndarray, draws: dict[str, int]
) -> list[Row]:
  """Accuracy, macro F1 and the F1 of each class, by the highest of a table [N, k]."""
  given, k = classification.top(table), len(classes.names)

  def measure(places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return classification.class_figures(given[places], classes.of[places], weights)

  everything = ["all"] * len(classes.ids)
  found = bootstrap.grouped_figures(measure, 2 + k, everything, classes.patients, **draws)["all"]
  sizes = np.bincount(classes.of, minlength=k)
  commonest = float(sizes.max() / sizes.sum())
  places = [
    ("all", "accuracy", {"chance": 1 / k, "constant": commonest}),
    (MACRO, "F1", {"constant": 2 * commonest / (1 + commonest) / k}),
    *((name, "F1", {}) for name in classes.names),
  ]
  rows = []
  for m, (group, metric, floors) in enumerate(places):
    s, n = found[m], int(sizes[m - 2]) if m >= 2 else len(everything)
    rows.append(Row(*head, group, metric, RUN, s.value, s.low, s.high, n))
    rows += [
      Row(*head, group, metric, floor, value, np.nan, np.nan, n) for floor, value in floors.items()
    ]
  return rows
