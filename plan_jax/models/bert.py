"""BERT-style text encoder (Devlin et al. 2019: post-norm, learned positions)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from plan_jax.models.layers.attention import attend, first_attention
from plan_jax.models.layers.dense import dot_general
from plan_jax.models.layers.gelu import gelu
from plan_jax.models.layers.remat import remat

_INIT = nn.initializers.truncated_normal(0.02)


class Layer(nn.Module):
  """Self-attention and a two-layer perceptron, each with residual and layer norm after it."""

  num_heads: int
  mlp_dim: int
  dropout: float
  dtype: jnp.dtype
  train: bool

  @nn.compact
  def __call__(self, x: jax.Array, allowed: jax.Array) -> jax.Array:
    """[B, L, C], allowed [B, 1, L, L] bool -> [B, L, C]."""
    size = x.shape[-1]
    drop = nn.Dropout(self.dropout, deterministic=not self.train)

    def dense(features, name):
      return nn.Dense(
        features, dtype=self.dtype, kernel_init=_INIT, dot_general=dot_general, name=name
      )

    def heads(y):
      return y.reshape(*y.shape[:2], self.num_heads, size // self.num_heads)

    query, key, value = (heads(dense(size, name)(x)) for name in ("query", "key", "value"))
    if self.is_mutable_collection("attention") and not self.is_initializing():
      self.sow("attention", "first", first_attention(query, key, allowed))
    y = attend(query, key, value, allowed)
    y = drop(dense(size, "attention_out")(y.reshape(x.shape)))
    x = nn.LayerNorm(1e-12, dtype=self.dtype, name="attention_norm")(x + y)
    y = gelu(dense(self.mlp_dim, "mlp_in")(x))
    y = drop(dense(size, "mlp_out")(y))
    return nn.LayerNorm(1e-12, dtype=self.dtype, name="mlp_norm")(x + y)


class Bert(nn.Module):
  """Text encoder.

  Applied with `mutable=["attention"]` it also gives, by layer, the attention of each text's first
  token: {"layer1": {"first": ([B, L],)}, ...}.

  Attributes:
    vocabulary_size: word-tokens.
    embed_dim, depth, num_heads, mlp_dim: as in BERT.
    max_position: learned positions; one sentence, or one report where sentences see each other.
    across_sentences: whether a token may attend to other sentences. Off by default: a filler word
      that sees the whole report can carry it, and then grounds nothing.
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
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, tokens: jax.Array, sentence_index: jax.Array, position: jax.Array, *, train: bool = False
  ) -> jax.Array:
    """tokens, sentence_index (-1 pads), position: [B, L] int32 -> hidden states [B, L, embed_dim].

    With a projector [B, L, projector].
    """

    def embed(count, name):
      return nn.Embed(count, self.embed_dim, embedding_init=_INIT, dtype=self.dtype, name=name)

    def dense(features, name):
      return nn.Dense(features, dtype=self.dtype, kernel_init=_INIT, name=name)

    real = sentence_index >= 0
    if self.across_sentences:
      position = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
      allowed = real[:, None, :]
    else:
      allowed = sentence_index[:, :, None] == sentence_index[:, None, :]
    x = embed(self.vocabulary_size, "token_embedding")(tokens)
    x += embed(self.max_position, "position_embedding")(position)
    x += self.param("type_embedding", _INIT, (self.embed_dim,)).astype(self.dtype)
    x = nn.LayerNorm(1e-12, dtype=self.dtype, name="embedding_norm")(x)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    allowed = jnp.broadcast_to(allowed, (*tokens.shape, tokens.shape[1]))[:, None]
    layer = remat(Layer, self.remat)
    after = [x]
    for i in range(self.depth):
      x = layer(
        self.num_heads, self.mlp_dim, self.dropout, self.dtype, train, name=f"layer{i + 1}"
      )(x, allowed)  # fmt: skip
      after.append(x)
    x = sum(after[-self.last_layers :])
    if self.projector:
      x = gelu(dense(self.projector, "projector_in")(x))
      x = nn.LayerNorm(1e-12, dtype=self.dtype, name="projector_norm")(x)
      x = dense(self.projector, "projector_out")(x)
    return x
