"""Pages of the site that are written elsewhere: CONTRIBUTING.md and the report's glossary."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from plan_jax.results.glossary import DEFINITIONS

PAGES = {
  "../CONTRIBUTING.md": "contributing.md",
  "../plan_jax/results/glossary.py": "glossary.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
  """Adds the pages."""
  contributing = Path(config.docs_dir, "../CONTRIBUTING.md").read_text()
  entries = [f"**{name}**\n:   {text}\n" for name, text in sorted(DEFINITIONS.items(), key=_name)]
  glossary = "# Glossary\n\nThe words of a run's report.\n\n" + "\n".join(entries)
  for path, text in zip(PAGES.values(), (contributing, glossary), strict=True):
    files.append(File.generated(config, path, content=text))
  return files


def on_page_markdown(markdown: str, **_) -> str:
  """Links the pages by their names in the site, and takes the escapes out of tables' code."""
  for source, page in PAGES.items():
    markdown = markdown.replace(f"]({source}", f"]({page}")
  return markdown.replace(r"\|", "|")


def _name(entry: tuple[str, str]) -> str:
  return entry[0].lower()
