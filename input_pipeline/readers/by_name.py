"""Readers by name: one module a data set, each turning a raw folder into a list of its images.

A new reader is a module with `open_source(source, **options) -> Source` and its line in `READERS`.
`open_source` lists the images and reads none of them. It raises SourceError, which names file, row
and column, where a table is missing or damaged, a cell cannot be right, or rows contradict each
other. A reader that draws its images takes no source. `source.Listing` collects items, notes and
broken parts; `source.build_example` makes the example of an item.
"""

import argparse
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from input_pipeline.phantom import reports as phantom_reports
from input_pipeline.readers import (
  chestx_det10,
  chexpert,
  folder,
  mimic_cxr,
  ms_cxr,
  nih14,
  object_cxr,
  openi,
  padchest,
  padchest_gr,
  phantom,
  rsna,
  siim,
  vindr,
)
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.source import Source

READERS: dict[str, Callable[..., Source]] = {
  "chestx_det10": chestx_det10.open_source,
  "chexpert": chexpert.open_source,
  "folder": folder.open_source,
  "mimic_cxr": mimic_cxr.open_source,
  "ms_cxr": ms_cxr.open_source,
  "nih14": nih14.open_source,
  "object_cxr": object_cxr.open_source,
  "openi": openi.open_source,
  "padchest": padchest.open_source,
  "padchest_gr": padchest_gr.open_source,
  "phantom": phantom.open_source,
  "rsna": rsna.open_source,
  "siim": siim.open_source,
  "vindr": vindr.open_source,
}


@dataclass(frozen=True)
class Facts:
  """Facts of a data set that its records do not tell.

  Attributes:
    synthetic: made by a program, without a source; its metrics say nothing about patients.
    word_kinds: sentence -> the kind of each of its words, "finding", "attribute" or "other"; None
      where only annotations tell.
  """

  synthetic: bool = False
  word_kinds: Callable[[str], list[str]] | None = None


FACTS: dict[str, Facts] = {name: Facts() for name in READERS} | {
  "phantom": Facts(synthetic=True, word_kinds=phantom_reports.word_kinds)
}


def default_options(dataset: str) -> dict[str, Any]:
  """Returns the keyword arguments of a reader's open_source and their defaults."""
  parameters = inspect.signature(READERS[dataset]).parameters.values()
  return {p.name: p.default for p in parameters if p.name != "source"}


def open_reader(dataset: str, source: str, options: dict[str, Any]) -> Source:
  """Opens a source. Raises SourceError as the reader does, and for options that it lacks."""
  known = default_options(dataset)
  if unknown := [name for name in options if name not in known]:
    listed = ", ".join(known) or "none"
    raise SourceError(f"{', '.join(unknown)}: no option of reader {dataset!r}; it has {listed}")
  if "source" in inspect.signature(READERS[dataset]).parameters:
    return READERS[dataset](source, **options)
  if source:
    raise SourceError(f"{dataset} is drawn, not read: leave out source ({source!r})")
  return READERS[dataset](**options)


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the readers' options to a command line; its namespace holds only those that are given.

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
      text = ", ".join([f"default {default}", *others])
      group.add_argument(f"--{name}", default=argparse.SUPPRESS, help=text, **kind)
