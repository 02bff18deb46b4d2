"""The study: PLAN against its baselines and without its parts, on small synthetic films.

python -m launch.sweep --config=configs/ablation.py --out=runs/ablation --mode=run --parallel=2
"""

from ml_collections import ConfigDict

from configs import phantom


def get_config() -> ConfigDict:
  """The phantom at 96 px, a run of a few minutes on one core."""
  config = phantom.get_config()
  config.data.options.size_px = 96
  config.model.image_px = 96
  config.model.image.width = 0.375
  config.train.steps = 500
  config.checkpoint.every_steps = 0
  config.evaluation.every_steps = 0
  config.evaluation.report_films = 4
  return config
