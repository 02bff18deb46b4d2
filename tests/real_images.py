"""A folder for our reader from a private one of real images, so that what is scored is sound.

  python tests/real_images.py FOLDER OUT            # for zero-shot classification and grounding
  python tests/real_images.py FOLDER OUT --tasks    # for what is learned on an encoder

The class "lung opacity" can be told by where an image comes from, so it is scored in one pool only:
the images of pool "nih-B" that radiologists have read are the test split, with that label alone,
and no other image of the pool or of its patients is kept. The rest keeps its split, texts and
boxes.

With --tasks all images are kept: the validation split is the test split, an eighth of the training
patients is the validation split, and labels are those of the same pool alone, where an image that
names other findings does not show the rest.
"""

import csv
import shutil
import sys
import zlib
from pathlib import Path

POOL = "nih-B"
NOTHING = "no finding"
COLUMNS = ("image_id", "image", "mask", "split", "patient_id", "study_id", "view")
COLUMNS += ("text", "text_kind", "labels", "boxes")


def _manifest(folder: Path) -> list[dict[str, str]]:
  with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
    return list(csv.DictReader(file))


def rows(folder: Path) -> list[dict[str, str]]:
  """Returns the rows of the new manifest."""
  private = _manifest(folder)
  tested = [row for row in private if row["pool"] == POOL and row["rsna_class"]]
  patients = {row["patient_id"] for row in tested}
  for row in tested:
    present = int(row["rsna_class"] == "Lung Opacity")
    row.update(split="test", labels=f"lung opacity={present}")
  learned = [row for row in private if row["pool"] != POOL and row["patient_id"] not in patients]
  return [{name: row[name] for name in COLUMNS} for row in learned + tested]


def task_rows(folder: Path) -> list[dict[str, str]]:
  """Returns the rows of the manifest with --tasks."""
  private = _manifest(folder)
  for row in private:
    row["labels"] = row["labels"] if row["pool"] == POOL else ""
  named = {label for row in private for label in row["labels"].split("|")} - {"", NOTHING}
  for row in private:
    if row["labels"]:
      present = row["labels"].split("|")
      row["labels"] = "|".join(f"{name}={int(name in present)}" for name in sorted(named))
    if row["split"] == "validation":
      row["split"] = "test"
    elif zlib.crc32(row["patient_id"].encode()) % 8 == 0:
      row["split"] = "validation"
  return [{name: row[name] for name in COLUMNS} for row in private]


def write(folder: Path, out: Path, kept: list[dict[str, str]]) -> None:
  """Writes the manifest of the kept rows, and copies their files."""
  for row in kept:
    for name in filter(None, (row["image"], row["mask"])):
      (out / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(folder / name, out / name)
  with (out / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    writer.writerows(kept)


if __name__ == "__main__":
  chosen = task_rows if "--tasks" in sys.argv else rows
  write(Path(sys.argv[1]), Path(sys.argv[2]), chosen(Path(sys.argv[1])))
