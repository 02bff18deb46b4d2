"""Other projects' whole models, as evaluators call them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict
from scipy import ndimage

from input_pipeline.errors import UserError
from input_pipeline.text import reports
from plan_jax.baselines import biovil, gloria, mgca
from plan_jax.baselines import tokenization as text
from plan_jax.baselines.spec import Kind
from plan_jax.inference.predictor import Predictor, jit_on, to_maximum_1
from plan_jax.models.weights import load as pretrained
from plan_jax.runtime.mesh import everywhere, make_mesh

KINDS = {
  "gloria": gloria.KIND,
  "mgca_resnet": mgca.RESNET,
  "mgca_vit": mgca.VIT,
  "biovil": biovil.BIOVIL,
  "biovil_t": biovil.BIOVIL_T,
}
_TWO_FILES = ("biovil", "biovil_t")  # the text encoder is a folder of its own


@dataclass(frozen=True)
class Loaded:
  """A baseline before it is on any device.

  Attributes:
    kind: which.
    network: its encoders.
    variables: {"params", "batch_stats"}, numpy.
    reader: of its texts.
    provenance: what it is from, as pretrained.Encoder tells it, by the key of config.baseline.
  """

  kind: Kind
  network: nn.Module
  variables: dict
  reader: text.Reader
  provenance: dict[str, dict]


def check(config: ConfigDict) -> None:
  """Raises UserError at the first key of `config.baseline` that cannot be."""
  baseline = config.baseline
  if baseline.name not in KINDS:
    raise UserError(
      f"config.baseline.name: is {baseline.name!r}; it must be one of {', '.join(KINDS)}"
    )
  if not baseline.weights:
    raise UserError(
      f"config.baseline.weights: is empty; name the checkpoint of {KINDS[baseline.name].title} on this"
      " machine (docs/baselines.md)"
    )
  if baseline.name in _TWO_FILES and not baseline.text:
    raise UserError(
      "config.baseline.text: is empty; name the local Hugging Face folder of the text encoder"
      f" (CXR-BERT) that goes with {KINDS[baseline.name].title}"
    )
  if baseline.name not in _TWO_FILES and baseline.text:
    raise UserError(
      f"config.baseline.text: the checkpoint of {KINDS[baseline.name].title} holds its text encoder; leave"
      " the key empty"
    )
  if baseline.name not in _TWO_FILES and not baseline.tokenizer:
    raise UserError(
      "config.baseline.tokenizer: is empty; name the local Hugging Face folder of Bio_ClinicalBERT, for"
      " its vocabulary"
    )


def load(config: ConfigDict) -> Loaded:
  """The baseline that `config.baseline` names.

  Raises UserError as `check`; where the weights are not those of the variant (`load_baseline`); where
  the vocabulary is missing or of another size.
  """
  check(config)
  baseline, kind = config.baseline, KINDS[config.baseline.name]
  key = "config.baseline.tokenizer" if baseline.tokenizer else "config.baseline.text"
  vocabulary = text.Vocabulary(baseline.tokenizer or baseline.text, key)
  batch = text.arrays([text.Reading([0, 0], [0, 1], [], False)], 2, 0)
  blank = np.zeros((1, kind.preprocessing.input_px, kind.preprocessing.input_px, 1), np.float32)
  read = partial(pretrained.load_baseline, build=kind.build)
  if baseline.name in _TWO_FILES:
    network, image = read(baseline.weights, baseline.name, inputs=(blank,), method="embed_images")
    half, words = read(
      baseline.text, "cxr_bert", inputs=(batch,), method="embed_texts", key="config.baseline.text"
    )
    if network.embed_dim != half.embed_dim:
      raise UserError(
        f"config.baseline.text: {baseline.text} gives vectors of {half.embed_dim}, the images' are of"
        f" {network.embed_dim}: the two are not of one model"
      )
    network = network.clone(text=half.text)
    parts = {"weights": image, "text": words}
  else:
    network, both = read(baseline.weights, baseline.name, inputs=(blank, batch))
    parts = {"weights": both}
  if vocabulary.size != network.text["vocabulary_size"]:
    raise UserError(
      f"{key}: {baseline.tokenizer or baseline.text} has {vocabulary.size} tokens, the weights have"
      f" {network.text['vocabulary_size']}: name the folder of the vocabulary that they were"
      " trained with"
    )
  variables = {
    "params": {name: x for part in parts.values() for name, x in part.params.items()},
    "batch_stats": {name: x for part in parts.values() for name, x in part.batch_stats.items()},
  }
  reader = kind.reader(vocabulary, network.text["max_position"])
  return Loaded(kind, network, variables, reader, {k: x.provenance for k, x in parts.items()})


class Baseline(Predictor):
  """A baseline's model; see `Predictor` for what it can be asked."""

  step = 0

  def __init__(self, loaded: Loaded, mesh: Mesh, batch_size: int):
    """`mesh`: where the work is done; `batch_size`: of images or texts at a time."""
    super().__init__(mesh, batch_size)
    kind, network = loaded.kind, loaded.network
    self._kind, self._reader, self._preprocessing = kind, loaded.reader, kind.preprocessing
    self.map_sigma, self.map_nearest = kind.sigma, kind.nearest
    self.has_significance, self.has_local_scores = kind.has_significance, kind.logits is not None
    self._variables = jax.device_put(loaded.variables, everywhere(mesh))
    self.cut_texts = 0

    def jit(function):
      def exactly(*arrays):
        # Figures of the original are in float32, which accelerators would round by default.
        with jax.default_matmul_precision("float32"):
          return function(*arrays)

      return jit_on(mesh)(exactly)

    self._image = jit(partial(network.apply, method="embed_images"))
    texts = kind.embed_texts or (
      lambda network, variables, arrays: network.apply(variables, arrays, method="embed_texts")
    )
    self._text = jit(partial(texts, network))
    self._pair = {"phrase": jit(jax.vmap(partial(_of_phrase, kind)))}
    if kind.look is not None:
      self._pair |= {
        "look": jit(jax.vmap(kind.look)),
        "words": jit(jax.vmap(partial(_of_words, kind))),
      }
    if self.has_local_scores:
      self._match = jit(jax.vmap(partial(_of_halves, kind)))
      self._match_one = jit(kind.similar)
    side = self._preprocessing.input_px
    image = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
    _, count, size = jax.eval_shape(self._image, self._variables, image).pixels.shape
    self.grid = (round(count**0.5),) * 2
    self.local_bytes = 2 * size * (count + self._reader.max_tokens)

  @property
  def note(self) -> str:
    """How many texts were cut; empty for none."""
    if not self.cut_texts:
      return ""
    return (
      f"{self.cut_texts} texts were longer than the {self._reader.max_tokens} tokens that"
      f" {self._kind.title} reads, and were cut"
    )

  def to_image(
    self, grid: np.ndarray, shape: tuple[int, int], *, nearest: bool = False
  ) -> np.ndarray:
    """A map [rows, columns] on the grid -> float32 [H, W], NaN beyond what the baseline saw."""
    return self._preprocessing.to_image(grid, shape, nearest=nearest)

  def ground_on_grid(
    self, images: Sequence[np.ndarray], phrases: Sequence[str], of: str = "words"
  ) -> np.ndarray:
    """[N, rows, columns] float32, maximum 1; as in `Predictor`, smoothed where the project does."""
    if not self.map_sigma:
      return super().ground_on_grid(images, phrases, of)
    maps = self.similarities(images, phrases, of)
    smooth = ndimage.gaussian_filter(maps, (0, self.map_sigma, self.map_sigma))
    return to_maximum_1(np.maximum(smooth, 0))

  def significances(self, texts: Sequence[tuple[str, ...]]) -> list[list[tuple[str, float]]]:
    """Our words of each text, up to where it was cut, with the weights of the baseline's in them."""
    found = self._run(lambda some: self._read(some).significance, self._encoded(texts))
    return [
      _by_our_words(text, self._reader.read(text), weights)
      for text, weights in zip(texts, found, strict=True)
    ]

  def attend(
    self, images: Sequence[np.ndarray], texts: Sequence[tuple[str, ...]]
  ) -> list[list[tuple[str, float, np.ndarray]]]:
    """The words of each text, as the baseline reads them: (word, its say, region [rows, columns])."""
    if self._kind.look is not None:
      return super().attend(images, texts)
    maps, _ = self._pairs("phrase", images, texts)
    return [
      [(word.text, 1.0, region.reshape(self.grid)) for word in self._reader.read(text).words]
      for text, region in zip(texts, maps, strict=True)
    ]

  def global_scale(self) -> float:
    """The global contrast's inverse temperature."""
    return self._kind.global_scale

  def _ground_pairs(self, images, phrases, of):
    return super()._ground_pairs(images, phrases, of if of in self._pair else "phrase")

  def _images_in(self, images):
    return np.stack([self._preprocessing.fit(image) for image in images])[..., None]

  def _side_px(self):
    return self._preprocessing.input_px

  def _encoded(self, texts, *, whole=False):
    readings = [self._reader.read(text) for text in texts]
    self.cut_texts += sum(reading.cut for reading in readings)
    most = self._reader.max_tokens
    length = most if whole else text.room(readings, most)
    return [(reading, length) for reading in readings]

  def _texts_in(self, encoded):
    readings, lengths = zip(*encoded, strict=True)
    return text.arrays(readings, lengths[0], self._reader.vocabulary.pad_id)

  def _words_of(self, text):
    return [(word.text, slot) for slot, word in enumerate(self._reader.read(text).words, 1)]

  def _image_encoder(self, images):
    return self._image(self._variables, images)

  def _text_encoder(self, arrays):
    return self._text(self._variables, arrays)

  def _paired(self, kind, image, text):
    return self._pair[kind](image, text)

  def _matched(self, held):
    return self._match(*held)

  def _similar(self, pixels, words, say):
    return self._match_one(pixels, words, say)

  def _say(self, text):
    return np.asarray(self._kind.say(text))


