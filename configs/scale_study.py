"""A study of PLAN's defaults at another batch and another image size.

python -m launch.sweep --config=configs/scale_study.py --out=runs/scales --mode=run --parallel=2
"""

from ml_collections import ConfigDict

from configs import ablation


def get_config() -> ConfigDict:
  """The runs of configs/ablation.py: 96 px, batch 16, 1,000 steps."""
  return ablation.get_config()


def sweep() -> list[dict[str, object]]:
  """Temperature and weights around their defaults, at three points of batch and image size."""
  points = [
    {},
    {"train.batch_size": 32, "train.steps": 500},  # as many images
    {"data.options.size_px": 128, "model.image_px": 128},
  ]
  changes = [
    {},
    *({f"curriculum.{stage}.tau": tau for stage in ("words", "refine")} for tau in (0.15, 0.3)),
    *({"alignment.word_weight": weight} for weight in (1.0, 8.0)),
    {f"curriculum.{stage}.global_weight": 2.0 for stage in ("words", "refine")},
    {"alignment.mask_positives": False},
  ]
  return [point | change | {"seed": 0} for point in points for change in changes]
