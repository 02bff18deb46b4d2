"""YOLO's head: anchors, grids, assignment, what the loss sees and what it leaves alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plan_jax.models.resnet import ResNet
from plan_jax.models.vit import ViT
from plan_jax.transfer.detection import yolo
from plan_jax.transfer.encoder import pyramid

SIDES = np.array([4, 8, 12, 20, 28, 36, 44, 52, 60])
ANCHORS = np.stack([SIDES, SIDES[::-1] / 8 + SIDES], 1).astype(np.float32)
SLOTS = yolo.make_slots(64, ANCHORS)
LOSS = jax.jit(lambda *arguments: yolo.loss(*arguments, SLOTS))


def _raw(boxes, wanted, findings=3, sure=20.0):
  """Raw output of the head where the slots hold just these boxes."""
  raw = np.zeros((len(SLOTS.stride), 5 + findings), np.float32)
  raw[:, 4] = -sure
  for (box, label), slot in zip(boxes, wanted, strict=True):
    centre = (np.array(box[:2]) + box[2:]) / 2 / SLOTS.stride[slot] - SLOTS.cell[slot]
    raw[slot, :2] = np.log(centre / (1 - centre))
    raw[slot, 2:4] = np.log((np.array(box[2:]) - box[:2]) / SLOTS.anchor[slot])
    raw[slot, 4], raw[slot, 5:] = sure, -sure
    raw[slot, 5 + label] = sure
  return raw


def test_slots():
  assert SLOTS.sides == (8, 4, 2) and len(SLOTS.stride) == 3 * (64 + 16 + 4)
  third = 3 * 64 + 3 * (1 * 4 + 2) + 1  # middle grid, row 1, column 2, its second anchor
  np.testing.assert_array_equal(SLOTS.cell[third], [2, 1])
  assert SLOTS.stride[third] == 16
  np.testing.assert_array_equal(SLOTS.anchor[third], SLOTS.anchors[4])
  assert (np.diff(SLOTS.anchors.prod(1)) > 0).all()


def test_a_box_goes_to_its_cell_and_anchor():
  rng = np.random.default_rng(0)
  corner = rng.uniform(0, 50, (40, 2))
  boxes = np.concatenate([corner, np.minimum(corner + rng.uniform(2, 60, (40, 2)), 64)], 1)
  assigned = yolo.assign(jnp.array(boxes, jnp.float32), SLOTS)
  for box, slot in zip(boxes, np.asarray(assigned), strict=True):
    side = box[2:] - box[:2]
    shared = np.minimum(side, ANCHORS).prod(1)
    best = (shared / (side.prod() + ANCHORS.prod(1) - shared)).argmax()
    np.testing.assert_array_equal(SLOTS.anchor[slot], ANCHORS[best])
    within = (box[:2] + box[2:]) / 2 / SLOTS.stride[slot] - SLOTS.cell[slot]
    assert (within >= 0).all() and (within < 1).all()


def test_decoding_is_the_way_back():
  boxes = [([3, 4, 12, 15], 0), ([10, 20, 60, 58], 2)]
  corners = jnp.array([box for box, _ in boxes], jnp.float32)
  wanted = np.asarray(yolo.assign(corners, SLOTS))
  decoded = yolo.decode(jnp.array(_raw(boxes, wanted)), SLOTS)
  np.testing.assert_allclose(decoded[wanted], corners, rtol=1e-5)
  wild = yolo.decode(jnp.full((len(SLOTS.stride), 8), 1e4), SLOTS)
  assert np.isfinite(wild).all()


def _arguments(boxes, room=3):
  corners, labels = np.zeros((room, 4), np.float32), np.zeros(room, np.int32)
  for i, (box, label) in enumerate(boxes):
    corners[i], labels[i] = box, label
  return jnp.array(corners), jnp.array(labels), jnp.arange(room) < len(boxes)


def test_what_is_right_costs_nothing_more():
  boxes = [([3, 4, 12, 15], 0), ([10, 20, 60, 58], 2)]
  arguments = _arguments(boxes)
  wanted = np.asarray(yolo.assign(arguments[0], SLOTS))[:2]
  raw = jnp.array(_raw(boxes, wanted))
  total, parts = LOSS(raw, *arguments)
  assert parts["wh"] < 1e-9 and parts["finding"] < 1e-6 and parts["shared"] == 0
  assert parts["object"] + parts["no_object"] < 1e-5
  gradient = jax.grad(lambda raw: LOSS(raw, *arguments)[0])(raw)
  assert np.abs(gradient).max() < 1e-5
  moved = raw.at[wanted[1], 2].add(0.5)
  assert LOSS(moved, *arguments)[0] - total == pytest.approx(2.5 * 0.25, rel=1e-4)
  doubted = raw.at[wanted[0], 4].set(0)
  assert LOSS(doubted, *arguments)[0] - total == pytest.approx(np.log(2), rel=1e-3)


def test_a_near_slot_is_left_alone_and_a_far_one_is_not():
  box = [9, 8, 22, 25]
  arguments = _arguments([(box, 1)])
  (wanted,) = np.asarray(yolo.assign(arguments[0], SLOTS))[:1]
  raw = _raw([(box, 1)], [wanted])
  same_cell = (SLOTS.cell == SLOTS.cell[wanted]).all(1) & (SLOTS.stride == SLOTS.stride[wanted])
  near = next(slot for slot in np.flatnonzero(same_cell) if slot != wanted)  # another anchor
  raw[near] = _raw([(box, 1)], [near])[near]
  base = LOSS(jnp.array(raw), *arguments)[0]
  assert LOSS(jnp.array(raw).at[near, 4].set(-20), *arguments)[0] == base
  far = len(raw) - 1
  doubted = jnp.array(raw).at[far, 4].set(0)
  assert LOSS(doubted, *arguments)[0] - base == pytest.approx(0.5 * np.log(2), rel=1e-3)


def test_two_boxes_of_one_slot():
  arguments = _arguments([([8, 8, 20, 24], 1), ([8, 8, 20, 24], 2)])
  total, parts = LOSS(jnp.zeros((len(SLOTS.stride), 8)), *arguments)
  assert parts["shared"] == 1 and np.isfinite(total)


def test_without_boxes_loss_and_gradient_are_numbers():
  for room in (1, 3):
    arguments = _arguments([], room)
    function = jax.value_and_grad(lambda raw, a=arguments: LOSS(raw, *a)[0])
    for raw in (jnp.zeros((len(SLOTS.stride), 8)), jnp.full((len(SLOTS.stride), 8), 50.0)):
      value, gradient = function(raw)
      assert np.isfinite(value) and np.isfinite(gradient).all() and value > 0
      assert not gradient[:, :4].any() and not gradient[:, 5:].any() and gradient[:, 4].any()


def test_anchors_find_the_shapes_there_are():
  rng = np.random.default_rng(0)
  sizes = np.repeat(ANCHORS, 30, 0) * rng.uniform(0.97, 1.03, (270, 2))
  anchors = yolo.fit_anchors(rng.permutation(sizes))
  np.testing.assert_allclose(anchors, ANCHORS[np.argsort(ANCHORS.prod(1))], rtol=0.03)
  few = yolo.fit_anchors(np.array([[3.0, 4], [5, 6]]))
  assert few.shape == (9, 2) and {tuple(row) for row in few.tolist()} == {(3, 4), (5, 6)}


ENCODERS = {
  "four stages": ResNet(18, 0.125, stages=4),
  "dilated": ResNet(18, 0.125, stages=4, output_stride=8),
  "three stages": ResNet(18, 0.125, stages=3, output_stride=8, dilated=False),
  "vit": ViT(embed_dim=16, depth=1, num_heads=2, mlp_dim=16, grid=4),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_three_grids_of_every_encoder(name):
  encoder, image = ENCODERS[name], jnp.zeros((2, 64, 64, 1))

  def shapes(key):
    variables = encoder.init(key, image)
    levels, kept = pyramid(encoder, variables, image, yolo.STRIDES, train=False)
    raw, _ = yolo.Head(3, 8).init_with_output(key, levels)
    return levels, kept, variables.get("batch_stats", {}), raw

  levels, kept, before, raw = jax.eval_shape(shapes, jax.random.key(0))
  assert [level.shape[1:3] for level in levels] == [(8, 8), (4, 4), (2, 2)]
  channels = {"vit": [16] * 3, "three stages": [16, 32, 32]}.get(name, [16, 32, 64])
  assert [level.shape[-1] for level in levels] == channels
  assert jax.tree.structure(kept) == jax.tree.structure(before)
  assert raw.shape == (2, len(SLOTS.stride), 8) and raw.dtype == jnp.float32


def test_the_grids_are_the_stages():
  encoder = ENCODERS["three stages"]
  image = jax.random.uniform(jax.random.key(0), (2, 64, 64, 1))
  variables = jax.jit(encoder.init)(jax.random.key(0), image)
  levels_of = jax.jit(partial(pyramid, encoder, strides=yolo.STRIDES), static_argnames="train")
  levels, kept = levels_of(variables, image, train=False)
  out = encoder.apply(variables, image)
  shrunk = out.reshape(2, 4, 2, 4, 2, 32).mean((2, 4))
  assert np.corrcoef(levels[1].ravel(), shrunk.ravel())[0, 1] > 0.98
  assert levels[0].shape == (2, 8, 8, 16) and (levels[0] >= 0).all() and levels[0].any()
  jax.tree.map(np.testing.assert_array_equal, kept, variables["batch_stats"])
  _, moved = levels_of(variables, image, train=True)
  assert all(
    (a != b).any() for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(kept), strict=True)
  )


def test_the_head_speaks_in_the_order_of_the_slots():
  """What lies in a coarse cell moves the slots of that cell most."""
  levels = [jnp.zeros((1, side, side, 4)) for side in SLOTS.sides]
  head = yolo.Head(findings=1, channels=4)
  variables, apply = jax.jit(head.init)(jax.random.key(0), levels), jax.jit(head.apply)
  for level, (row, column) in enumerate([(5, 2), (1, 3), (1, 0)]):
    changed = list(levels)
    changed[level] = changed[level].at[0, row, column].set(50.0)
    change = np.abs(apply(variables, changed) - apply(variables, levels))[0].sum(1)
    own = SLOTS.stride == yolo.STRIDES[level]
    cells = SLOTS.cell[own][change[own].reshape(-1, 3).sum(1).argmax() * 3]
    assert np.abs(cells - [column, row]).max() <= 1
