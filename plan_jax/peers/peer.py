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

from input_pipeline import reports
from input_pipeline.errors import UserError
from plan_jax.mesh import everywhere, make_mesh
from plan_jax.models import pretrained
from plan_jax.peers import biovil, gloria, mgca, text
from plan_jax.peers.kind import Kind
from plan_jax.two_towers import TwoTowers, jit_on, to_maximum_1

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
  """A peer before it is on any device.

  Attributes:
    kind: which.
    network: its towers.
    variables: {"params", "batch_stats"}, numpy.
    reader: of its texts.
    provenance: what it is from, as pretrained.Tower tells it, by the key of config.peer.
  """

  kind: Kind
  network: nn.Module
  variables: dict
  reader: text.Reader
  provenance: dict[str, dict]


def check(config: ConfigDict) -> None:
  """Raises UserError at the first key of `config.peer` that cannot be."""
  peer = config.peer
  if peer.name not in KINDS:
    raise UserError(f"config.peer.name: is {peer.name!r}; it must be one of {', '.join(KINDS)}")
  if not peer.weights:
    raise UserError(
      f"config.peer.weights: is empty; name the checkpoint of {KINDS[peer.name].title} on this"
      " machine (docs/peers.md)"
    )
  if peer.name in _TWO_FILES and not peer.text:
    raise UserError(
      "config.peer.text: is empty; name the local Hugging Face folder of the text encoder"
      f" (CXR-BERT) that goes with {KINDS[peer.name].title}"
    )
  if peer.name not in _TWO_FILES and peer.text:
    raise UserError(
      f"config.peer.text: the checkpoint of {KINDS[peer.name].title} holds its text encoder; leave"
      " the key empty"
    )
  if peer.name not in _TWO_FILES and not peer.tokenizer:
    raise UserError(
      "config.peer.tokenizer: is empty; name the local Hugging Face folder of Bio_ClinicalBERT, for"
      " its vocabulary"
    )


def load(config: ConfigDict) -> Loaded:
  """The peer that `config.peer` names.

  Raises UserError as `check`; where the weights are not those of the variant (`load_peer`); where
  the vocabulary is missing or of another size.
  """
  check(config)
  peer, kind = config.peer, KINDS[config.peer.name]
  key = "config.peer.tokenizer" if peer.tokenizer else "config.peer.text"
  vocabulary = text.Vocabulary(peer.tokenizer or peer.text, key)
  batch = text.arrays([text.Reading([0, 0], [0, 1], [], False)], 2, 0)
  film = np.zeros((1, kind.preprocessing.input_px, kind.preprocessing.input_px, 1), np.float32)
  read = partial(pretrained.load_peer, build=kind.build)
  if peer.name in _TWO_FILES:
    network, image = read(peer.weights, peer.name, inputs=(film,), method="embed_images")
    half, words = read(
      peer.text, "cxr_bert", inputs=(batch,), method="embed_texts", key="config.peer.text"
    )
    if network.size != half.size:
      raise UserError(
        f"config.peer.text: {peer.text} gives vectors of {half.size}, the images' are of"
        f" {network.size}: the two are not of one model"
      )
    network = network.clone(text=half.text)
    parts = {"weights": image, "text": words}
  else:
    network, both = read(peer.weights, peer.name, inputs=(film, batch))
    parts = {"weights": both}
  if vocabulary.size != network.text["vocabulary_size"]:
    raise UserError(
      f"{key}: {peer.tokenizer or peer.text} has {vocabulary.size} pieces, the weights have"
      f" {network.text['vocabulary_size']}: name the folder of the vocabulary that they were"
      " trained with"
    )
  variables = {
    "params": {name: x for part in parts.values() for name, x in part.params.items()},
    "batch_stats": {name: x for part in parts.values() for name, x in part.batch_stats.items()},
  }
  reader = kind.reader(vocabulary, network.text["max_position"])
  return Loaded(kind, network, variables, reader, {k: x.provenance for k, x in parts.items()})


