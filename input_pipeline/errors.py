"""The kind of error that a user can mend."""


class UserError(Exception):
  """Bad input: the message names file and key and says what to do; no traceback is shown."""
