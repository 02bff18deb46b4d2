"""What a contrast over all image x report pairs needs of them: one function, three evaluations.

A contrast never needs the B x B scores themselves, nor those of every word: it needs the score of
each own pair, and the normaliser over its negatives. `full` forms everything and lets JAX
differentiate; it is the oracle, and good for small batches. `chunked` visits the pairs tile by tile
and merges normalisers as they come, forwards; backwards, where the normalisers are known, it
computes each tile anew, turns its logits into their gradients and adds up. `ring` is the same on a
mesh: images stay where they are, reports travel from device to device with what they have gathered,
so that no device ever holds more than one other's reports. All three give the same numbers to
rounding; nothing is approximated.

Shapes: B images of P pixels and their B reports of W words, K rounds of scores; U = W where the
words are contrasted too, else 0.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

IMPLEMENTATIONS = ("full", "chunked", "ring")
_NONE = -1e9  # the highest of no logits; finite, so that differences are


class Score(Protocol):
  """Logits of images and reports that do not depend on other images or reports. Hashable."""

  def prepare(self, pixels: jax.Array):
    """[I, P, D] -> what all reports need of the images: arrays that lead with I."""

  def logits(
    self, prepared, words: jax.Array, say: jax.Array, scale: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """(prepared, [J, W, D], [J, W], scalar) -> pairs [K, I, J] and words [K, I, J, U], float32."""

  def tile_bytes(self, images: int, reports: int, pixels: int, words: int, size: int) -> int:
    """Upper bound of what the gradient of `logits` holds at once, for I, J, P, W, D."""


class Keys(NamedTuple):
  """Who is whose negative.

  Attributes:
    index: [B] int32 >= 0, which image and report are each other's own.
    text: [B] int32, 0 for none; reports of the same text are no negatives.
    study: [B] int32, likewise.
    valid: [B] bool, whether there is a report; without it a pair is neither own nor negative.
  """

  index: jax.Array
  text: jax.Array
  example: jax.Array
  valid: jax.Array


class Contrasted(NamedTuple):
  """Own logits, and the normalisers over the negatives; all float32.

  Attributes:
    own: [K, B], own_word [K, B, U].
    image: [K, B] log-sum-exp of each image's negative reports, -1e9 or less without any.
    report: [K, B] of each report's negative images.
    word: [K, B, U] of each word's negative images.
    image_highest, report_highest: [K, B] the highest negative, no gradient.
  """

  own: jax.Array
  own_word: jax.Array
  image: jax.Array
  report: jax.Array
  word: jax.Array
  image_highest: jax.Array
  report_highest: jax.Array


class Tile(NamedTuple):
  """How many images and reports are compared at once."""

  images: int
  reports: int


def full(
  score: Score, pixels: jax.Array, words: jax.Array, say: jax.Array, scale: jax.Array, keys: Keys
) -> Contrasted:
  """Every logit and every intermediate held at once.

  Args:
    score: of pairs.
    pixels: [B, P, D].
    words: [B, W, D].
    say: [B, W], as `score` takes it.
    scale: scalar, as `score` takes it.
    keys: of the B pairs.
  """
  return of_logits(*score.logits(score.prepare(pixels), words, say, scale), keys)


def of_logits(pairs: jax.Array, words: jax.Array, keys: Keys) -> Contrasted:
  """From all logits: [K, B, B] and [K, B, B, U]."""
  image, report, word = _sums(pairs, words, *_relation(keys, keys))
  return _contrasted(image, report, word)


def chunked(
  score: Score,
  tile: Tile,
  pixels: jax.Array,
  words: jax.Array,
  say: jax.Array,
  scale: jax.Array,
  keys: Keys,
) -> Contrasted:
  """As `full`, tile by tile; B need not be a multiple of the tile.

  Memory beyond inputs, outputs and gradients is that of one tile, whatever B.
  """
  return _blocks(score, tile, None, pixels, words, say, scale, keys)


def ring(
  score: Score,
  tile: Tile,
  pixels: jax.Array,
  words: jax.Array,
  say: jax.Array,
  scale: jax.Array,
  keys: Keys,
) -> Contrasted:
  """As `chunked`, over the mesh in context (`jax.set_mesh`), batch split over all its axes.

  Each device sends its neighbour one device's reports a step, while it computes. On one device, or
  without a mesh, this is `chunked`.
  """
  mesh = jax.sharding.get_abstract_mesh()
  axes = None if mesh.empty or mesh.size == 1 else mesh.axis_names
  return _blocks(score, tile, axes, pixels, words, say, scale, keys)


def tile(
  score: Score,
  pixels: tuple[int, int, int],
  words: tuple[int, int, int],
  *,
  images: int,
  reports: int,
  mib: int,
) -> Tile:
  """How many images and reports to compare at once, on each device of the mesh in context.

  Of what is not given: reports for at least 256 words, and as many images as the memory then holds.

  Args:
    score: whose memory counts.
    pixels: (B, P, D), words: (B, W, D), of all devices together.
    images, reports: given, or 0.
    mib: memory for what a tile holds at once.

  Raises:
    ValueError: the tile given, or the least there is, needs more memory.
  """
  (batch, count, size), length = pixels, words[1]
  batch //= max(1, jax.sharding.get_abstract_mesh().size)

  def fits(images, reports):
    return score.tile_bytes(images, reports, count, length, size) <= mib * 2**20

  def even(most):
    """Tiles that divide the batch need no padding; else as many as must be, filled alike."""
    divisor = max(n for n in range(1, most + 1) if batch % n == 0)
    return divisor if 2 * divisor > most else math.ceil(batch / math.ceil(batch / most))

  wanted = [reports] if reports else range(min(batch, math.ceil(256 / length)), 0, -1)
  # Of a single image XLA would copy the pixels to no end.
  for fewest in [images] if images else (min(2, batch), 1):
    for some in wanted:
      candidates = [images] if images else range(batch, 0, -1)
      most = next((n for n in candidates if fits(n, some)), 0)
      if most >= fewest:
        return Tile(images or even(most), reports or even(some))
  least = images or 1, reports or 1
  need = math.ceil(score.tile_bytes(*least, count, length, size) / 2**20)
  raise ValueError(
    f"alignment.tile_mib: is {mib}; a tile of {least[0]} images x {least[1]} reports (each of"
    f" {count} pixels and {length} words) needs {need}: raise it, or lower tile_images and"
    " tile_reports (0: as many as fit)"
  )


# --- own pairs and negatives ------------------------------------------------------------------


def _relation(images: Keys, reports: Keys) -> tuple[jax.Array, jax.Array]:
  """[I, J] bool twice: negatives, and own pairs."""

  def equal(a, b):
    return a[:, None] == b[None]

  own = equal(images.index, reports.index)
  same = equal(images.text, reports.text) & (images.text != 0)[:, None]
  same |= equal(images.example, reports.example)
  valid = images.valid[:, None] & reports.valid[None]
  return valid & ~same & ~own, own


class _Sums(NamedTuple):
  """Of the logits along one axis: highest negative, sum of exp(negative - highest), own."""

  highest: jax.Array
  total: jax.Array
  own: jax.Array

  def log(self):
    return self.highest + jnp.log(jnp.where(self.total > 0, self.total, 1))


def _along(logits, negative, own, axis) -> _Sums:
  counted = jnp.where(negative, logits, _NONE)
  highest = jax.lax.stop_gradient(counted.max(axis))
  exp = jnp.exp(counted - jnp.expand_dims(highest, axis))
  return _Sums(highest, jnp.where(negative, exp, 0).sum(axis), jnp.where(own, logits, 0).sum(axis))


def _sums(pairs, words, negative, own) -> tuple[_Sums, _Sums, _Sums]:
  """By image [K, I], by report [K, J], by word [K, J, U]."""
  return (
    _along(pairs, negative, own, 2),
    _along(pairs, negative, own, 1),
    _along(words, negative[..., None], own[..., None], 1),
  )


def _merge(a: _Sums, b: _Sums) -> _Sums:
  highest = jnp.maximum(a.highest, b.highest)
  total = a.total * jnp.exp(a.highest - highest) + b.total * jnp.exp(b.highest - highest)
  return _Sums(highest, total, a.own + b.own)


def _empty(like: _Sums) -> _Sums:
  zeros = jnp.zeros(like.total.shape, like.total.dtype)
  return _Sums(zeros + _NONE, zeros, zeros)


def _contrasted(image: _Sums, report: _Sums, word: _Sums) -> Contrasted:
  return Contrasted(
    image.own, word.own, image.log(), report.log(), word.log(), image.highest, report.highest
  )


# --- tile by tile, device by device -----------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _blocks(score, tile, axes, pixels, words, say, scale, keys) -> Contrasted:
  def device(pixels, words, say, scale, keys):
    images = _tiled((pixels, keys), tile.images, -1)
    reports = _tiled((words, say, keys), tile.reports, -2)
    (image,), columns = _travel(
      lambda reports: _visit(score, images, reports, scale), reports, axes,
      lambda a, b: jax.tree.map(_merge, a, b, is_leaf=_is_sums),
      lambda like: jax.tree.map(_empty, like, is_leaf=_is_sums),
    )  # fmt: skip
    sums = (_whole(image, len(pixels)), *(_whole(column, len(words)) for column in columns))
    return _contrasted(*sums)

  return _on_devices(device, axes, (0, 0, 0, None, 0), 1)(pixels, words, say, scale, keys)


def _forward(score, tile, axes, pixels, words, say, scale, keys):
  found = _blocks(score, tile, axes, pixels, words, say, scale, keys)
  return found, (pixels, words, say, scale, keys, found)


def _backward(score, tile, axes, residuals, gradient: Contrasted):
  *inputs, keys, found = residuals

  def device(pixels, words, say, scale, keys, found, gradient):
    by_image = _Pull(found.image, gradient.image, gradient.own)
    by_report = _Pull(found.report, gradient.report, jnp.zeros_like(gradient.report))
    by_word = _Pull(found.word, gradient.word, gradient.own_word)
    rows = jax.tree.map(lambda x: x.swapaxes(0, 1), (by_image, by_report, by_word))
    images = _tiled((pixels, keys, rows[0]), tile.images, -1)
    reports = _tiled((words, say, keys, rows[1:]), tile.reports, -2)
    (d_pixels, d_scale), (d_words, d_say) = _travel(
      lambda reports: _visit_back(score, images, reports, scale), reports, axes,
      lambda a, b: jax.tree.map(jnp.add, a, b), lambda like: jax.tree.map(_zeros, like),
    )  # fmt: skip
    if axes:
      d_scale = jax.lax.psum(d_scale, axes)
    d_pixels = d_pixels.reshape(-1, *pixels.shape[1:])[: len(pixels)]
    d_words = d_words.reshape(-1, *words.shape[1:])[: len(words)]
    d_say = d_say.reshape(-1, *say.shape[1:])[: len(say)]
    return (
      d_pixels.astype(pixels.dtype), d_words.astype(words.dtype), d_say.astype(say.dtype),
      d_scale.astype(scale.dtype),
    )  # fmt: skip

  mapped = _on_devices(device, axes, (0, 0, 0, None, 0, 1, 1), (0, 0, 0, None))
  return *mapped(*inputs, keys, found, gradient), None


_blocks.defvjp(_forward, _backward)


class _Pull(NamedTuple):
  """What turns logits into their gradients; all of one shape, K first or [n, K, ...].

  Attributes:
    normaliser: log-sum-exp over the negatives.
    negative: gradient of the loss with respect to it.
    own: gradient of the loss with respect to the own logit.
  """

  normaliser: jax.Array
  negative: jax.Array
  own: jax.Array

  def __call__(self, logits, negative, own, axis):
    """The gradient of the loss with respect to the logits, by way of this axis."""
    normaliser, slope, of_own = (jnp.expand_dims(x.swapaxes(0, 1), axis) for x in self)
    share = jnp.exp(jnp.where(negative, logits - normaliser, _NONE))
    return slope * share + jnp.where(own, of_own, 0)


def _visit(score, images, reports, scale):
  """What tiles of images and reports gather from one another: (by image,), (by report, word)."""
  first = jax.tree.map(lambda x: x[0], (images, reports))

  def shapes(image, report):
    pairs, words = score.logits(score.prepare(image[0]), *report[:2], scale)
    return _sums(pairs, words, *_relation(image[1], report[2]))

  like_image, *like_columns = jax.eval_shape(shapes, *first)
  count = len(jax.tree.leaves(reports)[0])
  columns = tuple(
    jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), _empty(like))
    for like in like_columns
  )

  def image_tile(columns, image):
    pixels, image_keys = image
    prepared = score.prepare(pixels)

    def report_tile(row, visiting):
      (words, say, keys), (by_report, by_word) = visiting
      logits = score.logits(prepared, words, say, scale)
      image, report, word = _sums(*logits, *_relation(image_keys, keys))
      return _merge(row, image), (_merge(by_report, report), _merge(by_word, word))

    row, columns = jax.lax.scan(report_tile, _empty(like_image), (reports, columns))
    return columns, row

  columns, rows = jax.lax.scan(image_tile, columns, images)
  return (rows,), columns


def _visit_back(score, images, reports, scale):
  """The gradients that images and reports give one another: (pixels, scale), (words, say)."""
  of_reports = jax.tree.map(lambda x: jnp.zeros(x.shape, _wide(x)), reports[:2])

  def image_tile(carry, image):
    of_reports, of_scale = carry
    pixels, image_keys, by_image = image
    prepared, to_pixels = jax.vjp(score.prepare, pixels.astype(_wide(pixels)))

    def report_tile(carry, visiting):
      (words, say, keys, (by_report, by_word)), of_report = visiting
      inputs = (prepared, words.astype(_wide(words)), say, scale)
      (pairs, singles), pull = jax.vjp(score.logits, *inputs)
      negative, own = _relation(image_keys, keys)
      of_pairs = by_image(pairs, negative, own, 2) + by_report(pairs, negative, own, 1)
      of_words = by_word(singles, negative[..., None], own[..., None], 1)
      of_prepared, *of_report_now, of_scale = pull((of_pairs, of_words))
      carry = jax.tree.map(jnp.add, carry, (of_prepared, of_scale))
      return carry, jax.tree.map(jnp.add, of_report, tuple(of_report_now))

    start = (jax.tree.map(jnp.zeros_like, prepared), of_scale)
    (of_prepared, of_scale), of_reports = jax.lax.scan(report_tile, start, (reports, of_reports))
    return (of_reports, of_scale), to_pixels(of_prepared)[0]

  start = (of_reports, jnp.zeros_like(scale))
  (of_reports, of_scale), of_pixels = jax.lax.scan(image_tile, start, images)
  return (of_pixels, of_scale), of_reports


def _travel(visit: Callable, reports, axes, combine: Callable, start: Callable):
  """Sends the reports once round the ring, with what they gather.

  Args:
    visit: of the reports that are here now: what this device's images gather, what they gather.
    reports: of this device.
    axes: of the mesh, None on one device.
    combine: of two such results.
    start: neutral element, from shapes.

  Returns:
    What this device's images and its reports have gathered.
  """
  if axes is None:
    return visit(reports)
  size = jax.lax.axis_size(axes)
  onward = [(d, (d + 1) % size) for d in range(size)]

  def send(x):
    return jax.lax.ppermute(x, axes, onward)

  def step(carry, _):
    reports, stays, goes = carry
    # Neither waits for the computation of this step: both can travel while it runs.
    ahead, arrived = send((reports, goes))
    more_stays, more_goes = visit(reports)
    return (ahead, combine(stays, more_stays), combine(arrived, more_goes)), None

  stays, goes = start(jax.eval_shape(visit, reports))
  (_, stays, goes), _ = jax.lax.scan(step, (reports, stays, goes), length=size)
  return stays, send(goes)


def _on_devices(device: Callable, axes, ins, outs) -> Callable:
  """`device` on each device of the mesh; ins, outs: which axis of an argument is the batch."""
  if axes is None:
    return device

  def spec(axis):
    return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, axes)

  outs = spec(outs) if isinstance(outs, int) else tuple(map(spec, outs))
  # Unchecked: what is replicated is summed by hand, and none of this is differentiated through.
  return jax.shard_map(device, in_specs=tuple(map(spec, ins)), out_specs=outs, check_vma=False)


def _tiled(tree, size: int, nobody: int):
  """[N, ...] each -> [ceil(N / size), size, ...]; what fills the last tile is `nobody`, invalid."""

  def tiles(x, fill=0):
    missing = -len(x) % size
    x = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
    return x.reshape(len(x) // size, size, *x.shape[1:])

  def side(x):
    if isinstance(x, Keys):
      return Keys(tiles(x.index, nobody), tiles(x.text), tiles(x.example), tiles(x.valid, False))
    return tiles(x)

  return jax.tree.map(side, tree, is_leaf=lambda x: isinstance(x, Keys))


def _whole(sums: _Sums, count: int) -> _Sums:
  """[n, K, size, ...] -> [K, count, ...]."""

  def whole(x):
    n, k, size, *rest = x.shape
    return jnp.moveaxis(x, 0, 1).reshape(k, n * size, *rest)[:, :count]

  return _Sums(*map(whole, sums))


def _is_sums(x) -> bool:
  return isinstance(x, _Sums)


def _zeros(like):
  return jnp.zeros(like.shape, like.dtype)


def _wide(x):
  """At least float32: what sums are kept in."""
  return jnp.promote_types(x.dtype, jnp.float32)
