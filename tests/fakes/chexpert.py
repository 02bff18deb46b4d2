"""A CheXpert folder: tables as published, images of a few patients, every quirk of the real one."""

from fakes.images import image, table
from input_pipeline.readers.chexpert import LABELS

COLUMNS = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS]
BATCHES = ("CheXpert-v1.0 batch 2 (train 1)", "CheXpert-v1.0 batch 3 (train 2)")


def row(path, projection="AP", **labels):
  view = "Lateral" if "lateral" in path else "Frontal"
  cells = {"Path": path, "Sex": "Female", "Age": "68", "Frontal/Lateral": view}
  cells["AP/PA"] = projection if view == "Frontal" else ""
  return cells | {name.replace("_", " "): value for name, value in labels.items()}


def train_rows(prefix="CheXpert-v1.0-small/"):
  train = f"{prefix}train/"
  return [
    row(f"{train}patient00001/study1/view1_frontal.jpg", No_Finding="1.0", Support_Devices="1.0"),
    row(f"{train}patient00002/study2/view1_frontal.jpg", "PA", Edema="-1.0", Cardiomegaly="0.0"),
    row(f"{train}patient00002/study1/view1_frontal.jpg", "LL", Pleural_Effusion="1.0"),
    row(f"{train}patient00002/study1/view2_lateral.jpg", Pleural_Effusion="1.0"),
    row(f"{train}patient00003/study1/view1_frontal.jpg", Fracture="nan"),
  ]


# The test table came later, with paths from "test/" on and labels alone.
TEST = ({"Path": "test/patient64741/study1/view1_frontal.jpg", "Edema": "1.0"},)


def write(folder, name="CheXpert-v1.0-small", *, plus=False, batches=False, test=TEST):
  """The folder as unpacked; `batches` leaves the training images in their archives' folders."""
  home = folder / ("CheXpert-v1.0 batch 1 (validate & csv)" if batches else name)
  prefix = f"{'CheXpert-v1.0' if batches else name}/"
  train = train_rows(prefix)
  valid = [row(f"{prefix}valid/patient64541/study1/view1_frontal.jpg", Edema="0.0")]
  table(home / "train.csv", train, COLUMNS)
  table(home / "valid.csv", valid, COLUMNS)
  table(home / "test.csv", test, ["Path", *LABELS])
  for i, cells in enumerate([*train, *valid, *test]):
    path = cells["Path"].removeprefix(prefix)
    place = home / path
    if batches and path.startswith("train/"):
      place = folder / BATCHES[i % 2] / path.removeprefix("train/")
    image(place, 80, 64 + i, seed=i)
  if plus:
    reports = [
      {
        "path_to_image": "train/patient00002/study1/view1_frontal.jpg",
        "section_findings": "Small left effusion.\nNo pneumothorax.",
        "section_impression": "1. Small left effusion.\n2. No edema.",
        "report": "left aside",
      },
      {
        "path_to_image": "train/patient00003/study1/view1_frontal.jpg",
        "section_impression": "Normal chest.",
      },
      {"path_to_image": "valid/patient64541/study1/view1_frontal.jpg"},
    ]
    table(folder / "df_chexpert_plus_240401.csv", reports, list(reports[0]))
  return folder
