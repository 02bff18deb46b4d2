"""The peaks of phrases on validation images, by which the score of a new one is read.

`plan_jax.evaluate` measures them and writes calibration.json into the workdir; an export has it
too. Affirmed phrases are the sentences of the validation reports that name a finding as present, by
the list of diagnostic terms, each read alone on its own image. Random phrases are two to four
words, drawn evenly from all that these reports use, on the same images.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline import digests
from input_pipeline.example import Example
from input_pipeline.files import replace_text
from input_pipeline.images import model_input
from input_pipeline.text import reports
from input_pipeline.text.diagnostic_terms import Terms

REMEDY = "delete it and evaluate again (--mode=evaluate)"
_SEED, _DRAWN = 0, 3  # of the random phrases; how many an image
_BATCH = 64  # images at a time
_SHARES = np.linspace(0, 1, 101)
_CHANCE = 0.95  # share of the random phrases that a phrase should exceed


@dataclass(frozen=True)
class Calibration:
  """Peaks of a model at a step.

  Attributes:
    step: of training.
    affirmed: 101 quantiles of the peaks of affirmed phrases, from the least to the greatest.
    chance: the .95 quantile of the peaks of random phrases.
  """

  step: int
  affirmed: list[float]
  chance: float

  def quantile(self, score: float) -> float:
    """Share of the affirmed phrases that peak no higher."""
    return float(np.interp(score, self.affirmed, _SHARES))


def measure(model: Any, examples: Iterable[Example], terms: Terms) -> Calibration | None:
  """Measures a Predictor on examples with text; None where no report affirms a finding.

  Raises UserError, naming it, where an image is unreadable.
  """
  draw, kept = random.Random(_SEED), [example for example in examples if example.sentences]
  sentences = [sentence for example in kept for sentence in example.sentences]
  words = sorted({word for text in sentences for word in reports.normalise(text).split()})
  affirmed, drawn = [], []
  for start in range(0, len(kept), _BATCH):
    phrases, images, is_drawn = [], [], []
    for example in kept[start : start + _BATCH]:
      named = [sentence for sentence in example.sentences if any(terms.named(sentence))]
      chosen = [" ".join(draw.choices(words, k=draw.randint(2, 4))) for _ in range(_DRAWN)]
      phrases += named + chosen
      images += [model_input(example)] * len(named + chosen)
      is_drawn += [False] * len(named) + [True] * len(chosen)
    peaks, is_drawn = model.peaks(images, phrases), np.array(is_drawn)
    affirmed += peaks[~is_drawn].tolist()
    drawn += peaks[is_drawn].tolist()
  if not affirmed:
    return None
  quantiles = np.quantile(affirmed, _SHARES).tolist()
  return Calibration(model.step, quantiles, float(np.quantile(drawn, _CHANCE)))


def write(path: Path, calibration: Calibration) -> None:
  """Writes calibration.json, sealed, whole or not at all."""
  replace_text(path, digests.seal(vars(calibration), indent=2) + "\n")


def read(path: Path, step: int) -> Calibration | None:
  """Reads calibration.json; None where there is none, or one of another step.

  Raises DamagedError where it is not as it was written.
  """
  if not path.is_file():
    return None
  try:
    calibration = Calibration(**digests.read_sealed(path, REMEDY))
  except TypeError as error:
    raise digests.DamagedError(f"{path} is of another version; {REMEDY}") from error
  return calibration if calibration.step == step else None
