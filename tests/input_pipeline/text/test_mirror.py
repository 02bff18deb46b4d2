"""Sides exchanged in the reports of mirror images."""

import csv

import pytest

from input_pipeline.text import mirror, reports
from paths import SHARED_DATA

PAIRS = [
  ("Small left pleural effusion.", "Small right pleural effusion."),
  ("Right-sided line, LEFT base clear.", "Left-sided line, RIGHT base clear."),
  ("Leftward shift of the trachea.", "Rightward shift of the trachea."),
  ("Midright lung opacity, the rightmost.", "Midleft lung opacity, the leftmost."),
  ("Mild dextroscoliosis, levo curvature.", "Mild levoscoliosis, dextro curvature."),
  ("RUL nodule, LIJ catheter.", "LUL nodule, RIJ catheter."),
  ("Opacity of the right middle lobe.", "Opacity of the left middle lobe."),
  ("Fluid in the left minor fissure.", "Fluid in the right minor fissure."),
  ("Mild dextro-convex curve, levo scoliosis.", "Mild levo-convex curve, dextro scoliosis."),
  ("On the left the base is clear.", "On the right the base is clear."),
  ("Right worse than left with edema.", "Left worse than right with edema."),
  (
    "Clip on left, smaller than left, rotated to left.",
    "Clip on right, smaller than right, rotated to right.",
  ),
  ("There is left base scarring.", "There is right base scarring."),
  ("Right-sided aortic arch.", "Left-sided aortic arch."),
  ("RUQ clips, LLQ drain.", "LUQ clips, RLQ drain."),
  ("Levoposition, slight dextrorotation.", "Dextroposition, slight levorotation."),
  ("Right apical scar, left unilateral edema.", "Left apical scar, right unilateral edema."),
  ("EFFUSION ON THE LEFT, LLL CLEAR, NO LINE.", "EFFUSION ON THE RIGHT, RLL CLEAR, NO LINE."),
  ("", ""),
]


@pytest.mark.parametrize(("text", "other"), PAIRS)
def test_sides_change_places(text, other):
  assert mirror.swapped(text) == other
  assert mirror.swapped(other) == text
  assert mirror.can_be_swapped([text]) and mirror.can_be_swapped([other])


@pytest.mark.parametrize(
  ("text", "sides"),
  [
    ("Small left effusion, left apex.", "left"),
    ("Right-sided line, tip in the midright.", "right"),
    ("RLL nodule.", "right"),
    ("LIJ catheter, upright view.", "left"),
    ("RUL nodule and LEFT effusion.", "left right"),
    ("Bilateral effusions.", "left right"),
    ("Both lungs; biapical scars.", "left right"),
    ("Right effusion, bibasilar atelectasis.", "left right"),
    ("Levoscoliosis.", ""),
    ("Dextroscoliosis, left effusion.", "left"),
    ("Lateral view, cardiomegaly.", ""),
  ],
)
def test_sides_of_a_text(text, sides):
  opposite = {"left": "right", "right": "left"}
  assert mirror.sides(text) == set(sides.split())
  assert mirror.sides(mirror.swapped(text)) == {opposite[side] for side in sides.split()}


@pytest.mark.parametrize(
  "text",
  [
    "",
    "Low lung volumes, upright view, cleft sternum, bright bone.",
    "LOW LUNGS. OLD RIB FRACTURE, RE-EXPANDED LUNG, RIGID RODS, RHONCHI.",
    "Cardiac apex, stomach, liver, spleen and aortic knob as before. SVC line.",
    "Major fissure thickened, L1 fracture, tip in situ.",
    "Lab lap lat law lax lay led leg let lid lie lip lit lob log lot low.",
    "RAN RAT RAW RAY RE RED REF RIB RIM ROD ROW RUB RUN.",
  ],
)
def test_no_side(text):
  assert mirror.swapped(text) == text and mirror.can_be_swapped([text])


SHORT = """R L r l R. (L) R/L r/l b/l R>L Rt Lt RT LT rt. lt. RML rml Rml RV LV lv RA LA ra LAD RCA
RR LAO LUe RLLs LVAD RVOT LBBB RMSB LIMA RICA LIJV RUSB LUPV RIPV rtsided"""
AFTER = """a above after against alone along AMA an angle as at away before behind below beside by
for from here in inside intact into near next now of off on open out over place position the then
there through to unchanged undisturbed until up way where with within without"""
BEFORE = "has have had having been being patient he she who all"


