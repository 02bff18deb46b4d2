"""Data sets to evaluate on: a split of the run's own data, and the sets that it attaches."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict
from tqdm import tqdm

from input_pipeline import records
from input_pipeline.conversion import convert
from input_pipeline.errors import UserError
from input_pipeline.example import Example
from input_pipeline.readers import chexpert_radiologists
from input_pipeline.readers.by_name import FACTS
from input_pipeline.readers.folder import MANIFEST
from input_pipeline.readers.raw import tables
from plan_jax.evaluators.decoded import DecodedImages
from plan_jax.runtime import processes
from plan_jax.runtime.logging import log
from plan_jax.runtime.workdir import Workdir


@dataclass(frozen=True)
class EvaluationSet:
  """One split of one folder of records."""

  name: str  # in rows, files and the page; that of the run's own data is its data set's
  dataset: str  # the reader its records come from
  folder: Path  # of the records
  split: str  # "train", "validation" or "test"
  is_own: bool  # it is of the run's own data
  features: Path | None = None  # folder of their stored features
  findings: tuple[str, ...] = ()  # whose labels and regions are scored; all where empty
  radiologists: Path | None = None  # tables of who read it too, see `chexpert_radiologists`
  decoded: DecodedImages | None = field(default=None, compare=False)  # None: none are shared

  @property
  def attached_name(self) -> str:
    """Folder of its per-example scores; "" for the run's own data."""
    return "" if self.is_own else self.name

  @property
  def data(self) -> str:
    """Name of set and split, for rows."""
    return f"{self.name}/{self.split}"

  @property
  def image_splits(self) -> tuple[str, ...]:
    """Splits whose images the model sees: its own, and that of the thresholds."""
    return self.split, "validation"

  def examples(
    self, where: str | None = None, what: str = "", split: str = ""
  ) -> Iterator[Example]:
    """Reads examples, all or those with `where` ("text", "regions"), of its own or another split.

    With `what`, shows a bar and logs how many have not.
    """
    split = split or self.split
    features = self.features if split in self.image_splits else None
    source = records.RecordSource(self.folder, split, where=where, features=features)
    if what and (without := records.splits(self.folder)[split] - len(source)):
      log.info(f"{what}: {without} of the {split} images have no {where} and are left out")
    silent = not what or not processes.is_primary()
    bar = tqdm(range(len(source)), desc=what, unit="image", disable=silent, mininterval=1)
    shared = self.decoded if split == self.split else None
    return (self._prepared(source[i], shared) for i in bar)

  def _prepared(self, example: Example, shared: DecodedImages | None) -> Example:
    """Lets an example share its image, and limits it to `findings`."""
    if shared is not None:
      example = replace(example, pixels=partial(shared.get, example))
    if not self.findings:
      return example
    labels = {name: value for name, value in example.labels.items() if name in self.findings}
    regions = tuple(region for region in example.regions if region.label in self.findings)
    return replace(example, labels=labels, regions=regions)

  def has(self, where: str, split: str = "") -> bool:
    """Tells whether an example has `where`; False for a split that does not exist."""
    split = split or self.split
    if not records.splits(self.folder).get(split):
      return False
    return len(records.RecordSource(self.folder, split, where=where)) > 0


def own(config: ConfigDict, folder, features: Path | None = None) -> EvaluationSet:
  """Opens the run's own data. Raises UserError where the split is absent or not to be scored."""
  name, split = config.data.dataset, config.evaluation.split
  readers = radiologists(config.data, Path(folder), split)
  chosen = EvaluationSet(name, name, Path(folder), split, True, features, radiologists=readers)
  return checked(chosen, "config.evaluation.split")


def attached(config: ConfigDict, workdir: Workdir) -> list[EvaluationSet]:
  """Opens the further sets that `make_attached` converted. Raises UserError as `own`."""
  return [
    checked(
      EvaluationSet(
        name,
        chosen.dataset,
        _folder(name, chosen, workdir),
        chosen.split,
        False,
        _features(config, name, chosen, workdir),
        radiologists=radiologists(chosen, _folder(name, chosen, workdir), chosen.split),
      ),
      f"config.evaluation.sets.{name}.split",
    )
    for name, chosen in given(config).items()
  ]


def radiologists(chosen: ConfigDict, folder: Path, split: str) -> Path | None:
  """Finds the tables of CheXpert's radiologists in its source, or in the folder of its records."""
  if chosen.dataset != "chexpert" or split != "test":
    return None
  places = [Path(chosen.source)] if chosen.source else []
  return next(filter(None, map(chexpert_radiologists.find, [*places, folder])), None)


def stores_features(config: ConfigDict) -> bool:
  """Tells whether images are read as stored features; those of a baseline never are."""
  return config.data.store_features and "baseline" not in config


def own_features(config: ConfigDict, workdir: Workdir) -> Path | None:
  """Returns the folder of the stored features of the run's own data; None without."""
  if not stores_features(config):
    return None
  return Path(config.data.features or workdir.features)


