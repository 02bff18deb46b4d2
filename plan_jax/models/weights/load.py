"""Foreign weights in our encoders: each tensor has its place, or is known to be none of ours."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from plan_jax.models.bert import Bert
from plan_jax.models.mpnet import BUCKETS, MPNet
from plan_jax.models.resnet import ResNet, first_channels
from plan_jax.models.vit import VARIANTS, ViT
from plan_jax.models.weights import files, layouts
from plan_jax.models.weights.files import WeightsError, read_settings
from plan_jax.models.weights.layouts import Layout
from plan_jax.models.weights.projects import IMAGE_LAYOUTS, TEXT_LAYOUTS
from plan_jax.models.weights.settings import section
from plan_jax.models.weights.sizes import HEAD_DIM, read_sizes, usual_heads
from plan_jax.models.weights.whole_models import BASELINE_LAYOUTS

_ENCODERS = {"resnet": ResNet, "vit": ViT, "bert": Bert, "mpnet": MPNet}
# Entries of a config.json that change the computation and no tensor, and ours; of ViTs by variant.
_VARIANT = {
  "resnet": {"hidden_act": "relu", "downsample_in_bottleneck": False},
  "vit": {"hidden_act": "gelu"},
  "dinov2": {"hidden_act": "gelu"},
  "dinov2_registers": {"hidden_act": "gelu"},
  "dinov3": {"hidden_act": "gelu", "rope_theta": 100.0, "query_bias": True, "value_bias": True},
  "clip": {"hidden_act": "quick_gelu"},
  "siglip": {"hidden_act": "gelu_pytorch_tanh"},
  "bert": {"hidden_act": "gelu", "position_embedding_type": "absolute"},
  "cxr_bert": {"hidden_act": "gelu", "position_embedding_type": "absolute"},
  "mpnet": {
    "hidden_act": "gelu",
    "relative_attention_num_buckets": BUCKETS,
    "layer_norm_eps": MPNet.epsilon,
  },
}
_MOST_EPSILON = 1e-6  # of a layer norm, above which features would change


class LoadedEncoder(NamedTuple):
  """Weights of an encoder, as numpy float32, and their source.

  Attributes:
    params, batch_stats: trees like the encoder's own.
    provenance: {"source": layout and file, "sha256": of the file, "left_aside": names not ours}.
  """

  params: dict
  batch_stats: dict
  provenance: dict


class _Placement(NamedTuple):
  """Tensors of a file in their places.

  Attributes:
    arrays: (collection, path) -> (name, array).
    left_aside: names that are known, and not ours.
    problems: for the message.
  """

  arrays: dict[tuple[str, str], tuple[str, np.ndarray]]
  left_aside: list[str]
  problems: list[str]

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Returns path -> shape."""
    return {path: np.shape(array) for (_, path), (_, array) in self.arrays.items()}


def load_image(path: str | Path, encoder: ResNet | ViT, *, key: str = "image") -> LoadedEncoder:
  """Loads weights for an image encoder, from a file or folder of one of IMAGE_LAYOUTS.

  Stages of a ResNet that the encoder does not run, and a projector that it has not, are left aside;
  low-rank updates are not in a file. Messages name the encoder's settings by `key`.

  Raises:
    WeightsError: the file cannot be read or its layout is unknown; sizes differ from the encoder's
      (with the settings that fit); names are missing or unexpected, or shapes differ.
  """
  if isinstance(encoder, ViT):
    encoder = encoder.clone(lora_rank=0)
  return _load(path, encoder, IMAGE_LAYOUTS, key)


def load_text(path: str | Path, encoder: Bert, *, key: str = "text") -> LoadedEncoder:
  """Loads weights for the text encoder, from TEXT_LAYOUTS, as `load_image` does.

  A vocabulary size of 0 is taken from the file.
  """
  return _load(path, encoder, TEXT_LAYOUTS, key)


