"""The demo: synthetic images, a small model, a few minutes on two CPU cores.

`configs/phantom.py:tasks` also learns all transfer tasks on the encoder, and on others to compare
it with: an hour or two more.
"""

from ml_collections import ConfigDict

from configs import base, variants


def get_config(variant: str = "") -> ConfigDict:
  """The phantom at 128 px; `variant` is empty or "tasks"."""
  (tasks,) = variants.parse("phantom.py", variant, ("", "tasks"))
  config = base.get_config()
  config.data.dataset = "phantom"
  config.data.options = ConfigDict(
    dict(
      size_px=128,
      seed=0,
      train_images=14_000,
      validation_images=500,
      test_images=500,
      small_only=False,
      wrong_sentence_fraction=0.0,
      swapped_side_fraction=0.0,
    )
  )
  config.text.update(vocabulary_size=1000, max_tokens=64, max_words=32, concise_fraction=0.3)
  config.model.update(image_px=128, embed_dim=64, dtype="float32")
  config.model.image.update(depth=18, width=0.5, stages=3, output_stride=8, dilated=False)
  config.model.image.vit.update(embed_dim=192, depth=6, num_heads=3, mlp_dim=768, grid=8)
  config.model.text.update(
    embed_dim=128, depth=2, num_heads=4, mlp_dim=256, max_position=128, dropout=0.0
  )
  config.alignment.dtype = "float32"
  config.model.image.spread_stage = 1
  config.alignment.update(smooth_steps=4, spread_steps=4, side_weight=1.0)
  config.alignment.update(spread_tau=0.05, spread_radius_fraction=0.09)

  config.train.update(steps=1440, batch_size=16, learning_rate=1.5e-3, log_every_steps=40)
  config.checkpoint.every_steps = 240
  config.evaluation.update(every_steps=720, during_images=100, max_tokens=128, max_words=64)
  if tasks:
    _attach_tasks(config)
  return config


def _attach_tasks(config: ConfigDict) -> None:
  """All that can be learned on the encoder, small enough for a CPU."""
  tasks = config.evaluation.transfer
  all_encoders = ("run", "random", "supervised")
  small = dict(image_px=128, steps=1200, validate_every_steps=300, patience=3)
  tasks.detection = base.transfer_task(
    "detection", encoders=all_encoders, channels=32, compatibility=True, **small
  )
  tasks.segmentation = base.transfer_task(
    "segmentation", encoders=all_encoders, channels=32, **small
  )
  tasks.classification = base.transfer_task(
    "classification", encoders=("run", "supervised"), learning_rate=5e-4, **small
  )
  tasks.probe = base.transfer_task("linear_probe", encoders=("run", "random"))
