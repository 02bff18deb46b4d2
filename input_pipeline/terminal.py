"""Text for terminals and logs, in which names that came with the data cannot pass for ours."""

import unicodedata
from collections.abc import Iterable


def escape(text: str) -> str:
  r"""Writes what does not print as in a literal of Python: a newline as "\n", ESC as "\x1b".

  So no name begins a line, moves the cursor or turns the direction of the text. Half characters
  (lone surrogates), which no stream takes, are written as "\ud800".
  """
  if text.isprintable():
    return text
  return "".join(
    c if c.isprintable() or unicodedata.category(c) == "Zs" else ascii(c)[1:-1] for c in text
  )


def escape_lines(text: str) -> str:
  """Escapes every line of a text whose own newlines stay."""
  return "\n".join(map(escape, text.split("\n")))


def join(names: Iterable[str]) -> str:
  """Lists names with commas between, each escaped."""
  return ", ".join(map(escape, names))
