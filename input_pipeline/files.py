"""Atomic writes: a small file appears whole or not at all."""

import os
import uuid
from pathlib import Path


def temporary_path(path: Path) -> Path:
  """Returns a name beside a file that no other process of any host uses."""
  return path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex}")


def replace_text(path: str | os.PathLike, text: str) -> None:
  """Writes text under a temporary name, then renames it; makes the folder if it is not there."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = temporary_path(path)
  temporary.write_text(text, encoding="utf-8")
  os.replace(temporary, path)
