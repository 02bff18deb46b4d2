"""MGCA (Wang et al., NeurIPS 2022; HKU-MedAI/MGCA, read as code).

Image: ResNet-50 as GLoRIA's (stage 3 for regions, stage 4 averaged for the image), or ViT-B/16 on
224 px (its patches, and its class token). Text: six layers of Bio_ClinicalBERT, in BLIP's form,
which has no token types; a word is the sum of its tokens, the report [CLS]. Each of the four goes
through two dense layers with batch norm and is brought to unit norm. Similarities are cosines. A
word's weight is the attention that [CLS] pays its tokens in the last layer, the mean over the
heads; that code gives each word the attention of the tokens after it by one, which is put right
here, as no similarity depends on it. Words are compared with the regions of their own image only:
there is no local score of pairs.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from plan_jax.alignment.methods.by_name import METHODS
from plan_jax.alignment.similarity import l2_normalize
from plan_jax.baselines import spec
from plan_jax.baselines.gloria import ENLARGED
from plan_jax.baselines.heads import Mlp, hidden_states, sums
from plan_jax.baselines.preprocessing import PaddedSquare
from plan_jax.baselines.spec import Images, Kind, Texts
from plan_jax.baselines.tokenization import CleanedReader
from plan_jax.models.bert import Bert
from plan_jax.models.resnet import ResNet
from plan_jax.models.vit import ViT

_MAX_TOKENS = 112
_GLOBAL_SCALE = 1 / 0.07
_HALF = dict(mean=(0.5,) * 3, std=(0.5,) * 3)


class Mgca(nn.Module):
  """Both encoders.

  Attributes:
    image: arguments of ResNet or ViT.
    text: of Bert.
    is_vit: which.
    hidden, embed_dim: widths of the heads, and of the shared space D.
  """

  image: dict
  text: dict
  is_vit: bool
  hidden: int
  embed_dim: int

  def setup(self):  # noqa: D102
    self.image_encoder = (
      ViT(**self.image, **_HALF) if self.is_vit else ResNet(**self.image, **_HALF, output_stride=32)
    )
    self.text_encoder = Bert(**self.text)
    head = partial(Mlp, self.hidden, self.embed_dim)
    self.image_head, self.pixel_head, self.report_head, self.word_head = (
      head(),
      head(),
      head(),
      head(),
    )

  def __call__(self, image: jax.Array, batch: dict) -> tuple[Images, Texts]:
    """Both."""
    return self.embed_images(image), self.embed_texts(batch)

  def embed_images(self, image: jax.Array) -> Images:
    """[B, S, S, 1] float32 in [0, 1], S 299 for a ResNet and 224 for a ViT."""
    if self.is_vit:
      grid, pooled = self.image_encoder(image, class_too=True)
    else:
      last, grid = self.image_encoder(image, tapped=3)
      pooled = last.mean((1, 2))
    pixels = grid.reshape(grid.shape[0], -1, grid.shape[-1])
    return Images(l2_normalize(self.pixel_head(pixels)), l2_normalize(self.image_head(pooled)))

  def embed_texts(self, batch: dict) -> Texts:
    """Arrays of `text.arrays`; all words have the same say, see `embed_texts`."""
    words = sums(hidden_states(self.text_encoder, batch), batch["word_index"])
    mask = batch["word_mask"]
    report = l2_normalize(self.report_head(words[:, 0]))
    return Texts(l2_normalize(self.word_head(words)), mask, mask.astype(jnp.float32), report)


def embed_texts(network: Mgca, variables: dict, batch: dict) -> Texts:
  """Texts of which each word has its share of the attention that [CLS] pays words."""
  texts, found = network.apply(variables, batch, method="embed_texts", mutable=["attention"])
  last = f"layer{network.text['layers']}"
  attention = found["attention"]["text_encoder"][last]["first"][0]
  of_words = jnp.where(texts.mask, sums(attention[..., None], batch["word_index"])[..., 0], 0)
  total = of_words.sum(-1, keepdims=True)
  return texts._replace(significance=of_words / jnp.where(total > 0, total, 1))


def _look(image: Images, text: Texts):
  return METHODS["mgca"].attend(image, text, None, None), text.significance


def _phrase(image: Images, text: Texts) -> jax.Array:
  return image.pixels @ text.embedding


def _build(shapes: dict, settings: dict, *, is_vit: bool) -> Mgca:
  hidden, size = (
    shapes.get("image_head/hidden/bias", (2048,)),
    shapes.get("image_head/out/bias", (128,)),
  )
  image = spec.vit(shapes) if is_vit else spec.resnet(shapes)
  return Mgca(image, spec.bert(shapes, settings), is_vit, hidden[0], size[0])


RESNET, VIT = (
  Kind(
    title=f"MGCA ({name})",
    build=partial(_build, is_vit=is_vit),
    preprocessing=preprocessing,
    reader=lambda vocabulary, positions: CleanedReader(vocabulary, min(_MAX_TOKENS, positions)),
    phrase=_phrase,
    look=_look,
    embed_texts=embed_texts,
    global_scale=_GLOBAL_SCALE,
    has_significance=True,
  )
  for name, is_vit, preprocessing in (
    ("ResNet", False, ENLARGED),
    ("ViT", True, PaddedSquare(cell_px=16.0, first_px=7.5)),
  )
)
