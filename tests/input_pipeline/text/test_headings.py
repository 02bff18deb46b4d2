import csv

import pytest

from fakes.images import image, table
from input_pipeline.readers import folder
from input_pipeline.text import headings, mimic_reports, reports
from paths import SHARED_DATA

REAL = SHARED_DATA / "iu_reports" / "iu_reports.csv"

BODY = "There is consolidation in the left lower lobe. The heart is enlarged."
READ = ["There is consolidation in the left lower lobe.", "The heart is enlarged."]
PNEUMONIA = "Left lower lobe pneumonia."


def read(text):
  return reports.report_sentences(reports.sections(text))


# Names of the section parser of MIMIC's authors, with those of other reports behind them.
@pytest.mark.parametrize(
  ("section", "names"),
  [
    ("findings", "FINDINGS; CHEST, TWO VIEWS; PORTABLE AP CHEST; FRONTAL UPRIGHT; BONE WINDOW; PA"),
    ("findings", "REFERENCE FINDINGS; FINDINS; REPORT; Report; OBSERVATIONS; Results; CHEST X-RAY"),
    ("impression", "IMPRESSION; CONCLUSION; FINDINGS AND IMPRESSION; FINDINGS/IMPRESSION; Summary"),
    ("impression", "IMPERSSION; Opinion; INTERPRETATION; Findings and impression; IMPRESSION/PLAN"),
    ("indication", "INDICATION; REASON FOR EXAMINATION; REASON FOR CHEST X-RAY; CHEST PAIN; COUGH"),
    ("indication", "Reason for portable chest; CLINICAL QUESTION; Clinical indication; NDICATION"),
    ("history", "HISTORY; CLINICAL INFORMATION; Clinical details; PATIENT HISTORY; PFI; Hx"),
    ("comparison", "COMPARISON; COMPARISONS; COMPARISON CHEST FILM; COMPARRISON; Prior studies"),
    ("examination", "EXAMINATION; TYPE OF EXAMINATION; Exam; Procedure; STUDY"),
    ("technique", "TECHNIQUE; Views; PROJECTION"),
    ("recommendations", "RECOMMENDATION(S); Recommendation; Follow-up; PLAN"),
    ("signature", "END OF IMPRESSION; Dictated by; Radiologist"),
    (
      None,
      "NOTE; LUNGS; CHEST TUBE; There is an impression of; Left chest; Pain; Given the history",
    ),
  ],
)
def test_names(section, names):
  got = {name: headings.section(name) for name in names.split("; ") if name != "PA"}
  assert got == dict.fromkeys(got, section)


@pytest.mark.parametrize("body", ["REPORT", "OBSERVATIONS", "FINDINGS AND IMPRESSION", "Findings"])
@pytest.mark.parametrize("indication", ["INDICATION", "Reason for exam", "CHEST PAIN", "Hx"])
@pytest.mark.parametrize("between", ["\n", "\n\n", " ", "\r\n"])
def test_body_and_impression_are_read_and_the_indication_is_not(indication, body, between):
  parts = [f"{indication}: Cough and fever", f"{body}: {BODY}", f"IMPRESSION: {PNEUMONIA}"]
  assert read(between.join(parts)) == [*READ, PNEUMONIA]
  assert read(between.join(parts[:2])) == READ
  assert read(parts[0]) == []


@pytest.mark.parametrize(
  ("text", "want"),
  [
    ("Cough FINDINGS: Clear IMPRESSION: Fine", {"": "Cough", "findings": "Clear"}),
    ("INDICATION: Cough COMPARISON : None REPORT: Clear IMPRESSION: Fine", {"findings": "Clear"}),
    ("INDICATION: SOB, CHEST PAIN REPORT: Clear IMPRESSION: Fine", {"findings": "Clear"}),
    ("Findings\nClear\n\nIMPRESSION\nFine", {"findings": "Clear"}),
    ("**Findings:** Clear\n**Impression:** Fine", {"findings": "Clear"}),
    ("INDICATION: Cough.\nLUNGS: Clear.\nImpression: Fine", {"findings": "LUNGS: Clear."}),
    (
      "COMPARISON: No. Lines and tubes: PICC. IMPRESSION: Fine",
      {"findings": "Lines and tubes: PICC."},
    ),
    ("INDICATION: Cough.\n\nClear.\n\nIMPRESSION: Fine", {headings.BODY: "Clear."}),
    ("IMPRESSION: Fine\nHISTORY: Cough.\n\nFever.", {"history": "Cough.\n\nFever."}),
    ("INDICATION: a\n\nb\n\nFINDINGS: c\nIMPRESSION: Fine", {"indication": "a\n\nb"}),
    ("FINDINGS: a\nIMPRESSION: Fine\nFINDINGS: b", {"findings": "a\n\nb"}),
    ("INDICATION: Fall. Admit Comments: UTI.\nIMPRESSION: Fine", {}),
    ("INDICATION:\nFOLLOW UP\nIMPRESSION: Fine", {"indication": "FOLLOW UP"}),
    ("INDICATION: a.\nChest X-ray PA view: Clear.\nIMPRESSION: Fine", {"findings": "Clear."}),
    ("Indication: a. Portable AP chest: Clear. Impression: Fine", {"findings": "Clear."}),
    ("INDICATION: a\nCXR FINDINGS - PA view: Clear.\nIMPRESSION: Fine", {"findings": "Clear."}),
    (
      "INDICATION: a\nOld chest x-ray: b\nIMPRESSION: Fine",
      {"indication": "a\nOld chest x-ray: b"},
    ),
    (
      "Exam: Chest, PA and lateral: b\nImpression: Fine",
      {"examination": "Chest, PA and lateral: b"},
    ),
    ("Exam: a\nChest, two views: b\nFindings: c\nImpression: Fine", {"findings": "c"}),
    ("IMPRESSION AND FINDINGS: Fine", {"impression": "Fine"}),
  ],
)
def test_where_headings_stand(text, want):
  parts = reports.sections(text)
  assert parts["impression"].startswith("Fine")
  assert want.items() <= parts.items()
  assert want or list(parts) == ["indication", "impression"]


