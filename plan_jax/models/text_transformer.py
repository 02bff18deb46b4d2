"""Text encoder of CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023): blocks as of a ViT."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from plan_jax.models.vit import VARIANTS, Block

_INIT = nn.initializers.truncated_normal(0.02)


class TextTransformer(nn.Module):
  """Pre-norm text encoder with learned positions, whose padding no mask hides.

  Attributes:
    vocabulary_size: number of tokens known.
    embed_dim, depth, num_heads, mlp_dim: as in a ViT.
    max_position: learned positions.
    variant: a name of vit.VARIANTS, for activation and epsilon.
    causal: whether a token attends to itself and those before it alone, as in CLIP.
    dtype: of the computation; parameters are float32.
  """

  vocabulary_size: int
  embed_dim: int = 512
  depth: int = 12
  num_heads: int = 8
  mlp_dim: int = 2048
  max_position: int = 77
  variant: str = "clip"
  causal: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens: Int[ArrayLike, "B L"]) -> Float[Array, "B L C"]:
    """Encodes tokens."""
    (count, length), variant = tokens.shape, VARIANTS[self.variant]
    arguments = dict(features=self.embed_dim, embedding_init=_INIT, dtype=self.dtype)
    x = nn.Embed(self.vocabulary_size, **arguments, name="token_embedding")(tokens)
    position = nn.Embed(self.max_position, **arguments, name="position_embedding")
    x += position(jnp.arange(length))
    mask = None
    if self.causal:
      mask = jnp.broadcast_to(jnp.tri(length, dtype=bool), (count, 1, length, length))
    for number in range(1, self.depth + 1):
      block = Block(self.num_heads, self.mlp_dim, self.dtype, variant, name=f"block{number}")
      x = block(x, None, mask)
    return nn.LayerNorm(variant.epsilon, dtype=self.dtype, name="norm")(x)
