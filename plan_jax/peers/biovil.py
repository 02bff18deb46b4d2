"""BioViL and BioViL-T (Boecking et al., ECCV 2022; Bannur et al., CVPR 2023; hi-ml-multimodal, read
as code).

Image: ResNet-50 on the middle 480 px (BioViL) or 448 px (BioViL-T) of a film; BioViL-T reduces its
last map to 256 channels and, for a film without an earlier one, puts a learned vector beside them
in every cell. A projector (1x1 convolution, batch norm, ReLU, 1x1 convolution) makes 128 channels;
the film is their mean. Text: CXR-BERT, [CLS] through its projection. Patch and phrase: the cosine,
smoothed on the grid by a Gaussian of 1.5 cells where the project shows a map. There are no vectors
of words: a map by words is that of the phrase.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from plan_jax.alignment.unit import unit
from plan_jax.models.bert import Bert
from plan_jax.models.resnet import ResNet
from plan_jax.peers import kind
from plan_jax.peers.heads import hidden_states
from plan_jax.peers.kind import Films, Kind, Texts
from plan_jax.peers.preprocessing import MiddleOfShortSide
from plan_jax.peers.text import PlainReader

_MAX_TOKENS = 512
_PLAIN = dict(mean=(0.0,) * 3, std=(1.0,) * 3)


class BioVil(nn.Module):
  """Both towers.

  Attributes:
    image, text: arguments of ResNet and Bert; what is not asked for may be empty.
    size: D.
    reduced: channels that BioViL-T reduces the image encoder's to; 0: BioViL, which does not.
  """

  image: dict
  text: dict
  size: int
  reduced_size: int = 0

  def setup(self):  # noqa: D102
    self.image_encoder = ResNet(**self.image, **_PLAIN, output_stride=32)
    self.text_encoder = Bert(**self.text, projector=self.size)
    if self.reduced_size:
      self.reduced = nn.Dense(self.reduced_size, use_bias=False)
      self.no_previous = self.param("no_previous", nn.initializers.zeros, (self.reduced_size,))
    self.projector_in = nn.Dense(self.size, use_bias=False)
    self.projector_norm = nn.BatchNorm(use_running_average=True)
    self.projector_out = nn.Dense(self.size)

  def embed_images(self, image: jax.Array) -> Films:
    """[B, S, S, 1] float32 in [0, 1]."""
    x = self.image_encoder(image)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    if self.reduced_size:
      x = self.reduced(x)
      x = jnp.concatenate([x, jnp.broadcast_to(self.no_previous, x.shape)], -1)
    x = self.projector_out(nn.relu(self.projector_norm(self.projector_in(x))))
    return Films(unit(x), unit(x.mean(1)))

  def embed_texts(self, batch: dict) -> Texts:
    """Arrays of `text.arrays`; there are no words."""
    report = unit(hidden_states(self.text_encoder, batch)[:, 0])
    none = jnp.zeros((len(report), 1))
    return Texts(none[..., None], none > 0, none, report)


def _phrase(film: Films, text: Texts) -> jax.Array:
  return film.pixels @ text.report


def _build(shapes: dict, settings: dict) -> BioVil:
  """Of the image's file or the text's folder: what is known of the one half."""
  size = shapes.get("projector_out/bias") or shapes.get("text_encoder/projector_out/bias") or (128,)
  reduced = shapes.get("no_previous", (0,))
  return BioVil(kind.resnet(shapes), kind.bert(shapes, settings), size[0], reduced[0])


BIOVIL, BIOVIL_T = (
  Kind(
    title=title,
    build=_build,
    preprocessing=MiddleOfShortSide(crop_px),
    reader=lambda vocabulary, positions: PlainReader(vocabulary, min(_MAX_TOKENS, positions)),
    phrase=_phrase,
    sigma=1.5,
    nearest=True,
  )
  for title, crop_px in (("BioViL", 480), ("BioViL-T", 448))
)
