"""Selections: named, seeded choices of a data set's images, with a hash of what was chosen.

A selection is a function of the reader's listing alone, so it exists before any image is read, and
the same listing and seed give the same images. It can be written as JSON and shared, by

  python -m input_pipeline.conversion.selections --dataset=chexpert --source=/data/CheXpert-v1.0 \
    --selection=5x200 --out=chexpert_5x200.json

as

  {"name", "seed", "hash", "splits": {"train": [image ids], "validation": [...], "test": [...]}}
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from input_pipeline.command_line import Parser, at_least
from input_pipeline.conversion.selection_builders import SELECTIONS, SelectionError, eligible
from input_pipeline.errors import UserError
from input_pipeline.example import SPLITS
from input_pipeline.files import replace_text
from input_pipeline.readers import by_name as readers
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.raw.tables import read_json
from input_pipeline.readers.source import Item, Source, check_patients
from input_pipeline.terminal import escape


@dataclass(frozen=True)
class Selection:
  """Images of a data set, each in a split, and the builder's name and seed."""

  name: str
  seed: int
  splits: dict[str, tuple[str, ...]]  # split -> image ids

  @property
  def hash(self) -> str:
    """Returns 16 hex digits of the ids and their splits; order does not count."""
    splits = {split: sorted(ids) for split, ids in sorted(self.splits.items()) if ids}
    return hashlib.blake2b(json.dumps(splits).encode(), digest_size=8).hexdigest()

  def to_json(self) -> str:
    """Returns the text of a selection file."""
    content = {"name": self.name, "seed": self.seed, "hash": self.hash, "splits": self.splits}
    return json.dumps(content, indent=1) + "\n"


def load(path: str | Path) -> Selection:
  """Reads a selection file. Raises SelectionError where it is none, or its hash differs."""
  try:
    content = read_json(Path(path))
    splits = {split: tuple(map(str, ids)) for split, ids in content["splits"].items()}
    selection = Selection(str(content["name"]), int(content["seed"]), splits)
    written = content["hash"]
  except SourceError as error:
    raise SelectionError(f"no selection file: {error}") from None
  except (ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
    raise SelectionError(f"{path}: no selection file ({type(error).__name__}: {error})") from error
  if unknown := set(splits) - set(SPLITS):
    raise SelectionError(f"{path}: split {min(unknown)!r} is not one of {', '.join(SPLITS)}")
  if written != selection.hash:
    raise SelectionError(
      f"{path}: its ids have the hash {selection.hash}, it says {written}: it was changed by hand"
    )
  return selection


def make(name: str, items: Sequence[Item], seed: int) -> Selection:
  """Makes the selection of a name in SELECTIONS, or of a JSON file.

  Raises SelectionError where there is no such selection, or the listing does not allow it.
  """
  if name.endswith(".json"):
    return load(name)
  if name not in SELECTIONS:
    raise SelectionError(
      f"there is no selection {name!r}; known are {', '.join(SELECTIONS)}, or a .json file"
    )
  if not all(item.image_id for item in items):
    raise SelectionError(f"selection {name!r}: the reader does not list its images' image ids")
  splits = SELECTIONS[name](items, seed)
  return Selection(name, seed, {split: tuple(ids) for split, ids in splits.items()})


def select(items: Sequence[Item], selection: Selection) -> list[Item]:
  """Returns the chosen items, in the listing's order, each in the split of the selection.

  Raises SelectionError where the listing lacks an image, or an image is chosen twice.
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
      f"selection {selection.name!r}: {len(missing)} of {len(split_of)} images are not in the"
      f" source, the first is {missing[0]!r}"
      if missing
      else f"selection {selection.name!r}: the source lists an image id twice"
    )
  return chosen


def cut(source: Source, selection: Selection) -> Source:
  """Cuts a source to a selection; its note on splits stays where those of all images stay.

  Raises SelectionError as `select`.
  """
  items = select(source.items, selection)
  before = {item.image_id: item.split for item in source.items}
  is_kept = all(item.split == before[item.image_id] for item in items)
  notes = tuple(note for note in source.notes if is_kept or note != source.split_note)
  return replace(source, items=items, notes=notes)


def _parser() -> Parser:
  about = "Makes a selection, prints its counts and hash, and writes it to share it."
  parser = Parser("python -m input_pipeline.conversion.selections", about)
  add = parser.add_argument
  add("--dataset", required=True, choices=readers.READERS, help="which reader lists the images")
  add("--source", default="", help="folder of the raw data")
  add(
    "--selection", required=True, help=f"one of {', '.join(SELECTIONS)}, or a .json file to check"
  )
  add("--selection_seed", type=at_least(0), default=0, help="of the draw (default 0)")
  add("--out", help="JSON file to write")
  readers.add_options(parser)
  return parser


def _describe(source: Source, selection: Selection, chosen: Source) -> list[str]:
  """Returns the lines that the command prints."""
  lines = [f"note: {note}" for note in chosen.notes]
  if source.left_out:
    key, reason = source.left_out[0]
    count = len(source.left_out)
    lines.append(f"note: {count} left out by the listing, the first is {key}: {reason}")
  if selection.name in ("5x200", "without_5x200"):
    counts = ", ".join(f"{label} {len(ids)}" for label, ids in eligible(source.items).items())
    lines.append(f"eligible: {counts}")
  lines.append(f"{selection.name}, seed {selection.seed}: hash {selection.hash}")
  for split in SPLITS:
    images = [item for item in chosen.items if item.split == split]
    labels = Counter(label for item in images for label, value in item.labels if value == 1)
    counts = ", ".join(f"{label} {count}" for label, count in labels.most_common())
    if images:
      patients = len({item.patient_id for item in images})
      lines.append(
        f"{split}: {len(images)} images of {patients} patients ({counts or 'no labels'})"
      )
  return lines


def main() -> None:
  """Runs the command line: prints the selection, or one error and exit status 1."""
  arguments = vars(_parser().parse_args())
  dataset, folder, name, seed, out = (
    arguments.pop(key) for key in ("dataset", "source", "selection", "selection_seed", "out")
  )
  try:
    source = readers.open_reader(dataset, folder, arguments)
    selection = make(name, source.items, seed)
    chosen = cut(source, selection)
    check_patients(chosen.items)
    if out:
      replace_text(out, selection.to_json())
  except UserError as error:
    raise SystemExit(f"error: {error}") from None
  print("\n".join(map(escape, _describe(source, selection, chosen))))
  if out:
    print(escape(f"written to {out}: the conversion takes it as --selection={out}"))


if __name__ == "__main__":
  main()
