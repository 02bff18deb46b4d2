"""Local similarity of images and prompts: by words and pixels, not by the global embeddings."""

from collections.abc import Iterable, Sequence

import numpy as np

from input_pipeline.example import Example
from plan_jax.evaluators.decoding import decoded_batches
from plan_jax.inference.predictor import Predictor


def image_similarities(
  model: Predictor,
  examples: Iterable[Example],
  ids: Sequence[str],
  texts: Sequence[str],
  *,
  batch: int = 64,
) -> np.ndarray:
  """Compares N images with T prompts: float64 [N, T], images in the order of `ids`.

  Args:
    model: that has local scores.
    examples: the images, in any order; others among them are passed over.
    ids: [N], of the images.
    texts: [T].
    batch: images decoded at a time.

  Raises:
    ValueError: an image is unreadable or missing, or a similarity is NaN; the message names it.
  """
  place = {image_id: i for i, image_id in enumerate(ids)}
  compare = model.local_similarities([(text,) for text in texts])
  similarities = np.full((len(ids), len(texts)), np.nan)
  wanted = (example for example in examples if example.image_id in place)
  for part, decoded in decoded_batches(wanted, batch):
    similarities[[place[example.image_id] for example in part]] = compare(decoded)
  if np.isnan(similarities).any():
    first = ids[int(np.isnan(similarities).any(1).argmax())]
    raise ValueError(f"the local similarity of {first} is NaN, or the image is missing")
  return similarities
