r"""Your own images on a frozen encoder of the field: features are stored once, heads learn on them.

  python -m plan_jax.main --config=configs/frozen.py --config.data.source=FOLDER \
    --config.model.image.weights=/models/dinov2-small \
    --config.model.text.weights=/models/all-MiniLM-L6-v2 --workdir=runs/frozen

Any encoder of docs/weights.md does; it tells its own sizes. Some hundred images are enough to learn
the heads, and a processor without a GPU to train them (docs/data.md, "Stored features").
"""

from ml_collections import ConfigDict

from configs import folder


def get_config() -> ConfigDict:
  """The folder's settings, on frozen encoders."""
  config = folder.get_config()
  freeze(config)
  config.train.freeze = ("^image_encoder/", "^text_encoder/")
  # Margins and air, whose patches hold what belongs to the whole image, too.
  config.model.image.vit.dark_below_fraction = 0.15
  config.data.flip_fraction = 0.5
  config.text.places = True
  config.alignment.update(side_weight=1.0, smooth_steps=0, spread_steps=8)
  config.alignment.update(spread_tau=0.2, spread_radius_fraction=0.0625)
  # Sharper regions in the last third.
  later = dict(start_fraction=0.65, tau=0.15)
  config.curriculum.refine = ConfigDict(config.curriculum.words.to_dict() | later)
  config.model.text.max_position = 512
  config.train.update(steps=300, batch_size=32, learning_rate=1e-3, weight_decay=1.0)
  config.evaluation.every_steps = 100
  return config


def freeze(config: ConfigDict) -> None:
  """Freezes the image encoder of a config, and stores its features."""
  config.data.store_features = True
  config.data.augment = False
  config.model.image.name = "vit"
  config.model.image.spread_stage = 0  # features are stored of the last stage alone
  # The last block's pixels hold what belongs to the whole image, and a contrast chooses them.
  config.model.image.vit.update(depth=12, layers=(8,))
  config.train.freeze = ("^image_encoder/",)
