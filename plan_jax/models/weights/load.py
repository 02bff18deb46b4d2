"""Foreign weights in our encoders: each tensor has its place, or is known to be none of ours."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from plan_jax.models.bert import Bert
from plan_jax.models.resnet import BLOCKS, ResNet, first_channels
from plan_jax.models.two_towers import image_encoder, text_encoder
from plan_jax.models.vit import ViT
from plan_jax.models.weights import files, layouts
from plan_jax.models.weights.files import WeightsError

_ENCODERS = {"resnet": ResNet, "vit": ViT, "bert": Bert}
_HEAD_SIZE = 64
# Entries of a config.json that change the computation and no tensor, and what ours is.
_VARIANT = {
  "resnet": {"hidden_act": "relu", "downsample_in_bottleneck": False},
  "vit": {"hidden_act": "gelu"},
  "bert": {"hidden_act": "gelu", "position_embedding_type": "absolute"},
}
_MOST_EPSILON = 1e-6  # of a layer norm, above which features would change


class Encoder(NamedTuple):
  """An encoder's weights, as numpy float32, and where they are from.

  Attributes:
    params, batch_stats: trees like the encoder's own.
    provenance: {"source": layout and file, "sha256": of the file, "left_aside": names not ours}.
  """

  params: dict
  batch_stats: dict
  provenance: dict


def load_image(path: str | Path, encoder: ResNet | ViT) -> Encoder:
  """Weights for an image encoder, from a file or folder of one of layouts.IMAGE_LAYOUTS.

  Stages of a ResNet that the encoder does not run, and a projector that it has not, are left aside.

  Raises WeightsError: the file cannot be read or its layout is unknown; sizes differ from the
  encoder's (with the config keys to set); names are missing or unexpected, or shapes differ.
  """
  return _load(path, encoder, layouts.IMAGE_LAYOUTS, "config.model.image")


def load_text(path: str | Path, encoder: Bert) -> Encoder:
  """Weights for the text encoder, from layouts.TEXT_LAYOUTS; raises as `load_image` does."""
  return _load(path, encoder, layouts.TEXT_LAYOUTS, "config.model.text")


def load_encoders(model, vocabulary_size: int | None = None) -> dict[str, Encoder]:
  """The encoders that `config.model` starts from foreign weights, by their name in the parameters.

  Without a vocabulary size that of the text is as the file has it.

  Raises WeightsError as `load_image` does.
  """
  found, wrong = {}, []
  for name, load, weights, encoder in (
    ("image_encoder", load_image, model.image.weights, image_encoder(model.image)),
    ("text_encoder", load_text, model.text.weights, text_encoder(model.text, vocabulary_size or 0)),
  ):
    try:
      if weights:
        found[name] = load(weights, encoder)
    except WeightsError as error:
      wrong.append(str(error))
  if wrong:
    raise WeightsError("\n".join(wrong))
  return found


def load_baseline(
  path: str | Path,
  name: str,
  build: Callable[[dict, dict], nn.Module],
  inputs: tuple,
  *,
  method: str = "__call__",
  key: str = "config.baseline.weights",
) -> tuple[nn.Module, Encoder]:
  """A whole model of another project, heads and all, and its weights.

  Args:
    path: of its checkpoint.
    name: of layouts.BASELINE_LAYOUTS.
    build: (path of ours -> shape, settings of a folder's config.json) -> the model; see `sizes`.
    inputs: arrays that the model's `method` can be called with, for its shapes.
    method: that needs all that the file holds.
    key: of the config, for messages.

  Raises WeightsError: the file cannot be read, or is another model's; names are missing or
  unexpected, or shapes differ.
  """
  try:
    weights = files.read(path)
  except WeightsError as error:
    raise WeightsError(f"{key}: {error}") from error
  wanted, found = (
    layouts.BASELINE_LAYOUTS[name],
    layouts.find(tuple(layouts.BASELINE_LAYOUTS.values()), weights.tensors),
  )
  if found is not wanted:
    some = ", ".join(list(weights.tensors)[:3]) or "no tensor"
    holds = f"it is {found.name}'s" if found else f"it begins with {some}"
    raise WeightsError(
      f"{key}: {path} is no checkpoint of {wanted.name}: {holds}; the variants of"
      " configs/baselines.py, and what each wants, are in docs/baselines.md"
    )
  given, aside, wrong = _placed(weights.tensors, wanted, lambda _: False)
  model = build({path: np.shape(x) for (_, path), (_, x) in given.items()}, weights.settings)
  shapes = _shapes(model, inputs, method)
  return model, _checked(path, key, wanted, weights.sha256, given, aside, wrong, shapes)


def sizes(shapes: dict, encoder: str) -> dict:
  """What the shapes of an encoder's arrays tell of its attributes.

  Args:
    shapes: path of ours -> shape; what is not the encoder's does not matter.
    encoder: "resnet", "vit" or "bert". Heads are told by no array: they are of 64 channels, as in
      all BERT and ViT of the base size.
  """
  found = _SIZES[encoder](shapes)
  if "embed_dim" in found:
    found["num_heads"] = _usual_heads(found["embed_dim"])
  return {key: value for key, value in found.items() if key not in ("channels", "projector")}


def _usual_heads(size: int) -> int:
  return max(1, size // _HEAD_SIZE)


def tokenizer_folder(config) -> str:
  """The folder of config.text.tokenizer, else of the text weights; empty: train a vocabulary.

  Raises WeightsError for text weights without a vocabulary, which would mean nothing to them.
  """
  folder = config.model.text.weights
  if config.text.tokenizer or not folder:
    return config.text.tokenizer
  if any((Path(folder) / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
    return folder
  raise WeightsError(
    f"config.model.text.weights {folder} comes without a vocabulary (tokenizer.json or vocab.txt):"
    " name the folder of the one it was trained with in config.text.tokenizer"
  )


def _load(path, encoder: nn.Module, known: tuple[layouts.Layout, ...], key: str) -> Encoder:
  weights = files.read(path)
  layout = layouts.find(known, weights.tensors)
  if layout is None:
    some = ", ".join(list(weights.tensors)[:3]) or "no tensor"
    raise WeightsError(
      f"{path} has none of the layouts {', '.join(one.name for one in known)} (it begins with"
      f" {some}); see docs/weights.md"
    )
  if not isinstance(encoder, _ENCODERS[layout.encoder]):
    raise WeightsError(f"{path} holds a {layout.name}: set {key}.name={layout.encoder}")
  given, aside, wrong = _placed(weights.tensors, layout, partial(_not_wanted, encoder))
  shapes = {target: np.shape(array) for (_, target), (_, array) in given.items()}
  _check_sizes(path, key, encoder, layout, shapes, weights.settings, wrong)
  if isinstance(encoder, Bert) and not encoder.vocabulary_size:
    encoder = encoder.clone(vocabulary_size=shapes["token_embedding/embedding"][0])
  wanted = _shapes(encoder, _inputs(encoder))
  return _checked(path, key, layout, weights.sha256, given, aside, wrong, wanted)


def _checked(path, key, layout, sha256, given, aside, wrong, wanted) -> Encoder:
  """The weights, where every name is accounted for and every shape fits; else WeightsError."""
  for target in layout.zeros:
    if ("params", target) in wanted:
      given.setdefault(("params", target), ("", np.zeros(wanted["params", target], np.float32)))
  wrong += [f"unexpected {name}" for target, (name, _) in given.items() if target not in wanted]
  wrong += [f"missing {target[1]}" for target in wanted if target not in given]
  wrong += [
    f"{name} is {array.shape} for our {target[1]} of {wanted[target]}"
    for target, (name, array) in given.items()
    if wanted.get(target, array.shape) != array.shape
  ]
  wrong += [
    f"{name} is not finite" for name, array in given.values() if not np.isfinite(array).all()
  ]
  if wrong:
    raise WeightsError(
      f"{path}, read as {layout.name}, does not fit {key}: {'; '.join(sorted(set(wrong)))}"
    )
  tree = {target: np.ascontiguousarray(array) for target, (_, array) in given.items()}
  params, stats = (
    unflatten_dict({path: x for (c, path), x in tree.items() if c == collection}, sep="/")
    for collection in ("params", "batch_stats")
  )
  return Encoder(
    params,
    stats,
    {
      "source": f"{layout.name}: {Path(path).name}",
      "sha256": sha256,
      "left_aside": sorted(set(aside)),
    },
  )


def _placed(tensors: dict, layout: layouts.Layout, left: Callable[[str], bool]):
  """{(collection, path): (name, array)}, the names left aside, and what is wrong.

  `left` tells which paths of ours are not wanted.
  """
  given, aside, wrong = {}, [], []
  for name, tensor in tensors.items():
    there = layouts.targets(layout, name)
    if there is None and layouts.is_left_aside(layout, name):
      aside.append(name)
    elif there is None:
      wrong.append(f"unexpected {name}")
    for collection, target, turn in there or ():
      if left(target):
        aside.append(name)
      elif (collection, target) in given:
        wrong.append(f"{name} and {given[collection, target][0]} are both our {target}")
      else:
        try:
          given[collection, target] = name, turn(tensor)
        except (ValueError, IndexError):
          wrong.append(f"{name} is {tensor.shape}, which cannot be our {target}")
  return given, aside, wrong


def _not_wanted(encoder: nn.Module, target: str) -> bool:
  """Whether our encoder could have this, but does without as it is set."""
  if target.startswith("projector_"):
    return not encoder.projector
  stage = re.match(r"stage(\d)_", target)
  return bool(stage) and int(stage[1]) > encoder.stages


def _shapes(
  model: nn.Module, inputs: tuple, method: str = "__call__"
) -> dict[tuple[str, str], tuple[int, ...]]:
  """(collection, path) -> shape of all that the model's method learns or keeps."""
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, method=method))
  return {
    (collection, path): leaf.shape
    for collection, tree in variables.items()
    for path, leaf in flatten_dict(tree, sep="/").items()
  }


