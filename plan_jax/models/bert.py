"""BERT-style text encoder (Devlin et al. 2019: post-norm, learned positions)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from plan_jax.models.layers.attention import attend, first_attention
from plan_jax.models.layers.dense import dot_general
from plan_jax.models.layers.gelu import gelu
from plan_jax.models.layers.remat import remat

_INIT = nn.initializers.truncated_normal(0.02)
_EPSILON = 1e-12


class Layer(nn.Module):
  """Self-attention and a two-layer perceptron, each with residual and layer norm after it."""

  num_heads: int
  mlp_dim: int
  dropout: float
  dtype: Any
  train: bool
  epsilon: float = _EPSILON  # of the layer norms

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B L C"],
    allowed: Bool[Array, "B 1 L L"],
    bias: Float[Array, "1 H L L"] | None = None,
  ) -> Float[Array, "B L C"]:
    """Applies the layer; `allowed` tells which tokens a token attends to; the logits get `bias`."""
    embed_dim = x.shape[-1]
    drop = nn.Dropout(self.dropout, deterministic=not self.train)
    dense = partial(nn.Dense, dtype=self.dtype, kernel_init=_INIT, dot_general=dot_general)
    norm = partial(nn.LayerNorm, self.epsilon, dtype=self.dtype)
    shape = (*x.shape[:2], self.num_heads, embed_dim // self.num_heads)
    names = ("query", "key", "value")
    query, key, value = (dense(embed_dim, name=name)(x).reshape(shape) for name in names)
    if self.is_mutable_collection("attention") and not self.is_initializing():
      self.sow("attention", "first", first_attention(query, key, allowed, bias))
    y = attend(query, key, value, allowed, bias)
    y = drop(dense(embed_dim, name="attention_out")(y.reshape(x.shape)))
    x = norm(name="attention_norm")(x + y)
    y = gelu(dense(self.mlp_dim, name="mlp_in")(x))
    y = drop(dense(embed_dim, name="mlp_out")(y))
    return norm(name="mlp_norm")(x + y)


class Bert(nn.Module):
  """Text encoder.

  Applied with `mutable=["attention"]` it also gives, by layer, the attention of each text's first
  token: {"layer1": {"first": ([B, L],)}, ...}.

  Attributes:
    vocabulary_size: number of tokens known.
    embed_dim, depth, num_heads, mlp_dim: as in BERT.
    max_position: learned positions; one sentence, or one report where sentences attend to each
      other.
    across_sentences: whether a token may attend to other sentences. Off by default: a filler word
      that attends to the whole report can carry it, and then grounds nothing.
    dropout: rate, while training.
    last_layers: how many of the last layers are summed; 1: the last alone.
    projector: width of a dense layer, GELU, layer norm and dense layer behind it all, as CXR-BERT
      has it behind [CLS]; 0: none.
    remat: a name of remat.REMAT.
    dtype: of the computation; parameters are float32.
  """

  vocabulary_size: int
  embed_dim: int = 768
  depth: int = 12
  num_heads: int = 12
  mlp_dim: int = 3072
  max_position: int = 512
  across_sentences: bool = False
  dropout: float = 0.1
  last_layers: int = 1
  projector: int = 0
  remat: str = "none"
  dtype: Any = jnp.float32

  has_types = True  # of tokens
  epsilon = _EPSILON  # of the layer norms

  @nn.compact
  def __call__(
    self,
    tokens: Int[ArrayLike, "B L"],
    sentence_index: Int[ArrayLike, "B L"],
    position: Int[ArrayLike, "B L"],
    *,
    train: bool = False,
  ) -> Float[Array, "B L C"]:
    """Encodes tokens to hidden states of width `projector`, or `embed_dim` without one.

    A sentence index of -1 marks padding.
    """
    dtype = self.dtype
    embed = partial(nn.Embed, features=self.embed_dim, embedding_init=_INIT, dtype=dtype)
    dense = partial(nn.Dense, self.projector, dtype=dtype, kernel_init=_INIT)
    norm = partial(nn.LayerNorm, self.epsilon, dtype=dtype)
    real = sentence_index >= 0
    if self.across_sentences:
      position = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
      allowed = real[:, None, :]
    else:
      allowed = sentence_index[:, :, None] == sentence_index[:, None, :]
    x = embed(self.vocabulary_size, name="token_embedding")(tokens)
    x += embed(self.max_position, name="position_embedding")(position)
    if self.has_types:
      x += self.param("type_embedding", _INIT, (self.embed_dim,)).astype(dtype)
    x = norm(name="embedding_norm")(x)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    allowed = jnp.broadcast_to(allowed, (*tokens.shape, tokens.shape[1]))[:, None]
    bias = self.attention_bias(tokens.shape[1])
    layer = remat(Layer, self.remat)
    sizes = self.num_heads, self.mlp_dim, self.dropout, dtype, train, self.epsilon
    after = [x]
    for i in range(self.depth):
      block = layer(*sizes, name=f"layer{i + 1}")
      after.append(block(after[-1], allowed, bias))
    x = sum(after[-self.last_layers :])
    if self.projector:
      x = gelu(dense(name="projector_in")(x))
      x = norm(name="projector_norm")(x)
      x = dense(name="projector_out")(x)
    return x

  def attention_bias(self, length: int) -> Float[Array, "1 H L L"] | None:
    """Computes what is added to the logits of all layers, for texts of `length` tokens: nothing."""
    del length
    return None
