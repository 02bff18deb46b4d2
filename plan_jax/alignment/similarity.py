"""How well a report's words find themselves in an image: the local score of a pair.

`PlanScore` (words' evidence, round by round, and `pool_words`) is ours; `GloriaScore` is the
baseline of that name. Both are scores as `pairwise` takes them.

Shapes: I images of P pixels, J reports of W words, D channels. Words come before pixels, so that
products with either side are plain matrix products of rows in memory order. Everything after the
first product lives in pixel space: the region embedding c = norm(sum_p a V_p) is never formed, for
with s = T V', weights a and the Gram matrix G = V V'

  |sum_p a V_p|^2 = a' G a    <c, V_p> = (G a)_p / |sum_p a V_p|    <T, c> = a' s / |sum_p a V_p|

and the next query q = norm((1 - eta) T + eta c) enters only through its products with pixels.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from plan_jax.alignment.regions import SPARSIFIERS

EVIDENCE = ("soft_maximum", "cosine")
_TINY = 1e-12


@dataclass(frozen=True)
class Rounds:
  """Refinement rounds.

  Attributes:
    tau: temperature of the region, one a round, falling.
    gamma: suppressed uniform shares, one a round, rising.
    eta: how far the next query moves from the word to its region, 0 to 1.
    sparsifier: a name of regions.SPARSIFIERS.
    evidence: what speaks for a word, "soft_maximum" or "cosine"; see `WordRegions`.
    dtype: "float32", or "bfloat16": what the products take; they accumulate, and all else is, in
      float32.
  """

  tau: tuple[float, ...]
  gamma: tuple[float, ...]
  eta: float
  sparsifier: str
  evidence: str = "soft_maximum"
  dtype: str = "float32"

  @property
  def needs_gram(self) -> bool:
    """Whether anything needs the products of the pixels among themselves."""
    return len(self.tau) > 1 or self.evidence == "cosine"


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product(formula: str, dtype: str, a: jax.Array, b: jax.Array) -> jax.Array:
  """Einsum of two float32 arrays, accumulated in float32, forwards and backwards.

  Each letter of an operand must stand in the other operand or in the output.

  Args:
    formula: as of `jnp.einsum`.
    dtype: "bfloat16" rounds the operands to that first, gradients too; "float32" does nothing.
    a, b: the operands.
  """
  if dtype == "bfloat16":
    a, b = _rounded(a), _rounded(b)
  precise = jnp.promote_types(a.dtype, jnp.float32)
  return jnp.einsum(formula, a, b, preferred_element_type=precise)


def narrow(x: jax.Array, dtype: str) -> jax.Array:
  """`x` rounded to bfloat16 if that is the dtype; else as it is."""
  return x.astype(dtype) if dtype == "bfloat16" else x


def _rounded(x):
  if jax.default_backend() == "cpu":
    # It has no kernel for every product of bfloat16 with a float32 result; the numbers are these.
    return jax.lax.reduce_precision(x.astype(jnp.float32), exponent_bits=8, mantissa_bits=7)
  return x.astype(jnp.bfloat16)


def _product_forward(formula, dtype, a, b):
  return product(formula, dtype, a, b), (a, b)


def _product_backward(formula, dtype, operands, gradient):
  (a, b), (left, out) = operands, formula.split("->")
  x, y = left.split(",")
  return (
    product(f"{out},{y}->{x}", dtype, gradient, b).astype(a.dtype),
    product(f"{out},{x}->{y}", dtype, gradient, a).astype(b.dtype),
  )


product.defvjp(_product_forward, _product_backward)


class Seen(NamedTuple):
  """Images as the words see them.

  Attributes:
    pixels: [I, P, D].
    gram: [I, P, P] products of the pixels among themselves, or None where nothing needs them.
  """

  pixels: jax.Array
  gram: jax.Array | None


def see(pixels: jax.Array, *, gram: bool, dtype: str) -> Seen:
  """What all words share of the images."""
  among = product("ipd,iqd->ipq", dtype, pixels, pixels) if gram else None
  return Seen(pixels, among)


class WordRegions(NamedTuple):
  """What the words of report j see in image i in one round.

  Attributes:
    similarity: [J, W, I, P], of the round's query with each pixel.
    weight: [J, W, I, P], the soft region.
    evidence: [J, W, I], the sum of weight times similarity (a soft maximum of the similarity), or
      the cosine of the query with the region: the same over the region's length.
  """

  similarity: jax.Array
  weight: jax.Array
  evidence: jax.Array


def word_regions(seen: Seen, words: jax.Array, rounds: Rounds) -> list[WordRegions]:
  """All rounds of all words in all images.

  Args:
    seen: of pixels of unit norm, with the Gram matrix where `rounds.needs_gram`.
    words: [J, W, D], unit norm, or zero for padding.
    rounds: the settings.
  """
  sparsify = SPARSIFIERS[rounds.sparsifier]
  first = similarity = product("jwd,ipd->jwip", rounds.dtype, words, seen.pixels)

  def reach(weight):
    """The region's products with the pixels [J, W, I, P], and its length [J, W, I, 1]."""
    projected = product("jwip,ipq->jwiq", rounds.dtype, weight, seen.gram)
    return projected, jnp.sqrt((weight * projected).sum(-1, keepdims=True) + _TINY)

  found: list[WordRegions] = []
  for tau, gamma in zip(rounds.tau, rounds.gamma, strict=True):
    if found:
      weight = found[-1].weight
      projected, length = reach(weight)
      towards = (weight * first).sum(-1, keepdims=True) / length
      keep, move = 1 - rounds.eta, rounds.eta
      norm = jnp.sqrt(keep**2 + move**2 + 2 * keep * move * towards + _TINY)
      similarity = (keep * first + move * projected / length) / norm
    weight = sparsify(similarity, tau, gamma)
    evidence = (weight * similarity).sum(-1)
    if rounds.evidence == "cosine":
      evidence = evidence / reach(weight)[1][..., 0]
    found.append(WordRegions(similarity, weight, evidence))
  return found


