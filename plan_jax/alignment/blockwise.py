"""Contrast over all pairs in bounded memory: tile by tile, and device by device on a mesh.

Forwards, `chunked` merges the sums of each tile as they come; backwards, where the log-partitions
are known, it computes each tile anew, turns its logits into their gradients and adds up. `ring` is
the same on a mesh: images stay where they are, reports travel from device to device with what they
have gathered, so that no device ever holds more than one other's reports.

Shapes as in `pairwise`. In here a tuple "images" is (pixels, keys, ...) and a tuple "reports" is
(words, word weights, keys, ...), each array cut into tiles: [number of tiles, size, ...].
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from plan_jax.alignment import pairwise
from plan_jax.alignment.pairwise import ContrastTerms, Keys, PairFeatures, PartialSums, Score

_FEATURES = PairFeatures(True, True, True, False)  # which are split over the devices


def chunked(score: Score, tile: pairwise.Tile, features: PairFeatures, keys: Keys) -> ContrastTerms:
  """Contrasts as `pairwise.full`, tile by tile; B need not be a multiple of the tile.

  Memory beyond inputs, outputs and gradients is that of one tile, whatever B.
  """
  return _contrast(score, tile, None, features, keys)


def ring(score: Score, tile: pairwise.Tile, features: PairFeatures, keys: Keys) -> ContrastTerms:
  """Contrasts as `chunked`, over the mesh in context (`jax.set_mesh`), batch split over its axes.

  Each device sends its neighbour one device's reports a step, while it computes. On one device, or
  without a mesh, this is `chunked`.
  """
  mesh = jax.sharding.get_abstract_mesh()
  axes = None if mesh.empty or mesh.size == 1 else mesh.axis_names
  return _contrast(score, tile, axes, features, keys)


# --- the contrast and its gradient ------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _contrast(score, tile, axes, features, keys) -> ContrastTerms:
  def device(features, keys):
    pixels, words, word_weights, scale = features
    images = _cut((pixels, keys), tile.images, -1)
    reports = _cut((words, word_weights, keys), tile.reports, -2)

    def visit(reports):
      return _visit(score, images, reports, scale)

    (image,), columns = _travel(visit, reports, axes)
    sums = (_join(image, len(pixels)), *(_join(column, len(words)) for column in columns))
    return pairwise.terms(*sums)

  return _on_devices(device, axes, (_FEATURES, True), True)(features, keys)


def _forward(score, tile, axes, features, keys):
  terms = _contrast(score, tile, axes, features, keys)
  return terms, (features, keys, terms)


def _backward(score, tile, axes, residuals, gradient: ContrastTerms):
  def device(features, keys, terms, gradient):
    pixels, words, word_weights, scale = features
    none = jnp.zeros_like(gradient.positive)  # counted by image already
    by_axis = (
      _LogitGradient(terms.image_log_partition, gradient.image_log_partition, gradient.positive),
      _LogitGradient(terms.report_log_partition, gradient.report_log_partition, none),
      _LogitGradient(terms.word_log_partition, gradient.word_log_partition, gradient.positive_word),
    )
    images = _cut((pixels, keys, by_axis[0]), tile.images, -1)
    reports = _cut((words, word_weights, keys, by_axis[1:]), tile.reports, -2)

    def visit(reports):
      return _visit_back(score, images, reports, scale)

    (d_pixels, d_scale), of_reports = _travel(visit, reports, axes)
    if axes:
      d_scale = jax.lax.psum(d_scale, axes)
    joined = (
      d.reshape(-1, *x.shape[1:])[: len(x)].astype(x.dtype)
      for d, x in zip((d_pixels, *of_reports), features[:3], strict=True)
    )
    return PairFeatures(*joined, d_scale.astype(scale.dtype))

  split = (_FEATURES, True, True, True)
  return _on_devices(device, axes, split, _FEATURES)(*residuals, gradient), None


_contrast.defvjp(_forward, _backward)


class _LogitGradient(NamedTuple):
  """Function from logits to their gradients along one axis; shapes [n, ...].

  Attributes:
    log_partition: over the negatives.
    negative: gradient of the loss with respect to it.
    positive: gradient of the loss with respect to the positive logit.
  """

  log_partition: jax.Array
  negative: jax.Array
  positive: jax.Array

  def __call__(self, logits, negative, positive, axis):
    """Returns the gradient of the loss with respect to the logits, by way of this axis."""
    log_partition, slope, of_positive = (jnp.expand_dims(x, axis) for x in self)
    share = jnp.exp(jnp.where(negative, logits - log_partition, pairwise.NO_LOGIT))
    return slope * share + jnp.where(positive, of_positive, 0)


# --- one visit: all tiles of images against all tiles of reports ------------------------------


def _visit(score, images, reports, scale):
  """Reduces the logits of images and reports: (by image,), (by report, by word)."""
  first = jax.tree.map(lambda x: x[0], (images, reports))

  def reduce_tile(image, report):
    (pixels, image_keys), (words, word_weights, report_keys) = image, report
    logits = score.logits(pixels, words, word_weights, scale)
    return pairwise.reduce_logits(*logits, *pairwise.relate(image_keys, report_keys))

  like_image, *like_columns = jax.eval_shape(reduce_tile, *first)
  count = len(jax.tree.leaves(reports)[0])
  columns = tuple(
    jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), pairwise.empty(like))
    for like in like_columns
  )

  def image_tile(columns, image):
    def report_tile(row, visiting):
      inputs, (by_report, by_word) = visiting
      more, report, word = reduce_tile(image, inputs)
      columns = pairwise.merge(by_report, report), pairwise.merge(by_word, word)
      return pairwise.merge(row, more), columns

    row, columns = jax.lax.scan(report_tile, pairwise.empty(like_image), (reports, columns))
    return columns, row

  columns, rows = jax.lax.scan(image_tile, columns, images)
  return (rows,), columns


def _visit_back(score, images, reports, scale):
  """Computes the gradients of images and reports: (pixels, scale), (words, word weights)."""
  of_reports = jax.tree.map(lambda x: jnp.zeros(x.shape, _wide(x)), reports[:2])

  def image_tile(carry, image):
    of_reports, of_scale = carry
    pixels, image_keys, by_image = image
    pixels = pixels.astype(_wide(pixels))

    def report_tile(carry, visiting):
      (words, word_weights, keys, (by_report, by_word)), of_report = visiting
      inputs = (pixels, words.astype(_wide(words)), word_weights, scale)
      (pairs, singles), pull = jax.vjp(score.logits, *inputs)
      negative, positive = pairwise.relate(image_keys, keys)
      of_pairs = by_image(pairs, negative, positive, 1) + by_report(pairs, negative, positive, 0)
      of_words = by_word(singles, negative[..., None], positive[..., None], 0)
      of_pixels, *of_report_now, of_scale = pull((of_pairs, of_words))
      carry = jax.tree.map(jnp.add, carry, (of_pixels, of_scale))
      return carry, jax.tree.map(jnp.add, of_report, tuple(of_report_now))

    start = (jnp.zeros_like(pixels), of_scale)
    (of_pixels, of_scale), of_reports = jax.lax.scan(report_tile, start, (reports, of_reports))
    return (of_reports, of_scale), of_pixels

  start = (of_reports, jnp.zeros_like(scale))
  (of_reports, of_scale), of_pixels = jax.lax.scan(image_tile, start, images)
  return (of_pixels, of_scale), of_reports


# --- the mesh ---------------------------------------------------------------------------------


def _travel(visit: Callable, reports, axes):
  """Sends this device's reports once round the ring (`axes` is None: it is alone).

  `visit` maps the reports that are present to what this device's images and what they gather.
  Returns what this device's images and what its reports have gathered.
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
    return (ahead, _combine(stays, more_stays), _combine(arrived, more_goes)), None

  stays, goes = _neutral(jax.eval_shape(visit, reports))
  (_, stays, goes), _ = jax.lax.scan(step, (reports, stays, goes), length=size)
  return stays, send(goes)


