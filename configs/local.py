"""A small likeness of any config: `--config.runlocal=True` tries the whole way on a few images."""

from collections.abc import Collection

from ml_collections import ConfigDict

_CHANGES = {
  "data.limit": 64,
  "text.vocabulary_size": 500,
  "model.image_px": 64,
  "model.embed_dim": 32,
  "model.dtype": "float32",
  "model.remat": "none",
  "alignment.dtype": "float32",
  "train.steps": 4,
  "train.batch_size": 8,
  "train.micro_batches": 1,
  "train.log_every_steps": 1,
  "checkpoint.every_steps": 2,
  "evaluation.every_steps": 2,
  "evaluation.during_images": 8,
  "evaluation.batch_size": 8,
  "evaluation.resamples": 20,
  "evaluation.report_images": 2,
}
_ENCODERS = {
  "image": {
    "width": 0.25,
    "vit.embed_dim": 48,
    "vit.depth": 2,
    "vit.num_heads": 2,
    "vit.mlp_dim": 96,
    "vit.grid": 4,
    "vit.layers": (),
    "lora_rank": 0,
    "lora_blocks": 0,
  },
  "text": {"embed_dim": 48, "depth": 2, "num_heads": 2, "mlp_dim": 96, "last_layers": 1},
}
_HEAD = {"image_px": 64, "steps": 4, "batch_size": 8, "validate_every_steps": 2, "resamples": 20}
_TASKS = {
  "detection": _HEAD | {"channels": 8},
  "segmentation": _HEAD | {"channels": 8},
  "classification": _HEAD,
  "linear_probe": {"image_px": 64, "resamples": 20},
}


def localised(config: ConfigDict, overrides: Collection[str] = ()) -> ConfigDict:
  """The config itself, or its small likeness where `config.runlocal` is set.

  An encoder whose weights are given keeps its size; images are then as small as any patch divides.
  Selections are dropped: few images hold none.

  Args:
    config: as its file and the command line have it.
    overrides: keys that the command line sets, e.g. "train.steps"; they stay as they are.
  """
  if not config.get("runlocal"):
    return config
  changes = dict(_CHANGES)
  for encoder, sizes in _ENCODERS.items():
    if not config.model[encoder].weights:
      changes |= {f"model.{encoder}.{key}": value for key, value in sizes.items()}
  changes["data.selection"] = ""
  changes |= {f"evaluation.sets.{name}.selection": "" for name in config.evaluation.sets}
  for name, entry in config.evaluation.transfer.items():
    key = f"evaluation.transfer.{name}"
    changes |= {f"{key}.flags.{flag}": value for flag, value in _TASKS.get(entry.task, {}).items()}
    changes[f"{key}.fractions"] = entry.fractions[-1:]
  if config.model.image.weights:
    changes |= {key: 224 for key in changes if key.endswith("image_px")}
  config = ConfigDict(config.to_dict())
  kept = {key: value for key, value in changes.items() if key not in overrides}
  config.update_from_flattened_dict(kept)
  return config
