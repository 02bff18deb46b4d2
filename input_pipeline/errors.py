"""The kind of error that a user can mend."""

from input_pipeline.terminal import escape


class UserError(Exception):
  """Bad input: the message names file and key and says what to do; no traceback is shown."""

  def __str__(self) -> str:
    """Returns the message as one line, whatever the names in it hold."""
    return escape(super().__str__())
