"""A disk that is full: no file may be longer than so many bytes."""

import contextlib
import resource


@contextlib.contextmanager
def full_disk(most: int = 1024):
  """The system's own refusal (EFBIG), whoever writes: Python, Orbax, a library in Rust."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
