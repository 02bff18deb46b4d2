"""GLoRIA (Huang et al., ICCV 2021; marshuang80/gloria, read as code).

Image: ResNet-50 on 224 px enlarged to 299; regions are stage 3 (19 x 19) through a 1x1 convolution
without bias, the image is stage 4, averaged, through a dense layer. Text: Bio_ClinicalBERT, its last
four layers summed; a word is the sum of its tokens, a report the mean over [CLS], words and [SEP]
(over 97 places, pads zero, there: the same direction). Global similarity: the cosine. Word and
region: the dot product. Local score of training, with [CLS] as a word: S = 10 log sum_w exp(5
cos(t_w, c_w)), c_w the regions' sum by softmax_r(4 softmax_w(s)). The local similarity of its
zero-shot code is log max_w exp(5 cos), of the words alone; that code also let in pads, as many as
the text has letters, which is left out here.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from plan_jax.alignment.methods.by_name import METHODS
from plan_jax.alignment.methods.gloria import GloriaScore
from plan_jax.alignment.similarity import l2_normalize
from plan_jax.baselines import spec
from plan_jax.baselines.heads import hidden_states, sums
from plan_jax.baselines.preprocessing import PaddedSquare
from plan_jax.baselines.spec import Images, Kind, Texts
from plan_jax.baselines.tokenization import CleanedReader
from plan_jax.models.bert import Bert
from plan_jax.models.resnet import ResNet

ENLARGED = PaddedSquare(enlarged_px=299, cell_px=16 * 223 / 298, first_px=0.0)
_MAX_TOKENS = 97
_GLOBAL_SCALE = 10.0
_WORD_SCALE = 5.0


class Gloria(nn.Module):
  """Both encoders.

  Attributes:
    image, text: arguments of ResNet and Bert.
    embed_dim: D, that of the text encoder.
  """

  image: dict
  text: dict
  embed_dim: int

  def setup(self):  # noqa: D102
    half = dict(mean=(0.5,) * 3, std=(0.5,) * 3)
    self.image_encoder = ResNet(**self.image, **half, output_stride=32)
    self.text_encoder = Bert(**self.text, last_layers=4)
    self.image_head = nn.Dense(self.embed_dim)
    self.pixel_head = nn.Dense(self.embed_dim, use_bias=False)

  def __call__(self, image: jax.Array, batch: dict) -> tuple[Images, Texts]:
    """Both."""
    return self.embed_images(image), self.embed_texts(batch)

  def embed_images(self, image: jax.Array) -> Images:
    """[B, 299, 299, 1] float32 in [0, 1]."""
    last, third = self.image_encoder(image, tapped=3)
    pixels = third.reshape(third.shape[0], -1, third.shape[-1])
    return Images(self.pixel_head(pixels), l2_normalize(self.image_head(last.mean((1, 2)))))

  def embed_texts(self, batch: dict) -> Texts:
    """Arrays of `text.arrays`."""
    words = sums(hidden_states(self.text_encoder, batch), batch["word_index"])
    mask = batch["word_mask"]
    return Texts(words, mask, mask.astype(jnp.float32), l2_normalize(words.mean(1)))


def logits(pixels: jax.Array, words: jax.Array, say: jax.Array) -> jax.Array:
  """The local score of training: [I, P, D], [J, W, D], [J, W] above 0 for words -> [I, J]."""
  score = GloriaScore()
  return score.logits(score.prepare(pixels), words, say, 1.0)[0][0]


def similar(pixels: jax.Array, words: jax.Array, say: jax.Array) -> jax.Array:
  """The local similarity of its zero-shot classification, arguments as in `logits`: [I, J].

  0 for a text without words.
  """
  score, mask = GloriaScore(), say > 0
  cosine = score.cosines(score.prepare(pixels), words, mask)
  best = jnp.where(mask, cosine, -1.0).max(-1)
  return jnp.where(mask.any(-1), _WORD_SCALE * best, 0)


def _say(texts: Texts) -> jax.Array:
  """[CLS] is a word of the local score."""
  return texts.mask.astype("float32") + (jnp.arange(texts.mask.shape[-1]) == 0)


def _look(image: Images, text: Texts):
  return METHODS["gloria"].attend(image, text, None, None), text.significance


def _phrase(image: Images, text: Texts) -> jax.Array:
  return l2_normalize(image.pixels) @ text.embedding


def _build(shapes: dict, settings: dict) -> Gloria:
  text = spec.bert(shapes, settings)
  return Gloria(spec.resnet(shapes), text, text.get("embed_dim", 768))


KIND = Kind(
  title="GLoRIA",
  build=_build,
  preprocessing=ENLARGED,
  reader=lambda vocabulary, positions: CleanedReader(vocabulary, min(_MAX_TOKENS, positions)),
  phrase=_phrase,
  look=_look,
  global_scale=_GLOBAL_SCALE,
  logits=logits,
  similar=similar,
  say=_say,
)
