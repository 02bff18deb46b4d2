"""Pages: one HTML base that they extend, and the Jinja2 environment that renders them."""

from pathlib import Path

import jinja2

from input_pipeline.terminal import escape_lines


def environment(folder: Path) -> jinja2.Environment:
  """Returns an environment that finds the templates of a folder, and `base.html`.

  All values are escaped, unless they are marked as `markupsafe.Markup`: HTML, and what does not
  print, such as a turn of the text's direction. A name that a template does not get is an error.
  """
  return jinja2.Environment(
    loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
    autoescape=True,
    finalize=lambda value: escape_lines(value) if type(value) is str else value,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