def _inputs(encoder: nn.Module) -> tuple:
  if isinstance(encoder, Bert):
    some = jnp.zeros((1, 2), jnp.int32)
    return some, some, some
  return (jnp.zeros((1, 64, 64, 1)) if isinstance(encoder, ResNet) else _one_patch(encoder),)


def _one_patch(encoder: ViT) -> jax.Array:
  return jnp.zeros((1, encoder.patch_px, encoder.patch_px, 1))


def _check_sizes(path, key, encoder, layout, shapes, settings, also_wrong) -> None:
  """Raises WeightsError where the file's sizes are not the config's, with those to set."""
  there = _SIZES[layout.encoder](shapes)
  wrong = []
  channels = there.pop("channels", 1 if isinstance(encoder, Bert) else len(encoder.mean))
  if not isinstance(encoder, Bert) and channels != len(encoder.mean):
    wrong.append(_normalisation(key, channels, layout, settings))
  words = there.pop("vocabulary_size", None)
  if words and encoder.vocabulary_size not in (0, words):
    wrong.append(
      f"its vocabulary has {words} tokens, the tokenizer {encoder.vocabulary_size}: name its own in"
      " config.text.tokenizer"
    )
  if isinstance(encoder, ResNet):
    there["norm"] = "batch"
    if first_channels(encoder.width) == 64 * there.get("width", 0):
      del there["width"]
  else:
    there["num_heads"] = settings.get("num_attention_heads", encoder.heads)
  keys = f"{key}.vit" if isinstance(encoder, ViT) else key
  if (
    "embed_dim" in there
    and there["embed_dim"] != encoder.size
    and "num_attention_heads" not in settings
  ):
    wrong.append(
      f"set {keys}.heads as well, which the file does not tell (is {encoder.heads};"
      f" {_usual_heads(there['embed_dim'])} where a head has {_HEAD_SIZE} channels, as a rule)"
    )
  wrong += [
    f"set {keys}.{name}={value} (is {getattr(encoder, name)})"
    for name, value in there.items()
    if value != getattr(encoder, name)
  ]
  wrong += [
    f"its config.json has {name} {settings[name]!r}, ours is {value!r}"
    for name, value in _VARIANT[layout.encoder].items()
    if settings.get(name, value) != value
  ]
  if settings.get("layer_norm_eps", 0) > _MOST_EPSILON:
    wrong.append(
      f"its config.json has layer_norm_eps {settings['layer_norm_eps']}, ours is at most"
      f" {_MOST_EPSILON}"
    )
  if wrong:
    wrong += sorted(set(also_wrong))
    raise WeightsError(f"{path}, read as {layout.name}, has other sizes: {'; '.join(wrong)}")


