"""Other projects' whole models as Predictors, by the name and the files of `config.baseline`."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from plan_jax.baselines import (
  afloc,
  biomedclip,
  biovil,
  carzero,
  clip,
  conns,
  gloria,
  mgca,
  radzero,
  siglip,
  tokenization,
)
from plan_jax.inference.predictor import Predictor
from plan_jax.models.weights.load import load_baseline
from plan_jax.runtime.mesh import everywhere, make_mesh

BASELINES = {
  "gloria": gloria.GLORIA,
  "mgca_resnet": mgca.MGCA_RESNET,
  "mgca_vit": mgca.MGCA_VIT,
  "biovil": biovil.BIOVIL,
  "biovil_t": biovil.BIOVIL_T,
  "afloc": afloc.AFLOC,
  "clip": clip.CLIP,
  "chexzero": clip.CHEXZERO,
  "biomedclip": biomedclip.BIOMEDCLIP,
  "siglip": siglip.SIGLIP,
  "medsiglip": siglip.MEDSIGLIP,
  "radzero": radzero.RADZERO,
  "carzero": carzero.CARZERO,
  "conns": conns.CONNS,
}
_SIDE_PX = 448  # of an image to read shapes with: whole patches of 8, 14, 16 and 32 pixels


class LoadedBaseline(NamedTuple):
  """A baseline with its weights.

  Attributes:
    model: on the devices of `config.mesh`.
    provenance: origin of the weights, by the key of config.baseline; see
      models.weights.load.load_baseline.
  """

  model: Predictor
  provenance: dict[str, dict]


def check(config: ConfigDict) -> None:
  """Raises UserError at the first key of the section `baseline` that cannot be."""
  baseline = config.baseline
  if baseline.name not in BASELINES:
    raise UserError(f"name: is {baseline.name!r}; it must be one of {', '.join(BASELINES)}")
  chosen = BASELINES[baseline.name]
  title, separate_text = chosen.title, chosen.separate_text
  if not baseline.weights:
    raise UserError(
      f"weights: is empty; name the checkpoint of {title} on this machine (docs/baselines.md)"
    )
  if separate_text and not baseline.text:
    raise UserError(
      "text: is empty; name the local Hugging Face folder of the text encoder"
      f" (CXR-BERT) that goes with {title}"
    )
  if not separate_text and baseline.text:
    raise UserError(f"text: the checkpoint of {title} holds its text encoder; leave the key empty")
  if not separate_text and not baseline.tokenizer and not Path(baseline.weights).is_dir():
    raise UserError(
      f"tokenizer: is empty; name the local Hugging Face folder of {chosen.vocabulary}, for its"
      " vocabulary"
    )


def load(config: ConfigDict) -> LoadedBaseline:
  """Loads the baseline that `config.baseline` names.

  Raises:
    UserError: as `check`; the weights are not those of the variant, see `load_baseline`; the
      vocabulary is missing or of another size.
  """
  check(config)
  given, baseline = config.baseline, BASELINES[config.baseline.name]
  key = next(key for key in ("tokenizer", "text", "weights") if given[key])
  folder = given[key]
  vocabulary = tokenization.Vocabulary(folder, key, baseline.special)
  network, parts = _network(config)
  if vocabulary.size != network.text["vocabulary_size"]:
    raise UserError(
      f"{key}: {folder} has {vocabulary.size} tokens, the weights have"
      f" {network.text['vocabulary_size']}: name the folder of the vocabulary that they were"
      " trained with"
    )
  variables = {
    "params": {name: x for part in parts.values() for name, x in part.params.items()},
    "batch_stats": {name: x for part in parts.values() for name, x in part.batch_stats.items()},
  }
  mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
  model = Predictor(
    baseline.spec(network, variables, vocabulary),
    jax.device_put(variables, everywhere(mesh)),
    mesh,
    batch_size=config.evaluation.batch_size,
  )
  return LoadedBaseline(model, {key: part.provenance for key, part in parts.items()})


def _network(config: ConfigDict):
  """The network, and its weights by their keys of config.baseline."""
  given, baseline = config.baseline, BASELINES[config.baseline.name]
  image = np.zeros((1, _SIDE_PX, _SIDE_PX, 1), np.float32)
  empty = tokenization.Reading([0, 0], [0, 1], [], False)
  text = {name: x[None] for name, x in tokenization.to_arrays(empty, 2, 0).items()}
  read, layout = partial(load_baseline, build=baseline.build), baseline.layout or given.name
  if not baseline.separate_text:
    network, weights = read(given.weights, layout, inputs=(image, text))
    return network, {"weights": weights}
  network, weights = read(given.weights, layout, inputs=(image,), method="embed_images")
  half, words = read(given.text, "cxr_bert", inputs=(text,), method="embed_texts", key="text")
  if network.embed_dim != half.embed_dim:
    raise UserError(
      f"text: {given.text} gives vectors of {half.embed_dim}, the images' are of"
      f" {network.embed_dim}: the two are not of one model"
    )
  return network.clone(text=half.text), {"weights": weights, "text": words}
