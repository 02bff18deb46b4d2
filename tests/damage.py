"""Files that are damaged, and the one line that must come of it."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from input_pipeline.errors import UserError


def for_each_damage(file: Path, read: Callable[[], object], places: int = 12) -> None:
  """Flips bytes of a file, cuts it, and removes it: `read` must name it in one line each time."""
  whole = file.read_bytes()
  places = sorted({len(whole) * i // places for i in range(places)} | {len(whole) - 1})
  flipped = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in places]
  try:
    for i, content in [*zip(places, flipped, strict=True), ("cut", whole[:-1]), ("empty", b"")]:
      file.write_bytes(content)
      _assert_named(file, read, i)
    file.unlink()
    _assert_named(file, read, "missing")
  finally:
    file.write_bytes(whole)
  read()


def _assert_named(file: Path, read: Callable[[], object], damage: object) -> None:
  with pytest.raises(UserError) as error:
    read()
  text = str(error.value)
  assert "\\n" not in text, (damage, text)  # as an error writes a newline in its message
  name = file.name
  if name == "SHA256SUMS":  # a name or a digest in it that changed is another file's
    name = f"{name}|{file.parent.name}.* (is missing|is not as it was written)"
  elif damage == "missing":
    name = f"{re.escape(name)}|{file.parent.name}"
  assert re.search(name, text), (damage, text)
