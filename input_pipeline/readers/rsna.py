"""Reader of the RSNA Pneumonia Detection Challenge (Shih et al. 2019), stage 2.

The folder, as Kaggle's archive unpacks:

  stage_2_train_labels.csv          patientId,x,y,width,height,Target: a row a box, one without
                                    numbers where Target is 0
  stage_2_detailed_class_info.csv   patientId,class; optional
  stage_2_train_images/*.dcm        1024 x 1024 images, named by patientId

Labels: "Lung Opacity" is Target; with the class table, also "Normal" and "No Lung Opacity / Not
Normal". The boxes of an image are one region, "Lung Opacity". Every image is a patient of its own,
as far as the data tell. The challenge's test images have no public labels and are left aside. There
is no official split: 80/10/10 is drawn by patientId; the detection splits of the field are
selections (`rsna_detection`, `rsna_detection_mgca`). The view is read from the images.
"""

import functools
from pathlib import Path

from input_pipeline.readers import nih14
from input_pipeline.readers.raw import boxes, folders, tables
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.source import Item, Listing, Source, draw_split

FINDING = "Lung Opacity"
CLASSES = (FINDING, "No Lung Opacity / Not Normal", "Normal")
_LABELS = "stage_2_train_labels.csv"
_CLASSES = "stage_2_detailed_class_info.csv"
_IMAGES = "stage_2_train_images"
_BOX = ("x", "y", "width", "height")


def open_source(source: str) -> Source:
  """Lists the images of the table. Raises SourceError, also where two rows contradict."""
  root = folders.folder(source, f"RSNA's {_LABELS}")
  listing = Listing()
  first, boxes_of = _read_labels(root, listing)
  class_of = _read_classes(root, first, listing)
  for patient, row in first.items():
    labels = {FINDING: int(row["Target"])}
    if patient in class_of:
      labels |= {name: int(name == class_of[patient]) for name in CLASSES if name != FINDING}
    labelled = tuple((FINDING, corners) for corners in boxes_of[patient])
    listing.items[patient] = Item(
      key=f"{patient} ({row.place})",
      split=draw_split(patient),
      patient_id=patient,
      row=nih14.BoxedImage(f"{_IMAGES}/{patient}.dcm", labelled),
      image_id=patient,
      labels=tuple(labels.items()),
    )
  listing.note_repeated()
  listing.note("no official split: drawn by patientId (80/10/10); see the selections")
  return listing.source("rsna", functools.partial(nih14.read_boxed, root=root))


def _read_labels(
  root: Path, listing: Listing
) -> tuple[dict[str, tables.Row], dict[str, dict[boxes.Corners, None]]]:
  """Reads each patient's first row and boxes; lists boxes without area as left out."""
  table = folders.find(root, _LABELS, f"{_LABELS}.zip", hint="get it from Kaggle")
  first: dict[str, tables.Row] = {}
  boxes_of: dict[str, dict[boxes.Corners, None]] = {}
  for row in tables.read(table, ("patientId", *_BOX, "Target")):
    patient, target = row.text("patientId"), row.one_of("Target", ("0", "1"))
    numbers = row.numbers(*_BOX)
    if (target == "1") != (numbers is not None):
      raise row.wrong("Target", "1 with a box, and 0 without one")
    before = first.setdefault(patient, row)
    if before["Target"] != target:
      raise SourceError(
        f"{table}: row {row.number} says Target {target} of {patient}, row {before.number} says"
        f" {before['Target']}; remove one"
      )
    own = boxes_of.setdefault(patient, {})
    if numbers is None:
      listing.counts["repeated"] += before is not row
      continue
    corners = nih14.clip_or_leave_out(numbers, f"{patient} ({row.place})", listing)
    if corners is None:
      continue
    listing.counts["repeated"] += corners in own
    own[corners] = None
  return first, boxes_of


def _read_classes(root: Path, targets: dict[str, tables.Row], listing: Listing) -> dict[str, str]:
  """Maps patients to classes. Raises SourceError where one contradicts the patient's Target."""
  try:
    path = folders.find(root, _CLASSES, f"{_CLASSES}.zip")
  except SourceError:
    listing.note(f"no {_CLASSES}: images without opacity are not told apart")
    return {}
  class_of: dict[str, str] = {}
  for row in tables.read(path, ("patientId", "class")):
    patient, name = row.text("patientId"), row.one_of("class", CLASSES)
    if class_of.setdefault(patient, name) != name:
      raise row.wrong("class", f"{class_of[patient]!r}, as an earlier row of {patient} says")
    labelled = targets.get(patient)
    if labelled and (labelled["Target"] == "1") != (name == FINDING):
      target = labelled["Target"]
      raise row.wrong("class", f"one that fits Target {target} of {patient} in {labelled.place}")
  missing = len(targets.keys() - class_of.keys())
  listing.note(f"images without a class in {_CLASSES}: {{}}", missing)
  return class_of
