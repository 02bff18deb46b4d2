import pytest

from input_pipeline.text import reports

TEXT = """EXAMINATION: Chest, PA.
INDICATION: Cough.
FINDINGS: The heart is enlarged, 1.5 times. No. 3 rib is fractured.
There is a small left effusion

IMPRESSION: 1. Effusion. 2. Seen by Dr. smith.
"""


def test_sections():
  assert reports.sections(TEXT) == {
    "examination": "Chest, PA.",
    "indication": "Cough.",
    "findings": "The heart is enlarged, 1.5 times. No. 3 rib is fractured.\nThere is a small left"
    " effusion",
    "impression": "1. Effusion. 2. Seen by Dr. smith.",
  }


def test_text_without_headings_is_one_section():
  assert reports.sections(" All clear. ") == {"": "All clear."}
  assert reports.sections("  ") == {}


def test_unknown_heading_stays_in_its_section():
  assert reports.sections("FINDINGS: a\nSIDE NOTE: b") == {"findings": "a\nSIDE NOTE: b"}


@pytest.mark.parametrize(
  ("text", "want"),
  [
    ("One. Two! Three?", ["One.", "Two!", "Three?"]),
    ("It measures 1.5 cm. Next.", ["It measures 1.5 cm.", "Next."]),
    ("1. First. 2. Second.", ["First.", "Second."]),
    ("Seen by Dr. Smith today.", ["Seen by Dr. Smith today."]),
    ("No. 3 rib is broken.", ["No. 3 rib is broken."]),
    ("Effusion? No. Clear.", ["Effusion?", "No.", "Clear."]),
    ("Right vs. left.", ["Right vs. left."]),
    ("no end", ["no end"]),
    ("First\n\nSecond", ["First", "Second"]),
    ("folded\nline.", ["folded line."]),
    ("... . -", []),
    ("", []),
  ],
)
def test_sentences(text, want):
  assert reports.sentences(text) == want


def test_report_sentences_prefer_findings_and_impression_and_drop_repeats():
  parts = {
    "indication": "Cough.",
    "findings": "Clear lungs. Big heart.",
    "impression": "Clear lungs!",
  }
  assert reports.report_sentences(parts) == ["Clear lungs.", "Big heart."]
  assert reports.report_sentences({"": "Free text."}) == ["Free text."]
  assert reports.report_sentences({"": "Body.", "impression": "End."}) == ["Body.", "End."]
  assert reports.report_sentences({"technique": "Portable image."}) == ["Portable image."]
  assert reports.report_sentences({}) == []


def test_headings_in_a_report_folded_into_one_line():
  text = "INDICATION: Cough. FINDINGS: Clear lungs. IMPRESSION: Normal."
  assert reports.sections(text) == {
    "indication": "Cough.",
    "findings": "Clear lungs.",
    "impression": "Normal.",
  }


def test_words():
  text = "A right-sided 1.5 cm nodule, (new)."
  assert [text[a:b] for a, b in reports.words(text)] == [
    "A",
    "right-sided",
    "1.5",
    "cm",
    "nodule",
    "new",
  ]


def test_keys_tell_texts_apart_and_ignore_case_and_punctuation():
  assert reports.key("No effusion.") == reports.key("no  effusion") != reports.key("no effusions")
  assert reports.key(" . ") == 0
  assert 0 < reports.key("x") < 2**31
  assert reports.identity("a") != reports.identity("A")
