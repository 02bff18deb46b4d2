"""Your own images: any folder with a manifest.csv, a model that some thousand images can feed.

python -m plan_jax.main --config=configs/folder.py --config.data.source=FOLDER --workdir=runs/mine
"""

from ml_collections import ConfigDict

from configs import phantom


def get_config() -> ConfigDict:
  """The phantom's small model at 160 px, on a folder."""
  config = phantom.get_config()
  config.data.dataset = "folder"
  config.data.options = ConfigDict()
  config.text.update(vocabulary_size=2000, max_tokens=96, max_words=48)
  config.model.image_px = 160
  config.model.text.max_position = 256
  config.train.steps = 600
  config.evaluation.split = "validation"
  config.evaluation.update(every_steps=200, during_images=200, max_tokens=256, max_words=160)
  return config
