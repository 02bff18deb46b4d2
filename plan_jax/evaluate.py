"""All evaluators over a trained run, and the page that shows what they found."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice

import numpy as np
from ml_collections import ConfigDict

from input_pipeline import images, phantom_reports, records
from input_pipeline import terms as terms_list
from input_pipeline.study import Study
from plan_jax import hosts, report, reporting
from plan_jax.downstream import attached
from plan_jax.evaluation_sets import EvaluationSet, fingerprints
from plan_jax.evaluators import (
  class_retrieval,
  grounding,
  grounding_compat,
  labelled,
  presence,
  prompts,
  reranking,
  results,
  retrieval,
  retrieval_compat,
  terms,
  units,
  zero_shot,
)
from plan_jax.reporting import say
from plan_jax.two_towers import TwoTowers
from plan_jax.workdir import Workdir


def evaluate(
  model: TwoTowers,
  config: ConfigDict,
  workdir: Workdir,
  sets: Sequence[EvaluationSet],
  *,
  title: str = "",
  notes: dict[str, str] | None = None,
) -> list[results.Row]:
  """Scores the run on its evaluation sets; writes units/, evaluation.json and the report.

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
    say(f"evaluating step {model.step} on {chosen.data}")
    found, units_of = _score(model, config, chosen)
    rows += found
    scores |= {(chosen, task): some for task, some in units_of.items()}
    views += film_views(model, chosen, config.evaluation.report_films)
  if model.note:
    say(model.note)
  say(results.table(rows))

  def write(complete: bool) -> None:
    shutil.rmtree(workdir.units, ignore_errors=True)  # those of an earlier evaluation
    for (chosen, task), some in scores.items():
      units.write(workdir.units_of(task, chosen.attached_name), some)
    for chosen, task, file in learned:
      path = workdir.units_of(task, chosen.attached_name).with_suffix(file.suffix)
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
      films=views,
      notes=_notes(model, config, sets, notes),
    )
    report.save_overlays(workdir.report.with_name("overlays.png"), views)

  if config.evaluation.get("downstream"):
    hosts.first_does(lambda: write(False))  # what comes now may take hours, and be stopped
  for chosen, task, found, files in attached.learned(config, workdir, model, sets):
    rows += found
    learned += [(chosen, task, file) for file in files]
  # Who leaves before is thought lost after a while, and all are ended.
  hosts.first_does(lambda: write(True))
  say(f"\n{results.headline(rows)}\n\nreport: {workdir.report}")
  return rows


def _score(
  model: TwoTowers, config: ConfigDict, chosen: EvaluationSet
) -> tuple[list[results.Row], dict[str, units.Units]]:
  """Rows of all tasks that the set allows, and the scores of their units."""
  common = {"data": chosen.data, "resamples": config.evaluation.resamples, "seed": config.seed}
  rows, scores = [], {}
  if chosen.has("regions"):
    prior = grounding.box_prior([])
    if chosen.has("regions", "train"):
      prior = grounding.box_prior(chosen.studies("regions", "mean box of training", split="train"))
    grounded = grounding.score_grounding(
      model, chosen.studies("regions", "grounding"), prior, seed=config.seed
    )
    rows += grounding.grounding_rows(grounded, **common)
    scores["grounding"] = grounded[results.RUN]
    by_phrase = grounding.score_grounding(
      model, chosen.studies("regions", "grounding by phrase"), prior, of="phrase", with_floors=False
    )
    by_phrase |= {model: some for model, some in grounded.items() if model != results.RUN}
    rows += grounding.grounding_rows(by_phrase, task="grounding-by-phrase", **common)
    scores["grounding-by-phrase"] = by_phrase[results.RUN]
    if config.evaluation.compatibility:
      compat = grounding_compat.score_compat(model, chosen.studies("regions", "compatibility"))
      rows += grounding_compat.compat_rows(compat, **common)
  if chosen.has("text"):
    pairs = retrieval.embed(model, chosen.studies("text", "retrieval"))
    galleries = retrieval.score_retrieval(pairs)
    rows += retrieval.retrieval_rows(galleries, **common)
    if galleries:
      scores["retrieval"] = galleries["all"].units
    if config.evaluation.compatibility:
      rows += retrieval_compat.compat_rows(pairs, **common)
    classes = class_retrieval.score_classes(pairs)
    rows += class_retrieval.class_rows(classes, **common)
    if classes:
      scores["class-retrieval"] = classes[0]
    again = reranking.scorer(
      model, pairs, lambda: reranking.features(model, chosen.studies("text", "re-ranking")),
      top=config.evaluation.rerank_top,
    )  # fmt: skip
    if again:
      reranked = reranking.score_reranked(again, pairs)
      names = {"task": "reranked-retrieval", "protocol": reranking.PROTOCOL}
      rows += retrieval.retrieval_rows({"all": reranked}, **names, **common)
      scores["reranked-retrieval"] = reranked.units
    if again and classes:
      reranked = class_retrieval.score_classes(pairs, again, block=reranking.BLOCK)
      names = {"task": "reranked-class-retrieval", "protocol": reranking.CLASS_PROTOCOL}
      rows += class_retrieval.class_rows(reranked, **names, **common)
      scores["reranked-class-retrieval"] = reranked[0]
  lit = presence.score_presence(model, chosen.studies(what="presence"))
  if lit:
    rows += presence.presence_rows(lit, **common)
    scores["presence"] = lit
  for found in _zero_shot(model, config, chosen):
    rows += zero_shot.zero_shot_rows(found, compatibility=config.evaluation.compatibility, **common)
    if found.units:
      scores[f"zero-shot-{found.prompts.name}"] = found.units
    if found.classes:
      scores[f"zero-shot-classes-{found.prompts.name}"] = found.classes.units()
  kinds = _word_kinds(chosen)
  if kinds and not model.has_significance:
    say("terms are left out: this model gives its words no weight")
  elif kinds:
    words = terms.score_terms(
      model,
      (s for s in chosen.studies("text", "terms") if s.entities or chosen.dataset == "phantom"),
      kinds,
      terms_list.load(config.text.terms).named,
    )
    rows += terms.terms_rows(words, **common)
    if words:
      scores["terms"] = words
  if not rows:
    say(f"{chosen.data} has nothing to score: no regions, no texts, no finding of both kinds")
  return rows, scores


