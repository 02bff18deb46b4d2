"""Rematerialisation: what the backward pass of an encoder computes anew instead of keeping it."""

import flax.linen as nn
import jax

PRODUCT = "product"  # name of the products of our own layers, whose gradients hide them from JAX
_POLICIES = jax.checkpoint_policies
# "none" keeps all; "blocks" keeps the input of each block alone; "all_but_products" keeps the
# results of matrix products too (convolutions and attention are computed anew).
REMAT = {
  "none": None,
  "blocks": _POLICIES.nothing_saveable,
  "all_but_products": _POLICIES.save_from_both_policies(
    _POLICIES.dots_with_no_batch_dims_saveable, _POLICIES.save_only_these_names(PRODUCT)
  ),
}


def remat(block: type[nn.Module], name: str) -> type[nn.Module]:
  """Rematerialises a block by the policy of that name; same parameters, same values."""
  policy = REMAT[name]
  return block if policy is None else nn.remat(block, policy=policy)
