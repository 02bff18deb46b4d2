"""List of what a conversion left out, `skipped.jsonl`: of each its path and the reason."""

import json
from pathlib import Path

from input_pipeline.digests import DamagedError
from input_pipeline.files import replace_text
from input_pipeline.terminal import escape

Skipped = list[dict[str, str]]  # items left out, as {"path", "reason"}


def list_of(folder: Path) -> Path:
  """Returns the path of the list in a folder of records."""
  return folder / "skipped.jsonl"


def write_skipped(folder: Path, skipped: Skipped) -> None:
  """Writes the list, a line of JSON for each item; what does not print is escaped."""
  entries = ({name: escape(text) for name, text in entry.items()} for entry in skipped)
  lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries]
  replace_text(list_of(folder), "".join(lines))


def read_skipped(folder: Path) -> Skipped:
  """Reads the list. Raises DamagedError, naming file and line, where it is not as it is written."""
  path = list_of(folder)
  remedy = "give it back from a copy, or run the conversion again with --retry_skipped"
  if not path.is_file():
    raise DamagedError(f"{path} is missing; {remedy}")
  *lines, rest = path.read_bytes().split(b"\n")
  entries = []
  for i, line in enumerate([*lines, rest] if rest else lines):
    try:
      entry = json.loads(line.decode())
      if {name: type(text) for name, text in entry.items()} != {"path": str, "reason": str}:
        raise ValueError("no path and reason")
    except (ValueError, AttributeError, RecursionError) as error:
      raise DamagedError(
        f"{path}, line {i + 1}: not as the converter writes it ({error!r}); {remedy}"
      ) from error
    entries.append(entry)
  return entries