def load_baseline(
  path: str | Path,
  name: str,
  build: Callable[[dict, dict], nn.Module],
  inputs: tuple,
  *,
  method: str = "__call__",
  key: str = "weights",
) -> tuple[nn.Module, LoadedEncoder]:
  """Loads a whole model of another project, heads and all.

  Args:
    path: of its checkpoint.
    name: `encoder` of one or several of BASELINE_LAYOUTS.
    build: (path of ours -> shape, settings of a folder's config.json, and under
      "preprocessor_config" those of that file beside the weights, if any) -> the model; see
      `sizes.sizes`.
    inputs: arrays that the model's `method` can be called with, for its shapes.
    method: one that needs all that the file holds.
    key: name of the setting of the path, for messages.

  Raises:
    WeightsError: the file cannot be read, or is another model's; its config.json asks for another
      computation; names are missing or unexpected, or shapes differ.
  """
  weights = _read(path, key)
  layout = layouts.find(BASELINE_LAYOUTS, weights.tensors)
  if layout is None or layout.encoder != name:
    wanted = " or ".join(layout.name for layout in BASELINE_LAYOUTS if layout.encoder == name)
    holds = f"it is {layout.name}'s" if layout else f"it begins with {_first_names(weights)}"
    raise WeightsError(
      f"{key}: {path} is no checkpoint of {wanted}: {holds}; the variants of"
      " configs/baselines.py, and what each wants, are in docs/baselines.md"
    )
  placement = _place(weights.tensors, layout, lambda _: False)
  folder = Path(path) if Path(path).is_dir() else Path(path).parent
  pixels = read_settings(folder / "preprocessor_config.json")
  of_pixels = {"preprocessor_config": pixels} if pixels else {}
  try:
    model = build(placement.shapes(), weights.settings | of_pixels)
    parts = (section(weights.settings, f"{name}_config") for name in ("vision", "text"))
    problems = [
      problem
      for settings in (weights.settings, *parts)
      for problem in _variant_problems(layout, settings, placement.shapes())
    ]
  except WeightsError as error:
    problems = [str(error)]
  if problems:
    raise WeightsError(f"{key}: {path}: {'; '.join(problems)}")
  _settle(path, key, layout, placement, _shapes(model, inputs, method))
  return model, _loaded(path, layout, weights.sha256, placement)


def _load(path, encoder: nn.Module, known: Sequence[Layout], key: str) -> LoadedEncoder:
  weights = _read(path, f"{key}.weights")
  weights = weights._replace(tensors=layouts.with_named_gates(weights.tensors))
  layout = layouts.find(known, weights.tensors)
  if layout is None:
    raise WeightsError(
      f"{path} has none of the layouts {', '.join(layout.name for layout in known)} (it begins with"
      f" {_first_names(weights)}); see docs/weights.md"
    )
  if type(encoder) is not _ENCODERS[layout.encoder]:
    raise WeightsError(f"{path} holds a {layout.name}: set {key}.name={layout.encoder}")
  placement = _place(weights.tensors, layout, partial(_is_unused, encoder))
  shapes = placement.shapes()
  problems = _size_problems(key, encoder, layout, shapes, weights.settings)
  if problems:
    problems += sorted(set(placement.problems))
    raise WeightsError(f"{path}, read as {layout.name}, has other sizes: {'; '.join(problems)}")
  if isinstance(encoder, Bert) and not encoder.vocabulary_size:
    encoder = encoder.clone(vocabulary_size=shapes["token_embedding/embedding"][0])
  _settle(path, key, layout, placement, _shapes(encoder, _inputs(encoder)))
  return _loaded(path, layout, weights.sha256, placement)


def _read(path, key: str) -> files.Weights:
  try:
    return files.read(path)
  except WeightsError as error:
    raise WeightsError(f"{key}: {error}") from error


def _first_names(weights: files.Weights) -> str:
  return ", ".join(list(weights.tensors)[:3]) or "no tensor"


def _loaded(path, layout: Layout, sha256: str, placement: _Placement) -> LoadedEncoder:
  trees = {"params": {}, "batch_stats": {}}
  for (collection, ours), (_, array) in placement.arrays.items():
    trees[collection][ours] = np.asarray(array, order="C")
  provenance = {
    "source": f"{layout.name}: {Path(path).name}",
    "sha256": sha256,
    "left_aside": sorted(set(placement.left_aside)),
  }
  return LoadedEncoder(*(unflatten_dict(x, sep="/") for x in trees.values()), provenance)


def _place(tensors: dict, layout: Layout, is_unused: Callable[[str], bool]) -> _Placement:
  """Places tensors by the layout; paths of ours that are unused are left aside."""
  arrays, aside, problems = {}, [], []
  for name, tensor in tensors.items():
    targets = layouts.targets(layout, name)
    if targets is None and layouts.is_left_aside(layout, name):
      aside.append(name)
    elif targets is None:
      problems.append(f"unexpected {name}")
    for collection, path, transform in targets or ():
      if is_unused(path):
        aside.append(name)
      elif (collection, path) in arrays:
        problems.append(f"{name} and {arrays[collection, path][0]} are both our {path}")
      else:
        try:
          arrays[collection, path] = name, transform(tensor)
        except (ValueError, IndexError):
          problems.append(f"{name} is {tensor.shape}, which cannot be our {path}")
  return _Placement(arrays, aside, problems)


def _settle(path, key: str, layout: Layout, placement: _Placement, wanted: dict) -> None:
  """Adds the layout's zeros; raises WeightsError where names or shapes are not as wanted."""
  arrays = placement.arrays
  for target, shape in wanted.items():
    if any(re.fullmatch(pattern, target[1]) for pattern in layout.zeros):
      arrays.setdefault(target, ("", np.zeros(shape, np.float32)))
  problems = list(placement.problems)
  problems += [f"missing {target[1]}" for target in wanted if target not in arrays]
  for target, (name, array) in arrays.items():
    if target not in wanted:
      problems.append(f"unexpected {name}")
    elif wanted[target] != array.shape:
      problems.append(f"{name} is {array.shape} for our {target[1]} of {wanted[target]}")
    if not np.isfinite(array).all():
      problems.append(f"{name} is not finite")
  if problems:
    listed = "; ".join(sorted(set(problems)))
    raise WeightsError(f"{path}, read as {layout.name}, does not fit {key}: {listed}")


