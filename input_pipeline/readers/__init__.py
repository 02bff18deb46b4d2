"""Readers: one module a data set, each turning a raw folder into a list of items and their studies.

Here stands what they share: items and sources.

A new reader is a module with `open_source(source, **options) -> Source` and its line in `READERS`.
"""

import argparse
import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from input_pipeline.raw import SourceError
from input_pipeline.study import Study


@dataclass(frozen=True)
class Item:
  """All that is known of one film before its image is read; small and picklable.

  Attributes:
    key: path (and row) by which errors and skipped.jsonl name it.
    split: "train", "validation" or "test".
    patient_id: the converter refuses a patient that sits in two splits.
    row: the reader's own; its repr must say all that decides the study.
    image_id: as in the study; "" where the listing does not know it yet.
    view: likewise.
    labels: (name, 1, 0 or -1) that the listing knows; selections choose by them.
  """

  key: str
  split: str
  patient_id: str
  row: Any
  image_id: str = ""
  view: str = ""
  labels: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Source:
  """A data set before conversion.

  Attributes:
    name: what its shards' names begin with.
    items: its films in a fixed order.
    read: makes the study of an item, picklable. The study's image may be any encoded image that
      `stored.store_image` takes; the converter brings it to the stored form. Raises
      UnreadableError for what cannot be read, SourceError where the source contradicts itself.
    notes: what the user should know of the listing: defaults taken, films left aside on purpose.
    left_out: (key, reason) of what the listing found broken: rows, boxes, films. The converter adds
      them to skipped.jsonl, and they count against max_skipped_fraction.
  """

  name: str
  items: list[Item]
  read: Callable[[Item], Study]
  notes: tuple[str, ...] = ()
  left_out: tuple[tuple[str, str], ...] = ()


def draw(patient_id: str) -> float:
  """A number in [0, 1) by the patient's name alone, so that adding films moves nobody."""
  return int.from_bytes(hashlib.blake2b(patient_id.encode(), digest_size=4).digest(), "big") / 2**32


def draw_split(patient_id: str) -> str:
  """A split, 80/10/10, by the patient's name alone."""
  drawn = draw(patient_id)
  return "train" if drawn < 0.8 else "validation" if drawn < 0.9 else "test"


def check_patients(items: list[Item]) -> None:
  """Raises SourceError where a patient sits in two splits: evaluation would leak."""
  first: dict[str, Item] = {}
  twice = {}
  for item in items:
    if first.setdefault(item.patient_id, item).split != item.split:
      twice.setdefault(item.patient_id, item)
  if twice:
    patient, item = next(iter(twice.items()))
    raise SourceError(
      f"{len(twice)} patients sit in two splits; the first is {patient!r}:"
      f" {first[patient].split} by {first[patient].key}, {item.split} by {item.key};"
      " give each patient one split"
    )


# Below the definitions, which the readers import from here.
from input_pipeline.readers import (  # noqa: E402
  chestx_det10,
  chexpert,
  folder,
  mimic_cxr,
  ms_cxr,
  nih14,
  object_cxr,
  openi,
  padchest_gr,
  phantom,
)

READERS: dict[str, Callable[..., Source]] = {
  "chestx_det10": chestx_det10.open_source,
  "chexpert": chexpert.open_source,
  "folder": folder.open_source,
  "mimic_cxr": mimic_cxr.open_source,
  "ms_cxr": ms_cxr.open_source,
  "nih14": nih14.open_source,
  "object_cxr": object_cxr.open_source,
  "openi": openi.open_source,
  "padchest_gr": padchest_gr.open_source,
  "phantom": phantom.open_source,
}


def default_options(dataset: str) -> dict[str, Any]:
  """The keyword arguments of a reader's open_source and their defaults."""
  parameters = inspect.signature(READERS[dataset]).parameters.values()
  return {p.name: p.default for p in parameters if p.name != "source"}


def open_reader(dataset: str, source: str, options: dict[str, Any]) -> Source:
  """Opens a source with options given by name.

  Raises SourceError where the reader has no such option, and as the reader does.
  """
  known = default_options(dataset)
  if unknown := [name for name in options if name not in known]:
    listed = ", ".join(known) or "none"
    raise SourceError(f"{', '.join(unknown)}: no option of reader {dataset!r}; it has {listed}")
  return READERS[dataset](source, **options)


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the readers' options to a command line; what is not given is not in its namespace.

  An option that several readers share is listed with the first, and names the others' defaults.
  """
  shared: dict[str, list[str]] = {}
  for dataset in READERS:
    for name in default_options(dataset):
      shared.setdefault(name, []).append(dataset)
  for dataset in READERS:
    group = parser.add_argument_group(f"options of --dataset={dataset}")
    for name, default in default_options(dataset).items():
      if shared[name][0] != dataset:
        continue
      kind = {"type": str if default is None else type(default)}
      if isinstance(default, bool):
        kind = {"action": argparse.BooleanOptionalAction}
      others = [f"of {other} {default_options(other)[name]}" for other in shared[name][1:]]
      told = ", ".join([f"default {default}", *others])
      group.add_argument(f"--{name}", default=argparse.SUPPRESS, help=told, **kind)