def _zero_shot(
  model: TwoTowers, config: ConfigDict, chosen: EvaluationSet
) -> Iterator[zero_shot.Scores]:
  """Scores of every set of prompts; films are embedded once, thresholds are of validation films."""
  asked = prompts.load(config.evaluation.prompts)
  films = labelled.embed(model, chosen.studies(what="zero-shot"), "zero-shot") if asked else None
  if films is None:
    return
  validation = None
  if chosen.split != "validation" and records.splits(chosen.folder).get("validation"):
    what = "zero-shot, validation split"
    validation = labelled.embed(model, chosen.studies(what=what, split="validation"), what)
  again = None
  if config.evaluation.compatibility:
    again = partial(chosen.studies, what="zero-shot, local similarity")
  for some in asked:
    yield zero_shot.score_zero_shot(model, films, some, validation, again=again)


def _word_kinds(chosen: EvaluationSet) -> Callable[[Study, int], list[str]] | None:
  """What tells the kind of every word; None where nothing does."""
  if chosen.dataset == "phantom":
    return lambda study, number: phantom_reports.word_kinds(study.sentences[number])
  count = sum(1 for study in chosen.studies("text", "entities") if study.entities)
  if chosen.has("text"):
    total = len(records.RecordSource(chosen.folder, chosen.split, where="text"))
    say(f"terms: {total - count} of {total} reports have no entities and are left out")
  return terms.entity_kinds if count else None


def validation_scalars(model: TwoTowers, folder, config: ConfigDict) -> dict[str, float]:
  """`results.FOLLOWED` on the first films of the validation split, by name, for the curves.

  No bootstrap: the last table has the intervals.
  """
  if "validation" not in records.splits(folder):
    return {}
  chosen = EvaluationSet(config.data.dataset, config.data.dataset, folder, "validation", True)
  count = config.evaluation.during_films
  common = {"data": "validation", "resamples": 0, "seed": config.seed}
  rows = grounding.evaluate_grounding(
    model, islice(chosen.studies("regions"), count), grounding.box_prior([]), **common
  )
  rows += retrieval.evaluate_retrieval(model, islice(chosen.studies("text"), count), **common)
  asked = prompts.load(config.evaluation.prompts)
  untold = {"tell": lambda _: None}  # it would be the same each time
  films = labelled.embed(model, islice(chosen.studies(), count), "", **untold) if asked else None
  for some in asked if films else ():
    found = zero_shot.score_zero_shot(model, films, some, **untold)
    rows += zero_shot.zero_shot_rows(found, **common)
  return {
    results.scalar_name(row.task, row.metric): row.value
    for row in rows
    if row.model == results.RUN and (row.task, row.group, row.metric) in results.FOLLOWED
  }


def film_views(model: TwoTowers, chosen: EvaluationSet, count: int) -> list[report.FilmView]:
  """Films with regions spread over the set (else any with text), looked at by the model."""
  where = "regions" if chosen.has("regions") else "text"
  source = records.RecordSource(chosen.folder, chosen.split, where=where)
  numbers = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int))
  return [_view(model, source[int(i)]) for i in numbers]


def _view(model: TwoTowers, study: Study) -> report.FilmView:
  film = images.decode(study.image)
  phrases = grounding.units(study)
  words = []
  if study.sentences:
    # One sentence at a time, so that each knows its words.
    looks = model.look([film] * len(study.sentences), [(s,) for s in study.sentences])
    words = [
      [report.Word(word, say, model.on_film(region, film.shape)) for word, say, region in look]
      for look in looks
    ]
  maps = model.ground([film] * len(phrases), [unit.phrase for unit in phrases]) if phrases else []
  return report.FilmView(
    image=film,
    image_id=study.image_id,
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
    notes["note"] = "synthetic films and reports: these figures say nothing about patients"
  return notes


def _of_run(model: TwoTowers, config: ConfigDict) -> dict[str, str]:
  image = config.model.image
  name = f"ResNet-{image.depth} x {image.width:g}"
  if image.name == "vit":
    name = f"ViT of {image.vit.layers} x {image.vit.size}"
  return {
    "step": f"{model.step} of {config.train.steps}, batches of {config.train.batch_size}",
    "model": f"{name}, {config.model.image_px} px, grid {model.grid[0]} x {model.grid[1]}",
  }