def _is_unused(encoder: nn.Module, path: str) -> bool:
  """Tells whether our encoder could have this, but does without as it is set."""
  if path.startswith("projector_"):
    return not encoder.projector
  if isinstance(encoder, ViT):
    block = re.match(r"block(\d+)/", path)
    behind = bool(block) and int(block[1]) > max(encoder.layers, default=encoder.depth)
    return behind or path.startswith("pooling/")
  stage = re.match(r"stage(\d)_", path)
  return bool(stage) and int(stage[1]) > encoder.stages


def _shapes(
  model: nn.Module, inputs: tuple, method: str = "__call__"
) -> dict[tuple[str, str], tuple[int, ...]]:
  """Returns (collection, path) -> shape of all that the model's method learns or keeps."""
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, method=method))
  return {
    (collection, path): leaf.shape
    for collection, tree in variables.items()
    for path, leaf in flatten_dict(tree, sep="/").items()
  }


def _inputs(encoder: nn.Module) -> tuple:
  if isinstance(encoder, Bert):
    return (jnp.zeros((1, 2), jnp.int32),) * 3
  side = 64 if isinstance(encoder, ResNet) else encoder.patch_px
  return (jnp.zeros((1, side, side, 1)),)


def _size_problems(key, encoder, layout: Layout, shapes: dict, settings: dict) -> list[str]:
  """Lists sizes of the file that are not the encoder's, with the settings that fit."""
  sizes = read_sizes(shapes, layout.encoder)
  settings = section(settings, "vision_config", settings)  # of CLIP, beside its text encoder's
  problems = []
  channels = sizes.pop("channels", None)
  if channels and channels != len(encoder.mean):
    problems.append(_normalisation_problem(key, channels, layout, settings))
  tokens = sizes.pop("vocabulary_size", None)
  if tokens and encoder.vocabulary_size not in (0, tokens):
    problems.append(
      f"its vocabulary has {tokens} tokens, the tokenizer {encoder.vocabulary_size}: name its own"
      " as the tokenizer"
    )
  if isinstance(encoder, ResNet):
    sizes["norm"] = "batch"
    if first_channels(encoder.width) == 64 * sizes.get("width", 0):
      del sizes["width"]
  else:
    sizes["num_heads"] = settings.get("num_attention_heads", encoder.num_heads)
  keys = key
  if isinstance(encoder, ViT):
    keys = f"{key}.vit"
    sizes["variant"] = layout.variant or encoder.variant
    if encoder.layers:
      sizes.pop("depth", None)  # of the blocks that are run
  other_width = "embed_dim" in sizes and sizes["embed_dim"] != encoder.embed_dim
  if other_width and "num_attention_heads" not in settings:
    problems.append(
      f"set {keys}.num_heads as well, which the file does not tell (is {encoder.num_heads};"
      f" {usual_heads(sizes['embed_dim'])} where a head has {HEAD_DIM} channels, as a rule)"
    )
  problems += [
    f"set {keys}.{name}={size} (is {getattr(encoder, name)})"
    for name, size in sizes.items()
    if size != getattr(encoder, name)
  ]
  return problems + _variant_problems(layout, settings, shapes)


def _variant_problems(layout: Layout, settings: dict, shapes: dict) -> list[str]:
  """Lists settings of a config.json that change the computation and no tensor."""
  variant = layout.variant or "vit" if layout.encoder == "vit" else layout.encoder
  ours = dict(_VARIANT.get(variant, {}))
  if variant == "dinov3" and "block1/mlp_gate/kernel" in shapes:
    ours["hidden_act"] = "silu"
  problems = [
    f"its config.json has {name} {settings[name]!r}, ours is {value!r}"
    for name, value in ours.items()
    if settings.get(name, value) != value
  ]
  epsilon = settings.get("layer_norm_eps", 0)
  most = VARIANTS[variant].epsilon if variant in VARIANTS else ours.get("layer_norm_eps", 0)
  most = max(_MOST_EPSILON, most)
  if not (isinstance(epsilon, int | float) and epsilon <= most):
    problems.append(f"its config.json has layer_norm_eps {epsilon!r}, ours is at most {most}")
  return problems


def _normalisation_problem(key: str, channels: int, layout: Layout, settings: dict) -> str:
  advice = f"set {key}.mean and {key}.std to {channels} values each, for so many channels it takes"
  timm = section(settings, "pretrained_cfg")
  mean, std = timm.get("mean"), timm.get("std")
  if not (mean and std):
    mean, std = layout.normalisation or (None,) * 2
  if mean and len(mean) == channels:
    advice += f" (as a rule mean={tuple(mean)}, std={tuple(std)})"
  return advice
