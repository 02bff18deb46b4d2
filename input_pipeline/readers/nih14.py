"""Reader of NIH ChestX-ray14 (Wang et al. 2017): labels, and the 984 boxes of its test images.

The folder holds

  Data_Entry_2017_v2020.csv   a row an image; the older Data_Entry_2017.csv will do
  train_val_list.txt, test_list.txt   the official split, a file name a line
  BBox_List_2017.csv          boxes, optional
  images/00000001_000.png, ... or images_001/images/..., as the archives unpack

Of the columns, Image Index names the file, Finding Labels holds names with "|" between, Patient ID
and View Position (PA or AP) are taken; age, sex, follow-up number and original size are left aside.
The labels were mined from reports that are not public: images have no text. A finding that is not
named counts as absent (0), as everywhere in the field. One image is one study.

Boxes are in pixels of the 1024 x 1024 images; on images of another size they are scaled along.
Their table says "Infiltrate" where the labels say "Infiltration", which is what its regions are
called.

The official split knows no validation: an eighth of the patients of train_val_list.txt is drawn by
patient id, so that the shares are about 70, 10 and 20 percent of the images.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

from input_pipeline.example import Example, Region
from input_pipeline.readers.raw import boxes, dicom, folders, tables
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.source import Item, Listing, Source, build_example, draw_validation

FINDINGS = (
  "Atelectasis",
  "Cardiomegaly",
  "Effusion",
  "Infiltration",
  "Mass",
  "Nodule",
  "Pneumonia",
  "Pneumothorax",
  "Consolidation",
  "Edema",
  "Emphysema",
  "Fibrosis",
  "Pleural_Thickening",
  "Hernia",
)
LABELS = (*FINDINGS, "No Finding")
SIZE_PX = 1024  # side of the original images
_VALIDATION = 1 / 8
_ENTRIES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
_BOXES = "BBox_List_2017.csv"


@dataclass(frozen=True)
class BoxedImage:
  """Row of an NIH image, in this and other data sets; boxes in pixels of the original image."""

  file: str  # relative to the folder
  boxes: tuple[boxes.Labelled, ...]


def open_source(source: str) -> Source:
  """Lists the images of the table. Raises SourceError, also where two rows or lists contradict."""
  root = folders.folder(source, "NIH ChestX-ray14")
  entries = folders.find(root, *_ENTRIES, hint="get it where the images came from")
  split_of = _split_lists(root)
  listing = Listing()
  boxes_of = _boxes(root, listing)
  files = folders.file_names(root, ".png")
  labels_of: dict[str, tuple[tuple[str, int], ...]] = {}
  for row in tables.read(entries, ("Image Index", "Finding Labels", "Patient ID", "View Position")):
    name, patient, cell = row.text("Image Index"), row.text("Patient ID"), row["Finding Labels"]
    if cell not in labels_of:
      labels_of[cell] = _labels(row)
    key = f"{name} ({row.place})"
    split = split_of.get(name)
    if split is None:
      listing.leave_out(key, f"is in neither {' nor '.join(_LISTS.values())}")
      continue
    item = Item(
      key=key,
      split=draw_validation(patient, _VALIDATION) if split == "train" else split,
      patient_id=patient,
      row=BoxedImage(files.get(name, f"images/{name}"), boxes_of.get(name, ())),
      image_id=Path(name).stem,
      view=row["View Position"],
      labels=labels_of[cell],
    )
    listing.add(name, item)
  listing.note_split(f"validation is an eighth of {_LISTS['train']}, drawn by patient id")
  listing.note_repeated()
  lost = sum(len(labelled) for name, labelled in boxes_of.items() if name not in listing.items)
  listing.note("boxes of images that are not listed, left aside: {}", lost)
  return listing.source("nih14", functools.partial(read_boxed, root=root))


def clip_or_leave_out(
  numbers: tuple[float, ...], key: str, listing: Listing
) -> boxes.Corners | None:
  """Clips a box of x, y, width and height; lists it as left out where that leaves no area."""
  x, y, w, h = numbers
  corners = boxes.clip((x, y, x + w, y + h), SIZE_PX, SIZE_PX)
  if corners is None:
    listing.leave_out(
      key, f"the box x {x:g}, y {y:g}, width {w:g}, height {h:g} is empty or outside its image"
    )
  return corners


def read_boxed(item: Item, *, root: Path) -> Example:
  """Reads the image of a BoxedImage, boxes scaled to its size. Raises UnreadableError."""
  image, view = folders.read_bytes(root, item.row.file), item.view
  if item.row.file.endswith(".dcm"):
    image, view = dicom.to_image(image)

  def regions(width: int, height: int) -> tuple[Region, ...]:
    return boxes.by_label(item.row.boxes, (width / SIZE_PX, height / SIZE_PX))

  return build_example(item, image, view=view, regions=regions)


def _split_lists(root: Path) -> dict[str, str]:
  """Maps file names to "train" or "test". Raises SourceError for an image in both lists."""
  split_of: dict[str, str] = {}
  for split, name in _LISTS.items():
    path = folders.find(root, name, hint="the lists of the official split come with the images")
    for line in folders.text(path.read_bytes()).split():
      if split_of.setdefault(line, split) != split:
        raise SourceError(f"{path}: {line} is in {_LISTS[split_of[line]]} too; take one away")
  return split_of


def _labels(row: tables.Row) -> tuple[tuple[str, int], ...]:
  """Sets every label: 1 where the row names it, else 0. Raises SourceError for an unknown name."""
  named = row["Finding Labels"].split("|")
  if not set(named) <= set(LABELS):
    raise row.wrong("Finding Labels", f"names with '|' between, of {', '.join(LABELS)}")
  return tuple((label, int(label in named)) for label in LABELS)


def _boxes(root: Path, listing: Listing) -> dict[str, tuple[boxes.Labelled, ...]]:
  """Maps file names to boxes, each once; lists those without area as left out."""
  path = root / _BOXES
  if not path.exists():
    listing.note(f"no {_BOXES}: no boxes")
    return {}
  boxes_of: dict[str, dict[boxes.Labelled, None]] = {}
  repeated = 0
  columns = ("Image Index", "Finding Label", "x", "y", "w", "h")
  # The table's own first row has commas inside its names.
  for row in tables.read(path, columns, names=columns):
    label = row["Finding Label"].replace("Infiltrate", "Infiltration")
    if label not in FINDINGS:
      raise row.wrong("Finding Label", f"one of {', '.join(FINDINGS)}")
    numbers = row.numbers("x", "y", "w", "h")
    if numbers is None:
      raise row.wrong("x", "a number")
    name = row.text("Image Index")
    corners = clip_or_leave_out(numbers, f"{name} ({row.place})", listing)
    if corners is None:
      continue
    repeated += (label, corners) in boxes_of.setdefault(name, {})
    boxes_of[name][label, corners] = None
  listing.note("boxes given twice, dropped: {}", repeated)
  return {name: tuple(labelled) for name, labelled in boxes_of.items()}
