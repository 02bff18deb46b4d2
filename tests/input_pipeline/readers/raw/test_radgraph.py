import csv
import json

import pytest

from fakes import physionet
from fakes import radgraph as fake
from input_pipeline.example import Entity, UnreadableError
from input_pipeline.readers.raw import radgraph
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.text import mimic_reports, reports
from paths import SHARED_DATA

REAL = SHARED_DATA / "iu_reports" / "iu_reports.csv"

REPORT = """                                 FINAL REPORT
 INDICATION:  ___F with fever // clear lungs?

 FINDINGS:

 Lungs are clear. The patient's right-sided PICC (5 Fr) ends 4.6 cm/1.8 in
 above ___, at the cavo-atrial junction.
 No pneumothorax.

 IMPRESSION:

 1. No pneumothorax.

 2. Clear.
"""


def graph(report, *marked, text=None):
  """An entry with entities by (first word, words, label), or by token numbers."""
  tokens = text.split() if text is not None else fake.tokens(report)
  entities = {}
  for number, (start, count, label) in enumerate(marked, 1):
    if isinstance(start, str):
      word, _, nth = start.partition("#")
      start = [i for i, token in enumerate(tokens) if token == word][int(nth or 0)]
    end = start + count - 1
    entities[str(number)] = {
      "tokens": " ".join(tokens[start : end + 1]),
      "label": label,
      "start_ix": start,
      "end_ix": end,
      "relations": [],
    }
  return {"text": " ".join(tokens), "entities": entities}


def laid(report, *marked, sentences=None):
  """Lays entities onto sentences: (words, label) of those with a place, and how many have none."""
  if sentences is None:
    sentences = mimic_reports.sentences(mimic_reports.sections(report))
  placed, unplaced = radgraph.entities(graph(report, *marked), sentences)
  return [(sentences[e.sentence][e.start : e.end], e.label) for e in placed], unplaced


def test_entities_of_numbers_hyphens_signs_and_marks():
  placed, unplaced = laid(
    REPORT,
    ("Lungs", 1, "ANAT-DP"),
    ("clear#1", 1, "OBS-DP"),
    ("patient", 2, "ANAT-DP"),  # two tokens: patient 's
    ("right-sided", 2, "OBS-DP"),
    ("5", 2, "OBS-DP"),
    ("4.6", 5, "OBS-DP"),  # 4.6 cm / 1.8 in
    ("cavo-atrial", 2, "ANAT-DP"),
  )
  assert unplaced == 0
  assert placed == [
    ("Lungs", "ANAT-DP"),
    ("clear", "OBS-DP"),
    ("patient's", "ANAT-DP"),
    ("right-sided PICC", "OBS-DP"),
    ("5 Fr", "OBS-DP"),
    ("4.6 cm/1.8 in", "OBS-DP"),
    ("cavo-atrial junction", "ANAT-DP"),
  ]


def test_what_has_no_place_is_counted():
  placed, unplaced = laid(
    REPORT,
    ("fever", 1, "OBS-DP"),  # of the indication
    ("pneumothorax#1", 1, "OBS-DA"),  # its sentence stands twice and is kept once
    ("___#1", 1, "OBS-DP"),  # no word
    ("clear#1", 3, "OBS-DP"),  # ends in the next sentence
    (3, 900, "OBS-DP"),  # numbers that the text does not have
    ("Clear", 1, "OBS-DP"),
  )
  assert placed == [("Clear", "OBS-DP")]
  assert unplaced == 5


