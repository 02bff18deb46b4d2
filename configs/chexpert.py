"""CheXpert with its reports (CheXpert Plus, or a train.csv with "Report Impression").

  python -m plan_jax.main --config=configs/chexpert.py --config.data.source=/data/CheXpert-v1.0 \
    --workdir=runs/chexpert

Variants as in configs/mimic.py.
"""

from ml_collections import ConfigDict

from configs import mimic


def get_config(variant: str = "") -> ConfigDict:
  """The configuration of a variant: names with "," between."""
  config = mimic.get_config(variant)
  config.data.dataset = "chexpert"
  config.data.options = ConfigDict(dict(views="frontal"))
  config.train.steps = 40_000
  config.evaluation.sets = ConfigDict()
  mimic.attach_others(config)
  config.evaluation.sets.chexpert_5x200.source = config.data.get_oneway_ref("source")
  return config