@pytest.mark.parametrize(
  "text",
  [
    "PRE-OP DIAGNOSIS: Cough.\nFINDINGS: Clear.\nIMPRESSION: Fine.",
    "Postoperative diagnosis: Cough.\n\nClear.\nImpression: Fine.",
    "WORKING DIAGNOSIS: Cough. REFERRING DX: Cough. FINDINGS: Clear. IMPRESSION: Fine.",
    "Clinical Indication - Cough since 10:30\nFindings - Clear.\nImpression \u2013 Fine.",
    "Clinical indication\nCough\nFindings\nClear.\nImpression\nFine.",
    "<b>Indication:</b> Cough<br><b>Findings:</b> Clear.<br/>\n<b>Impression:</b> Fine.",
    "<p>INDICATION: Cough</p><p>FINDINGS:&nbsp;Clear.</p><p>IMPRESSION: Fine.</p>",
    "Indication: Cough<br>Findings: Clear.<br>Impression: Fine.",
    "INDICATION\uff1aCough\nFINDINGS\uff1aClear.\nIMPRESSION\uff1aFine.",
  ],
)
def test_an_indication_in_other_form_is_not_read(text):
  parts = reports.sections(text)
  assert reports.report_sentences(parts) == ["Clear.", "Fine."]
  assert parts["indication"].startswith("Cough")


@pytest.mark.parametrize(
  "text",
  [
    "FINAL DIAGNOSIS: A.",
    "FINDINGS: CXR - A.",
    "FINDINGS: B.\nHeart - A.",
    "FINDINGS: A <5 mm > B<br>C.",
  ],
)
def test_what_is_no_such_form_stays(text):
  (part,) = reports.sections(text).values()
  assert part == text[text.index(":") + 2 :]


ORDINARY = (
  "Study; Procedure; View; Views; Projection; Protocol; Contrast; Dose; Exposure; Prior; Previous",
  "Correlation; Question; Background; Advice; Suggestion; Plan; Communication; Date; Time; Age",
  "Patient; Name; Attending; Result; Results; Body; Description; Observation; CXR; Chest x-ray",
  "Follow up; Follow-up; Compared to; Critical result; Incidental findings; Reason for the shift",
  "STUDY; TIME; PAIN; FOLLOW UP",
)


@pytest.mark.parametrize("words", ORDINARY)
@pytest.mark.parametrize(
  ("before", "after"),
  [
    ("FINDINGS: ", " A.\nIMPRESSION: B."),
    ("FINDINGS: Clear. ", " A. 2. B."),
    ("IMPRESSION: 1. Clear.  2. ", " A. 3. B."),
    ("Clear. ", " A.\nIMPRESSION: B."),
    ("Clear. ", " A. B."),
  ],
)
def test_an_ordinary_word_ends_no_section_that_is_read(before, words, after):
  clear = ["Clear."] if "Clear" in before else []
  for word in words.split("; "):
    assert read(f"{before}{word}:{after}") == [*clear, f"{word}: A.", "B."]


@pytest.mark.parametrize("between", [" ", "\n"])
@pytest.mark.parametrize("word", ["Views", "Date", "Question", "Procedure", "Plan", "Name"])
def test_an_ordinary_word_is_a_heading_in_sections_that_are_not_read(word, between):
  parts = ["Indication: Cough.", f"{word}: A.", "Findings: Clear."]
  assert read(between.join(parts)) == ["Clear."]


