import csv
import re
import textwrap
import time

import pytest

from input_pipeline.text import reports
from paths import SHARED_DATA

REAL = SHARED_DATA / "iu_reports" / "iu_reports.csv"

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
    # Stops without a blank behind them, and full stops that end nothing.
    (
      "Heart size normal.No pleural effusion.Left basal atelectasis.",
      ["Heart size normal.", "No pleural effusion.", "Left basal atelectasis."],
    ),
    (
      "At T2.No effusion.2 cm nodule.old rib",
      ["At T2.", "No effusion.", "2 cm nodule.", "old rib"],
    ),
    ("LUNGS CLEAR.NO EFFUSION", ["LUNGS CLEAR.", "NO EFFUSION"]),
    ("A 4.5 cm mass at T2. Next.", ["A 4.5 cm mass at T2.", "Next."]),
    ("A line, e.g. L1. Next (i.e. Two).", ["A line, e.g. L1.", "Next (i.e. Two)."]),
    ("At 4 p.m. seen by Dr. X. At 5 p.m. Next", ["At 4 p.m. seen by Dr. X.", "At 5 p.m.", "Next"]),
    ("Dr.Smith, U.S.A., St. Jude valve.", ["Dr.Smith, U.S.A., St. Jude valve."]),
    ("1.Edema.2.No effusion. 3)Clear", ["Edema.", "No effusion.", "Clear"]),
    ("Old (healed.) Next.", ["Old (healed.)", "Next."]),
    # Lines are sentences where stops are missing.
    ("Lungs clear\nHeart normal\nNo effusion", ["Lungs clear", "Heart normal", "No effusion"]),
    ("lungs clear\nheart normal\nno effusion", ["lungs clear", "heart normal", "no effusion"]),
    ("LUNGS CLEAR\r\nHEART NORMAL", ["LUNGS CLEAR", "HEART NORMAL"]),
    ("Lungs clear.\nHeart normal\nNo effusion.", ["Lungs clear.", "Heart normal", "No effusion."]),
    ("- Edema\n- 2 cm mass\n\u2022 clear", ["Edema", "2 cm mass", "clear"]),
    ("1. edema\n2. mass of\nthe left\n3. clear", ["edema", "mass of the left", "clear"]),
    ("Tip of the\nDobbhoff tube\nNo effusion", ["Tip of the Dobbhoff tube", "No effusion"]),
    ("Edema,\nPneumonia\n2 cm mass", ["Edema, Pneumonia", "2 cm mass"]),
    ("... . -", []),
    ("", []),
  ],
)
def test_sentences(text, want):
  assert reports.sentences(text) == want


LINES = [f"Finding number {i} of this long list" for i in range(18)] + ["Small left effusion"]


@pytest.mark.parametrize("form", [str, str.lower, str.upper])
@pytest.mark.parametrize("end", ["", "."])
def test_every_line_of_a_list_is_a_sentence(form, end):
  lines = [form(line) for line in LINES]
  parts = reports.sections("FINDINGS:\n" + "\n".join(lines) + end)
  assert reports.report_sentences(parts) == [*lines[:-1], lines[-1] + end]


def real_reports():
  with open(REAL, encoding="utf-8", newline="") as file:
    texts = [f"{row['findings']} {row['impression']}" for row in csv.DictReader(file)]
  return [text for text in texts if text.strip()][::3]


@pytest.mark.skipif(not REAL.exists(), reason="the real reports are not here")
def test_real_reports_broken_into_lines_give_the_same_sentences():
  """One breaks before a name in capitals; hyphens stay whole here."""
  differ = 0
  for text in real_reports():
    lines = textwrap.wrap(f"FINDINGS: {text}", 78, break_on_hyphens=False)
    broken = "\n".join(lines).removeprefix("FINDINGS: ")
    differ += reports.sentences(broken) != reports.sentences(text)
  assert differ <= 1


@pytest.mark.skipif(not REAL.exists(), reason="the real reports are not here")
def test_sentences_of_real_reports_without_blanks_or_stops():
  """A sentence a line, without its stop, and sentences without a blank between."""
  listed = glued = 0
  for text in real_reports():
    sentences = [sentence.rstrip(".") for sentence in reports.sentences(text)]
    listed += reports.sentences("\n".join(sentences)) != sentences
    together = re.sub(r"(?<=[a-z]{2}\.) (?=[A-Z][a-z])", "", text)
    glued += reports.sentences(together) != reports.sentences(text)
  assert listed <= 30 and glued == 0


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
  assert reports.report_sentences({"indication": "Cough.", "history": "Fever."}) == []
  assert reports.report_sentences({"impression": "End.", "addendum": "New."}) == ["End.", "New."]
  assert reports.report_sentences({}) == []


def test_headings_in_a_report_folded_into_one_line():
  text = "INDICATION: Cough. FINDINGS: Clear lungs. IMPRESSION: Normal."
  assert reports.sections(text) == {
    "indication": "Cough.",
    "findings": "Clear lungs.",
    "impression": "Normal.",
  }


def test_words():
  text = "No e.g. in normal.Lungs at L1.T2"
  assert " ".join(text[a:b] for a, b in reports.words(text)) == "No e.g in normal Lungs at L1 T2"
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


@pytest.mark.parametrize("unit", ["*", "a*", "A\n", ".", "dr. "], ids=repr)
def test_a_hostile_cell_takes_no_quadratic_time(unit):
  text = unit * (400_000 // len(unit)) + "x"
  start = time.process_time()
  reports.report_sentences(reports.sections(text))
  assert time.process_time() - start < 4  # about 1 s at most; room for a busy machine
