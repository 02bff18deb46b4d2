"""Overlays: texts stay legible."""

import numpy as np
import pytest

from plan_jax.transfer.drawing import Canvas

_FIRST, _SECOND = (0, 0, 255), (255, 0, 0)


@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize(
  "box", [(100, 150, 200, 300), (0, 0, 60, 512), (480, 480, 512, 512)], ids=str
)
def test_texts_of_one_place_do_not_cover_each_other(box, below):
  canvas = Canvas(np.zeros((512, 512), np.uint8))
  canvas.box(np.array(box), _FIRST, "pleural effusion 0.87", below=below)
  first = canvas.pixels.copy()
  canvas.box(np.array(box), _SECOND, "pneumothorax 0.52", below=below)
  edge = np.zeros((512, 512), bool)  # the second box lies on the first one's lines
  edge[box[1] : box[3], box[0] : box[2]] = True
  edge[box[1] + 1 : box[3] - 1, box[0] + 1 : box[2] - 1] = False
  written = (first[..., 2] > 0) & ~edge
  assert written.sum() > 300  # the whole text, moved in from the margin
  np.testing.assert_array_equal(canvas.pixels[written], first[written])
  assert ((canvas.pixels[..., 0] > 0) & ~edge).sum() > 300


def test_a_text_without_room_is_written_all_the_same():
  canvas = Canvas(np.zeros((512, 512), np.uint8))
  for _ in range(9):
    canvas.box(np.array([10, 200, 60, 260]), _FIRST, "nodule", below=False)
  canvas.box(np.array([10, 200, 60, 260]), _SECOND, "nodule", below=False)
  assert (canvas.pixels[:190, ..., 0] > 0).any()
