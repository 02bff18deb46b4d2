"""VinDr-CXR's folder, and VinBigData's: three readers a training image, some JPEG 2000."""

from pydicom.uid import JPEG2000Lossless

from fakes import dicom
from fakes.images import table

TRAIN = ("image_id", "rad_id", "class_name", "x_min", "y_min", "x_max", "y_max")
# The findings of the published tables: with boxes, and of the whole image.
BOXED = (
  *("Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture"),
  *("Consolidation", "Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity"),
  *("Lung cavity", "Lung cyst", "Mediastinal shift", "Nodule/Mass", "Other lesion"),
  *("Pleural effusion", "Pleural thickening", "Pneumothorax", "Pulmonary fibrosis"),
  "Rib fracture",
)
WHOLE = ("COPD", "Lung tumor", "Pneumonia", "Tuberculosis", "Other diseases", "No finding")
NAMED = {*BOXED, *WHOLE} - {"Other lesion", "Other diseases"}
_NONE = {"class_name": "No finding"}


def box(image_id, rad_id, name, *corners):
  row = {"image_id": image_id, "rad_id": rad_id, "class_name": name}
  return row | dict(zip(TRAIN[3:], corners, strict=True))


ROWS = [
  box("f0", "R1", "Cardiomegaly", 20, 40, 80, 90),
  box("f0", "R2", "Cardiomegaly", 22, 42, 82, 92),
  box("f0", "R2", "Nodule/Mass", 10, 10, 20, 20),
  {"image_id": "f0", "rad_id": "R3"} | _NONE,
  *({"image_id": "f1", "rad_id": f"R{i}"} | _NONE for i in (1, 2, 3)),
]
TEST = [
  {k: v for k, v in box("t0", "", "Pleural effusion", 5, 5, 30, 30).items() if k != "rad_id"},
  {"image_id": "t1"} | _NONE,
]


def write(folder, rows=ROWS, *, kaggle=False, labels=True):
  """The folder of 96 x 100 images; f1 is JPEG 2000, and of 12 bits and MONOCHROME1."""
  if kaggle:
    numbers = {"Cardiomegaly": 3, "Nodule/Mass": 8, "No finding": 14}
    rows = [row | {"class_id": numbers[row["class_name"]]} for row in rows]
    table(
      folder / "train.csv", rows, ("image_id", "class_name", "class_id", *TRAIN[1:2], *TRAIN[3:])
    )
  else:
    table(folder / "annotations" / "annotations_train.csv", rows, TRAIN)
    table(folder / "annotations" / "annotations_test.csv", TEST, (TRAIN[0], *TRAIN[2:]))
    if labels:
      whole = []
      for image_id in ("f0", "f1"):
        for reader in (1, 2, 3):
          ill = int(image_id == "f0" and reader < 3)
          labels_of = {"Cardiomegaly": ill, "Pneumonia": ill, "Other diseases": 0}
          ids = {"image_id": image_id, "rad_ID": f"R{reader}"}
          whole.append(ids | labels_of | {"No finding": 1 - ill})
      table(folder / "annotations" / "image_labels_train.csv", whole)
      of_test = [
        {"image_id": i, "Pneumonia": int(i == "t0"), "Other disease": int(i == "t0")}
        for i in ("t0", "t1")
      ]
      table(folder / "annotations" / "image_labels_test.csv", of_test)
  suffix = ".dcm" if kaggle else ".dicom"
  dicom.write(folder / "train" / f"f0{suffix}", width=96, height=100)
  more = {"photometric": "MONOCHROME1", "syntax": JPEG2000Lossless, "ViewPosition": "PA"}
  dicom.write(folder / "train" / f"f1{suffix}", width=96, height=100, seed=1, **more)
  if not kaggle:
    for i in range(2):
      dicom.write(folder / "test" / f"t{i}{suffix}", width=96, height=100, seed=2 + i)
  return folder


def write_all_findings(folder):
  """The tables of an image, without it, in which all readers name every finding."""
  readers = [f"R{i}" for i in (1, 2, 3)]
  rows = [box("f0", reader, name, 5, 5, 30, 30) for reader in readers for name in BOXED]
  table(folder / "annotations" / "annotations_train.csv", rows, TRAIN)
  columns = (TRAIN[0], *TRAIN[2:])
  table(folder / "annotations" / "annotations_test.csv", [{"image_id": "t1"} | _NONE], columns)
  whole = [{"image_id": "f0", "rad_ID": reader} | dict.fromkeys(WHOLE, 1) for reader in readers]
  table(folder / "annotations" / "image_labels_train.csv", whole)
  return folder
