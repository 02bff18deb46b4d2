"""Pages: one HTML base that they extend, and the Jinja2 environment that renders them."""

from pathlib import Path

import jinja2


def environment(folder: Path) -> jinja2.Environment:
  """Returns an environment that finds the templates of a folder, and `base.html`.

  All values are escaped, unless they are marked as `markupsafe.Markup`; a name that a template does
  not get is an error.
  """
  return jinja2.Environment(
    loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
