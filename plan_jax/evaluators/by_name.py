"""Evaluators by name, as `config.evaluation.evaluators` chooses them and their protocols."""

import inspect

from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from input_pipeline.text import diagnostic_terms
from plan_jax.evaluators import grounding, mass_inside, presence, retrieval, side, terms
from plan_jax.evaluators.base import Evaluator
from plan_jax.evaluators.class_retrieval import ClassRetrieval
from plan_jax.evaluators.grounding import Grounding
from plan_jax.evaluators.grounding_compat import PublishedGrounding
from plan_jax.evaluators.mass_inside import MassInside
from plan_jax.evaluators.presence import Presence
from plan_jax.evaluators.reranking import Reranking
from plan_jax.evaluators.retrieval import Retrieval
from plan_jax.evaluators.retrieval_compat import PublishedRetrieval
from plan_jax.evaluators.segmentation_compat import PublishedSegmentation
from plan_jax.evaluators.side import Side
from plan_jax.evaluators.terms import Terms
from plan_jax.evaluators.zero_shot import ZeroShot
from plan_jax.inference import prompts

# In the order of their rows.
EVALUATORS = {
  "grounding": Grounding,
  "grounding_compat": PublishedGrounding,
  "segmentation_compat": PublishedSegmentation,
  "mass_inside": MassInside,
  "side": Side,
  "retrieval": Retrieval,
  "retrieval_compat": PublishedRetrieval,
  "class_retrieval": ClassRetrieval,
  "reranking": Reranking,
  "presence": Presence,
  "zero_shot": ZeroShot,
  "terms": Terms,
}

# Protocol -> its definition, for the report.
DEFINITIONS = {
  module.PROTOCOL: inspect.cleandoc(module.__doc__)
  for module in (grounding, mass_inside, side, retrieval, presence, terms)
}


def configured(config: ConfigDict) -> list[Evaluator]:
  """Makes the evaluators that `config.evaluation.evaluators` gives a protocol.

  Protocols of others, whose names begin with "compat-", need `config.evaluation.compatibility`.
  Raises UserError, naming the key below `evaluation`, where an evaluator or protocol is unknown or
  prompts cannot be read, and TermsError.
  """
  terms = diagnostic_terms.load(config.text.terms).named
  try:
    sets = tuple(prompts.load(config.evaluation.prompts))
  except prompts.PromptsError as error:
    raise UserError(f"prompts: {error}") from error
  options = {
    "grounding": {"seed": config.seed},
    "grounding_compat": {"prompts": sets[:1]},
    "segmentation_compat": {"prompts": sets[:1]},
    "reranking": {"top": config.evaluation.rerank_top},
    "zero_shot": {"prompts": sets},
    "terms": {"listed": terms},
  }
  sections = config.evaluation.evaluators
  _check(sections, tuple(EVALUATORS), "evaluators")
  evaluators = []
  for name, evaluator in EVALUATORS.items():
    protocols = tuple(sections[name].protocols) if name in sections else ()
    _check(protocols, evaluator.protocols, f"evaluators.{name}.protocols")
    if not config.evaluation.compatibility:
      protocols = tuple(each for each in protocols if not each.startswith("compat-"))
    if protocols:
      evaluators.append(evaluator(protocols=protocols, **options.get(name, {})))
  return evaluators


def _check(names, known: tuple[str, ...], key: str) -> None:
  for name in names:
    if name not in known:
      raise UserError(f"{key}: is {name!r}; must be of {', '.join(known)}")
