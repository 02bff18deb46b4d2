"""The folders configs/ and launch/: at the top of the repository, in a wheel inside of plan_jax."""

import sys
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def root() -> Path:
  """Returns the folder that holds configs/ and launch/."""
  inside = _PACKAGE / "bundled"
  return inside if inside.is_dir() else _PACKAGE.parent


def add_to_path() -> None:
  """Lets this process, and the workers that it starts, import `configs` and `launch`."""
  if str(root()) not in sys.path:
    sys.path.insert(0, str(root()))


def find(config: str) -> str:
  """Returns "FILE" or "FILE:VARIANT" with the library's own configs/NAME.py where none is here."""
  file, colon, variant = config.partition(":")
  own = root() / file
  if not Path(file).exists() and own.parent == root() / "configs" and own.is_file():
    file = str(own)
  return f"{file}{colon}{variant}"
