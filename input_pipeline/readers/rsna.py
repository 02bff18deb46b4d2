"""Reader of the RSNA Pneumonia Detection Challenge (Shih et al. 2019), stage 2.

The folder, as Kaggle's archive unpacks:

  stage_2_train_labels.csv          patientId,x,y,width,height,Target: a row a box, one without
                                    numbers where Target is 0
  stage_2_detailed_class_info.csv   patientId,class; optional
  stage_2_train_images/*.dcm        1024 x 1024 images, named by patientId

Labels: "Lung Opacity" is Target; with the class table, also "Normal" and
"No Lung Opacity / Not Normal". The boxes of an image are one region, "Lung Opacity". Every image is a
patient of its own, as far as the data tell. The challenge's test images have no public labels and
are left aside. There is no official split: 80/10/10 is drawn by patientId; the detection splits of
the field are selections (`rsna_detection`, `rsna_detection_mgca`). The view is read from the images.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

from input_pipeline.example import Example
from input_pipeline.readers.raw import boxes, dicom, folders, tables
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.raw.stored_images import image_size
from input_pipeline.readers.source import Item, Source, draw_split

FINDING = "Lung Opacity"
CLASSES = (FINDING, "No Lung Opacity / Not Normal", "Normal")
_LABELS = "stage_2_train_labels.csv"
_CLASSES = "stage_2_detailed_class_info.csv"
_IMAGES = "stage_2_train_images"
_SIZE_PX = 1024
_BOX = ("x", "y", "width", "height")


@dataclass(frozen=True)
class _Row:
  boxes: tuple[boxes.Corners, ...]


def open_source(source: str) -> Source:
  """Lists the images.

  Args:
    source: the folder.

  Raises SourceError: a table is missing or damaged, a cell cannot be right, or the rows of an image
  contradict one another.
  """
  root = folders.folder(source, f"RSNA's {_LABELS}")
  table = folders.find(root, _LABELS, f"{_LABELS}.zip", what="get it from Kaggle")
  left_out: list[tuple[str, str]] = []
  found: dict[str, dict[boxes.Corners, None]] = {}
  first: dict[str, tables.Row] = {}
  twice = 0
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
    mine = found.setdefault(patient, {})
    if numbers is None:
      twice += before is not row
      continue
    x, y, w, h = numbers
    corners = boxes.clip((x, y, x + w, y + h), _SIZE_PX, _SIZE_PX)
    if corners is None:
      reason = f"the box x {x:g}, y {y:g}, width {w:g}, height {h:g} is empty or outside its image"
      left_out.append((f"{patient} ({row.place})", reason))
      continue
    twice += corners in mine
    mine[corners] = None
  classes, notes = _classes(root, first)
  items = []
  for patient, row in first.items():
    labels = {FINDING: int(row["Target"])}
    if patient in classes:
      labels |= {name: int(name == classes[patient]) for name in CLASSES if name != FINDING}
    items.append(
      Item(
        f"{patient} ({row.place})",
        draw_split(patient),
        patient,
        _Row(tuple(found[patient])),
        patient,
        "",
        tuple(labels.items()),
      )  # fmt: skip
    )
  if twice:
    notes.append(f"rows that say the same as an earlier one, dropped: {twice}")
  notes.append("no official split: drawn by patientId (80/10/10); see the selections")
  return Source("rsna", items, functools.partial(_read, root=root), tuple(notes), tuple(left_out))


def _classes(root: Path, targets: dict[str, tables.Row]) -> tuple[dict[str, str], list[str]]:
  """Patient -> class, and notes. Raises SourceError where it contradicts the patient's Target."""
  try:
    path = folders.find(root, _CLASSES, f"{_CLASSES}.zip")
  except SourceError:
    return {}, [f"no {_CLASSES}: images without opacity are not told apart"]
  found: dict[str, str] = {}
  for row in tables.read(path, ("patientId", "class")):
    patient, name = row.text("patientId"), row.one_of("class", CLASSES)
    if found.setdefault(patient, name) != name:
      raise row.wrong("class", f"{found[patient]!r}, as an earlier row of {patient} says")
    labelled = targets.get(patient)
    if labelled and (labelled["Target"] == "1") != (name == FINDING):
      target = labelled["Target"]
      raise row.wrong("class", f"one that fits Target {target} of {patient} in {labelled.place}")
  missing = len(targets.keys() - found.keys())
  return found, [f"images without a class in {_CLASSES}: {missing}"] if missing else []


def _read(item: Item, *, root: Path) -> Example:
  image, view = dicom.to_image(folders.read_bytes(root, f"{_IMAGES}/{item.image_id}.dcm"))
  width, height = image_size(image)
  return Example(
    image=image,
    width=width,
    height=height,
    image_id=item.image_id,
    study_id=item.image_id,
    patient_id=item.patient_id,
    view=view,
    labels=dict(item.labels),
    regions=boxes.by_label(
      ((FINDING, corners) for corners in item.row.boxes), (width / _SIZE_PX, height / _SIZE_PX)
    ),
  )