def pool_words(evidence: jax.Array, significance: jax.Array, beta: float) -> jax.Array:
  """Local score: (1 / beta) (log sum_w r exp(beta e) - log sum_w r), no length bias.

  Args:
    evidence: [..., W].
    significance: broadcastable to it, >= 0; zero excludes a word. Without any word the score is 0.
    beta: sharpness; large comes near to the highest evidence.
  """
  log_r = jnp.where(
    significance > 0, jnp.log(jnp.where(significance > 0, significance, 1)), -jnp.inf
  )
  some = (significance > 0).any(-1)
  log_r = jnp.where(some[..., None], log_r, 0)
  score = jax.nn.logsumexp(log_r + beta * evidence, axis=-1) - jax.nn.logsumexp(log_r, axis=-1)
  return jnp.where(some, score / beta, 0)


@dataclass(frozen=True)
class PlanScore:
  """PLAN's logits: scale times the pooled evidence of the words, one matrix a round.

  Attributes:
    rounds: of the regions.
    beta: of `pool_words`.
    single: whether the words' own logits (scale times evidence) are wanted too.
  """

  rounds: Rounds
  beta: float
  single: bool

  def prepare(self, pixels: jax.Array) -> Seen:
    """[I, P, D] of unit norm."""
    return see(pixels, gram=self.rounds.needs_gram, dtype=self.rounds.dtype)

  def logits(self, prepared: Seen, words, say, scale) -> tuple[jax.Array, jax.Array]:
    """[J, W, D] of unit norm or zero, [J, W], scalar -> [K, I, J] and [K, I, J, U]."""
    found = word_regions(prepared, words, self.rounds)
    evidence = jnp.stack([jnp.moveaxis(region.evidence, -1, 0) for region in found])
    single = scale * (evidence if self.single else evidence[..., :0])
    return scale * pool_words(evidence, say, self.beta), single

  def tile_bytes(self, images: int, reports: int, pixels: int, words: int, size: int) -> int:
    """Upper bound of what the gradient of `logits` holds at once, for I, J, P, W, D."""
    held = 4 + 12 * len(self.rounds.tau)  # arrays [J, W, I, P], by XLA's count
    return _tile_bytes(held, self.rounds.needs_gram, images, reports, pixels, words, size)


@dataclass(frozen=True)
class GloriaScore:
  """GLoRIA's logits (Huang et al. 2021), its temperatures included.

  S = 10 log sum_w exp(5 cos(t_w, c_w)) with c_w the attended sum of the pixels: a sum over words,
  so that longer reports score higher, as published. 0 for a report without words.

  Attributes:
    dtype: as of `Rounds`.
    scale: before the logarithm, fixed.
  """

  dtype: str = "float32"
  scale: ClassVar[float] = 10.0

  def prepare(self, pixels: jax.Array) -> Seen:
    """[I, P, D] of any norm."""
    return see(pixels, gram=True, dtype=self.dtype)

  def cosines(self, prepared: Seen, words: jax.Array, mask: jax.Array) -> jax.Array:
    """[J, W, D] of any norm, [J, W] bool, which are words -> cos(t_w, c_w) [I, J, W]."""
    similarity = product("jwd,ipd->jwip", self.dtype, words, prepared.pixels)
    # Padding takes no part in the words' competition; finite, for a report may be empty.
    among = jnp.where(mask[..., None, None], similarity, -1e9)
    attention = jax.nn.softmax(4 * jax.nn.softmax(among, axis=1), axis=-1)
    projected = product("jwip,ipq->jwiq", self.dtype, attention, prepared.gram)
    length = jnp.sqrt((attention * projected).sum(-1) + _TINY)
    word = jnp.sqrt(jnp.square(words.astype(length.dtype)).sum(-1) + _TINY)
    return jnp.moveaxis((attention * similarity).sum(-1) / (length * word[..., None]), -1, 0)

  def logits(self, prepared: Seen, words, say, scale) -> tuple[jax.Array, jax.Array]:
    """[J, W, D] of any norm, [J, W] > 0 for words, scale unused -> [1, I, J] and [1, I, J, 0]."""
    mask = say > 0
    cosine = self.cosines(prepared, words, mask)
    some = mask.any(-1)
    counted = jnp.where(mask | ~some[:, None], 5 * cosine, -jnp.inf)
    score = jnp.where(some, self.scale * jax.nn.logsumexp(counted, axis=-1), 0)[None]
    return score, score[..., None][..., :0]

  def tile_bytes(self, images: int, reports: int, pixels: int, words: int, size: int) -> int:
    """Upper bound of what the gradient of `logits` holds at once, for I, J, P, W, D."""
    return _tile_bytes(12, True, images, reports, pixels, words, size)


def _tile_bytes(held, gram, images, reports, pixels, words, size) -> int:
  features = images * pixels * size + reports * words * size
  among = 3 * images * pixels**2 if gram else 0
  return 4 * (held * images * reports * words * pixels + among + 3 * features)