class Peer(TwoTowers):
  """A peer's model; see `TwoTowers` for what it can be asked."""

  step = 0

  def __init__(self, loaded: Loaded, mesh: Mesh, batch_size: int):
    """`mesh`: where the work is done; `batch_size`: of films or texts at a time."""
    super().__init__(mesh, batch_size)
    kind, network = loaded.kind, loaded.network
    self._kind, self._reader, self._preprocessing = kind, loaded.reader, kind.preprocessing
    self.own_sigma, self.own_nearest = kind.sigma, kind.nearest
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
    film = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
    _, count, size = jax.eval_shape(self._image, self._variables, film).pixels.shape
    self.grid = (round(count**0.5),) * 2
    self.local_bytes = 2 * size * (count + self._reader.max_tokens)

  @property
  def note(self) -> str:
    """How many texts were cut; empty for none."""
    if not self.cut_texts:
      return ""
    return (
      f"{self.cut_texts} texts were longer than the {self._reader.max_tokens} pieces that"
      f" {self._kind.title} reads, and were cut"
    )

  def to_film(
    self, grid: np.ndarray, shape: tuple[int, int], *, nearest: bool = False
  ) -> np.ndarray:
    """A map [rows, columns] on the grid -> float32 [H, W], NaN beyond what the peer saw."""
    return self._preprocessing.to_film(grid, shape, nearest=nearest)

  def ground_on_grid(
    self, images: Sequence[np.ndarray], phrases: Sequence[str], of: str = "words"
  ) -> np.ndarray:
    """[N, rows, columns] float32, maximum 1; as in `TwoTowers`, smoothed where the project does."""
    if not self.own_sigma:
      return super().ground_on_grid(images, phrases, of)
    maps = self.similarities(images, phrases, of)
    smooth = ndimage.gaussian_filter(maps, (0, self.own_sigma, self.own_sigma))
    return to_maximum_1(np.maximum(smooth, 0))

  def significances(self, texts: Sequence[tuple[str, ...]]) -> list[list[tuple[str, float]]]:
    """Our words of each text, up to where it was cut, with the weights of the peer's in them."""
    found = self._run(lambda some: self._read(some).significance, self._encoded(texts))
    return [
      _by_our_words(text, self._reader.read(text), weights)
      for text, weights in zip(texts, found, strict=True)
    ]

  def look(
    self, images: Sequence[np.ndarray], texts: Sequence[tuple[str, ...]]
  ) -> list[list[tuple[str, float, np.ndarray]]]:
    """The words of each text, as the peer reads them: (word, its say, region [rows, columns])."""
    if self._kind.look is not None:
      return super().look(images, texts)
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

  def _films_in(self, images):
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

  def _image_tower(self, images):
    return self._image(self._variables, images)

  def _text_tower(self, arrays):
    return self._text(self._variables, arrays)

  def _paired(self, kind, image, text):
    return self._pair[kind](image, text)

  def _matched(self, held):
    return self._match(*held)

  def _similar(self, pixels, words, say):
    return self._match_one(pixels, words, say)

  def _say(self, text):
    return np.asarray(self._kind.say(text))


def on_devices(loaded: Loaded, config: ConfigDict) -> Peer:
  """The peer on the devices that `config.mesh` names."""
  mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
  return Peer(loaded, mesh, config.evaluation.batch_size)


def _of_phrase(kind: Kind, film, words):
  """(map [P] of any scale, similarity [P])."""
  similarity = kind.phrase(film, words)
  return jax.nn.relu(similarity), similarity


def _of_words(kind: Kind, film, words):
  looked, say = kind.look(film, words)
  return say @ looked.weight, say @ looked.similarity / jnp.maximum(say.sum(), 1e-12)


def _of_halves(kind: Kind, *held):
  return kind.logits(*(x.astype(jnp.float32) for x in held))  # features are kept in half precision


def _by_our_words(
  sentences: Sequence[str], reading: text.Reading, weights: np.ndarray
) -> list[tuple[str, float]]:
  """Our words with the sum of the weights of the peer's words that begin in them."""
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
