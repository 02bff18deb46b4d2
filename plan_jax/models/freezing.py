"""Frozen parameters and learning rates, for encoders that begin with weights worth keeping."""

import re
from collections.abc import Sequence

import jax
from flax.traverse_util import flatten_dict

# Modules before an encoder's first layer; others without a number come after the last.
_FIRST = re.compile(r"(stem|patch|token|type|position|embedding|class|registers|first)(_|$)")
_LAYER = re.compile(r"(?:stage|block|layer)(\d+)")
_RATES = {"image_encoder": "image_rate", "text_encoder": "text_rate"}


def is_frozen(path: str, patterns: Sequence[str]) -> bool:
  """Tells whether one of the regular expressions matches in a parameter's path, "a/b/kernel".

  Never for low-rank updates ("a/lora_query_a"), which are there to learn where all else is frozen.
  """
  return "/lora_" not in path and any(re.search(pattern, path) for pattern in patterns)


def check(params: dict, patterns: Sequence[str]) -> None:
  """Raises ValueError for a pattern that no parameter matches, or if none is left to learn."""
  paths = list(flatten_dict(params, sep="/"))
  for pattern in patterns:
    try:
      matches = any(is_frozen(path, (pattern,)) for path in paths)
    except re.error as error:
      raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    if not matches:
      raise ValueError(
        f"{pattern!r} is in no parameter's path, but for low-rank updates, which always learn; they"
        f" begin with {', '.join(sorted(params))}, e.g. {paths[0]}"
      )
  if all(is_frozen(path, patterns) for path in paths):
    raise ValueError("leaves nothing to learn")


def labels(params: dict, patterns: Sequence[str]) -> dict:
  """Labels each parameter "frozen" or "learned"."""
  return _by_path(lambda path, _: "frozen" if is_frozen(path, patterns) else "learned", params)


def without_gradient(params: dict, patterns: Sequence[str]) -> dict:
  """Stops the gradient of frozen parameters: no backward pass is spent on them."""
  return _by_path(
    lambda path, x: jax.lax.stop_gradient(x) if is_frozen(path, patterns) else x, params
  )


def rates(params: dict, config) -> dict:
  """Computes each parameter's factor on the learning rate.

  It is the factor of its encoder, times layer_decay for every layer above (BEiT, Bao et al. 2022):
  none for what comes after the last layer. Heads have no encoder. A layer is one of a transformer,
  or a stage of a ResNet. `config` has image_rate, text_rate and layer_decay.
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
  if match := _LAYER.match(name):
    return int(match[1])
  return 0 if _FIRST.match(name) else top


def _by_path(function, params: dict) -> dict:
  return jax.tree_util.tree_map_with_path(
    lambda path, x: function("/".join(key.key for key in path), x), params
  )
