"""Command lines whose mistakes are one line."""

import argparse
from typing import NoReturn

from input_pipeline.terminal import escape


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
