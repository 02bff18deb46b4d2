"""The benchmarks run and count what they say; what they measure is no test's business."""

import numpy as np
import pytest

from benchmarks import local_loss

SHAPE = (4, 3, 9, 8)


def test_local_loss_has_a_row_for_every_contender():
  rows = local_loss.measure(SHAPE, 1, "float32", 16, with_torch=False, resident=False)
  assert [row["contender"] for row in rows] == [
    "plan, chunked", "plan, two rounds, chunked", "gloria, chunked", "plan, full", "gloria, full",
  ]  # fmt: skip
  assert all(row["seconds"] > 0 and row["temporary_mib"] > 0 for row in rows)


def test_growth_is_what_a_step_holds():
  """All logits of 64 x 64 pairs at once, against a tile of them."""
  shape = (64, 16, 49, 8)
  little, much = (
    local_loss.growth(name, shape, "float32", 1) for name in ("plan, chunked", "plan, full")
  )
  assert much > little + 4 * 64 * 64 * 16 * 49


def test_the_torch_loop_is_gloria():
  pytest.importorskip("torch")
  step, inputs = local_loss.ours("gloria", "full", SHAPE, "float32", 16)
  value, gradients = step(*inputs)
  wanted, *others = local_loss.gloria_torch(SHAPE)()
  np.testing.assert_allclose(value, wanted, rtol=1e-4)
  for a, b in zip(gradients, others, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-3 * float(np.abs(b).max()))