@pytest.mark.parametrize("side", SHORT.split())
def test_abbreviations_of_sides(side):
  assert not mirror.can_be_swapped([f"Opacity of the {side} base."])
  assert not mirror.can_be_swapped([f"OPACITY OF THE {side.upper()} BASE."])


@pytest.mark.parametrize("text", [f"It is right {word} it." for word in AFTER.split()])
def test_no_side_before(text):
  assert not mirror.can_be_swapped([text]) and not mirror.can_be_swapped([text.upper()])


@pytest.mark.parametrize("text", [f"It {word} right it." for word in BEFORE.split()])
def test_no_side_after(text):
  assert not mirror.can_be_swapped([text]) and not mirror.can_be_swapped([text.upper()])


@pytest.mark.parametrize(
  "text",
  [
    "Dextrocardia.",
    "Levocardia.",
    "Laevocardia.",
    "Sinistroscoliosis.",
    "Dextro-transposition.",
    "Corrected transposition.",
    "D-TGA.",
    "Known situs inversus.",
    "Heterotaxy.",
    "Atrial isomerism.",
    "Kartagener syndrome.",
    "Mirror-image branching.",
    "Heart rotated counterclockwise.",
    "Lingular opacity.",
    "Azygos lobe.",
    "Hemiazygos vein.",
    "Scimitar sign.",
    "Bronchus intermedius narrowed.",
    "Intermediate bronchus narrowed.",
    "Apicoposterior nodule.",
    "Apico-posterior nodule.",
    "Middle lobe collapse.",
    "Right lower and middle lobes.",
    "Small on the left. Middle lobe clear.",
    "Opacity of the mid lobe.",
    "Middle and lower lobes clear.",
    "Fluid in the minor fissure.",
    "Fluid in the minor (horizontal) fissure.",
    "Thick horizontal fissure.",
    "A drain was left in place.",
    "The drain, left-in-place.",
    "Nurse left the room.",
    "Drains were left as is.",
    "This is what is left.",
    "The part that was left.",
    "What is left of it.",
    "Two clips left; none moved.",
    "Two clips left (as before).",
    "No clip left",
    "No left-to-right shunt.",
    "The tube is in the right position.",
    "Right angle of the tube.",
    "A right-angled tube.",
    "Leftsided effusion.",
    "Effusion in theright base.",
    "Effusions, lefts larger.",
    "LEft effusion.",
    "rIGHT effusion.",
    "rLL nodule.",
    "Rigth effusion.",
    "Rihgt effusion.",
    "Letf effusion.",
    "Leff effusion.",
  ],
)
def test_sides_that_cannot_be_told(text):
  assert not mirror.can_be_swapped(["Small left effusion.", text])
  assert mirror.swapped(mirror.swapped(text)) == text


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real reports are not here")
def test_real_reports():
  with (SHARED_DATA / "iu_reports" / "iu_reports.csv").open() as file:
    rows = [f"{row['findings']} {row['impression']}" for row in csv.DictReader(file)]
  texts = [text for text in rows if text.strip()]
  others = [mirror.swapped(text) for text in texts]
  for text, other in zip(texts, others, strict=True):
    assert mirror.swapped(other) == text
    assert len(reports.words(other)) == len(reports.words(text))
  sided = sum(text != other for text, other in zip(texts, others, strict=True))
  untold = sum(not mirror.can_be_swapped([text]) for text in texts)
  assert (len(texts), sided, untold) == (3927, 1400, 62)  # docs/data.md tells them


@pytest.mark.parametrize(
  ("text", "half"),
  [
    ("Small left effusion.", 1),
    ("RLL nodule.", -1),
    ("No right effusion, the right apex is clear.", -1),
    ("Left effusion, right base clear.", 0),
    ("Bilateral effusions.", 0),
    ("Clear lungs.", 0),
    ("The heart is shifted to the left.", 0),
    ("Scoliosis convex to the right.", 0),
    ("Trachea pulled to the left by fibrosis.", 0),
    ("Mediastinal mass effect to the left.", 0),
    ("Heart enlarged to the left.", 0),
    ("Enlarged left hilum.", 1),
    ("The tube is left in place.", 0),
    ("RML opacity, right.", 0),
    ("", 0),
  ],
)
def test_half_of_the_image_that_a_text_names(text, half):
  assert mirror.half(text) == half
  assert mirror.half(mirror.swapped(text)) == -half
