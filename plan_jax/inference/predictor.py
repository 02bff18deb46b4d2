"""The model as users and evaluators call it: embeddings, maps and scores of images and texts."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import final

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from input_pipeline.images import EncodedImage
from plan_jax.inference import batches, grounding, inputs
from plan_jax.inference import prompts as prompt_sets
from plan_jax.inference.grounding import Grounding
from plan_jax.inference.image_inputs import is_image
from plan_jax.inference.inputs import Images, InputError, Phrases, Texts
from plan_jax.inference.spec import ModelSpec
from plan_jax.runtime.logging import log
from plan_jax.runtime.mesh import batch_sharding, everywhere, shared_rows, spread
from plan_jax.training.state import TrainState, weights_of

_FEATURE_BYTES = 2**28  # of local features, on each device at a time
_PAIR_BYTES = 2**30  # of pairs that are attended, on each device at a time
_PAIRS = 2**13  # of images and texts, compared on each device at a time


@final
class Predictor:
  """A model with its weights.

  Images are paths, images of Pillow, DICOM datasets or arrays, of any size; texts are reports, or
  sequences of sentences; phrases are strings. One stands for a list of one. What each becomes, and
  what is refused with an InputError, is said in inference/image_inputs.py. Work is done in
  batches of one size, of `ground` and `attend` in smaller powers of 2, so that functions compile
  seldom; devices share a batch. Several processes call the same with the same, and get the same.

  Attributes:
    spec: description of the model; its `grid`, `local_bytes`, `has_significance`, `map_sigma` and
      `map_nearest` are attributes here too.
    variables: the weights in use, {"params", "batch_stats"}.
    step: of training; 0 of a baseline.
    stage: of the curriculum at that step, as which words are attended; None of a baseline.
    calibration: peaks of the step on validation images; None where they were not measured.
  """

  def __init__(
    self, spec: ModelSpec, variables: dict, mesh: Mesh, *, batch_size: int, step: int = 0
  ):
    """`batch_size`: of images or texts, rounded up to the devices of `mesh`."""
    self.spec, self.grid, self.local_bytes = spec, spec.grid, spec.local_bytes
    self.has_significance = spec.has_significance
    self.map_sigma, self.map_nearest = spec.map_sigma, spec.map_nearest
    self._mesh, self._batch = mesh, shared_rows(batch_size, mesh.size)
    self._most_pairs = max(1, _PAIR_BYTES // max(1, spec.pair_bytes)) * mesh.size
    self._left_out, self._warned = 0, {""}

    def jit(function, **kwargs):
      if spec.matmul_precision is not None:
        function = jax.default_matmul_precision(spec.matmul_precision)(function)
      # Every process reads all results.
      return jax.jit(function, out_shardings=everywhere(mesh), **kwargs)

    self._embed_images, self._embed_texts = jit(spec.embed_images), jit(spec.embed_texts)
    self._pair_scores = spec.pair_scores and jit(batches.by_image(spec.pair_scores, mesh))
    pairs = {
      "attend": spec.attend,
      "words": partial(grounding.ground_pair, spec.attend),
      "phrase": spec.ground_phrase,
      "ground": partial(grounding.ground_words, spec.attend),
    }
    self._pair_functions = {
      name: jit(jax.vmap(function, (None, 0, 0, None)), static_argnums=3)
      for name, function in pairs.items()
    }
    if spec.local_logits is not None:
      logits = jax.vmap(spec.local_logits, (0, 0, 0, None, None))
      self._local_logits = jit(logits, static_argnums=4)
      self._local_similarity = jit(spec.local_similarity, static_argnums=4)
    self._set(variables, step)

  def _set(self, variables: dict, step: int) -> None:
    self.variables, self.step, self.stage = variables, step, self.spec.stage_at(step)
    self.calibration = None

  def take(self, state: TrainState) -> None:
    """Takes the weights and the stage of another point of training."""
    self._set(weights_of(state), int(state.step))

  @property
  def has_local_scores(self) -> bool:
    """True if all images and texts can be compared by words and pixels at this stage."""
    return self.spec.has_local_scores(self.stage)

  @property
  def note(self) -> str:
    """A line about what was left out of the texts so far; empty for nothing."""
    return self.spec.note.format(self._left_out) if self._left_out else ""

  def global_scale(self) -> float | None:
    """Inverse temperature of the global contrast; None where it is not known."""
    scale, _ = self.spec.scales(self.variables)
    return None if scale is None else float(scale)

  def embed_images(self, images: Images) -> Float[np.ndarray, "N D"]:
    """Embeddings of N images, float32, unit norm."""
    images = inputs.check_images(images)
    return self._run(lambda batch: self._image_features(batch).embedding, images)

  def embed_texts(self, texts: Texts) -> Float[np.ndarray, "N D"]:
    """Embeddings of N texts, float32, unit norm; a string is a whole report."""
    return self._run(lambda batch: self._text_features(batch).embedding, self._encode(texts))

  def embed_prompts(self, texts: Texts) -> Float[np.ndarray, "N D"]:
    """Embeddings of N prompts, float32, of the norm with which the mean of several is taken.

    The unit norm, but of a model whose project takes the mean before the norm.
    """
    return self._run(
      lambda batch: self.spec.prompt_embedding(self._text_features(batch)), self._encode(texts)
    )

  @property
  def has_pair_scores(self) -> bool:
    """True if the model's score of an image and a text is no cosine of two embeddings."""
    return self.spec.pair_scores is not None

  def similarity(self, images: Images, texts: Texts) -> Float[np.ndarray, "N M"]:
    """Score of each of N images and each of M texts, float32; as a rule their cosine."""
    return self.pair_scores(texts)(images)

  def pair_scores(self, texts: Texts) -> Callable[[Images], Float[np.ndarray, "N M"]]:
    """Makes a function of N images: the model's score of each with each of M texts, float32.

    Features of images are held for a batch alone, those of the texts for as long as the function.
    """
    if self._pair_scores is None:
      embeddings = self.embed_texts(texts)
      return lambda images: self.embed_images(images) @ embeddings.T
    text = self._run(self._text_features, self._encode(texts))
    count = len(text.embedding)
    parts = batches.cut(text, min(count, max(1, _PAIRS * self._mesh.size // self._batch)))

    def scores(batch):
      image = self._image_features(batch)
      blocks = [np.asarray(self._pair_scores(self.variables, image, part)) for part in parts]
      return np.concatenate(blocks, axis=1)[:, :count]

    return lambda images: self._run(scores, inputs.check_images(images))

  def classify(
    self, images: Images, classes: Sequence[str], prompts: str = "ours"
  ) -> dict[str, float] | list[dict[str, float]]:
    """Scores images for classes, from 0 to 1 where the prompts speak of absence too.

        model.classify("image.png", ["pneumothorax", "effusion"])["effusion"]

    The score is that of the protocol "zero-shot-v1", whose thresholds come from validation images:
    .5 is none. Each class has its own; they do not sum to 1. `prompts` is the name of a set, or a
    .json file, see `plan_jax.inference.prompts`.

    Returns the scores of one image by class, of several a list of them. Raises InputError for a
    class without prompts, and PromptsError.
    """
    scores = prompt_sets.classifier(self, classes, prompts)(images)
    return scores[0] if is_image(images) else scores

  def ground(self, images: Images, phrases: Phrases) -> Grounding | list[Grounding]:
    """Grounds a phrase in an image, or several: one image, one phrase, or as many of both.

        result = model.ground("image.dcm", "small left pleural effusion")
        result.overlay().save("overlay.png")

    Returns a Grounding of one image and one phrase, else a list. A warning is logged once.
    Raises InputError for what is no image or no phrase.
    """
    single = is_image(images) and isinstance(phrases, str)
    images, phrases = inputs.pair(images, phrases)
    texts = [(phrase,) for phrase in phrases]
    (maps, similarity), (attention, weights) = self._pairs("ground", images, texts, few=True)
    grids = self._scaled(maps, similarity)
    groundings = []
    for i, (image, phrase) in enumerate(zip(images, phrases, strict=True)):
      score = float(similarity[i].max())
      groundings.append(
        Grounding(
          phrase,
          image,
          np.clip(self.to_image(grids[i], image.shape), 0, 1),
          score,
          self.calibration and self.calibration.quantile(score),
          grounding.warning(phrase, score, self.spec.texts, self.calibration),
          [
            (word, float(weights[i, w]), self.spec.on_grid(attention.weight[i, w]))
            for word, w in self.spec.texts.words((phrase,))
          ],
          partial(self.to_image, shape=image.shape),
        )
      )
      if (warning := groundings[-1].warning) not in self._warned:
        log.warning(warning)
        self._warned.add(warning)
    return groundings[0] if single else groundings

  def maps(
    self, images: Images, phrases: Phrases, query: str = "words"
  ) -> list[Float[np.ndarray, "_ _"]]:
    """Maps of phrase i on image i, of the image's shape; maximum 1 on the grid.

    NaN where the model crops the image. Arguments as of `maps_on_grid`.
    """
    images = inputs.check_images(images)
    maps = self.maps_on_grid(images, phrases, query)
    return [
      np.clip(self.to_image(heatmap, image.shape), 0, 1)
      for heatmap, image in zip(maps, images, strict=True)
    ]

  def maps_on_grid(
    self, images: Images, phrases: Phrases, query: str = "words"
  ) -> Float[np.ndarray, "N rows columns"]:
    """Maps of phrase i on image i, maximum 1, smoothed where the model's project smooths.

    Args:
      images: N images.
      phrases: N phrases.
      query: "words": their soft regions, weighted by significance; "phrase": the pixels like the
        phrase's own embedding (a run's: as a softmax; a baseline's: the positive cosine).
    """
    return self._scaled(*self._ground_pairs(images, phrases, query))

  def _scaled(self, maps, similarity) -> Float[np.ndarray, "N rows columns"]:
    maps, similarity = (self.spec.on_grid(x) for x in (maps, similarity))
    if sigma := self.map_sigma:
      from scipy import ndimage  # takes its time to import

      maps = np.maximum(ndimage.gaussian_filter(similarity, (0, sigma, sigma)), 0)
    top = maps.max((1, 2), keepdims=True)
    return maps / np.where(top > 0, top, 1)

  def similarities(
    self, images: Images, phrases: Phrases, query: str = "words"
  ) -> Float[np.ndarray, "N rows columns"]:
    """Signed similarity of each pixel to the phrase.

    That of the words, by their weights, or the cosine with the phrase's own embedding. Arguments as
    of `maps_on_grid`.
    """
    return self.spec.on_grid(self._ground_pairs(images, phrases, query)[1])

  def peaks(self, images: Images, phrases: Phrases) -> Float[np.ndarray, " N"]:
    """The highest similarity of any pixel of image i to the words of phrase i.

    Peaks of one model can be compared, those of two models cannot.
    """
    return self._ground_pairs(images, phrases, "words")[1].max(-1)

  def significances(self, texts: Texts) -> list[list[tuple[str, float]]]:
    """The words of each text in order, as far as the model reads it, with their significance."""
    texts = inputs.check_texts(texts)
    significance = self._run(self._text_features, self._encode(texts)).significance
    return [
      [
        (word, sum(float(weights[place]) for place in places))
        for word, places in self.spec.texts.report_words(text)
      ]
      for text, weights in zip(texts, significance, strict=True)
    ]

  def attend(
    self, images: Images, texts: Texts
  ) -> list[list[tuple[str, float, Float[np.ndarray, "rows columns"]]]]:
    """The words of text i in order: (word, its weight, its region on image i)."""
    texts = inputs.check_texts(texts)
    attention, weights = self._pairs("attend", images, texts, few=True)
    return [
      [
        (word, float(weights[i, w]), self.spec.on_grid(attention.weight[i, w]))
        for word, w in self.spec.texts.words(text)
      ]
      for i, text in enumerate(texts)
    ]

  def local_features(
    self, images: Images, texts: Texts
  ) -> tuple[Float[np.ndarray, "N P D"], Float[np.ndarray, "N W D"], Float[np.ndarray, "N W"]]:
    """Pixels and words in float16, and the words' significance, of N images and texts."""
    images, texts = inputs.check_images(images), inputs.check_texts(texts)
    inputs.check_pairs(images, texts)
    pixels = self._run(lambda batch: self._image_features(batch).pixels, images)
    text = self._run(self._text_features, self._encode(texts, same_length=True))
    return pixels.astype(np.float16), text.words.astype(np.float16), text.significance

  def local_logits(
    self, features, images: Int[np.ndarray, "Q I"], texts: Int[np.ndarray, "Q J"]
  ) -> Float[np.ndarray, "Q I J"]:
    """Local logits, temperature included, at places of `local_features`.

    Raises ValueError where the method has no local scores.
    """
    self._check_local()
    pixels, words, significance = features
    scale = self.spec.scales(self.variables)[1]

    def logits(queries):
      i, j = (np.stack(places) for places in zip(*queries, strict=True))
      arrays = spread((pixels[i], words[j], significance[j]), self._mesh)
      return self._local_logits(*arrays, scale, self.stage)

    query_bytes = 4 * (images.shape[1] * pixels[0].size + texts.shape[1] * words[0].size)
    batch = max(1, _FEATURE_BYTES // query_bytes) * self._mesh.size
    return self._run(logits, list(zip(images, texts, strict=True)), batch)

  def local_similarities(self, texts: Texts) -> Callable[[Images], Float[np.ndarray, "N T"]]:
    """Makes a function of N images: their local similarity to each of T texts.

    Without the temperature of the loss. Raises ValueError where the method has no local scores.
    """
    self._check_local()
    text = self._run(self._text_features, self._encode(texts))
    length = 1 + int(np.flatnonzero(text.mask.any(0)).max(initial=0))
    words, significance = text.words[:, :length], text.significance[:, :length]

    def similarity(batch):
      pixels = self._image_features(batch).pixels
      logits = self._local_similarity(pixels, words, significance, 1, self.stage)
      return logits / self.spec.similarity_divisor

    return lambda images: self._run(similarity, inputs.check_images(images))

  def to_image(
    self, grid: Float[np.ndarray, "rows columns"], shape: tuple[int, int], *, nearest: bool = False
  ) -> Float[np.ndarray, "H W"]:
    """Brings a map on the grid to an image of that shape; NaN where the model crops it.

    Bilinear, or of the nearest cell.
    """
    return self.spec.images.to_image(grid, shape, nearest=nearest)

  def on_image(
    self, grid: Float[np.ndarray, "rows columns"], shape: tuple[int, int], side: int = 32
  ) -> Float[np.ndarray, "h w"]:
    """Brings a map on the grid to the image reduced to a longer side of `side`; 0 where cropped."""
    scale = side / max(shape)
    # The reduced image fits the square just as the whole one does.
    rows, columns = (max(1, round(scale * length)) for length in shape)
    return np.nan_to_num(self.to_image(grid, (rows, columns)))

  def _check_local(self) -> None:
    if not self.has_local_scores:
      raise ValueError("this method has no score of an image and a text by words and pixels")

  def _ground_pairs(self, images, phrases, query: str):
    if query not in ("words", "phrase"):
      raise InputError(f"query is {query!r}: it is 'words' or 'phrase'")
    return self._pairs(query, images, [(phrase,) for phrase in inputs.check_phrases(phrases)])

  def _pairs(self, name: str, images, texts, *, few: bool = False):
    """A pair function of each image and its text, once embedded; `few` do not wait for a batch."""
    images = inputs.check_images(images)
    inputs.check_pairs(images, texts)
    image_places, images = batches.distinct(images, id)
    text_places, texts = batches.distinct(texts, tuple)
    image = self._run(self._image_features, images, few=few)
    text = self._run(self._text_features, self._encode(texts), few=few)

    def function(pairs):
      i, j = np.array(pairs).T
      batch = jax.tree.map(lambda x: x[i], image), jax.tree.map(lambda x: x[j], text)
      return self._pair_functions[name](self.variables, *spread(batch, self._mesh), self.stage)

    places = zip(image_places, text_places, strict=True)
    return self._run(function, list(places), self._most_pairs, few=few)

  def _encode(self, texts, *, same_length: bool = False) -> list[dict]:
    encoded = self.spec.texts.encode(inputs.check_texts(texts), same_length=same_length)
    self._left_out += encoded.left_out
    return encoded.arrays

  def _image_features(self, images):
    if isinstance(images[0], EncodedImage):
      arrays = spread(np.stack([image.features for image in images]), self._mesh)
      return self._embed_images(self.variables, arrays)

    def fit(index):  # a process fits only the images of its devices
      return np.stack([self.spec.images.fit(image) for image in images[index[0]]])[..., None]

    side = self.spec.images.input_px
    shape = (len(images), side, side, 1)
    arrays = jax.make_array_from_callback(shape, batch_sharding(self._mesh), fit)
    return self._embed_images(self.variables, arrays)

  def _text_features(self, encoded):
    arrays = {name: np.stack([text[name] for text in encoded]) for name in encoded[0]}
    return self._embed_texts(self.variables, spread(arrays, self._mesh))

  def _run(self, function, items, most: int = 0, *, few: bool = False):
    most = min(most or self._batch, self._batch)
    size = batches.size_of_few(len(items), most, self._mesh.size) if few else most
    return batches.run(function, items, size)
