"""Command lines whose mistakes are one line."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from input_pipeline.terminal import escape


def at_least(least: int, *, most: float = math.inf) -> Callable[[str], int]:
  """Makes the type of a flag that is a whole number, 0 or 1 at the least."""

  def read(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < least:
      raise argparse.ArgumentTypeError(f"{text!r} is not {least} or more")
    if int(text) > most:
      raise argparse.ArgumentTypeError(f"{text!r} is not {most} or less")
    return int(text)

  return read


def split_rest(arguments: Sequence[str] | None) -> tuple[list[str], list[str]]:
  """Splits arguments, by default of this process, at the first "--", which is dropped."""
  arguments = list(sys.argv[1:] if arguments is None else arguments)
  cut = arguments.index("--") if "--" in arguments else len(arguments)
  return arguments[:cut], arguments[cut + 1 :]


def path(text: str) -> str:
  """Reads a flag that names a path. Raises ArgumentTypeError where it is empty."""
  if not text:
    raise argparse.ArgumentTypeError("the path is empty")
  return text


class Parser(argparse.ArgumentParser):
  """Parser whose error is one line that names the remedy, with exit status 2."""

  def __init__(self, prog: str, description: str, **settings):
    """`description` is shown as it is; flags are not abbreviated."""
    raw = argparse.RawDescriptionHelpFormatter
    super().__init__(
      prog, description=description, formatter_class=raw, allow_abbrev=False, **settings
    )

  def error(self, message: str) -> NoReturn:
    """Ends the process."""
    self.exit(2, f"error: {escape(message)} ({self.prog} --help lists the flags)\n")
