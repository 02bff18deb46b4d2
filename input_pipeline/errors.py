"""The kind of error that a user can mend."""

from input_pipeline.terminal import escape


class UserError(Exception):
  """Bad input: the message names file and key and says what to do; no traceback is shown."""

  def __str__(self) -> str:
    """Returns the message as one line, whatever the names in it hold."""
    return escape(super().__str__())


def one_line(error: Exception) -> str:
  """Returns the message of a library's error as one line, without the quotes of a KeyError."""
  while error.args and isinstance(error.args[0], Exception):  # ml_collections puts one into another
    error = error.args[0]
  text = error.args[0] if isinstance(error, KeyError) else error
  return " ".join(str(text).split())