def _normalisation(key: str, channels: int, layout: layouts.Layout, settings: dict) -> str:
  what = f"set {key}.mean and {key}.std to {channels} values each, for so many channels it takes"
  said = settings.get("pretrained_cfg", {})  # of timm
  mean, std = (said["mean"], said["std"]) if "mean" in said else layout.normalisation or (None,) * 2
  if mean and len(mean) == channels:
    what += f" (as a rule mean={tuple(mean)}, std={tuple(std)})"
  return what


def _count(shapes: dict, pattern: str) -> int:
  return len({found[0] for path in shapes if (found := re.match(pattern, path))})


def _layers(shapes: dict, pattern: str) -> dict:
  count = _count(shapes, pattern)
  return {"depth": count} if count else {}


def _resnet_sizes(shapes: dict) -> dict:
  sizes = {}
  if len(stem := shapes.get("stem/kernel", ())) == 4:
    sizes |= {"channels": stem[2], "width": stem[3] / 64}
  blocks = [_count(shapes, rf"stage{stage}_block\d+/") for stage in (1, 2, 3, 4)]
  deep = "stage1_block1/conv3/kernel" in shapes
  ran = [count for count in blocks if count]
  fits = [
    depth for depth, all_of in BLOCKS.items()
    if list(all_of[: len(ran)]) == ran and (depth == 50) == deep
  ]  # fmt: skip
  # One stage alone may be of several; blocks of no depth we know are left to the list of names.
  if len(fits) == 1:
    sizes["depth"] = fits[0]
  if "projector_out/bias" in shapes:
    sizes["projector"] = shapes["projector_out/bias"][0]
  return sizes