def on_devices(loaded: Loaded, config: ConfigDict) -> Baseline:
  """The baseline on the devices that `config.mesh` names."""
  mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
  return Baseline(loaded, mesh, config.evaluation.batch_size)


def _of_phrase(kind: Kind, image, words):
  """(map [P] of any scale, similarity [P])."""
  similarity = kind.phrase(image, words)
  return jax.nn.relu(similarity), similarity


def _of_words(kind: Kind, image, words):
  looked, say = kind.look(image, words)
  return say @ looked.weight, say @ looked.similarity / jnp.maximum(say.sum(), 1e-12)


def _of_halves(kind: Kind, *held):
  return kind.logits(*(x.astype(jnp.float32) for x in held))  # features are kept in half precision


def _by_our_words(
  sentences: Sequence[str], reading: text.Reading, weights: np.ndarray
) -> list[tuple[str, float]]:
  """Our words with the sum of the weights of the baseline's words that begin in them."""
  found = []
  if reading.cut:
    last = reading.words[-1] if reading.words else text.Word("", 0, 0, 0)
  for number, sentence in enumerate(sentences):
    for start, end in reports.words(sentence):
      if reading.cut and (number, start) > (last.sentence, last.start):
        return found
      weight = sum(
        float(weights[slot])
        for slot, word in enumerate(reading.words, 1)
        if word.sentence == number and start <= word.start < end
      )
      found.append((sentence[start:end], weight))
  return found
