"""The benchmarks run and count what they say; what they measure is no test's business."""

import numpy as np
import pytest

from benchmarks import local_loss

SHAPE = (4, 3, 9, 8)


def test_local_loss_has_a_row_for_every_contender():
  rows = local_loss.measure(SHAPE, 1, "float32", 16, with_torch=False)
  assert [row["contender"] for row in rows] == [
    "plan, chunked", "plan, full", "gloria, chunked", "gloria, full",
  ]  # fmt: skip
  assert all(row["seconds"] > 0 and row["temporary_mib"] > 0 for row in rows)


def test_the_torch_loop_is_gloria():
  pytest.importorskip("torch")
  step, inputs = local_loss.ours("gloria", "full", SHAPE, "float32", 16)
  value, gradients = step(*inputs)
  wanted, *others = local_loss.gloria_torch(SHAPE)()
  np.testing.assert_allclose(value, wanted, rtol=1e-4)
  for a, b in zip(gradients, others, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-3 * float(np.abs(b).max()))