def given(config: ConfigDict) -> dict[str, ConfigDict]:
  """Returns the sets of `config.evaluation.sets` that have data, by name."""
  return {name: chosen for name, chosen in config.evaluation.sets.items() if is_given(chosen)}


def is_given(chosen: ConfigDict) -> bool:
  """Tells whether a set of `config.evaluation.sets` has data: a source, or records."""
  return bool(chosen.source or chosen.records or FACTS[chosen.dataset].synthetic)


def make_attached(config: ConfigDict, workdir: Workdir) -> None:
  """Converts the attached sets that are not converted yet, and logs which are not given.

  Raises UserError where a source or its records are not fit.
  """
  for name, chosen in config.evaluation.sets.items():
    if is_given(chosen):
      try:
        make_records(chosen, _folder(name, chosen, workdir), config.data)
      except UserError as error:
        key = f"config.evaluation.sets.{name}"
        raise UserError(f"{key}: {error} ({key}.source='' does without the set)") from error
    else:
      log.info(
        f"evaluation set {name} is left out: give config.evaluation.sets.{name}.source (or"
        " .records) to have it"
      )


def make_records(chosen: ConfigDict, folder: Path, limits: ConfigDict) -> None:
  """Converts the source of a data set, unless `folder` holds its shards already.

  `chosen` is `config.data` or an entry of `config.evaluation.sets`, `limits` is `config.data`.
  Raises UserError where shards without a source are not whole, or the source is not fit.
  """
  if not chosen.source and not FACTS[chosen.dataset].synthetic:
    records.splits(folder)  # raises where they are not whole
    return
  summary = convert.convert(
    chosen.dataset,
    folder,
    source=chosen.source,
    image_px=limits.stored_px,
    max_decoded_px=limits.max_decoded_px,
    selection=chosen.selection,
    selection_seed=chosen.selection_seed,
    limit=limits.limit or None,
    max_skipped_fraction=limits.max_skipped_fraction,
    # What stopped a conversion may have been repaired since.
    retry_skipped=not records.is_complete(folder),
    **chosen.options,
  )
  if not summary["already"]:
    log.info(convert.describe(summary))


def settle(chosen: ConfigDict) -> str:
  """Settles a data set that is given as a folder alone, its `source`; returns a name for it.

  A folder of records is no source. Split "all" is a test split of all images; with none it is
  "test", but "all" of a manifest without a column of splits.

  Raises UserError where there is no such folder, or it has no manifest.
  """
  folder = Path(chosen.source).resolve()  # ".." has no name
  manifest, info = folder / MANIFEST, folder / "dataset_info.json"
  split, chosen.split = chosen.split, chosen.split or "test"
  if not folder.is_dir():
    raise UserError(f"--on={folder}: there is no such folder")
  if info.exists():
    records.splits(folder)  # raises where they are not whole
    dataset = json.loads(info.read_bytes())["name"]
    chosen.update(source="", records=str(folder), dataset=dataset)
    if split == "all":
      raise UserError(f"--split=all: {folder} holds records: name one of their splits")
  else:
    chosen.source = str(folder)
    if chosen.dataset == "folder" and manifest.is_file():
      row = next(tables.read(manifest, ("image", "text")), ())
      split = split or ("test" if "split" in row else "all")
    if split == "all":
      chosen.update(split="test", selection="all_test")
  return re.sub(r"[^\w.-]", "_", folder.name) or "data"


def conversion_digest(config: ConfigDict, chosen: ConfigDict) -> str:
  """Computes 8 hex digits of all that the records of an evaluation set depend on."""
  limits = ("stored_px", "max_decoded_px", "limit", "max_skipped_fraction")
  settings = chosen.to_dict() | {key: config.data[key] for key in limits}
  settings |= dict(records="", features="", split="")
  text = json.dumps(settings, sort_keys=True)
  return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def fingerprints(sets: Sequence[EvaluationSet]) -> dict[str, str]:
  """Computes the fingerprint of the records of each set, by its `data`."""
  return {chosen.data: records.fingerprint(chosen.folder) for chosen in sets}


def _folder(name: str, chosen: ConfigDict, workdir: Workdir) -> Path:
  return Path(chosen.records or workdir.path / f"records_{name}")


def _features(config: ConfigDict, name: str, chosen: ConfigDict, workdir: Workdir) -> Path | None:
  if not stores_features(config):
    return None
  return Path(chosen.features or workdir.path / f"features_{name}")


def checked(chosen: EvaluationSet, key: str) -> EvaluationSet:
  """Returns the set itself. Raises UserError, naming the key, where there is nothing to score.

  It raises SourceError where a table of radiologists is damaged.
  """
  if chosen.radiologists:
    chexpert_radiologists.read(chosen.radiologists)
  folder, split, splits = chosen.folder, chosen.split, records.splits(chosen.folder)
  if not splits.get(split):
    raise UserError(f"{key} {split!r} is not in {folder} (its splits: {', '.join(splits)})")
  if any(chosen.has(where) for where in ("regions", "text")):
    return chosen
  if not any(example.labels for example in chosen.examples()):
    raise UserError(
      f"{key} {split!r} in {folder} has neither regions nor texts nor labels: nothing to score"
    )
  return chosen
