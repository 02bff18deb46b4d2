"""All evaluators over a trained run, and the page that shows what they found."""

import inspect
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice

import numpy as np
from ml_collections import ConfigDict

from input_pipeline import images, records
from input_pipeline.example import Example
from input_pipeline.phantom import reports
from input_pipeline.text import diagnostic_terms as terms_list
from plan_jax.evaluators import (
  class_retrieval,
  grounding,
  grounding_compat,
  labelled_images,
  presence,
  prompts,
  reranking,
  retrieval,
  retrieval_compat,
  terms,
  zero_shot,
)
from plan_jax.evaluators.datasets import EvaluationSet, fingerprints
from plan_jax.inference.predictor import TwoTowers
from plan_jax.results import example_scores, report, tables
from plan_jax.results import rows as results
from plan_jax.runtime import logging as reporting
from plan_jax.runtime import processes
from plan_jax.runtime.logging import log
from plan_jax.runtime.workdir import Workdir
from plan_jax.transfer import attached

# Name and version -> definition, for the report.
PROTOCOLS = {
  module.PROTOCOL: inspect.cleandoc(module.__doc__)
  for module in (grounding, retrieval, presence, terms)
}


def evaluate(
  model: TwoTowers,
  config: ConfigDict,
  workdir: Workdir,
  sets: Sequence[EvaluationSet],
  *,
  title: str = "",
  notes: dict[str, str] | None = None,
) -> list[results.Row]:
  """Scores the run on its evaluation sets; writes example_scores/, evaluation.json and the report.

  Args:
    model: of the run.
    config: of the run.
    workdir: of the run.
    sets: the run's own first.
    title: of the report; by default a training's.
    notes: facts of the model for the head of the page; by default a training's.
  """
  rows, scores, learned, views = [], {}, [], []
  for chosen in sets:
    log.info(f"evaluating step {model.step} on {chosen.data}")
    found, units_of = _score(model, config, chosen)
    rows += found
    scores |= {(chosen, task): some for task, some in units_of.items()}
    views += image_views(model, chosen, config.evaluation.report_images)
  if model.note:
    log.info(model.note)
  log.info(tables.table(rows))

  def write(complete: bool) -> None:
    shutil.rmtree(workdir.example_scores, ignore_errors=True)  # those of an earlier evaluation
    for (chosen, task), some in scores.items():
      example_scores.write(workdir.example_scores_of(task, chosen.attached_name), some)
    for chosen, task, file in learned:
      path = workdir.example_scores_of(task, chosen.attached_name).with_suffix(file.suffix)
      path.parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(file, path)
    results.write(
      workdir.evaluation, results.Evaluation(model.step, rows, fingerprints(sets), complete)
    )
    report.write_report(
      workdir.report,
      title=title or f"{config.data.dataset}: word-pixel alignment after {model.step} steps",
      rows=rows,
      curves=reporting.curves(workdir.metrics),
      images=views,
      notes=_notes(model, config, sets, notes),
      protocols=PROTOCOLS,
    )
    report.save_overlays(workdir.report.with_name("overlays.png"), views)

  if config.evaluation.get("transfer"):
    processes.on_primary(lambda: write(False))  # what comes now may take hours, and be stopped
  for chosen, task, found, files in attached.learned(config, workdir, model, sets):
    rows += found
    learned += [(chosen, task, file) for file in files]
  # Who leaves before is thought lost after a while, and all are ended.
  processes.on_primary(lambda: write(True))
  log.info(f"\n{tables.headline(rows)}\n\nreport: {workdir.report}")
  return rows


