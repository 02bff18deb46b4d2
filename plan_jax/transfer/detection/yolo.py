"""YOLOv3's head over an image encoder (Redmon and Farhadi 2018): anchors, assignment, loss.

The head reads three grids of stride 8, 16 and 32. On each a cell has three slots, one an anchor; a
slot predicts (x, y, w, h, objectness, findings...) of a box whose centre lies in its cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from input_pipeline.boxes import iou
from plan_jax.models.layers.batch_norm import BatchNorm
from plan_jax.models.layers.convolution import Conv, Conv1x1

STRIDES = (8, 16, 32)
ANCHORS = 3  # per cell
# YOLOv3's for COCO: widths and heights on a square of 416 pixels.
COCO_ANCHORS = np.array(
  [[10, 13], [16, 30], [33, 23], [30, 61], [62, 45], [59, 119], [116, 90], [156, 198], [373, 326]],
  np.float32,
)
COCO_PX = 416
# Weights of the loss in LoVT and MGCA.
XY_WEIGHT, WH_WEIGHT, NO_OBJECT_WEIGHT = 2.5, 2.5, 0.5
IGNORE = 0.5  # IoU with a true box above which an empty slot does not learn that it is empty
_LOG_SIDE = 5.0  # bound on the logarithm of a side over its anchor's
_PRIOR = 0.01  # objectness before the first step, so that empty slots do not drown the rest


@dataclass(frozen=True)
class Slots:
  """The geometry of the N slots, the fine grid first, rows of cells one after another.

  Attributes:
    cell: [N, 2] float32, column and row.
    stride: [N] float32, pixels per cell.
    anchor: [N, 2] float32, width and height in pixels.
    anchors: [9, 2] float32, by area.
    sides: of the three grids, in cells.
  """

  cell: np.ndarray
  stride: np.ndarray
  anchor: np.ndarray
  anchors: np.ndarray
  sides: tuple[int, ...]


def make_slots(size_px: int, anchors: np.ndarray) -> Slots:
  """Makes the slots of a square of `size_px`, a multiple of 32; anchors [9, 2] in any order."""
  anchors = anchors[np.argsort(anchors.prod(1), kind="stable")].astype(np.float32)
  sides = tuple(size_px // stride for stride in STRIDES)
  cells, strides, shapes = [], [], []
  for level, (side, stride) in enumerate(zip(sides, STRIDES, strict=True)):
    row, column = np.mgrid[:side, :side].reshape(2, -1).astype(np.float32)
    cells.append(np.repeat(np.stack([column, row], 1), ANCHORS, 0))
    strides.append(np.full(side * side * ANCHORS, stride, np.float32))
    shapes.append(np.tile(anchors[level * ANCHORS :][:ANCHORS], (side * side, 1)))
  return Slots(*map(np.concatenate, (cells, strides, shapes)), anchors, sides)


def fit_anchors(sizes: np.ndarray, count: int = 9) -> np.ndarray:
  """Clusters widths and heights [N, 2] by k-means on IoU (YOLO9000): [count, 2] float32 by area.

  It starts from the quantiles of the area, so that the same boxes give the same anchors.
  """
  sizes = sizes[np.argsort(sizes.prod(1), kind="stable")].astype(np.float64)
  anchors = sizes[((np.arange(count) + 0.5) / count * len(sizes)).astype(int)]
  owner = None
  for _ in range(100):
    before, owner = owner, shape_iou(sizes, anchors).argmax(1)
    if before is not None and (owner == before).all():
      break
    counts = np.bincount(owner, minlength=count)[:, None]
    sums = np.stack([np.bincount(owner, side, count) for side in sizes.T], 1)
    anchors = np.where(counts > 0, sums / np.maximum(counts, 1), anchors)
  return anchors[np.argsort(anchors.prod(1), kind="stable")].astype(np.float32)


def shape_iou(a, b):
  """Computes the IoU of widths and heights [..., N, 2], [M, 2] on a common corner, [..., N, M]."""
  xp = a.__array_namespace__()
  return iou(*(xp.concatenate([xp.zeros_like(sides), sides], -1) for sides in (a, b)))


class Head(nn.Module):
  """YOLOv3's head: coarse to fine, each grid also reads the features of the coarser one.

  Attributes:
    findings: number of findings.
    channels: of the inner 1x1 convolutions on the fine grid, 128 in YOLOv3; twice as many on each
      coarser one.
  """

  findings: int
  channels: int

  @nn.compact
  def __call__(self, levels: Sequence[jax.Array], *, train: bool = False) -> jax.Array:
    """[B, H, W, C] by grid, fine to coarse -> [B, slots, 5 + findings] float32."""

    def conv(layer, x, features, name):
      x = layer(features, name=name)(x)
      return nn.leaky_relu(BatchNorm(train, name=f"{name}_norm")(x), 0.1)

    def first(key, shape, dtype=jnp.float32):
      bias = jnp.zeros(shape, dtype).reshape(ANCHORS, -1)
      return bias.at[:, 4].set(jnp.log(_PRIOR / (1 - _PRIOR))).reshape(shape)

    out, above = [], None
    for level in reversed(range(len(levels))):
      x, channels = levels[level].astype(jnp.float32), self.channels * 2**level
      if above is not None:
        above = conv(Conv1x1, above, channels, f"route{level}")
        x = jnp.concatenate([above.repeat(2, 1).repeat(2, 2), x], -1)
      for i in range(2):
        x = conv(Conv1x1, x, channels, f"level{level}_in{i}")
        x = conv(Conv, x, 2 * channels, f"level{level}_out{i}")
      above = conv(Conv1x1, x, channels, f"level{level}_in2")
      x = conv(Conv, above, 2 * channels, f"level{level}_out2")
      x = nn.Dense(ANCHORS * (5 + self.findings), bias_init=first, name=f"level{level}_slots")(x)
      out.insert(0, x.reshape(x.shape[0], -1, 5 + self.findings))
    return jnp.concatenate(out, 1)


def decode(raw: jax.Array, slots: Slots) -> jax.Array:
  """Decodes raw output [..., N, 5 + findings] to boxes [..., N, 4] in pixels of the square."""
  centre = (slots.cell + jax.nn.sigmoid(raw[..., :2])) * slots.stride[:, None]
  half = slots.anchor * jnp.exp(jnp.clip(raw[..., 2:4], -_LOG_SIDE, _LOG_SIDE)) / 2
  return jnp.concatenate([centre - half, centre + half], -1)


def assign(boxes: jax.Array, slots: Slots) -> jax.Array:
  """Returns the slot of each true box [M, 4], [M] int32.

  It is that of the anchor, of all nine, whose shape overlaps it most, in the cell of its centre.
  """
  best = shape_iou(boxes[:, 2:] - boxes[:, :2], slots.anchors).argmax(1)
  level = best // ANCHORS
  side = jnp.array(slots.sides)[level]
  start = jnp.cumsum(jnp.array([0, *(s * s * ANCHORS for s in slots.sides[:-1])]))[level]
  centre = (boxes[:, :2] + boxes[:, 2:]) / 2
  cell = (centre / jnp.array(STRIDES)[level][:, None]).astype(jnp.int32)
  column, row = jnp.clip(cell, 0, side[:, None] - 1).T
  return start + (row * side + column) * ANCHORS + best % ANCHORS


def loss(
  raw: jax.Array, boxes: jax.Array, labels: jax.Array, mask: jax.Array, slots: Slots
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Computes YOLOv3's loss of one image, a sum over its slots, and its parts.

  Cross entropy of the centre within its cell, squared error of the sides' logarithms over the
  anchor's, cross entropy of objectness (empty slots whose box overlaps a true one by more than
  IGNORE do not count) and of each finding. A slot that several true boxes are assigned to learns
  the first; "shared" counts the others.

  Args:
    raw: [N, 5 + findings] float32, see `Head`.
    boxes: [M, 4] float32, pixels of the square.
    labels: [M] int32.
    mask: [M] bool, False for padding.
    slots: N.
  """
  wanted = assign(boxes, slots)
  owner = (wanted[None] == jnp.arange(len(raw))[:, None]) & mask  # [N, M]
  holds, which = owner.any(1), owner.argmax(1)
  mine = boxes[which]
  xy = (mine[:, :2] + mine[:, 2:]) / 2 / slots.stride[:, None] - slots.cell
  wh = jnp.log(jnp.maximum(mine[:, 2:] - mine[:, :2], 1e-3) / slots.anchor)
  predicted = jax.lax.stop_gradient(decode(raw, slots))
  near = jnp.where(mask, iou(predicted, boxes), 0).max(1, initial=0) > IGNORE
  finding = jax.nn.one_hot(labels[which], raw.shape[1] - 5)
  entropy = optax.sigmoid_binary_cross_entropy
  parts = {
    # Slots without a box hold arbitrary numbers: no NaN may come of them, nor of their gradient.
    "xy": entropy(raw[:, :2], jnp.where(holds[:, None], xy, 0.5)).sum(1),
    "wh": jnp.square(raw[:, 2:4] - jnp.where(holds[:, None], wh, 0)).sum(1),
    "finding": entropy(raw[:, 5:], finding).sum(1),
    "object": entropy(raw[:, 4], 1.0),
    "no_object": entropy(raw[:, 4], 0.0),
  }
  empty = ~holds & ~near
  parts = {
    name: jnp.where(empty if name == "no_object" else holds, part, 0).sum()
    for name, part in parts.items()
  }
  place = XY_WEIGHT * parts["xy"] + WH_WEIGHT * parts["wh"]
  total = place + parts["finding"] + parts["object"] + NO_OBJECT_WEIGHT * parts["no_object"]
  return total, parts | {"shared": mask.sum() - holds.sum()}


def suppress(boxes: jax.Array, scores: jax.Array, labels: jax.Array, threshold: float) -> jax.Array:
  """Suppresses, greedily and within each label, boxes that overlap a better one.

  A box goes if one of its label that scores more, and stays, overlaps it by more than the
  threshold; of equal scores the earlier comes first.

  Args:
    boxes: [N, 4].
    scores: [N]; a box that scores 0 or less is none, and goes.
    labels: [N] int.
    threshold: of IoU.

  Returns:
    [N] bool, which stay.
  """
  order = jnp.argsort(-scores, stable=True)
  boxes, labels = boxes[order], labels[order]
  over = (iou(boxes, boxes) > threshold) & (labels[:, None] == labels[None])
  number = jnp.arange(len(scores))

  def step(i, stays):
    return stays & ~(over[i] & (number > i) & stays[i])

  stays = jax.lax.fori_loop(0, len(scores), step, scores[order] > 0)
  return jnp.zeros(len(scores), bool).at[order].set(stays)
