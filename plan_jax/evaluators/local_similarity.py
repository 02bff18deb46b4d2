"""Local similarity of films and prompts: by words and pixels, not by the global embeddings."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from input_pipeline import images
from input_pipeline.study import Study


class Matcher(Protocol):
  """What local similarities need of a model that has them."""

  has_local_scores: bool

  def local_similarities(
    self, texts: Sequence[tuple[str, ...]]
  ) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """A function of N films, uint8 [H, W]: their similarity to each of T texts, float32 [N, T]."""


def of_films(
  model: Matcher,
  studies: Iterable[Study],
  ids: Sequence[str],
  texts: Sequence[str],
  *,
  batch: int = 64,
) -> np.ndarray:
  """Of N films and T prompts: float64 [N, T], films in the order of `ids`.

  Never more than `batch` films are held.

  Args:
    model: that has local scores.
    studies: the films, in any order; others among them are passed over.
    ids: [N], of the images.
    texts: [T].
    batch: films at a time.

  Raises ValueError where a film is unreadable or not among the studies, or a similarity is NaN.
  """
  place = {image_id: i for i, image_id in enumerate(ids)}
  similar = model.local_similarities([(text,) for text in texts])
  found = np.full((len(ids), len(texts)), np.nan)
  places, films = [], []

  def flush() -> None:
    if films:
      found[places] = similar(list(films))
      places.clear()
      films.clear()

  for study in studies:
    if study.image_id in place:
      try:
        films.append(images.decode(study.image))
      except ValueError as error:
        raise ValueError(f"{study.image_id}: {error}") from error
      places.append(place[study.image_id])
      if len(films) == batch:
        flush()
  flush()
  if np.isnan(found).any():
    first = ids[int(np.isnan(found).any(1).argmax())]
    raise ValueError(f"the local similarity of {first} is NaN, or the film is not there")
  return found
