"""The demo: synthetic films, a small model, a few minutes on two CPU cores."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """The phantom at 128 px."""
  config = base.get_config()
  config.data.dataset = "phantom"
  config.data.options = ConfigDict(
    dict(
      size_px=128, seed=0, train_films=14_000, validation_films=500, test_films=500,
      small_only=False, wrong_sentence_fraction=0.0, swapped_side_fraction=0.0,
    )
  )  # fmt: skip
  config.text.vocabulary_size = 1000
  config.text.max_tokens = 64
  config.text.max_words = 32

  config.model.image_px = 128
  config.model.size = 64
  config.model.dtype = "float32"
  config.model.image.update(depth=18, width=0.5, stages=3, output_stride=8, dilated=False)
  config.model.image.vit.update(size=192, layers=6, heads=3, mlp_size=768, grid=8)
  config.model.text.update(size=128, layers=2, heads=4, mlp_size=256, max_position=128, dropout=0.0)
  config.alignment.dtype = "float32"
  config.alignment.tile_mib = 16  # what a CPU's cache can hold

  config.curriculum.refine.start_fraction = 0.65
  config.train.steps = 1440
  config.train.batch_size = 16
  config.train.learning_rate = 1.5e-3
  config.train.log_every_steps = 40
  config.checkpoint.every_steps = 240
  config.evaluation.every_steps = 720
  config.evaluation.during_films = 100
  config.evaluation.max_tokens = 128
  config.evaluation.max_words = 64
  return config
