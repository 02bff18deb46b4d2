"""The trained model as a user calls it: embed films and texts, ground phrases, look at words."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from input_pipeline import images as films
from input_pipeline.tokens import Tokenizer
from plan_jax.alignment import curriculum
from plan_jax.alignment.scores import Rounds, word_regions
from plan_jax.assembly import Assembly, assemble
from plan_jax.checkpoint import Checkpoints
from plan_jax.models.plan import Plan
from plan_jax.models.resnet import FIRST_PX
from plan_jax.train_state import TrainState
from plan_jax.workdir import Workdir


class Grounder:
  """A model with its weights and vocabulary.

  Films are uint8 [H, W] of any size; texts are tuples of sentences; phrases are strings. Work is
  done in batches of one size, so each function compiles once.
  """

  def __init__(self, model: Plan, state: TrainState, tokenizer: Tokenizer, config: ConfigDict):
    """`state`: of training, see `take`; `config`: of the run."""
    self._tokenizer = tokenizer
    self._image_px = config.model.image_px
    self._batch = config.evaluation.batch_size
    self._lengths = {
      "max_tokens": config.evaluation.max_tokens,
      "max_words": config.evaluation.max_words,
    }
    self._stages, self._steps = curriculum.stages(config.curriculum), config.train.steps
    self._alignment = config.alignment
    side = -(-self._image_px // model.image["output_stride"])
    self.grid = (side, side)
    self._image = jax.jit(partial(model.apply, method=model.embed_images))
    self._text = jax.jit(partial(model.apply, method=model.embed_texts))
    self._look = jax.jit(jax.vmap(_look, (0, 0, 0, 0, None, None)), static_argnums=(4, 5))
    self.dropped_sentences = 0  # that found no room in max_tokens, max_words
    self.take(state)

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
    self._rounds = None
    if self._stage.local_weight:
      self._rounds = Rounds(
        self._stage.tau, self._stage.gamma, self._alignment.eta, self._alignment.beta,
        self._alignment.sparsifier,
      )  # fmt: skip

  def embed_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
    """N films -> [N, D] float32, unit norm."""
    return self._run(lambda some: self._image(self._variables, self._films(some)).film, images)

  def embed_texts(self, texts: Sequence[tuple[str, ...]]) -> np.ndarray:
    """N texts, each of sentences -> [N, D] float32, unit norm."""
    return self._run(lambda some: self._text(self._variables, self._tokens(some)).report, texts)

  def ground(self, images: Sequence[np.ndarray], phrases: Sequence[str]) -> list[np.ndarray]:
    """Maps of phrase i on film i: float32 [H, W] of the film, maximum 1 on the model's grid."""
    maps = self.ground_on_grid(images, phrases)
    return [
      np.clip(films.unfit(m, *image.shape, self._image_px, first_px=FIRST_PX), 0, 1)
      for m, image in zip(maps, images, strict=True)
    ]

  def ground_on_grid(self, images: Sequence[np.ndarray], phrases: Sequence[str]) -> np.ndarray:
    """[N, rows, columns] float32: the words' soft regions, weighted by significance, maximum 1."""
    look = self._pairs(images, [(phrase,) for phrase in phrases])
    regions, significance = look["weight"], look["significance"]
    maps = np.einsum("nw,nwp->np", significance, regions)
    top = maps.max(-1, keepdims=True)
    return (maps / np.where(top > 0, top, 1)).reshape(-1, *self.grid)

  def look(
    self, images: Sequence[np.ndarray], texts: Sequence[tuple[str, ...]]
  ) -> list[list[tuple[str, float, np.ndarray]]]:
    """The words of each text in order: (word, significance, region [rows, columns])."""
    found = self._pairs(images, texts)
    return [
      [
        (word, float(found["significance"][i, w]), found["weight"][i, w].reshape(self.grid))
        for w, word in enumerate(self._encode(text).words)
      ]
      for i, text in enumerate(texts)
    ]

  def on_film(self, region: np.ndarray, shape: tuple[int, int], side: int = 32) -> np.ndarray:
    """A map on the model's grid over the film alone, without the margin: its longer side `side`."""
    scale = side / max(shape)
    rows, columns = (max(1, round(scale * length)) for length in shape)
    # The film reduced to rows x columns stands in for the film: it fits the square just so.
    return films.unfit(region, rows, columns, self._image_px, first_px=FIRST_PX)

  def _pairs(self, images, texts) -> dict[str, np.ndarray]:
    """Significance [N, W] and weight [N, W, P] of the last round."""

    def some(pairs):
      image = self._image(self._variables, self._films([image for image, _ in pairs]))
      text = self._text(self._variables, self._tokens([text for _, text in pairs]))
      return self._look(
        image.pixels, text.words, text.significance, text.mask, self._stage, self._rounds
      )

    return self._run(some, list(zip(images, texts, strict=True)))

  def _films(self, images) -> jnp.ndarray:
    fitted = [films.fit(image, self._image_px) for image in images]
    return jnp.asarray(np.stack(fitted)[..., None])

  def _encode(self, sentences):
    return self._tokenizer.encode(sentences, **self._lengths)

  def _tokens(self, texts):
    encoded = [self._encode(text) for text in texts]
    self.dropped_sentences += sum(text.dropped for text in encoded)
    arrays = [text.arrays() for text in encoded]
    return {name: jnp.asarray(np.stack([a[name] for a in arrays])) for name in arrays[0]}

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
  return Grounder(parts.model, state, tokenizer, parts.config)


def _look(pixels, words, significance, mask, stage: curriculum.Stage, rounds: Rounds | None):
  """One film and one text: pixels [P, D], words [W, D] -> what the last round sees."""
  if rounds is None:  # trained on the global contrast alone: plain cosine, shifted to >= 0
    weight = (words @ pixels.T + 1) / 2
  else:
    weight = word_regions(pixels[None], words[None], rounds)[-1].weight[0, 0]
  say = curriculum.say(stage, significance[None], mask[None])[0]
  return {"weight": weight, "significance": say}
