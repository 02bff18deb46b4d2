"""The trained model as a user calls it: embed films and texts, ground phrases, look at words."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline import images as films
from input_pipeline.tokens import Tokenizer
from plan_jax.alignment import curriculum, scores
from plan_jax.alignment.methods import METHODS, Alignment, pair_score
from plan_jax.alignment.unit import unit
from plan_jax.assembly import Assembly, assemble
from plan_jax.checkpoint import Checkpoints
from plan_jax.mesh import batch_sharding, everywhere, spread
from plan_jax.models.plan import Plan, image_encoder
from plan_jax.train_state import TrainState
from plan_jax.workdir import Workdir


class Grounder:
  """A model with its weights and vocabulary.

  Films are uint8 [H, W] of any size; texts are tuples of sentences; phrases are strings. Work is
  done in batches of one size, so each function compiles once, and each batch is shared among the
  devices of the mesh. With several processes all call the same with the same, and get the same.
  """

  own_sigma, own_nearest = 0.0, False  # of its maps, see evaluators.grounding_compat

  def __init__(
    self, model: Plan, state: TrainState, tokenizer: Tokenizer, config: ConfigDict, mesh: Mesh
  ):
    """`state`: of training, see `take`; `config`: of the run; `mesh`: where the work is done."""
    self._tokenizer = tokenizer
    self._image_px = config.model.image_px
    self._mesh = mesh
    self._batch = -(-config.evaluation.batch_size // mesh.size) * mesh.size
    self._lengths = {
      "max_tokens": config.evaluation.max_tokens,
      "max_words": config.evaluation.max_words,
    }
    self._stages, self._steps = curriculum.stages(config.curriculum), config.train.steps
    self._alignment = Alignment(**config.alignment)
    encoder = image_encoder(config.model.image)
    side = -(-self._image_px // encoder.output_stride)
    self.grid = (side, side)
    self._first_px = encoder.first_px
    jit = partial(jax.jit, out_shardings=everywhere(mesh))  # every process reads all results
    self._image = jit(partial(model.apply, method=model.embed_images))
    self._text = jit(partial(model.apply, method=model.embed_texts))
    self._look, words, phrase = (
      jit(jax.vmap(function, (0, 0, None, None)), static_argnums=(2, 3))
      for function in (_look, ground_pair, _ground_phrase)
    )
    self._ground = {"words": words, "phrase": phrase}
    self._similar = jit(_match, static_argnums=(4, 5))
    self._match = jit(jax.vmap(_match, (0, 0, 0, None, None, None)), static_argnums=(4, 5))
    self.dropped_sentences = 0  # that found no room in max_tokens, max_words
    self.take(state)

  @property
  def variables(self) -> dict:
    """The weights in use: {"params", "batch_stats"}."""
    return self._variables

  @property
  def stage(self) -> curriculum.Stage:
    """The stage of training whose look the words have."""
    return self._stage

  def take(self, state: TrainState) -> None:
    """Takes the parameters of a point of training, or their running mean where there is one.

    Words are looked at as the stage of training at that point does.
    """
    self.step = int(state.step)
    self._variables = {
      "params": state.params if state.ema is None else state.ema,
      "batch_stats": state.batch_stats,
    }
    self._stage = curriculum.stage_at(self._stages, max(0, self.step - 1), self._steps)

  def embed_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
    """N films -> [N, D] float32, unit norm."""
    return self._run(lambda some: self._image(self._variables, self._films(some)).film, images)

  def embed_texts(self, texts: Sequence[tuple[str, ...]]) -> np.ndarray:
    """N texts, each of sentences -> [N, D] float32, unit norm."""
    return self._run(lambda some: self._text(self._variables, self._tokens(some)).report, texts)

  def ground(
    self, images: Sequence[np.ndarray], phrases: Sequence[str], of: str = "words"
  ) -> list[np.ndarray]:
    """Maps of phrase i on film i: float32 [H, W] of the film, maximum 1 on the model's grid."""
    return [
      np.clip(self.to_film(m, image.shape), 0, 1)
      for m, image in zip(self.ground_on_grid(images, phrases, of), images, strict=True)
    ]

  def ground_on_grid(
    self, images: Sequence[np.ndarray], phrases: Sequence[str], of: str = "words"
  ) -> np.ndarray:
    """[N, rows, columns] float32, maximum 1.

    Args:
      images: N films.
      phrases: N.
      of: "words": their soft regions, weighted by significance; "phrase": the pixels like the
        phrase's own vector, as a softmax.
    """
    maps, _ = self._ground_pairs(images, phrases, of)
    top = maps.max(-1, keepdims=True)
    return (maps / np.where(top > 0, top, 1)).reshape(-1, *self.grid)

  def similarities(
    self, images: Sequence[np.ndarray], phrases: Sequence[str], of: str = "words"
  ) -> np.ndarray:
    """[N, rows, columns] float32, signed: how like each pixel is to the phrase.

    Arguments as in `ground_on_grid`: the words' similarities, weighted by their say, or the cosine
    of the pixels with the phrase's vector.
    """
    return self._ground_pairs(images, phrases, of)[1].reshape(-1, *self.grid)

  def to_film(
    self, grid: np.ndarray, shape: tuple[int, int], *, nearest: bool = False
  ) -> np.ndarray:
    """A map [rows, columns] on the model's grid -> float32 [H, W] of a film of that shape."""
    return films.unfit(grid, *shape, self._image_px, first_px=self._first_px, nearest=nearest)

  def peaks(self, images: Sequence[np.ndarray], phrases: Sequence[str]) -> np.ndarray:
    """[N] float32: how brightly phrase i lights up on film i, before a map is scaled.

    The highest of the pixels' mean similarity to the words, each word by its say. Of any scale:
    peaks of one model can be compared, those of two cannot.
    """
    return self._ground_pairs(images, phrases, "words")[1].max(-1)

  def significances(self, texts: Sequence[tuple[str, ...]]) -> list[list[tuple[str, float]]]:
    """The words of each text in order, with their significance."""
    found = self._run(
      lambda some: self._text(self._variables, self._tokens(some)).significance, texts
    )
    return [
      [(word, float(found[i, w])) for w, word in enumerate(self._encode(text).words)]
      for i, text in enumerate(texts)
    ]

  def look(
    self, images: Sequence[np.ndarray], texts: Sequence[tuple[str, ...]]
  ) -> list[list[tuple[str, float, np.ndarray]]]:
    """The words of each text in order: (word, its say, region [rows, columns])."""
    looked, say = self._pairs(self._look, images, texts)
    return [
      [
        (word, float(say[i, w]), looked.weight[i, w].reshape(self.grid))
        for w, word in enumerate(self._encode(text).words)
      ]
      for i, text in enumerate(texts)
    ]

  @property
  def has_local_scores(self) -> bool:
    """Whether the method compares all pairs by words and pixels at this point of training."""
    return pair_score(self._alignment, self._stage) is not None

  def global_scale(self) -> float:
    """The global contrast's inverse temperature."""
    return float(np.exp(self._variables["params"]["log_scale"][0]))

  def local_features(
    self, images: Sequence[np.ndarray], texts: Sequence[tuple[str, ...]]
  ) -> tuple[np.ndarray, ...]:
    """Of N films and texts: pixels [N, P, D] and words [N, W, D] float16, significance [N, W]."""
    pixels = self._run(lambda some: self._image(self._variables, self._films(some)).pixels, images)
    text = self._run(lambda some: self._text(self._variables, self._tokens(some)), texts)
    return pixels.astype(np.float16), text.words.astype(np.float16), text.significance

  def local_logits(self, features, films: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Local logits of the last round, temperature included.

    Args:
      features: of `local_features`.
      films: int [Q, I], places in the features.
      texts: int [Q, J].

    Returns:
      float32 [Q, I, J].

    Raises ValueError where the method has no local scores.
    """
    self._check_local()
    pixels, words, significance = features
    scale = np.exp(self._variables["params"]["log_scale"][1])

    def some(queries):
      i, j = (np.stack(places) for places in zip(*queries, strict=True))
      held = pixels[i], words[j], significance[j]
      return self._match(*spread(held, self._mesh), scale, self._stage, self._alignment)

    return self._run(some, list(zip(films, texts, strict=True)))

  def local_similarities(
    self, texts: Sequence[tuple[str, ...]]
  ) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """A function of N films: their local similarity to each of T texts, float32 [N, T].

    That of the last round, without the temperature of the loss. Raises ValueError as
    `local_logits`.
    """
    self._check_local()
    text = self._run(lambda some: self._text(self._variables, self._tokens(some)), texts)
    longest = 1 + int(np.flatnonzero(text.mask.any(0)).max(initial=0))
    held = text.words[:, :longest], text.significance[:, :longest]
    # Its published score has the temperature in it.
    unscaled = 1 / scores.GloriaScore.scale if self._alignment.method == "gloria" else 1

    def some(images):
      pixels = self._image(self._variables, self._films(images)).pixels
      return self._similar(pixels, *held, 1, self._stage, self._alignment)

    return lambda images: unscaled * self._run(some, images)

  def _check_local(self) -> None:
    if not self.has_local_scores:
      raise ValueError("this method has no score of a film and a text by words and pixels")

  def on_film(self, region: np.ndarray, shape: tuple[int, int], side: int = 32) -> np.ndarray:
    """A map on the model's grid over the film alone, without the margin: its longer side `side`."""
    scale = side / max(shape)
    rows, columns = (max(1, round(scale * length)) for length in shape)
    # The film reduced to rows x columns stands in for the film: it fits the square just so.
    return films.unfit(region, rows, columns, self._image_px, first_px=self._first_px)

  def _ground_pairs(self, images, phrases, of: str):
    return self._pairs(self._ground[of], images, [(phrase,) for phrase in phrases])

  def _pairs(self, function, images, texts):
    """`function` of each film and its text; a film or text that comes again is embedded once."""
    film, films_there = _first_seen(images, id)
    text, texts_there = _first_seen(texts, tuple)
    image = self._run(lambda some: self._image(self._variables, self._films(some)), films_there)
    words = self._run(lambda some: self._text(self._variables, self._tokens(some)), texts_there)

    def some(pairs):
      i, j = np.array(pairs).T
      picked = jax.tree.map(lambda x: x[i], image), jax.tree.map(lambda x: x[j], words)
      return function(*spread(picked, self._mesh), self._stage, self._alignment)

    return self._run(some, list(zip(film, text, strict=True)))

  def _films(self, images) -> jax.Array:
    def fitted(index):
      return np.stack([films.fit(image, self._image_px) for image in images[index[0]]])[..., None]

    # A process fits only what its devices look at.
    shape = (len(images), self._image_px, self._image_px, 1)
    return jax.make_array_from_callback(shape, batch_sharding(self._mesh), fitted)

  def _encode(self, sentences):
    return self._tokenizer.encode(sentences, **self._lengths)

  def _tokens(self, texts):
    encoded = [self._encode(text) for text in texts]
    # The text that fills up a batch, again and again, counts once.
    dropped = {id(text): one.dropped for text, one in zip(texts, encoded, strict=True)}
    self.dropped_sentences += sum(dropped.values())
    arrays = [text.arrays() for text in encoded]
    return spread({name: np.stack([a[name] for a in arrays]) for name in arrays[0]}, self._mesh)

  def _run(self, function, items):
    """Applies `function` to lists of one size, the last filled up, and joins what comes back."""
    if not items:
      raise ValueError("nothing to embed: the list is empty")
    parts = []
    for start in range(0, len(items), self._batch):
      some = list(items[start : start + self._batch])
      filled = some + [some[-1]] * (self._batch - len(some))
      parts.append(jax.tree.map(np.asarray, function(filled)))
    return jax.tree.map(lambda *x: np.concatenate(x)[: len(items)], *parts)


def load(workdir, config: ConfigDict | None = None, *, step: int | None = None) -> Grounder:
  """The model of a finished or running training.

  Args:
    workdir: folder of the run (a path, or a Workdir).
    config: of the run, for other evaluation settings; by default as it was trained.
    step: of a checkpoint; by default as config.checkpoint.evaluate says.

  Raises:
    WorkdirError: `workdir` holds no run.
    CheckpointError: it has no such checkpoint.
  """
  if not isinstance(workdir, Workdir):
    workdir = Workdir(workdir)
  if config is None:
    config = ConfigDict(workdir.read_config())
    config.mesh = {"data": -1, "fsdp": 1}  # of the devices here, not those it was trained on
  checkpoints = Checkpoints(
    workdir.checkpoints, best_metric=config.checkpoint.best_metric, create=False
  )
  try:
    if step is None:
      step = checkpoints.to_evaluate(config.checkpoint.evaluate)
    tokenizer = Tokenizer(workdir.tokenizer)
    parts = assemble(config, tokenizer)
    state = checkpoints.restore(parts.abstract_state, step)
  finally:
    checkpoints.close()
  return of_state(parts, state, tokenizer)


def of_state(parts: Assembly, state: TrainState, tokenizer: Tokenizer) -> Grounder:
  """The model at a point of training."""
  return Grounder(parts.model, state, tokenizer, parts.config, parts.mesh)


def _look(image, text, stage: curriculum.Stage, alignment: Alignment):
  """One film and one text -> what the words see, and their say."""
  # Trained on the global contrast alone, only the global vectors know anything.
  look = METHODS[alignment.method if stage.local_weight else "none"].look
  say = curriculum.say(stage, text.significance[None], text.mask[None])[0]
  return look(image, text, stage, alignment), say


def ground_pair(image, text, stage: curriculum.Stage, alignment: Alignment):
  """One film and one phrase -> its map [P] of any scale, and its mean similarity [P].

  Args:
    image, text: ImageFeatures and TextFeatures, without a batch axis.
    stage: of the curriculum, whose look it is.
    alignment: of the run.
  """
  looked, say = _look(image, text, stage, alignment)
  return say @ looked.weight, say @ looked.similarity / jnp.maximum(say.sum(), 1e-12)


def _ground_phrase(image, text, stage: curriculum.Stage, alignment: Alignment):
  """The same of the phrase's own vector."""
  looked = METHODS["none"].look(image, text, stage, alignment)  # alike for all words
  return looked.weight[0], looked.similarity[0]


def _match(pixels, words, significance, scale, stage: curriculum.Stage, alignment: Alignment):
  """[I, P, D], [J, W, D], [J, W] -> the last round's logits [I, J]."""
  score = pair_score(alignment, stage)
  pixels, words = pixels.astype(jnp.float32), words.astype(jnp.float32)
  if alignment.method == "plan":
    pixels, words = unit(pixels), unit(words)
    say = curriculum.say(stage, significance, significance > 0)
  else:
    say, scale = (significance > 0).astype(jnp.float32), jnp.float32(1)
  return score.logits(score.prepare(pixels), words, say, scale)[0][-1]


def _first_seen(items: Sequence, key) -> tuple[list[int], list]:
  """The place of each item among the different ones, and these."""
  places: dict = {}
  different = []
  for item in items:
    if key(item) not in places:
      places[key(item)] = len(different)
      different.append(item)
  return [places[key(item)] for item in items], different
