"""Which parameters learn, and how fast: for encoders that begin with weights worth keeping."""

import re

import jax
from flax.traverse_util import flatten_dict

from input_pipeline.errors import UserError

# What comes before an encoder's first layer; what else has no number comes after the last.
_FIRST = re.compile(r"(stem|patch|token|type|position|embedding|class)(_|$)")
_LAYER = re.compile(r"(?:stage|block|layer)(\d+)")
_RATES = {"image_encoder": "image_rate", "text_encoder": "text_rate"}


def is_frozen(path: str, patterns: tuple[str, ...]) -> bool:
  """Whether one of the regular expressions is found in a parameter's path, "a/b/kernel"."""
  return any(re.search(pattern, path) for pattern in patterns)


def check(params: dict, patterns: tuple[str, ...]) -> None:
  """Raises UserError for a pattern that no parameter matches, or if none is left to learn."""
  paths = list(flatten_dict(params, sep="/"))
  for pattern in patterns:
    try:
      found = any(re.search(pattern, path) for path in paths)
    except re.error as error:
      raise UserError(
        f"config.train.freeze: {pattern!r} is no regular expression: {error}"
      ) from error
    if not found:
      raise UserError(
        f"config.train.freeze: {pattern!r} is in no parameter's path; they begin with"
        f" {', '.join(sorted(params))}, e.g. {paths[0]}"
      )
  if all(is_frozen(path, patterns) for path in paths):
    raise UserError("config.train.freeze: leaves nothing to learn")


def labels(params: dict, patterns: tuple[str, ...]) -> dict:
  """Tree of "frozen" and "learned"."""
  return _by_path(lambda path, _: "frozen" if is_frozen(path, patterns) else "learned", params)


def without_gradient(params: dict, patterns: tuple[str, ...]) -> dict:
  """The parameters, cut from the gradient where frozen: no backward pass is spent on them."""
  return _by_path(
    lambda path, x: jax.lax.stop_gradient(x) if is_frozen(path, patterns) else x, params
  )


def rates(params: dict, config) -> dict:
  """Tree of each parameter's factor on the learning rate.

  The factor of its encoder, times layer_decay for every layer that lies above it (as BEiT has it,
  Bao et al. 2022); what comes after the last layer has none above it, the heads no encoder. A layer
  is one of a transformer, or a stage of a ResNet.

  Args:
    params: of the model.
    config: image_rate, text_rate, layer_decay.
  """
  tops = {
    encoder: 1 + max(_layer(name, 0) for name in params[encoder])
    for encoder in _RATES
    if encoder in params
  }

  def rate(path, _):
    encoder, _, rest = path.partition("/")
    if encoder not in tops:
      return 1.0
    above = tops[encoder] - _layer(rest.split("/")[0], tops[encoder])
    return getattr(config, _RATES[encoder]) * config.layer_decay**above

  return _by_path(rate, params)


def _layer(name: str, top: int) -> int:
  if found := _LAYER.match(name):
    return int(found[1])
  return 0 if _FIRST.match(name) else top


def _by_path(function, params: dict) -> dict:
  return jax.tree_util.tree_map_with_path(
    lambda path, x: function("/".join(key.key for key in path), x), params
  )
