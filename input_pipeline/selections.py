"""Selections: named, seeded choices of a data set's films, with a hash of what was chosen.

A selection is a function of the reader's listing alone, so it exists before any image is read, and
the same listing and seed give the same films. It can be written as JSON and shared:

  {"name", "seed", "hash", "splits": {"train": [image ids], "validation": [...], "test": [...]}}
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from input_pipeline.errors import UserError
from input_pipeline.readers import Item
from input_pipeline.study import SPLITS


class SelectionError(UserError):
  """A selection cannot be made or read; the message says why."""


@dataclass(frozen=True)
class Selection:
  """Which films, in which split.

  Attributes:
    name: of the builder, or as the file says.
    seed: it was drawn with.
    splits: split -> image ids, in the selection's order.
  """

  name: str
  seed: int
  splits: dict[str, tuple[str, ...]]

  @property
  def hash(self) -> str:
    """16 hex digits of the ids and their splits; order does not count."""
    splits = {split: sorted(ids) for split, ids in sorted(self.splits.items()) if ids}
    return hashlib.blake2b(json.dumps(splits).encode(), digest_size=8).hexdigest()

  def to_json(self) -> str:
    """As a file holds it."""
    content = {"name": self.name, "seed": self.seed, "hash": self.hash, "splits": self.splits}
    return json.dumps(content, indent=1) + "\n"


def load(path: str | Path) -> Selection:
  """Reads a selection file. Raises SelectionError where it is none, or its hash differs."""
  try:
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    splits = {split: tuple(map(str, ids)) for split, ids in content["splits"].items()}
    selection = Selection(str(content["name"]), int(content["seed"]), splits)
    written = content["hash"]
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise SelectionError(f"{path}: no selection file ({type(error).__name__}: {error})") from error
  if unknown := set(splits) - set(SPLITS):
    raise SelectionError(f"{path}: split {min(unknown)!r} is not one of {', '.join(SPLITS)}")
  if written != selection.hash:
    raise SelectionError(
      f"{path}: its ids have the hash {selection.hash}, it says {written}: it was changed by hand"
    )
  return selection


def make(name: str, items: Sequence[Item], seed: int) -> Selection:
  """The selection of a name in SELECTIONS, or of a JSON file.

  Raises SelectionError where there is no such selection, or the listing does not allow it.
  """
  if name.endswith(".json"):
    return load(name)
  if name not in SELECTIONS:
    raise SelectionError(
      f"there is no selection {name!r}; known are {', '.join(SELECTIONS)}, or a .json file"
    )
  if not all(item.image_id for item in items):
    raise SelectionError(f"selection {name!r}: the reader does not list its films' image ids")
  splits = SELECTIONS[name](items, seed)
  return Selection(name, seed, {split: tuple(ids) for split, ids in splits.items()})


def select(items: Sequence[Item], selection: Selection) -> list[Item]:
  """The chosen items, in the listing's order, each in the split of the selection.

  Raises SelectionError where the listing lacks a film, or a film is chosen twice.
  """
  split_of: dict[str, str] = {}
  for split, ids in selection.splits.items():
    for image_id in ids:
      if image_id in split_of:
        raise SelectionError(f"selection {selection.name!r}: {image_id!r} is chosen twice")
      split_of[image_id] = split
  chosen = [replace(i, split=split_of[i.image_id]) for i in items if i.image_id in split_of]
  if len(chosen) != len(split_of):
    missing = sorted(split_of.keys() - {item.image_id for item in chosen})
    raise SelectionError(
      f"selection {selection.name!r}: {len(missing)} of {len(split_of)} films are not in the"
      f" source, the first is {missing[0]!r}"
      if missing
      else f"selection {selection.name!r}: the source lists an image id twice"
    )
  return chosen


# name -> function of the listing and a seed: split -> image ids.
SELECTIONS: dict[str, Callable[[Sequence[Item], int], dict[str, Sequence[str]]]] = {}
