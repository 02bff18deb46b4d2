"""JSON objects in files that others wrote."""

import json
from pathlib import Path

from input_pipeline.errors import UserError


def read(path: Path, kind: type[UserError]) -> dict:
  """Reads a file that holds one JSON object.

  Raises `kind`, naming the file, where it cannot be read, is no JSON, or holds another value.
  """
  try:
    content = json.loads(path.read_text("utf-8"))
  except OSError as error:
    raise kind(f"{path} cannot be read: {error.strerror}") from error
  except (ValueError, RecursionError) as error:
    raise kind(f"{path} is no JSON: {error}; fetch it again") from error
  if not isinstance(content, dict):
    raise kind(f"{path} holds a {type(content).__name__}, no entries by name; fetch it again")
  return content
