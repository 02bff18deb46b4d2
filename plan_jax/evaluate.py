"""All evaluators over a trained run, and the page that shows their results."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from input_pipeline import digests, images, records
from input_pipeline.disk import disk_errors
from input_pipeline.example import Example
from input_pipeline.files import replacing
from input_pipeline.readers.by_name import FACTS
from input_pipeline.text import diagnostic_terms
from plan_jax.evaluators import (
  grounding,
  labelled_images,
  retrieval,
  stored_scores,
  zero_shot,
)
from plan_jax.evaluators.base import Evaluator
from plan_jax.evaluators.by_name import DEFINITIONS, configured
from plan_jax.evaluators.datasets import EvaluationSet, fingerprints
from plan_jax.evaluators.decoded import DecodedImages
from plan_jax.evaluators.embeddings import Embeddings, embed_pairs
from plan_jax.evaluators.phrases import phrases
from plan_jax.inference import calibration, prompts
from plan_jax.inference.predictor import Predictor
from plan_jax.results import example_scores, report, rows, tables
from plan_jax.results.contact_sheet import spread_over
from plan_jax.results.example_scores import ExampleScores
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime import processes
from plan_jax.runtime.logging import curves, log
from plan_jax.runtime.workdir import Workdir
from plan_jax.training import extension

_CALIBRATION_IMAGES = 200
# Data set, task, rows, files of per-example scores.
Learned = Iterable[tuple[EvaluationSet, str, list[Row], list[Path]]]


@disk_errors()
def evaluate(
  model: Predictor,
  config: ConfigDict,
  workdir: Workdir,
  sets: Sequence[EvaluationSet],
  *,
  learned: Learned = (),
  title: str = "",
  notes: dict[str, str] | None = None,
) -> list[Row]:
  """Scores the run on its evaluation sets; writes example_scores/, evaluation.json and the report.

  Of `sets` the run's own is the first. The tasks of `learned` are learned while they are taken,
  after the evaluation of the model itself is written. `title` and `notes`, facts of the model, head
  the report; by default those of a training.
  """
  evaluators = configured(config)
  results, scores, files, views, patients, stored = [], {}, [], [], {}, []
  log.info("an evaluation is written when all sets are scored: stopped before, it begins again")
  for dataset in sets:
    log.info(f"evaluating step {model.step} on {dataset.data}")
    set_rows, by_task, entries = _score(model, evaluators, dataset, config)
    results += set_rows
    scores |= {(dataset, task): each for task, each in by_task.items()}
    patients |= {(dataset.data, task): s.patients_by_group() for task, s in by_task.items()}
    place = {"folder": dataset.attached_name, "data": dataset.data}
    stored.append(place | {"evaluators": entries})
    views += image_views(model, dataset, config.evaluation.report_images)
  if model.note:
    log.info(model.note)
  log.info(tables.table(results))

  calibrated = _calibrate(model, config, sets[0])

  def write(complete: bool) -> None:
    with replacing(workdir.example_scores) as folder:
      folder.mkdir()
      for (dataset, task), each in scores.items():
        example_scores.write(folder / dataset.attached_name / f"{task}.csv", each)
      stored_scores.write(folder, stored, **_draws(config))
      for dataset, task, file in files:
        path = folder / dataset.attached_name / f"{task}{file.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, path)
      digests.write_sums(folder)
      # Those of an earlier evaluation go with it. The new one comes last: it says that all is here.
      workdir.evaluation.unlink(missing_ok=True)
      shutil.rmtree(workdir.example_scores, ignore_errors=True)
    report.write_report(
      workdir.report,
      head=report.Head(
        title or f"{config.data.dataset}: word-pixel alignment after {model.step} steps",
        _summary(model, config, sets),
        _notes(config, sets, _run_notes(model, config, workdir) if notes is None else notes),
      ),
      rows=results,
      patients=patients,
      curves=curves(workdir.metrics),
      images=views,
      protocols=DEFINITIONS,
    )
    if calibrated:
      calibration.write(workdir.calibration, calibrated)
    report.save_overlays(workdir.report.with_name("overlays.png"), views)
    evaluation = rows.Evaluation(model.step, results, fingerprints(sets), complete)
    rows.write(workdir.evaluation, evaluation)

  if config.evaluation.get("transfer"):
    processes.on_primary(lambda: write(False))  # what comes now may take hours, and be stopped
  for dataset, task, task_rows, task_files in learned:
    results += task_rows
    files += [(dataset, task, file) for file in task_files]
    for file in task_files:
      if file.suffix == ".csv":
        patients[dataset.data, task] = example_scores.read(file).patients_by_group()
  # A process that leaves before is thought lost after a while, and all are ended.
  processes.on_primary(lambda: write(True))
  log.info(f"\n{tables.headline(results)}\n\nreport: {workdir.report}")
  return results


def _score(
  model: Predictor, evaluators: Sequence[Evaluator], dataset: EvaluationSet, config: ConfigDict
) -> tuple[list[Row], dict[str, ExampleScores], list[dict]]:
  """Applies the evaluators: all rows, the per-example scores by task, what is kept of each."""
  common = {"data": dataset.data, **_draws(config)}
  dataset = replace(dataset, decoded=DecodedImages())
  evaluators = [evaluator for evaluator in evaluators if evaluator.applies(dataset)]
  offered = any(evaluator.takes_labelled for evaluator in evaluators)
  embeddings = Embeddings(model, dataset, offered=offered)
  results, by_task, entries = [], {}, []
  for evaluator in evaluators:
    scores = evaluator.score(model, dataset, embeddings)
    results += evaluator.rows(scores, **common)
    kept = evaluator.example_scores(scores)
    entries += stored_scores.describe(evaluator, scores, kept)
    by_task |= kept
  if not results:
    log.info(f"{dataset.data} has nothing to score: no regions, no texts, no finding of both kinds")
  return results, by_task, entries


def _draws(config: ConfigDict) -> dict[str, int]:
  return {"resamples": config.evaluation.resamples, "seed": config.seed}


def _calibrate(
  model: Predictor, config: ConfigDict, own: EvaluationSet
) -> calibration.Calibration | None:
  """Measures peaks on validation images, spread over the split; None without, and of a baseline."""
  if "baseline" in config or not (own.is_own and own.has("text", "validation")):
    return None
  log.info(f"calibrating step {model.step} on {own.name}/validation")
  source = records.RecordSource(own.folder, "validation", where="text", features=own.features)
  examples = (source[i] for i in spread_over(len(source), _CALIBRATION_IMAGES))
  return calibration.measure(model, examples, diagnostic_terms.load(config.text.terms))


def validation_scalars(
  model: Predictor, folder: Path, config: ConfigDict, features: Path | None = None
) -> dict[str, float]:
  """Computes `rows.FOLLOWED` on the first images of the validation split, by name, for the curves.

  No bootstrap: the last table has the intervals.
  """
  if "validation" not in records.splits(folder):
    return {}
  name = config.data.dataset
  dataset = EvaluationSet(name, name, folder, "validation", True, features)
  count = config.evaluation.during_images
  common = {"data": "validation", "resamples": 0, "seed": config.seed}
  scores = grounding.score_grounding(model, islice(dataset.examples("regions"), count), None)
  results = grounding.grounding_rows(scores, **common)
  pairs = embed_pairs(model, islice(dataset.examples("text"), count))
  results += retrieval.retrieval_rows(retrieval.score_retrieval(pairs), **common)
  quiet = {"notify": lambda _: None}  # it would be the same each time
  sets = prompts.load(config.evaluation.prompts)
  labelled = sets and labelled_images.embed(model, islice(dataset.examples(), count), "", **quiet)
  for prompt_set in sets if labelled else ():
    by_prompts = zero_shot.score_zero_shot(model, labelled, prompt_set, **quiet)
    results += zero_shot.zero_shot_rows(by_prompts, **common)
  return {
    rows.scalar_name(row.task, row.metric): row.value
    for row in results
    if row.model == RUN and (row.task, row.group, row.metric) in rows.FOLLOWED
  }


def image_views(model: Predictor, dataset: EvaluationSet, count: int) -> list[report.ImageView]:
  """Views images with regions (else any with text), spread over the set, as the model does."""
  where = "regions" if dataset.has("regions") else "text"
  source = records.RecordSource(dataset.folder, dataset.split, where=where)
  return [_view(model, source[i]) for i in spread_over(len(source), count)]


def _view(model: Predictor, example: Example) -> report.ImageView:
  image = images.decode_example(example)
  truth = phrases(example)
  # One sentence at a time, so that each knows its words.
  alone = [(sentence,) for sentence in example.sentences]
  words = [
    [
      report.Word(word, weight, model.on_image(region, image.shape))
      for word, weight, region in sentence
    ]
    for sentence in (model.attend([image] * len(alone), alone) if alone else ())
  ]
  maps = model.maps([image] * len(truth), [phrase.text for phrase in truth]) if truth else []
  return report.ImageView(
    image=image,
    image_id=example.image_id,
    sentences=words,
    phrases=[
      report.Phrase(phrase.text, phrase.label, phrase.mask, np.nan_to_num(heatmap))  # NaN: cropped
      for phrase, heatmap in zip(truth, maps, strict=True)
    ],
  )


def _summary(model: Predictor, config: ConfigDict, sets: Sequence[EvaluationSet]) -> str:
  """Writes in words what the model is, and what it is evaluated on."""
  first = "A model of another project by its published weights: nothing was trained here."
  if "baseline" not in config:
    trained = f"{model.step:,} steps of {config.train.batch_size} pairs of image and report"
    first = (
      f"A model pre-trained by the method {config.alignment.method} on {config.data.dataset}, in"
      f" {trained}, without a label of a region: every word of a report has its own soft region of"
      " the image."
    )
  counts = [f"{each.data} ({records.splits(each.folder)[each.split]:,} images)" for each in sets]
  synthetic = [each.name for each in sets if FACTS[each.dataset].synthetic]
  text = f"{first} Evaluated on {', '.join(counts)}."
  if synthetic:
    text += f" Synthetic data ({', '.join(synthetic)}): its metrics say nothing about patients."
  return text


def _notes(
  config: ConfigDict, sets: Sequence[EvaluationSet], model_notes: dict[str, str]
) -> dict[str, str]:
  """Collects facts for the head of the page."""
  prints = fingerprints(sets).items()
  return {
    "data": ", ".join(f"{data} (records {fingerprint})" for data, fingerprint in prints),
    **model_notes,
    "seed": str(config.seed),
  }


def _run_notes(model: Predictor, config: ConfigDict, workdir: Workdir) -> dict[str, str]:
  earlier = extension.read(workdir).items()
  led = "".join(f", to step {step} by a schedule of {steps}" for step, steps in earlier)
  image = config.model.image
  name = f"ResNet-{image.depth} x {image.width:g}"
  if image.name == "vit":
    name = f"ViT of {image.vit.depth} x {image.vit.embed_dim}"
  return {
    "step": f"{model.step} of {config.train.steps}, batches of {config.train.batch_size}{led}",
    "model": f"{name}, {config.model.image_px} px, grid {model.grid[0]} x {model.grid[1]}",
  }
