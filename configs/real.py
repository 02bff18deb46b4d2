r"""A study on real images that lie at hand: PLAN against its baselines and without its parts.

  python -m launch.sweep --config=configs/real.py --out=runs/real --mode=run -- \
    --config.data.source=FOLDER --config.model.image.weights=/models/dinov2-small \
    --config.model.text.weights=/models/all-MiniLM-L6-v2

Short texts, of some sentences. Another folder may be attached, for how far a run carries over:
`--config.evaluation.sets.other.source=OTHER` (docs/real_images.md).
"""

from ml_collections import ConfigDict

from configs import ablation, base, frozen


def get_config() -> ConfigDict:
  """The settings of configs/frozen.py for short texts, scored once at the end."""
  config = frozen.get_config()
  config.text.update(max_tokens=32, max_words=20)
  config.checkpoint.every_steps = 0
  config.evaluation.update(every_steps=0, report_images=4, max_tokens=64, max_words=40)
  config.evaluation.sets.other = base.evaluation_set("folder")
  return config


def sweep() -> list[dict[str, object]]:
  """Every method on five seeds, and PLAN without each of its parts on three."""
  parts = [
    {"alignment.side_weight": 0.0},
    {"alignment.spread_steps": 0},
    {"alignment.side_weight": 0.0, "alignment.spread_steps": 0},
    {"curriculum.refine.tau": 0.2},  # as the stage before it
    {"text.places": False},
    {"data.flip_fraction": 0.0},
  ]
  runs = [method | {"seed": seed} for seed in range(5) for method in ({}, *ablation.BASELINES)]
  return runs + [part | {"seed": seed} for seed in range(3) for part in parts]
