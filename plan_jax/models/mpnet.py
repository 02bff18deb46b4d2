"""MPNet text encoder (Song et al. 2020): a BERT whose attention knows how far apart tokens are."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from plan_jax.models.bert import Bert

BUCKETS = 32  # of distances
_MOST = 128  # tokens apart, from which on distances share a bucket


class MPNet(Bert):
  """Text encoder, with the attributes of Bert.

  All layers share one bias of the attention for each head and bucket of distances. Within a report
  whose sentences are apart they count as in the sentence alone, for its tokens lie side by side.
  """

  has_types = False
  epsilon = 1e-5

  def attention_bias(self, length: int) -> Float[Array, "1 H L L"]:
    """Computes what is added to the logits of a query (row) and a key (column)."""
    init = nn.initializers.truncated_normal(0.02)
    table = nn.Embed(BUCKETS, self.num_heads, embedding_init=init, name="position_bias")
    distance = np.arange(length) - np.arange(length)[:, None]
    return table(jnp.asarray(buckets(distance))).transpose(2, 0, 1)[None]


def buckets(distance: Int[np.ndarray, "*n"]) -> Int[np.ndarray, "*n"]:
  """Numbers the buckets of distances from query to key, as T5 has them (Raffel et al. 2020).

  Half of them are for each direction; of these half again are for one distance each, and the rest
  grow by equal factors up to 128.
  """
  each = BUCKETS // 2
  exact = each // 2
  away = np.abs(distance)
  octaves = np.log(np.maximum(away, exact) / np.float32(exact)) / math.log(_MOST / exact)
  far = np.minimum(exact + (octaves * (each - exact)).astype(int), each - 1)
  return np.where(distance > 0, each, 0) + np.where(away < exact, away, far)