def _score(
  model: TwoTowers, config: ConfigDict, chosen: EvaluationSet
) -> tuple[list[results.Row], dict[str, example_scores.ExampleScores]]:
  """Rows of all tasks that the set allows, and the scores of their units."""
  common = {"data": chosen.data, "resamples": config.evaluation.resamples, "seed": config.seed}
  rows, scores = [], {}
  if chosen.has("regions"):
    prior = grounding.box_prior([])
    if chosen.has("regions", "train"):
      prior = grounding.box_prior(chosen.examples("regions", "mean box of training", split="train"))
    grounded = grounding.score_grounding(
      model, chosen.examples("regions", "grounding"), prior, seed=config.seed
    )
    rows += grounding.grounding_rows(grounded, **common)
    scores["grounding"] = grounded[results.RUN]
    by_phrase = grounding.score_grounding(
      model,
      chosen.examples("regions", "grounding by phrase"),
      prior,
      of="phrase",
      with_floors=False,
    )
    by_phrase |= {model: some for model, some in grounded.items() if model != results.RUN}
    rows += grounding.grounding_rows(by_phrase, task="grounding-by-phrase", **common)
    scores["grounding-by-phrase"] = by_phrase[results.RUN]
    if config.evaluation.compatibility:
      compat = grounding_compat.score_compat(model, chosen.examples("regions", "compatibility"))
      rows += grounding_compat.compat_rows(compat, **common)
  if chosen.has("text"):
    pairs = retrieval.embed(model, chosen.examples("text", "retrieval"))
    galleries = retrieval.score_retrieval(pairs)
    rows += retrieval.retrieval_rows(galleries, **common)
    if galleries:
      scores["retrieval"] = galleries["all"].example_scores
    if config.evaluation.compatibility:
      rows += retrieval_compat.compat_rows(pairs, **common)
    classes = class_retrieval.score_classes(pairs)
    rows += class_retrieval.class_rows(classes, **common)
    if classes:
      scores["class-retrieval"] = classes[0]
    again = reranking.scorer(
      model, pairs, lambda: reranking.features(model, chosen.examples("text", "re-ranking")),
      top=config.evaluation.rerank_top,
    )  # fmt: skip
    if again:
      reranked = reranking.score_reranked(again, pairs)
      names = {"task": "reranked-retrieval", "protocol": reranking.PROTOCOL}
      rows += retrieval.retrieval_rows({"all": reranked}, **names, **common)
      scores["reranked-retrieval"] = reranked.example_scores
    if again and classes:
      reranked = class_retrieval.score_classes(pairs, again, block=reranking.BLOCK)
      names = {"task": "reranked-class-retrieval", "protocol": reranking.CLASS_PROTOCOL}
      rows += class_retrieval.class_rows(reranked, **names, **common)
      scores["reranked-class-retrieval"] = reranked[0]
  lit = presence.score_presence(model, chosen.examples(what="presence"))
  if lit:
    rows += presence.presence_rows(lit, **common)
    scores["presence"] = lit
  for found in _zero_shot(model, config, chosen):
    rows += zero_shot.zero_shot_rows(found, compatibility=config.evaluation.compatibility, **common)
    if found.example_scores:
      scores[f"zero-shot-{found.prompts.name}"] = found.example_scores
    if found.classes:
      scores[f"zero-shot-classes-{found.prompts.name}"] = found.classes.units()
  kinds = _word_kinds(chosen)
  if kinds and not model.has_significance:
    log.info("terms are left out: this model gives its words no weight")
  elif kinds:
    words = terms.score_terms(
      model,
      (s for s in chosen.examples("text", "terms") if s.entities or chosen.dataset == "phantom"),
      kinds,
      terms_list.load(config.text.terms).named,
    )
    rows += terms.terms_rows(words, **common)
    if words:
      scores["terms"] = words
  if not rows:
    log.info(f"{chosen.data} has nothing to score: no regions, no texts, no finding of both kinds")
  return rows, scores


def _zero_shot(
  model: TwoTowers, config: ConfigDict, chosen: EvaluationSet
) -> Iterator[zero_shot.Scores]:
  """Scores of every set of prompts; images are embedded once, thresholds are of validation images."""
  asked = prompts.load(config.evaluation.prompts)
  images = (
    labelled_images.embed(model, chosen.examples(what="zero-shot"), "zero-shot") if asked else None
  )
  if images is None:
    return
  validation = None
  if chosen.split != "validation" and records.splits(chosen.folder).get("validation"):
    what = "zero-shot, validation split"
    validation = labelled_images.embed(model, chosen.examples(what=what, split="validation"), what)
  again = None
  if config.evaluation.compatibility:
    again = partial(chosen.examples, what="zero-shot, local similarity")
  for some in asked:
    yield zero_shot.score_zero_shot(model, images, some, validation, again=again)


