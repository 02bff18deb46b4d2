"""Local alignments by name: `plan`, and the baselines that it must beat under equal encoders.

Each is its published formula, temperatures included, on the same features. Padding is left out
where the published code lets it in, and contrasts of pairs leave out equal reports and reports
without words, for every method alike.
"""

from plan_jax.alignment import pairwise
from plan_jax.alignment.curriculum import Stage
from plan_jax.alignment.methods import global_only, gloria, mgca, plan, sparc
from plan_jax.alignment.methods.base import Alignment, Method, choose_tile

METHODS: dict[str, Method] = {
  "plan": plan.METHOD,
  "none": global_only.METHOD,
  "gloria": gloria.METHOD,
  "sparc": sparc.METHOD,
  "mgca": mgca.METHOD,
}


def pair_score(alignment: Alignment, stage: Stage) -> pairwise.Score | None:
  """Returns the score of all image x report pairs.

  None where the method compares none, and in a stage without a local loss.
  """
  score = METHODS[alignment.method].pair_score
  return None if score is None or not stage.local_weight else score(alignment, stage)


def pair_tile(
  alignment: Alignment, stage: Stage, pixels: tuple[int, int, int], words: tuple[int, int, int]
) -> pairwise.Tile | None:
  """Returns the tile of a stage for pixels (B, P, D) and words (B, W, D); None if it needs none.

  Raises ValueError, beginning with the setting's name, where none fits.
  """
  score = pair_score(alignment, stage)
  if score is None or alignment.implementation == "full":
    return None
  return choose_tile(score, alignment, pixels, words)
