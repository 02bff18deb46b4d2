"""The trained model as a user calls it: embed images and texts, ground phrases, look at words."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline import images
from input_pipeline.text.tokenizer import Tokenizer
from plan_jax.alignment import curriculum, similarity
from plan_jax.alignment.l2_normalize import unit
from plan_jax.alignment.methods import METHODS, Alignment, pair_score
from plan_jax.inference.predictor import Predictor, jit_on
from plan_jax.models.two_towers import Plan, image_encoder
from plan_jax.runtime.checkpoints import Checkpoints
from plan_jax.runtime.workdir import Workdir
from plan_jax.training.assembly import Assembly, assemble
from plan_jax.training.state import TrainState


class Grounder(Predictor):
  """The model of a run; see `Predictor` for what it can be asked."""

  def __init__(
    self, model: Plan, state: TrainState, tokenizer: Tokenizer, config: ConfigDict, mesh: Mesh
  ):
    """`state`: of training, see `take`; `config`: of the run; `mesh`: where the work is done."""
    super().__init__(mesh, config.evaluation.batch_size)
    self._tokenizer = tokenizer
    self._image_px = config.model.image_px
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
    self.local_bytes = 2 * config.model.embed_dim * (side**2 + config.evaluation.max_words)
    jit = jit_on(mesh)
    self._image = jit(partial(model.apply, method=model.embed_images))
    self._text = jit(partial(model.apply, method=model.embed_texts))
    pair = {"look": _look, "words": ground_pair, "phrase": _ground_phrase}
    self._pair = {
      kind: jit(jax.vmap(function, (0, 0, None, None)), static_argnums=(2, 3))
      for kind, function in pair.items()
    }
    self._match_one = jit(_match, static_argnums=(4, 5))
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

  @property
  def has_local_scores(self) -> bool:
    """Whether the method compares all pairs by words and pixels at this point of training."""
    return pair_score(self._alignment, self._stage) is not None

  def global_scale(self) -> float:
    """The global contrast's inverse temperature."""
    return float(np.exp(self._variables["params"]["log_scale"][0]))

  @property
  def note(self) -> str:
    """How many sentences were left out; empty for none."""
    if not self.dropped_sentences:
      return ""
    return (
      f"{self.dropped_sentences} sentences found no room: raise config.evaluation.max_tokens"
      " and max_words"
    )

  def to_image(
    self, grid: np.ndarray, shape: tuple[int, int], *, nearest: bool = False
  ) -> np.ndarray:
    """A map [rows, columns] on the model's grid -> float32 [H, W]; the whole image is seen."""
    return images.unfit(grid, *shape, self._image_px, first_px=self._first_px, nearest=nearest)

  def _images_in(self, arrays):
    return np.stack([images.fit(image, self._image_px) for image in arrays])[..., None]

  def _side_px(self):
    return self._image_px

  def _encoded(self, texts, *, whole=False):
    encoded = [self._encode(text) for text in texts]
    self.dropped_sentences += sum(one.dropped for one in encoded)
    return encoded

  def _encode(self, sentences):
    return self._tokenizer.encode(sentences, **self._lengths)

  def _texts_in(self, encoded):
    arrays = [text.arrays() for text in encoded]
    return {name: np.stack([a[name] for a in arrays]) for name in arrays[0]}

  def _words_of(self, text):
    return [(word, w) for w, word in enumerate(self._encode(text).words)]

  def _image_encoder(self, images):
    return self._image(self._variables, images)

  def _text_encoder(self, arrays):
    return self._text(self._variables, arrays)

  def _paired(self, kind, image, text):
    return self._pair[kind](image, text, self._stage, self._alignment)

  def _matched(self, held):
    scale = np.exp(self._variables["params"]["log_scale"][1])
    return self._match(*held, scale, self._stage, self._alignment)

  def _similar(self, pixels, words, say):
    found = self._match_one(pixels, words, say, 1, self._stage, self._alignment)
    # GLoRIA's published score has its temperature in it.
    return found / similarity.GloriaScore.scale if self._alignment.method == "gloria" else found


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
  """One image and one text -> what the words see, and their say."""
  # Trained on the global contrast alone, only the global vectors know anything.
  look = METHODS[alignment.method if stage.local_weight else "none"].look
  say = curriculum.say(stage, text.significance[None], text.mask[None])[0]
  return look(image, text, stage, alignment), say


def ground_pair(image, text, stage: curriculum.Stage, alignment: Alignment):
  """One image and one phrase -> its map [P] of any scale, and its mean similarity [P].

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
