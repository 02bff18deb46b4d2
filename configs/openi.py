"""Indiana University reports and images (OpenI): public, small, a start without credentials.

python -m plan_jax.main --config=configs/openi.py --config.data.source=/data/openi \
    --workdir=runs/openi
"""

from ml_collections import ConfigDict

from configs import base, mimic


def get_config() -> ConfigDict:
  """ResNet-50 at 224 px and a small text encoder, for 3,955 reports."""
  config = base.get_config()
  config.data.dataset = "openi"
  config.text.vocabulary_size = 4000
  config.model.text.update(embed_dim=384, depth=6, num_heads=6, mlp_dim=1536)
  config.train.update(steps=6000, batch_size=64)
  config.evaluation.every_steps = 1000
  mimic.attach_others(config)
  del config.evaluation.sets.openi
  return config
