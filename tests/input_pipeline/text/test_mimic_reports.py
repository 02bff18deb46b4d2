import csv

import pytest

from input_pipeline.text import mimic_reports, reports
from paths import SHARED_DATA

REAL = SHARED_DATA / "iu_reports" / "iu_reports.csv"

TEXT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 
 INDICATION:  ___ year old woman with SOB // r/o pneumonia
 
 COMPARISON:  ___.
 
 FINDINGS: 
 
 The lungs are clear. A 1.5 cm nodule at the right
 base was seen on ___.
 
 IMPRESSION: 
 
 1. No change.
 
 2. The lungs are clear.
"""  # noqa: W291, W293


def read(text):
  return mimic_reports.sentences(mimic_reports.sections(text))


def test_a_usual_report():
  parts = mimic_reports.sections(TEXT)
  assert list(parts) == ["examination", "indication", "comparison", "findings", "impression"]
  assert parts["indication"] == "___ year old woman with SOB // r/o pneumonia"
  assert parts["impression"].startswith("1. No change.")
  # A sentence that stands twice is kept once; ___ is no word, but stays where it stood.
  nodule = "A 1.5 cm nodule at the right base was seen on ___."
  assert read(TEXT) == ["The lungs are clear.", nodule, "No change."]
  assert read(TEXT.replace("\n", "\r\n")) == read(TEXT)
  assert [nodule[a:b] for a, b in reports.words(nodule)][-2:] == ["seen", "on"]


@pytest.mark.parametrize(
  ("heading", "name"),
  [
    ("FINDINGS", "findings"),
    ("FINDING", "findings"),
    ("FINIDNGS", "findings"),
    ("FINDGINGS", "findings"),
    ("IMPRESSON", "impression"),
    ("MPRESSION", "impression"),
    ("CONCLUSION", "impression"),
    ("FINDINGS AND IMPRESSION", "impression"),
    ("FINDINGS/ IMPRESSION", "impression"),
    ("IMPRESSION AND RECOMMENDATION", "impression"),
    ("PATIENT  HISTORY", "history"),
    ("NDICATION", "indication"),
    ("REASON FOR EXAM", "indication"),
    ("COMPARISION", "comparison"),
    ("COMPARISON FILM", "comparison"),
    ("RECOMMENDATION(S)", "recommendations"),
    ("CHEST, TWO VIEWS", "findings"),
    ("AP CHEST", "findings"),
    ("PA AND LATERAL", "findings"),
    ("SEMI-UPRIGHT FRONTAL VIEW", "findings"),
    ("WET READ", "wet read"),
  ],
)
def test_headings_are_named_alike(heading, name):
  parts = mimic_reports.sections(f"\n {heading}: Some words.\n")
  assert parts == {name: "Some words."}


@pytest.mark.parametrize("heading", ["LUNGS", "HEART AND MEDIASTINUM", "BONES", "NOTE", "Findings"])
def test_unknown_headings_stay_in_their_section(heading):
  text = f" FINDINGS:\n Clear.\n {heading}: Normal.\n IMPRESSION: Fine.\n"
  assert mimic_reports.sections(text)["findings"] == f"Clear.\n {heading}: Normal."


def test_no_heading_within_a_line():
  assert mimic_reports.sections(" FINDINGS: Seen. IMPRESSION: x\n") == {
    "findings": "Seen. IMPRESSION: x"
  }
  assert list(mimic_reports.sections("        IMPRESSION: x\n")) == ["full report"]


def test_an_empty_title_is_no_findings():
  text = " CHEST, PA AND LATERAL:\n\n INDICATION: Cough.\n\n IMPRESSION: Clear."
  assert mimic_reports.sections(text) == {"indication": "Cough.", "impression": "Clear."}
  text = " IMPRESSION:\n AP CHEST: Heart is large.\n"
  assert read(text) == ["Heart is large."]


def test_headings_that_repeat_go_on():
  text = " IMPRESSION: No end\n FINDINGS: b.\n IMPRESSION: Second."
  parts = mimic_reports.sections(text)
  assert parts == {"impression": "No end\n\nSecond.", "findings": "b."}
  assert mimic_reports.sentences(parts) == ["b.", "No end", "Second."]


def test_the_last_paragraph_stands_in():
  text = """                 FINAL REPORT
 INDICATION:  Cough.

 PA and lateral views of the chest were obtained. Lungs are clear.
 
 Heart size is normal.
"""  # noqa: W291, W293
  parts = mimic_reports.sections(text)
  assert parts["indication"] == "Cough."
  assert read(text) == [
    "PA and lateral views of the chest were obtained.",
    "Lungs are clear.",
    "Heart size is normal.",
  ]
  assert read(" FINDINGS:\n COMPARISON: None.\n\n Lungs are clear.") == ["Lungs are clear."]
  empty = " INDICATION: Cough.\n\n FINDINGS:\n \n IMPRESSION:\n \n"
  assert mimic_reports.sections(empty) == {"indication": "Cough."}
  assert read(empty) == []


def test_reports_without_headings():
  title = "                FINAL REPORT\n"
  assert read(title + " CHEST RADIOGRAPH\n \n Lungs are clear.\n \n Fine.") == [
    "Lungs are clear.",
    "Fine.",
  ]
  assert read(title + " Lungs are clear.") == ["Lungs are clear."]
  assert read(title + " \n Lungs are clear.") == ["Lungs are clear."]
  assert read(title.replace("\n", "\r\n") + " CHEST\r\n \r\n Clear.\r\n") == ["Clear."]
  for nothing in ("", "\n", title, "___\n"):
    assert read(nothing) == []


def test_comparison_is_the_last_resort_and_the_indication_is_none():
  assert read(" INDICATION: Cough.\n COMPARISON: None. Lungs are clear.") == [
    "None.",
    "Lungs are clear.",
  ]
  assert read(" WET READ: Clear.\n HISTORY: Cough.") == []
  assert read(" WET READ: Clear.\n FINAL REPORT\n FINDINGS: Effusion.") == ["Effusion."]


@pytest.mark.skipif(not REAL.exists(), reason="the real reports are not here")
def test_real_reports_come_back():
  """Real findings and impressions in MIMIC's form give the sentences that our own parser reads."""
  with open(REAL, encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))
  compared = 0
  for row in rows:
    text = "                 FINAL REPORT\n"
    for name in ("indication", "comparison", "findings", "impression"):
      text += f" {name.upper()}: \n \n {row[name]}\n \n"
    parts = mimic_reports.sections(text)
    given = {name: row[name] for name in ("findings", "impression") if row[name].strip()}
    if given:
      assert {name: parts[name] for name in given} == {n: given[n].strip() for n in given}
      assert mimic_reports.sentences(parts) == reports.report_sentences(given)
      compared += 1
    read(row["findings"] + "\n" + row["impression"])
  assert compared > 3900
