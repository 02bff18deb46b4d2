"""The one kind of error that a user can mend."""


class UserError(Exception):
  """Bad input. The message names file and key and says what to do; it is shown without a traceback."""
