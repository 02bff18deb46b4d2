"""Settings of encoders, as the folders of their weights tell them.

Keys are those of config.model, flat: "image.vit.depth". Hugging Face folders have config.json and
preprocessor_config.json; those of timm tell of pixels alone, those of plan_jax.export hold a run's.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from plan_jax.models.resnet import BLOCKS
from plan_jax.models.two_towers import TEXT_ENCODERS
from plan_jax.models.weights.files import WeightsError, read_settings

_TEXT = {  # and their names in a config.json
  "text.embed_dim": "hidden_size",
  "text.depth": "num_hidden_layers",
  "text.num_heads": "num_attention_heads",
  "text.mlp_dim": "intermediate_size",
  "text.max_position": "max_position_embeddings",
}
_VIT = {
  "image.vit.embed_dim": "hidden_size",
  "image.vit.depth": "num_hidden_layers",
  "image.vit.num_heads": "num_attention_heads",
  "image.vit.mlp_dim": "intermediate_size",
  "image.vit.patch_px": "patch_size",
  "image.vit.registers": "num_register_tokens",
}
_VIT_OTHERS = ("image.vit.variant", "image.vit.grid", "image.vit.gated")
_RESNET = ("image.depth", "image.width", "image.stages")
_PIXELS = ("image_px", "image.mean", "image.std")
KEYS = {  # all that a folder may tell of an encoder
  "image": ("image.name", *_RESNET, *_VIT, *_VIT_OTHERS, *_PIXELS),
  "text": ("text.name", *_TEXT),
}
CHOSEN = ("image_px", "image.stages")  # an encoder with others than these is another one

_VARIANTS = {  # by model_type
  "vit": "vit",
  "dinov2": "dinov2",
  "dinov2_with_registers": "dinov2_registers",
  "dinov3_vit": "dinov3",
  "clip": "clip",
  "clip_vision_model": "clip",
  "siglip": "siglip",
  "siglip_vision_model": "siglip",
}
# What transformers leaves out of the config.json of both encoders.
_BASE = {
  "hidden_size": 768,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "intermediate_size": 3072,
  "image_size": 224,
}
_JOINT = {"clip": _BASE | {"patch_size": 32}, "siglip": _BASE | {"patch_size": 16}}


def image_settings(folder: str | Path) -> dict[str, Any]:
  """Reads what a folder tells of its image encoder: the kind, sizes, and pixels in training.

  What it does not tell is absent. Raises WeightsError, naming file and entry, where one cannot be.
  """
  file = Path(folder) / "config.json"
  settings = read_settings(file)
  if "run" in settings:
    return _of_run(settings, KEYS["image"])
  kind, values = str(settings.get("model_type")), {}
  if kind in _VARIANTS:
    own = _JOINT.get(kind, {}) | section(settings, "vision_config", settings)
    values = _vit(own, _VARIANTS[kind], file)
  elif kind == "resnet":
    values = _resnet(settings, file)
  values |= _pixels(Path(folder), settings)
  if "image_px" in values:  # a convolution leaves what is no whole patch
    values["image_px"] -= values["image_px"] % values.get("image.vit.patch_px", 1)
  return values


def text_settings(folder: str | Path) -> dict[str, Any]:
  """Reads what a folder tells of its text encoder, as `image_settings` does."""
  file = Path(folder) / "config.json"
  settings = read_settings(file)
  if "run" in settings:
    return _of_run(settings, KEYS["text"])
  values = _whole(settings, _TEXT, file)
  kind = str(settings.get("model_type"))
  if kind in TEXT_ENCODERS:
    values["text.name"] = kind
  if kind == "mpnet" and "text.max_position" in values:
    values["text.max_position"] -= 2  # the first belong to no token
  return values


def _of_run(settings: Mapping, keys: Collection[str]) -> dict:
  match settings:
    case {"run": {"model": {**model}}}:
      own = {key: x for key, x in flatten_dict(model, sep=".").items() if key in keys}
      return {key: tuple(x) if isinstance(x, list) else x for key, x in own.items()}
  return {}


def _vit(settings: Mapping, variant: str, file: Path) -> dict:
  values = {"image.name": "vit", "image.vit.variant": variant, "image.vit.registers": 0}
  values |= _whole(settings, _VIT, file)
  gated = bool(settings.get("use_swiglu_ffn") or settings.get("use_gated_mlp"))
  ratio, width = settings.get("mlp_ratio"), values.get("image.vit.embed_dim")
  if ratio is not None and width:  # DINOv2
    _require(_is_number(ratio), file, "mlp_ratio", ratio)
    hidden = int(width * ratio)
    values["image.vit.mlp_dim"] = (int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden
  side = _whole(settings, {"side": "image_size"}, file).get("side")
  if side and variant != "dinov3":  # whose positions are not learned
    values["image.vit.grid"] = side // values.get("image.vit.patch_px", side)
  return values | {"image.vit.gated": gated}


def _resnet(settings: Mapping, file: Path) -> dict:
  values = {"image.name": "resnet"}
  if width := _whole(settings, {"width": "embedding_size"}, file).get("width"):
    values["image.width"] = width / 64
  is_deep = settings.get("layer_type") == "bottleneck"
  for depth, blocks in BLOCKS.items():
    if settings.get("depths") == list(blocks) and is_deep == (depth == 50):
      values["image.depth"] = depth
  return values


def _pixels(folder: Path, settings: Mapping) -> dict:
  """Reads the side, mean and standard deviation of the images that an encoder was trained on."""
  if timm := section(settings, "pretrained_cfg"):
    side = timm.get("input_size")
    side = side[-1] if isinstance(side, list) and side else side
    return _checked_pixels(side, timm.get("mean"), timm.get("std"), folder / "config.json")
  file = folder / "preprocessor_config.json"
  if not file.is_file():
    file = folder / "processor_config.json"  # of both encoders
  return pixel_settings(read_settings(file), file)


def pixel_settings(images: Mapping, file: Path) -> dict[str, Any]:
  """Reads "image_px", "image.mean" and "image.std" off the entries of a preprocessor_config.json.

  What they do not tell is absent. Raises WeightsError, naming the file, where one cannot be.
  """
  images = section(images, "image_processor", images)
  side = (images.get("do_center_crop") and images.get("crop_size")) or images.get("size")
  if isinstance(side, Mapping):
    side = side.get("height", side.get("shortest_edge"))
  scale = images.get("rescale_factor", 1 / 255)
  _require(_is_number(scale) and abs(255 * scale - 1) < 1e-3, file, "rescale_factor", scale)
  mean, std = images.get("image_mean"), images.get("image_std")
  if images.get("do_normalize") is False:
    mean, std = (0.0,) * 3, (1.0,) * 3
  return _checked_pixels(side, mean, std, file)


def _checked_pixels(side, mean, std, file: Path) -> dict:
  values = {} if side is None else _whole({"size": side}, {"image_px": "size"}, file)
  for name, numbers in (("mean", mean), ("std", std)):
    if numbers is not None:
      is_listed = isinstance(numbers, list | tuple) and len(numbers) in (1, 3)
      _require(is_listed and all(map(_is_number, numbers)), file, name, numbers)
      values[f"image.{name}"] = tuple(numbers)
  return values


def _whole(settings: Mapping, names: Mapping[str, str], file: Path) -> dict[str, int]:
  """Returns the entries that are there, by our names: whole numbers, positive but of registers."""
  values = {ours: settings[theirs] for ours, theirs in names.items() if theirs in settings}
  for ours, value in values.items():
    holds = type(value) is int and (value > 0 or (value == 0 and "register" in ours))
    _require(holds, file, names[ours], value)
  return values


def section(settings: Mapping, name: str, default: Mapping | None = None) -> Mapping:
  """Returns the entries below a name of a folder's settings, else the default, which is empty."""
  entries = settings.get(name)
  return entries if isinstance(entries, Mapping) else default or {}


def _is_number(value) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _require(holds: bool, file: Path, name: str, value) -> None:
  if not holds:
    raise WeightsError(
      f"{file}: {name} is {value!r}, which cannot be: fetch it again, or name the file of the"
      " tensors alone and set the keys of config.model"
    )
