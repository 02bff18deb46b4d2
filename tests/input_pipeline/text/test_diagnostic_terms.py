"""Words that name something seen: the list, and the reach of denials."""

import pytest

from input_pipeline.text import diagnostic_terms, reports

CHEST = diagnostic_terms.load()


def named(sentence):
  flags = CHEST.named(sentence)
  spans = reports.words(sentence)
  assert len(flags) == len(spans)
  return [sentence[a:b] for (a, b), flag in zip(spans, flags, strict=True) if flag]


@pytest.mark.parametrize(
  ("sentence", "want"),
  [
    ("There is a small left pleural effusion.", ["pleural", "effusion"]),
    ("Bilateral effusions and opacities.", ["effusions", "opacities"]),
    ("No pleural effusion or pneumothorax.", []),
    ("The heart size is normal.", []),  # anatomy alone names no finding
    ("Cardiac enlargement without edema.", ["Cardiac", "enlargement"]),
    ("Pneumothorax is not seen.", []),
    ("Pneumothorax not increased, effusion persists.", ["Pneumothorax", "effusion"]),
    ("Pneumothorax is no longer present.", []),
    ("No significant change in large right pleural effusion.", ["pleural", "effusion"]),
    ("No interval change of the opacity.", ["opacity"]),
    ("No increased opacity.", []),
    ("No effusion or interval change.", []),
    ("Clear lungs beside the mass.", ["mass"]),
    ("There is a clear increase in the effusion.", ["effusion"]),
    ("No pneumothorax, with a small left effusion.", ["effusion"]),
    ("No effusion; pneumonia cannot be excluded.", ["pneumonia"]),
    ("No 1.5 cm nodule is seen.", []),
    ("The nodule has resolved; a mass remains.", ["mass"]),
    ("No effusion, but a rib fracture is seen.", ["rib", "fracture"]),
    ("A nodule cannot be excluded.", ["nodule"]),
    ("The lungs are free of consolidation.", []),
    ("Interval resolution of the right pleural effusion.", []),
    ("Interval removal of the left chest tube.", []),
    ("Resolution of edema.", []),
    ("After removal of the chest tube, a small pneumothorax is seen.", ["pneumothorax"]),
    ("Interval removal of a tube with a residual effusion.", ["effusion"]),
    ("Partial resolution of the effusion.", ["effusion"]),
    ("No resolution of the effusion.", ["effusion"]),
    ("A nodule on high resolution images.", ["nodule"]),
    ("No pneumothorax following removal of the chest tube, pleural effusion or mass.", []),
    ("No pneumothorax, status post removal of pacemaker, or effusion.", []),
    ("No nodule on high resolution images, effusion or pneumothorax.", []),
    ("Pneumothorax seen before chest tube removal, now resolved.", []),
    ("The pneumothorax seen prior to removal of the tube, has resolved.", []),
    ("", []),
  ],
)
def test_named(sentence, want):
  assert named(sentence) == want
  assert CHEST.concise(sentence) == (" ".join(want) or sentence)


@pytest.mark.parametrize(
  ("sentence", "want"),
  [
    ("Mass in the left upper zones.", ["Mass", "left", "upper", "zones"]),
    ("The left lung is clear.", []),  # of no finding
    ("No effusion on the right, but a left basal nodule.", ["left", "basal", "nodule"]),
  ],
)
def test_words_of_place(sentence, want):
  flags = diagnostic_terms.load(places=True).named(sentence)
  spans = reports.words(sentence)
  assert [sentence[a:b] for (a, b), flag in zip(spans, flags, strict=True) if flag] == want


def test_own_list(tmp_path):
  path = tmp_path / "list.txt"
  path.write_text("# mine\nWidget  # a finding\n~ gear\n")
  own = diagnostic_terms.load(path)
  assert own.named("Gear widgets") == [True, True]
  assert own.named("gear alone") == [False, False]


@pytest.mark.parametrize(
  ("content", "message"),
  [("two words\n", "line 1: 'two words' is not one word"), ("~gear\n", "names no finding")],
)
def test_bad_lists(tmp_path, content, message):
  path = tmp_path / "list.txt"
  path.write_text(content)
  with pytest.raises(diagnostic_terms.TermsError, match=message):
    diagnostic_terms.load(path)


def test_missing_list(tmp_path):
  with pytest.raises(
    diagnostic_terms.TermsError, match=r"none\.txt: the list of terms cannot be read"
  ):
    diagnostic_terms.load(tmp_path / "none.txt")
