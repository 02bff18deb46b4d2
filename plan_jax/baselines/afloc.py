"""AFLoc (Nature Biomedical Engineering 2026; YH0517/AFLoc, read as code).

GLoRIA's encoders and its reading of texts, trained by reports, sentences and words: the image is
compared with the report, stage 3 (19 x 19) with sentences, stage 2 with words. It grounds a phrase
by the report's vector alone: its dot product with the cells of stage 3, smoothed by a Gaussian of
1.5 cells, which tile a black square of 224 px around the image. So there are no vectors of words
here, and stage 2's projection is left aside. A report is the mean over [CLS], words and [SEP], each
the sum of its tokens: the same direction as the sum of all tokens.
"""

from plan_jax.baselines import base, gloria
from plan_jax.baselines.base import TextEmbeddings, hidden_states, whole_texts
from plan_jax.baselines.preprocessing import PaddedSquare
from plan_jax.baselines.tokenization import Reading, Vocabulary, read_cleaned
from plan_jax.inference.spec import Text

_CELL_PX = 224 / 19
_SQUARE = PaddedSquare(224, 224, 299, cell_px=_CELL_PX, first_px=(_CELL_PX - 1) / 2)


class Afloc(gloria.Gloria):
  """Both encoders."""

  def embed_texts(self, batch: dict) -> TextEmbeddings:
    """Embeds arrays of `BaselineTexts`."""
    real = batch["sentence_index"] >= 0
    return whole_texts((hidden_states(self.text_encoder, batch) * real[..., None]).sum(1))


def _read(vocabulary: Vocabulary, max_tokens: int, sentences: Text) -> Reading:
  """Reads as GLoRIA does; words have no vectors."""
  reading = read_cleaned(vocabulary, max_tokens, sentences)
  return reading._replace(owner=[0] + [-1] * (len(reading.tokens) - 1))


def _build(shapes: dict, settings: dict) -> Afloc:
  text = base.bert_sizes(shapes, settings)
  return Afloc(base.image_sizes(shapes, "resnet"), text, text.get("embed_dim", 768))


AFLOC = base.Baseline(
  "AFLoc",
  _build,
  lambda network: _SQUARE,
  _read,
  max_tokens=97,
  attend=base.attend_whole,
  global_scale=10.0,
  fields=dict(map_sigma=1.5),
)
