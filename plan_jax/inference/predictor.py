"""What evaluators call: images and texts embedded, phrases grounded, words looked at, in batches.

A model of two towers is a class below `Predictor` that says how its images and texts become arrays,
and what its encoders make of them.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

from plan_jax.runtime.mesh import batch_sharding, everywhere, spread

_MATCHED_BYTES = 2**28  # of features, on each device at a time


class Predictor:
  """A model with its weights and vocabulary.

  Images are uint8 [H, W] of any size; texts are tuples of sentences; phrases are strings. Work is
  done in batches of one size, so each function compiles once, and each batch is shared among the
  devices of the mesh. With several processes all call the same with the same, and get the same.

  A class below it has the methods `_images_in` to `_matched`, and `to_image`.

  Attributes:
    grid: rows and columns of the pixels.
    step: of training.
    map_sigma, map_nearest: of its maps, see evaluators.grounding_compat.
    has_significance: whether its words have a significance.
    has_local_scores: whether all images and texts can be compared by words and pixels.
    local_bytes: of `local_features` of a pair.
  """

  map_sigma, map_nearest = 0.0, False
  has_significance = True
  has_local_scores: bool
  local_bytes: int
  grid: tuple[int, int]
  step: int

  def __init__(self, mesh: Mesh, batch_size: int):
    """`mesh`: where the work is done; `batch_size`: of images or texts, rounded up to devices."""
    self._mesh = mesh
    self._batch = -(-batch_size // mesh.size) * mesh.size

  # --- what a class below says -------------------------------------------------------------------

  def _images_in(self, images: Sequence[np.ndarray]) -> np.ndarray:
    """Images as the image encoder takes them, float32 [N, H, W, 1]; only of those asked for."""
    raise NotImplementedError

  def _side_px(self) -> int:
    """Height and width of those."""
    raise NotImplementedError

  def _encoded(self, texts: Sequence[tuple[str, ...]], *, whole: bool = False) -> list:
    """What `_texts_in` takes, one a text; with `whole` the arrays of all calls have one length."""
    raise NotImplementedError

  def _texts_in(self, encoded: list) -> dict[str, np.ndarray]:
    """Texts as the text encoder takes them, arrays that lead with N."""
    raise NotImplementedError

  def _words_of(self, text: tuple[str, ...]) -> list[tuple[str, int]]:
    """The words of a text, and where each stands among the text encoder's."""
    raise NotImplementedError

  def _image_encoder(self, images: jax.Array):
    """Of a batch: something with `pixels` [B, P, D] and `image` [B, D], unit norm."""
    raise NotImplementedError

  def _text_encoder(self, arrays: dict):
    """Of a batch: with `words` [B, W, D], `mask`, `significance` [B, W], `report` [B, D]."""
    raise NotImplementedError

  def _paired(self, kind: str, image, text):
    """Each image of a batch with the text at its place.

    By kind: "words" or "phrase": map [B, P] of any scale, similarity [B, P]; "look": `Looked` of
    the words, and their say [B, W].
    """
    raise NotImplementedError

  def _matched(self, held: tuple) -> jax.Array:
    """Pixels [Q, I, P, D], words [Q, J, W, D], their say [Q, J, W] -> local logits [Q, I, J]."""
    raise NotImplementedError

  def _similar(self, pixels: jax.Array, words: np.ndarray, say: np.ndarray) -> jax.Array:
    """[I, P, D], [J, W, D], [J, W] -> local similarities [I, J], without a temperature."""
    raise NotImplementedError

  def _say(self, text) -> np.ndarray:
    """[N, W] of the text encoder's output: above 0 for the words of local scores."""
    return text.significance

  def global_scale(self) -> float:
    """The global contrast's inverse temperature."""
    raise NotImplementedError

  @property
  def note(self) -> str:
    """What was left out of the texts so far, in a line; empty where nothing was."""
    raise NotImplementedError

  def to_image(
    self, grid: np.ndarray, shape: tuple[int, int], *, nearest: bool = False
  ) -> np.ndarray:
    """A map [rows, columns] on the model's grid -> float32 [H, W] of an image of that shape.

    Bilinear, or of the nearest cell. NaN where the model did not look.
    """
    raise NotImplementedError

  # --- what all have -----------------------------------------------------------------------------

  def embed_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
    """N images -> [N, D] float32, unit norm."""
    return self._run(lambda some: self._seen(some).image, images)

  def embed_texts(self, texts: Sequence[tuple[str, ...]]) -> np.ndarray:
    """N texts, each of sentences -> [N, D] float32, unit norm."""
    return self._run(lambda some: self._read(some).report, self._encoded(texts))

  def ground(
    self, images: Sequence[np.ndarray], phrases: Sequence[str], of: str = "words"
  ) -> list[np.ndarray]:
    """Maps of phrase i on image i: float32 [H, W] of the image, maximum 1 on the model's grid."""
    return [
      np.clip(self.to_image(m, image.shape), 0, 1)
      for m, image in zip(self.ground_on_grid(images, phrases, of), images, strict=True)
    ]

  def ground_on_grid(
    self, images: Sequence[np.ndarray], phrases: Sequence[str], of: str = "words"
  ) -> np.ndarray:
    """[N, rows, columns] float32, maximum 1.

    Args:
      images: N images.
      phrases: N.
      of: "words": their soft regions, weighted by significance; "phrase": the pixels like the
        phrase's own vector (a run's: as a softmax; a baseline's: what is positive of the cosine).
    """
    maps, _ = self._ground_pairs(images, phrases, of)
    return to_maximum_1(maps.reshape(-1, *self.grid))

  def similarities(
    self, images: Sequence[np.ndarray], phrases: Sequence[str], of: str = "words"
  ) -> np.ndarray:
    """[N, rows, columns] float32, signed: how like each pixel is to the phrase.

    Arguments as in `ground_on_grid`: the words' similarities, weighted by their say, or the cosine
    of the pixels with the phrase's vector.
    """
    return self._ground_pairs(images, phrases, of)[1].reshape(-1, *self.grid)

  def peaks(self, images: Sequence[np.ndarray], phrases: Sequence[str]) -> np.ndarray:
    """[N] float32: how brightly phrase i lights up on image i, before a map is scaled.

    The highest of the pixels' mean similarity to the words, each word by its say. Of any scale:
    peaks of one model can be compared, those of two cannot.
    """
    return self._ground_pairs(images, phrases, "words")[1].max(-1)

  def significances(self, texts: Sequence[tuple[str, ...]]) -> list[list[tuple[str, float]]]:
    """The words of each text in order, with their significance."""
    found = self._run(lambda some: self._read(some).significance, self._encoded(texts))
    return [
      [(word, float(found[i, w])) for word, w in self._words_of(text)]
      for i, text in enumerate(texts)
    ]

  def attend(
    self, images: Sequence[np.ndarray], texts: Sequence[tuple[str, ...]]
  ) -> list[list[tuple[str, float, np.ndarray]]]:
    """The words of each text in order: (word, its say, region [rows, columns])."""
    looked, say = self._pairs("look", images, texts)
    return [
      [
        (word, float(say[i, w]), looked.weight[i, w].reshape(self.grid))
        for word, w in self._words_of(text)
      ]
      for i, text in enumerate(texts)
    ]

  def local_features(
    self, images: Sequence[np.ndarray], texts: Sequence[tuple[str, ...]]
  ) -> tuple[np.ndarray, ...]:
    """Of N images and texts: pixels [N, P, D] and words [N, W, D] float16, their say [N, W]."""
    pixels = self._run(lambda some: self._seen(some).pixels, images)
    text = self._run(self._read, self._encoded(texts, whole=True))
    return pixels.astype(np.float16), text.words.astype(np.float16), self._say(text)

  def local_logits(self, features, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Local logits of the last round, temperature included.

    Args:
      features: of `local_features`.
      images: int [Q, I], places in the features.
      texts: int [Q, J].

    Returns:
      float32 [Q, I, J].

    Raises ValueError where the method has no local scores.
    """
    self._check_local()
    pixels, words, say = features

    def some(queries):
      i, j = (np.stack(places) for places in zip(*queries, strict=True))
      return self._matched(spread((pixels[i], words[j], say[j]), self._mesh))

    # No more at a time than some hundred megabytes.
    held = 4 * (images.shape[1] * pixels[0].size + texts.shape[1] * words[0].size)
    batch = max(1, _MATCHED_BYTES // held) * self._mesh.size
    return self._run(some, list(zip(images, texts, strict=True)), min(batch, self._batch))

  def local_similarities(
    self, texts: Sequence[tuple[str, ...]]
  ) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """A function of N images: their local similarity to each of T texts, float32 [N, T].

    That of the last round, without the temperature of the loss. Raises ValueError as
    `local_logits`.
    """
    self._check_local()
    text = self._run(self._read, self._encoded(texts))
    longest = 1 + int(np.flatnonzero(text.mask.any(0)).max(initial=0))
    held = text.words[:, :longest], text.significance[:, :longest]
    return lambda images: self._run(
      lambda some: self._similar(self._seen(some).pixels, *held), images
    )

  def on_image(self, region: np.ndarray, shape: tuple[int, int], side: int = 32) -> np.ndarray:
    """A map on the model's grid over the image alone, without the margin: its longer side `side`.

    0 where the model did not look.
    """
    scale = side / max(shape)
    # The image reduced to so many pixels stands in for the image: it fits the square just so.
    rows, columns = (max(1, round(scale * length)) for length in shape)
    return np.nan_to_num(self.to_image(region, (rows, columns)))

  def _check_local(self) -> None:
    if not self.has_local_scores:
      raise ValueError("this method has no score of an image and a text by words and pixels")

  def _ground_pairs(self, images, phrases, of: str):
    return self._pairs(of, images, [(phrase,) for phrase in phrases])

  def _pairs(self, kind: str, images, texts):
    """`_paired` of each image and its text; one that comes again is embedded once."""
    image_index, images_there = _first_seen(images, id)
    text, texts_there = _first_seen(texts, tuple)
    image = self._run(self._seen, images_there)
    words = self._run(self._read, self._encoded(texts_there))

    def some(pairs):
      i, j = np.array(pairs).T
      picked = jax.tree.map(lambda x: x[i], image), jax.tree.map(lambda x: x[j], words)
      return self._paired(kind, *spread(picked, self._mesh))

    return self._run(some, list(zip(image_index, text, strict=True)))

  def _seen(self, images):
    # A process fits only what its devices look at.
    shape = (len(images), self._side_px(), self._side_px(), 1)
    arrays = jax.make_array_from_callback(
      shape, batch_sharding(self._mesh), lambda index: self._images_in(images[index[0]])
    )
    return self._image_encoder(arrays)

  def _read(self, encoded):
    return self._text_encoder(spread(self._texts_in(encoded), self._mesh))

  def _run(self, function, items, batch: int = 0):
    """Applies `function` to lists of one size, the last filled up, and joins what comes back."""
    if not items:
      raise ValueError("nothing to embed: the list is empty")
    batch = batch or self._batch
    parts = []
    for start in range(0, len(items), batch):
      some = list(items[start : start + batch])
      filled = some + [some[-1]] * (batch - len(some))
      parts.append(jax.tree.map(np.asarray, function(filled)))
    return jax.tree.map(lambda *x: np.concatenate(x)[: len(items)], *parts)


def jit_on(mesh: Mesh) -> Callable:
  """`jax.jit` of which every process reads all results."""
  return partial(jax.jit, out_shardings=everywhere(mesh))


def to_maximum_1(maps: np.ndarray) -> np.ndarray:
  """Maps [N, rows, columns] >= 0, each over its maximum; zeros stay."""
  top = maps.max((1, 2), keepdims=True)
  return maps / np.where(top > 0, top, 1)


def _first_seen(items: Sequence, key) -> tuple[list[int], list]:
  """The place of each item among the different ones, and these."""
  places: dict = {}
  different = []
  for item in items:
    if key(item) not in places:
      places[key(item)] = len(different)
      different.append(item)
  return [places[key(item)] for item in items], different
