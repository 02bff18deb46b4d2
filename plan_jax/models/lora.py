"""Low-rank updates of projections (LoRA, Hu et al. 2021): what learns inside a frozen encoder."""

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from plan_jax.models.layers.dense import product


def update(block: nn.Module, name: str, x: Float[Array, "*n C"], rank: int) -> Float[Array, "*n C"]:
  """Computes x A B, to be added to the block's projection `name`, with parameters of the block.

  A [C, rank] is drawn with variance 1 / C, so that x A has the variance of x, which is normed; B is
  zero, so that nothing changes at the start. The paper's factor alpha / rank is 1.
  """
  width = x.shape[-1]
  a = block.param(f"lora_{name}_a", nn.initializers.normal(width**-0.5), (width, rank))
  b = block.param(f"lora_{name}_b", nn.initializers.zeros, (rank, width))
  return product(product(x, a.astype(x.dtype)), b.astype(x.dtype))


def merged(params: dict) -> dict:
  """Adds the updates to their kernels, in float32 on the host, for a model without them."""
  flat = flatten_dict(params)
  plain = {path: x for path, x in flat.items() if not path[-1].startswith("lora_")}
  for path in flat.keys() - plain.keys():
    _, name, factor = path[-1].split("_")
    if factor == "a":
      a, b = np.asarray(flat[path]), np.asarray(flat[*path[:-1], f"lora_{name}_b"])
      kernel = (*path[:-1], name, "kernel")
      plain[kernel] = plain[kernel] + a @ b
  return unflatten_dict(plain)