def _word_kinds(chosen: EvaluationSet) -> Callable[[Example, int], list[str]] | None:
  """What tells the kind of every word; None where nothing does."""
  if chosen.dataset == "phantom":
    return lambda example, number: reports.word_kinds(example.sentences[number])
  count = sum(1 for example in chosen.examples("text", "entities") if example.entities)
  if chosen.has("text"):
    total = len(records.RecordSource(chosen.folder, chosen.split, where="text"))
    log.info(f"terms: {total - count} of {total} reports have no entities and are left out")
  return terms.entity_kinds if count else None


def validation_scalars(model: TwoTowers, folder, config: ConfigDict) -> dict[str, float]:
  """`results.FOLLOWED` on the first images of the validation split, by name, for the curves.

  No bootstrap: the last table has the intervals.
  """
  if "validation" not in records.splits(folder):
    return {}
  chosen = EvaluationSet(config.data.dataset, config.data.dataset, folder, "validation", True)
  count = config.evaluation.during_images
  common = {"data": "validation", "resamples": 0, "seed": config.seed}
  rows = grounding.evaluate_grounding(
    model, islice(chosen.examples("regions"), count), grounding.box_prior([]), **common
  )
  rows += retrieval.evaluate_retrieval(model, islice(chosen.examples("text"), count), **common)
  asked = prompts.load(config.evaluation.prompts)
  untold = {"tell": lambda _: None}  # it would be the same each time
  images = (
    labelled_images.embed(model, islice(chosen.examples(), count), "", **untold) if asked else None
  )
  for some in asked if images else ():
    found = zero_shot.score_zero_shot(model, images, some, **untold)
    rows += zero_shot.zero_shot_rows(found, **common)
  return {
    results.scalar_name(row.task, row.metric): row.value
    for row in rows
    if row.model == results.RUN and (row.task, row.group, row.metric) in results.FOLLOWED
  }


def image_views(model: TwoTowers, chosen: EvaluationSet, count: int) -> list[report.ImageView]:
  """Images with regions spread over the set (else any with text), looked at by the model."""
  where = "regions" if chosen.has("regions") else "text"
  source = records.RecordSource(chosen.folder, chosen.split, where=where)
  numbers = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int))
  return [_view(model, source[int(i)]) for i in numbers]


def _view(model: TwoTowers, example: Example) -> report.ImageView:
  image = images.decode(example.image)
  phrases = grounding.units(example)
  words = []
  if example.sentences:
    # One sentence at a time, so that each knows its words.
    looks = model.look([image] * len(example.sentences), [(s,) for s in example.sentences])
    words = [
      [report.Word(word, say, model.on_image(region, image.shape)) for word, say, region in look]
      for look in looks
    ]
  maps = model.ground([image] * len(phrases), [unit.phrase for unit in phrases]) if phrases else []
  return report.ImageView(
    image=image,
    image_id=example.image_id,
    sentences=words,
    phrases=[
      report.Phrase(unit.phrase, unit.label, unit.mask, np.nan_to_num(heat))  # NaN: not looked at
      for unit, heat in zip(phrases, maps, strict=True)
    ],
  )


def _notes(
  model: TwoTowers,
  config: ConfigDict,
  sets: Sequence[EvaluationSet],
  of_model: dict[str, str] | None,
) -> dict[str, str]:
  """Facts for the head of the page."""
  notes = {
    "data": ", ".join(f"{data} (records {mark})" for data, mark in fingerprints(sets).items()),
    **(_of_run(model, config) if of_model is None else of_model),
    "seed": str(config.seed),
  }
  if config.data.dataset == "phantom":
    notes["note"] = "synthetic images and reports: these figures say nothing about patients"
  return notes


def _of_run(model: TwoTowers, config: ConfigDict) -> dict[str, str]:
  image = config.model.image
  name = f"ResNet-{image.depth} x {image.width:g}"
  if image.name == "vit":
    name = f"ViT of {image.vit.depth} x {image.vit.embed_dim}"
  return {
    "step": f"{model.step} of {config.train.steps}, batches of {config.train.batch_size}",
    "model": f"{name}, {config.model.image_px} px, grid {model.grid[0]} x {model.grid[1]}",
  }
