"""A folder for our reader from a private one of real films, so that what is scored is sound.

  python tests/real_films.py FOLDER OUT

The class "lung opacity" can be told by where a film comes from, so it is scored in one pool only:
the films of pool "nih-B" that radiologists have read are the test split, with that label alone, and
no other film of the pool or of its patients is there. The rest keeps its split, texts and boxes.
"""

import csv
import shutil
import sys
from pathlib import Path

POOL = "nih-B"
COLUMNS = (
  "image_id", "image", "mask", "split", "patient_id", "study_id", "view", "text", "text_kind",
  "labels", "boxes",
)  # fmt: skip


def rows(folder: Path) -> list[dict[str, str]]:
  """The rows of the new manifest."""
  with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
    there = list(csv.DictReader(file))
  tested = [row for row in there if row["pool"] == POOL and row["rsna_class"]]
  patients = {row["patient_id"] for row in tested}
  for row in tested:
    present = int(row["rsna_class"] == "Lung Opacity")
    row.update(split="test", labels=f"lung opacity={present}")
  learned = [row for row in there if row["pool"] != POOL and row["patient_id"] not in patients]
  return [{name: row[name] for name in COLUMNS} for row in learned + tested]


def write(folder: Path, out: Path, kept: list[dict[str, str]]) -> None:
  """The manifest of the kept rows, and their files."""
  for row in kept:
    for name in filter(None, (row["image"], row["mask"])):
      (out / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(folder / name, out / name)
  with (out / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    writer.writerows(kept)


if __name__ == "__main__":
  write(Path(sys.argv[1]), Path(sys.argv[2]), rows(Path(sys.argv[1])))