def test_a_sentence_is_looked_for_behind_the_one_before_and_behind_a_sign():
  # "clear" stands in the indication, in the findings and, as a sentence of its own, at the end.
  marked = [("clear#0", 1, "first"), ("clear#1", 1, "second"), ("Clear", 1, "third")]
  assert laid(REPORT, *marked) == ([("clear", "second"), ("Clear", "third")], 1)
  assert laid(REPORT, *marked, sentences=["Clear."]) == ([("Clear", "third")], 2)
  report = " INDICATION: Effusion.\n FINDINGS: Heart is large. Effusion."
  assert laid(report, ("Effusion#0", 1, "a"), ("Effusion#1", 1, "b")) == ([("Effusion", "b")], 1)
  # An impression that stands before its findings is found all the same.
  report = " IMPRESSION: Small effusion.\n FINDINGS: Heart is large. Effusion is small."
  placed, unplaced = laid(report, ("effusion", 1, "a"), ("Effusion", 1, "b"), ("Heart", 1, "c"))
  assert placed == [("Heart", "c"), ("Effusion", "b"), ("effusion", "a")]
  assert unplaced == 0


def test_the_same_words_never_serve_two_sentences():
  placed = laid(" FINDINGS: Clear.", ("Clear", 1, "a"), sentences=["Clear.", "clear"])
  assert placed == ([("Clear", "a")], 0)


def test_sentences_that_radgraph_lacks_and_no_sentences():
  assert laid(REPORT, ("Clear", 1, "a"), sentences=["Something else.", "Clear."])[0] == [
    ("Clear", "a")
  ]
  assert laid(REPORT, ("Clear", 1, "a"), sentences=[]) == ([], 1)
  assert radgraph.entities({"text": "", "entities": {}}, ["Clear."]) == ((), 0)


def test_sentences_keep_their_numbers():
  sentences = ["Missing.", "Lungs are clear."]
  placed, _ = radgraph.entities(graph(REPORT, ("clear#1", 1, "OBS-DP")), sentences)
  assert placed == (Entity(1, 10, 15, "OBS-DP"),)


@pytest.mark.parametrize(
  "entry",
  [
    {},
    {"text": "a"},
    {"text": 1, "entities": {}},
    {"text": "a", "entities": [1]},
    {"text": "a", "entities": {"1": {"start_ix": None, "end_ix": 0, "label": "x"}}},
  ],
)
def test_an_entry_that_is_none(entry):
  with pytest.raises(UnreadableError, match="its entry in RadGraph"):
    radgraph.entities(entry, ["Clear."])


def test_entries_are_found_in_the_file_however_it_is_written(tmp_path, monkeypatch):
  path = tmp_path / "g.json"
  entries = {f"p1/s{i}.txt": {"text": 'wörd { } " \\ , ' * i, "entities": {}} for i in range(40)}
  for style in ({}, {"indent": 1, "ensure_ascii": False}, {"separators": (",", ":")}):
    path.write_text(json.dumps(entries, **style), encoding="utf-8")
    for block in (7, 64, 1 << 22):  # entries are cut off wherever a block may end
      monkeypatch.setattr(radgraph, "_BLOCK", block)
      places = radgraph.places(path, {*list(entries)[::3], "p1/none.txt"})
      assert list(places) == list(entries)[::3]
      for key, place in places.items():
        assert radgraph.entry(path, place) == entries[key]


def test_a_file_that_has_changed(tmp_path):
  path = tmp_path / "g.json"
  path.write_text('{"a": {"text": "x"}}')
  place = radgraph.places(path, {"a"})["a"]
  path.write_text('{"a": {"text": "y"}}')
  with pytest.raises(SourceError, match="has changed since"):
    radgraph.entry(path, place)
  path.unlink()
  with pytest.raises(SourceError, match="No such file"):
    radgraph.entry(path, place)


@pytest.mark.parametrize(
  ("content", "problem"),
  [
    ("", "is no JSON object"),
    ("[]", "is no JSON object"),
    ('{"a": {"text": "x"', "byte 1.*download it again"),
    ('{"a": {"text": "x"}', "byte 19.*download it again"),
    ('{"a" {"text": "x"}}', "no whole entry at byte 1"),
    ('{"a": {"text": "x"}, nonsense}', "no whole entry at byte 21"),
  ],
)
def test_a_file_that_is_cut_off_or_wrong(tmp_path, content, problem):
  path = tmp_path / "g.json"
  path.write_text(content)
  with pytest.raises(SourceError, match=problem):
    radgraph.places(path, {"a"})


