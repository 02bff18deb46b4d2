"""Local similarity of images and prompts: by words and pixels, not by the global embeddings."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from input_pipeline import images
from input_pipeline.example import Example


class Matcher(Protocol):
  """What local similarities need of a model that has them."""

  has_local_scores: bool

  def local_similarities(
    self, texts: Sequence[tuple[str, ...]]
  ) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """A function of N images, uint8 [H, W]: their similarity to each of T texts, float32 [N, T]."""


def of_images(
  model: Matcher,
  examples: Iterable[Example],
  ids: Sequence[str],
  texts: Sequence[str],
  *,
  batch: int = 64,
) -> np.ndarray:
  """Of N decoded and T prompts: float64 [N, T], decoded in the order of `ids`.

  Never more than `batch` decoded are held.

  Args:
    model: that has local scores.
    studies: the decoded, in any order; others among them are passed over.
    ids: [N], of the images.
    texts: [T].
    batch: decoded at a time.

  Raises ValueError where an image is unreadable or not among the studies, or a similarity is NaN.
  """
  place = {image_id: i for i, image_id in enumerate(ids)}
  similar = model.local_similarities([(text,) for text in texts])
  found = np.full((len(ids), len(texts)), np.nan)
  places, decoded = [], []

  def flush() -> None:
    if decoded:
      found[places] = similar(list(decoded))
      places.clear()
      decoded.clear()

  for example in examples:
    if example.image_id in place:
      try:
        decoded.append(images.decode(example.image))
      except ValueError as error:
        raise ValueError(f"{example.image_id}: {error}") from error
      places.append(place[example.image_id])
      if len(decoded) == batch:
        flush()
  flush()
  if np.isnan(found).any():
    first = ids[int(np.isnan(found).any(1).argmax())]
    raise ValueError(f"the local similarity of {first} is NaN, or the image is not there")
  return found