def _on_devices(device: Callable, axes, ins, outs) -> Callable:
  """Runs `device` on each device of the mesh; ins, outs: trees that say which are split."""
  if axes is None:
    return device

  def spec(split):
    return PartitionSpec(axes) if split else PartitionSpec()

  ins, outs = jax.tree.map(spec, (ins, outs))
  # Unchecked: what is replicated is summed by hand, and none of this is differentiated through.
  return jax.shard_map(device, in_specs=ins, out_specs=outs, check_vma=False)


# --- trees ------------------------------------------------------------------------------------


def _cut(tree, size: int, padding_index: int):
  """Cuts [N, ...] each into [ceil(N / size), size, ...]; what fills the last tile is invalid."""

  def cut(x, fill=0):
    missing = -len(x) % size
    x = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
    return x.reshape(len(x) // size, size, *x.shape[1:])

  def cut_keys(x):
    if isinstance(x, Keys):
      return Keys(cut(x.index, padding_index), cut(x.text), cut(x.study), cut(x.valid, False))
    return cut(x)

  return jax.tree.map(cut_keys, tree, is_leaf=lambda x: isinstance(x, Keys))


def _join(sums: PartialSums, count: int) -> PartialSums:
  """Joins tiles [n, size, ...] to [count, ...]."""
  return PartialSums(*(jax.lax.collapse(x, 0, 2)[:count] for x in sums))


def _is_sums(x) -> bool:
  return isinstance(x, PartialSums)


def _combine(a, b):
  """Merges partial sums, and adds gradients."""

  def add(a, b):
    return pairwise.merge(a, b) if _is_sums(a) else a + b

  return jax.tree.map(add, a, b, is_leaf=_is_sums)


def _neutral(like):
  def zero(x):
    return pairwise.empty(x) if _is_sums(x) else jnp.zeros(x.shape, x.dtype)

  return jax.tree.map(zero, like, is_leaf=_is_sums)


def _wide(x):
  """Returns the dtype that sums are kept in, at least float32."""
  return jnp.promote_types(x.dtype, jnp.float32)
