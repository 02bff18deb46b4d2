"""All evaluators over a trained run, and the page that shows what they found."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from input_pipeline import images, phantom_reports, records
from input_pipeline import terms as terms_list
from input_pipeline.errors import UserError
from input_pipeline.study import Study
from plan_jax import hosts, report, reporting
from plan_jax.evaluators import grounding, presence, results, retrieval, terms, units
from plan_jax.grounder import Grounder
from plan_jax.reporting import say
from plan_jax.workdir import Workdir


def evaluate(model: Grounder, config: ConfigDict, workdir: Workdir, folder) -> list[results.Row]:
  """Scores the run on its evaluation split; writes units/, evaluation.json and the report.

  Raises UserError as `evaluation_data` does.
  """
  data, split = evaluation_data(config, folder), config.evaluation.split
  say(f"evaluating step {model.step} on {data}")
  common = {"data": data, "resamples": config.evaluation.resamples, "seed": config.seed}
  prior = grounding.box_prior([])
  if "train" in records.splits(folder):
    prior = grounding.box_prior(_all(folder, "train", "regions", "mean box of training"))
  grounded = grounding.score_grounding(
    model, _all(folder, split, "regions", "grounding"), prior, seed=config.seed
  )
  galleries = retrieval.score_retrieval(model, _all(folder, split, "text", "retrieval"))
  rows = grounding.grounding_rows(grounded, **common)
  rows += retrieval.retrieval_rows(galleries, **common)
  if model.dropped_sentences:
    say(
      f"{model.dropped_sentences} sentences found no room: raise config.evaluation.max_tokens"
      " and max_words"
    )
  rows += presence.evaluate_presence(model, _all(folder, split, what="presence"), **common)
  if config.data.dataset == "phantom":  # only there is it known what every word does
    rows += terms.evaluate_terms(
      model,
      _all(folder, split, "text", "terms"),
      phantom_reports.word_kinds,
      terms_list.load(config.text.terms).named,
      **common,
    )
  say(results.table(rows))
  views = film_views(model, folder, split, config.evaluation.report_films)
  if not hosts.is_first():
    return rows
  _write_units(workdir, "grounding", grounded.get(results.RUN))
  _write_units(workdir, "retrieval", galleries["all"].units if galleries else None)
  results.write(workdir.evaluation, model.step, rows)
  path = report.write_report(
    workdir.report,
    title=f"{config.data.dataset}: word-pixel alignment after {model.step} steps",
    rows=rows,
    curves=reporting.curves(workdir.metrics),
    films=views,
    notes=_notes(model, config, folder, data),
  )
  report.save_overlays(workdir.report.with_name("overlays.png"), views)
  say(f"\n{results.headline(rows)}\n\nreport: {path}")
  return rows


def validation_scalars(model: Grounder, folder, config: ConfigDict) -> dict[str, float]:
  """`results.FOLLOWED` on the first films of the validation split, by name, for the curves.

  No bootstrap: the last table has the intervals.
  """
  if "validation" not in records.splits(folder):
    return {}
  count = config.evaluation.during_films
  common = {"data": "validation", "resamples": 0, "seed": config.seed}
  rows = grounding.evaluate_grounding(
    model, islice(_all(folder, "validation", "regions"), count), grounding.box_prior([]), **common
  )
  rows += retrieval.evaluate_retrieval(
    model, islice(_all(folder, "validation", "text"), count), **common
  )
  return {
    results.scalar_name(row.task, row.metric): row.value
    for row in rows
    if row.model == results.RUN and (row.task, row.group, row.metric) in results.FOLLOWED
  }


def evaluation_data(config: ConfigDict, folder) -> str:
  """Name of what the run is evaluated on: data set and split.

  Raises UserError where config.evaluation.split is not there (naming those that are), or holds
  neither true regions nor texts.
  """
  there, split = records.splits(folder), config.evaluation.split
  if not there.get(split):
    raise UserError(
      f"config.evaluation.split {split!r} is not in {folder} (there: {', '.join(there)})"
    )
  if not any(len(records.RecordSource(folder, split, where=w)) for w in ("regions", "text")):
    raise UserError(f"config.evaluation.split {split!r} in {folder} has neither regions nor texts")
  return f"{config.data.dataset}/{split}"


def _write_units(workdir: Workdir, task: str, scores: units.Units | None) -> None:
  """Scores for a comparison pair by pair; those of an earlier evaluation go in any case."""
  path = workdir.units / f"{task}.csv"
  if scores is None:
    path.unlink(missing_ok=True)
  else:
    units.write(path, scores)


def film_views(model: Grounder, folder, split: str, count: int) -> list[report.FilmView]:
  """Films with regions spread over the split (else any with text), looked at by the model."""
  source = records.RecordSource(folder, split, where="regions")
  if not len(source):
    source = records.RecordSource(folder, split, where="text")
  chosen = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int))
  studies = [source[int(i)] for i in chosen]
  return [_view(model, study) for study in studies]


def _view(model: Grounder, study: Study) -> report.FilmView:
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
      report.Phrase(unit.phrase, unit.label, unit.mask, heat)
      for unit, heat in zip(phrases, maps, strict=True)
    ],
  )


def _all(folder, split: str, where: str | None = None, what: str = "") -> Iterator[Study]:
  """The studies of a split, all or those with `where`; with `what`, a bar and how many have not."""
  source = records.RecordSource(folder, split, where=where)
  if what and (without := records.splits(folder)[split] - len(source)):
    say(f"{what}: {without} of the {split} films have no {where} and are left out")
  silent = not what or not hosts.is_first()
  bar = tqdm(range(len(source)), desc=what, unit="film", disable=silent, mininterval=1)
  return (source[i] for i in bar)


def _notes(model: Grounder, config: ConfigDict, folder, data: str) -> dict[str, str]:
  """Facts for the head of the page."""
  model_line = (
    f"ResNet-{config.model.image.depth} x {config.model.image.width:g}, {config.model.image_px} px"
  )
  notes = {
    "data": f"{data} (records {records.fingerprint(folder)})",
    "step": f"{model.step} of {config.train.steps}, batches of {config.train.batch_size}",
    "model": f"{model_line}, grid {model.grid[0]} x {model.grid[1]}",
    "seed": str(config.seed),
  }
  if config.data.dataset == "phantom":
    notes["note"] = "synthetic films and reports: these figures say nothing about patients"
  return notes