def test_no_whole_file_is_held_where_an_entry_never_ends(tmp_path, monkeypatch):
  path = tmp_path / "g.json"
  path.write_text('{"a": "' + "x" * 10_000)
  monkeypatch.setattr(radgraph, "_BLOCK", 100)
  monkeypatch.setattr(radgraph, "_LONGEST", 1000)
  read = []
  decoder = json.JSONDecoder

  class Counting(decoder):
    def raw_decode(self, text, at=0):
      read.append(len(text))
      return super().raw_decode(text, at)

  monkeypatch.setattr(json, "JSONDecoder", Counting)
  with pytest.raises(SourceError, match="no whole entry at byte 1"):
    radgraph.places(path, {"a"})
  assert max(read) < 1300


def test_of_the_fakes_all_that_stands_in_sentences_has_a_place(tmp_path):
  """The fake marks the sentences' words, and "pneumonia" of every indication, which is not read."""
  images = physionet.write(tmp_path, patients=16, size_px=64)
  marked = placed = 0
  for image in images:
    if image.truth is None:
      continue
    entry = fake.entry(image)
    sentences = mimic_reports.sentences(mimic_reports.sections(image.report))
    assert len(sentences) in (len(image.truth.sentences), 0)
    entities, unplaced = radgraph.entities(entry, sentences)
    labels = [entity["label"] for entity in entry["entities"].values()]
    of_indication = labels.count("OBS-U")
    marked += len(labels) - of_indication
    placed += len(entities)
    assert unplaced >= of_indication
    tokens = entry["text"].split()
    expected = {
      " ".join(tokens[e["start_ix"] : e["end_ix"] + 1]) for e in entry["entities"].values()
    }
    assert {sentences[e.sentence][e.start : e.end] for e in entities} <= expected
  assert placed == marked > 200


@pytest.mark.skipif(not REAL.exists(), reason="the real reports are not here")
def test_words_of_real_reports_have_places():
  """Every word of every fourth real report marked; what has no place stands in a repeat."""
  with open(REAL, encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))[::4]
  placed = marked = 0
  for row in rows:
    report = f" FINDINGS: {row['findings']}\n IMPRESSION: {row['impression']}\n"
    sentences = mimic_reports.sentences(mimic_reports.sections(report))
    words = [i for i, token in enumerate(fake.tokens(report)) if token.strip("_.,:;/!?()-")]
    entities, _ = radgraph.entities(graph(report, *((i, 1, "x") for i in words)), sentences)
    placed += len(entities)
    marked += len(words) - 2  # the headings
    counted = sum(len(reports.words(sentence)) for sentence in sentences)
    assert len(entities) >= 0.95 * counted, report
  assert placed > 0.95 * marked


@pytest.mark.parametrize(
  "asked",
  [" INDICATION: {0}", " REASON FOR CHEST X-RAY: {0}", " EXAMINATION: CHEST (AP)\n TECHNIQUE: {0}"],
)
@pytest.mark.parametrize("after", [False, True])
def test_a_sentence_of_the_indication_takes_no_place_of_a_finding(asked, after):
  asked = asked.format("Pleural effusion.")
  found = " FINDINGS: Pleural effusion. Heart is large.\n IMPRESSION: Small effusion."
  marked = [("Pleural#0", 2, "a"), ("Pleural#1", 2, "b"), ("Heart", 1, "c"), ("Small", 2, "d")]
  marked += [("large", 1, "e")]
  report = "\n".join((found, asked) if after else (asked, found))
  own = "a" if after else "b"
  placed, unplaced = laid(report, *marked)
  assert ("Pleural effusion", own) in placed
  assert {label for _, label in placed} == {own, "c", "d", "e"} and unplaced == 1
