"""Small files that are seen whole or not at all."""

import os
from pathlib import Path


def replace_text(path: str | os.PathLike, text: str) -> None:
  """Writes text under a temporary name, then renames it; makes the folder if it is not there."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
  temporary.write_text(text, encoding="utf-8")
  os.replace(temporary, path)
