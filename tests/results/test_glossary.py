"""The glossary: what is linked, once, and that no text is trusted."""

import re

import pytest

from plan_jax.metrics import localization
from plan_jax.results import rows
from plan_jax.results.glossary import DEFINITIONS, Glossary


@pytest.mark.parametrize(
  ("text", "wanted"),
  [
    ("signed CNR", "[signed CNR]"),
    ("The soft regions of words", "The [soft regions] of words"),
    ("R@5 and R@10 image-to-text", "[R@5] and R@10 image-to-text"),
    ("IoU@.3", "[IoU]@.3"),
    ("mean box per finding, mean box", "[mean box per finding], [mean box]"),
    ("macro mIoU, Macro", "[macro] [mIoU], Macro"),
    ("remap the mapping of macros1", "remap the mapping of macros1"),
    ("<b>&\x1b", "&lt;b&gt;&amp;\\x1b"),
  ],
)
def test_words_are_linked_where_they_first_stand(text, wanted):
  linked = str(Glossary().link(text))
  assert re.sub(r'<a class="term" href="#term-[a-z0-9-]+">(.*?)</a>', r"[\1]", linked) == wanted


def test_entries_are_the_linked_words():
  glossary = Glossary()
  glossary.link("macro P@5")
  glossary.link("AUC")
  wanted = [("term-auc", "AUC"), ("term-macro", "macro"), ("term-p-k", "P@K")]
  assert [entry[:2] for entry in glossary.entries()] == wanted
  assert glossary.entries()[0][2] == DEFINITIONS["AUC"]


def test_the_number_of_draws_is_of_the_config():
  assert not re.search(r"\d,?\d{3}|\d bootstrap", DEFINITIONS["95 % interval"])


@pytest.mark.parametrize(
  "metric", [*localization.METRICS, *(metric for _, _, metric in rows.HEADLINES)]
)
def test_metrics_have_a_definition(metric):
  glossary = Glossary()
  glossary.link(metric)
  assert glossary.entries()