@pytest.mark.parametrize(
  ("text", "want"),
  [
    (
      "Question: Effusion?\nImpression: Clear.",
      {"indication": "Effusion?", "impression": "Clear."},
    ),
    ("Results: Clear.", {"findings": "Clear."}),
    ("Study: AP. Clear.\nImpression: B.", {"": "Study: AP. Clear.", "impression": "B."}),
    ("Clear. Results: called.", {"": "Clear. Results: called."}),
    ("FINDINGS: Clear.\nSTUDY: AP.", {"findings": "Clear.", "examination": "AP."}),
    ("Findings: Clear. Comparison: None.", {"findings": "Clear.", "comparison": "None."}),
  ],
)
def test_where_an_ordinary_word_is_a_heading(text, want):
  assert reports.sections(text) == want


def test_headings_within_a_section_that_a_table_names():
  parts = [("indication", "Cough. History: Fever."), ("impression", "Fine. FINDINGS: Clear.")]
  assert reports.named_sections(parts) == {
    "indication": "Cough.",
    "history": "Fever.",
    "impression": "Fine.",
    "findings": "Clear.",
  }


def test_body_of_mimic_without_a_heading_stands_before_the_impression():
  text = " COMPARISON: \n \n ___.\n \n The lungs are\n clear.\n \n IMPRESSION: Fine.\n"
  parts = mimic_reports.sections(text)
  assert parts == {
    "comparison": "___.",
    "last_paragraph": "The lungs are\n clear.",
    "impression": "Fine.",
  }
  assert mimic_reports.sentences(parts) == ["The lungs are clear.", "Fine."]
  assert mimic_reports.sentences(mimic_reports.sections(" INDICATION: \n \n Cough.\n")) == []


def test_the_folder_reader_reads_body_and_impression(tmp_path):
  text = "INDICATION: Cough.\n{}: " + f"{BODY}\nIMPRESSION: {PNEUMONIA}"
  rows = [(name, text.format(heading)) for name, heading in (("a", "REPORT"), ("b", "BEFUND"))]
  for name, _ in rows:
    image(tmp_path / f"{name}.png", 64, 64)
  rows = [{"image": f"{name}.png", "text": text} for name, text in rows]
  table(tmp_path / "manifest.csv", rows, ["image", "text"])
  source = folder.open_source(str(tmp_path))
  assert source.read(source.items[0]).sentences == (*READ, PNEUMONIA)
  unread = "headings that are not known, in sections that training does not read: BEFUND: (1)"
  assert unread in source.notes
  assert source.read(source.items[1]).sentences == (PNEUMONIA,)


@pytest.mark.parametrize(
  ("text", "notes"),
  [
    (
      "Indication: cough findings: left effusion impression: effusion",
      ["rows whose text gives no sentence: 1 of 1", "cough findings: (1), left effusion impr"],
    ),
    ("INDICATION: Cough.", ["rows whose text gives no sentence: 1 of 1"]),
    ("-", ["rows whose text gives no sentence: 1 of 1"]),
    ("Indication: 9:30. Befund: a.\nImpression: Fine.", ["does not read: Befund: (1)"]),
    ("Indication: Cough, since 10:30.\nFindings: Clear.", []),
    ("", ["rows without text: 1 of 1"]),
  ],
)
def test_the_folder_reader_counts_what_is_not_read(tmp_path, text, notes):
  image(tmp_path / "a.png", 64, 64)
  table(tmp_path / "manifest.csv", [{"image": "a.png", "text": text}], ["image", "text"])
  got = [note for note in folder.open_source(str(tmp_path)).notes if "no column" not in note]
  assert len(got) == len(notes)
  assert all(want in note for want, note in zip(notes, got, strict=True))


@pytest.mark.skipif(not REAL.exists(), reason="the real reports are not here")
@pytest.mark.parametrize("between", ["\n", " "])
@pytest.mark.parametrize(
  ("reason", "body", "end"),
  [
    ("INDICATION", "FINDINGS", "IMPRESSION"),
    ("REASON FOR CHEST X-RAY", "REPORT", "IMPRESSION"),
    ("Reason for exam", "Findings", "Conclusion"),
    ("CLINICAL INFORMATION", "FINDINGS AND IMPRESSION", "IMPRESSION"),
    ("HISTORY", "OBSERVATIONS", "INTERPRETATION"),
  ],
)
def test_real_reports_lose_no_sentence(reason, body, end, between):
  """A few of the 3,927 do: one holds a whole second report within its impression."""
  with open(REAL, encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))[::3]
  lost = leaked = 0
  for row in rows:
    parts = zip(
      (reason, "COMPARISON", body, end),
      ("indication", "comparison", "findings", "impression"),
      strict=True,
    )
    text = between.join(f"{heading}: {row[name]}" for heading, name in parts if row[name].strip())
    given = [(name, row[name]) for name in ("findings", "impression")]
    want = set(map(reports.normalise, reports.report_sentences(dict(given))))
    got = set(map(reports.normalise, read(text)))
    asked = set(map(reports.normalise, reports.sentences(row["indication"])))
    lost += not want <= got
    leaked += bool(got & asked - want) and bool(want)
  assert lost <= 3 and leaked == 0