def _vit_sizes(shapes: dict) -> dict:
  sizes = _layers(shapes, r"block\d+/")
  if len(patch := shapes.get("patch_embedding/kernel", ())) == 2:
    channels = 1 if round(patch[0] ** 0.5) ** 2 == patch[0] else 3
    side = round((patch[0] / channels) ** 0.5)
    sizes |= {"channels": channels, "patch_px": side, "embed_dim": patch[1]}
  if len(position := shapes.get("position_embedding", ())) == 3:
    sizes["grid"] = position[0]
  if "block1/mlp_in/bias" in shapes:
    sizes["mlp_dim"] = shapes["block1/mlp_in/bias"][0]
  return sizes


def _bert_sizes(shapes: dict) -> dict:
  sizes = _layers(shapes, r"layer\d+/")
  if len(token := shapes.get("token_embedding/embedding", ())) == 2:
    sizes |= {"vocabulary_size": token[0], "embed_dim": token[1]}
  if "position_embedding/embedding" in shapes:
    sizes["max_position"] = shapes["position_embedding/embedding"][0]
  if "layer1/mlp_in/bias" in shapes:
    sizes["mlp_dim"] = shapes["layer1/mlp_in/bias"][0]
  if "projector_out/bias" in shapes:
    sizes["projector"] = shapes["projector_out/bias"][0]
  return sizes


_SIZES = {"resnet": _resnet_sizes, "vit": _vit_sizes, "bert": _bert_sizes}
