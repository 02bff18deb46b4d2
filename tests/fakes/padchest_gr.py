"""A PadChest-GR folder: grounded reports, the table of splits, 16-bit images, prior studies."""

import json
import zipfile

from fakes.images import image, table

# Negative findings lack the keys that positive ones have, as in the real file.
NO_EFFUSION = {
  "sentence_en": "No pleural effusion.",
  "sentence_es": "Sin derrame pleural.",
  "abnormal": False,
}
CARDIOMEGALY = {
  "sentence_en": "Cardiomegaly.",
  "sentence_es": "Cardiomegalia.",
  "abnormal": True,
  "boxes": [[0.25, 0.5, 0.75, 0.875]],
  "extra_boxes": [[0.2, 0.5, 0.75, 0.9]],
  "labels": ["cardiomegaly"],
  "locations": ["cardiac"],
  "progression": None,
}
NODULES = [
  {
    "sentence_en": "Nodule in both  upper lobes.",
    "sentence_es": "Nódulo en ambos lóbulos superiores.",
    "abnormal": True,
    "boxes": [[at, 0.125, at + 0.125, 0.25]],
    "extra_boxes": [],
    "labels": [name],
    "locations": [],
    "progression": "stable",
  }
  for at, name in ((0.125, "nodule"), (0.75, "calcified granuloma"))
]
STUDIES = [
  ("a_1", "p1", "train", [CARDIOMEGALY, NO_EFFUSION]),
  ("b_2", "p2", "train", [NO_EFFUSION]),
  ("c_3", "p3", "validation", NODULES),
  ("d_4", "p4", "test", [CARDIOMEGALY, *NODULES]),
]
GROUPS = {"cardiomegaly": "cardiomegaly", "nodule": "nodule", "calcified granuloma": "granuloma"}


def rows(studies):
  """The table: a row a label of a sentence, one with blank cells for a negative sentence."""
  return [
    {
      "StudyID": f"s{name}",
      "ImageID": f"{name}.png",
      "label": label,
      "sentence_en": finding["sentence_en"],
      "sentence_es": finding["sentence_es"],
      "split": split,
      "PatientID": patient,
      "label_group": GROUPS.get(label, ""),
    }
    for name, patient, split, findings in studies
    for finding in findings
    for label in finding.get("labels", [""])
  ]


def reports(studies):
  return [
    {
      "StudyID": f"s{name}",
      "ImageID": f"{name}.png",
      "PreviousStudyID": None,
      "PreviousImageID": None,
      "findings": findings,
    }
    for name, _, _, findings in studies
  ]


def write(folder, studies=STUDIES, *, zipped=False, bits=16):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "grounded_reports_20240819.json").write_text(
    json.dumps(reports(studies), ensure_ascii=False), encoding="utf-8"
  )
  table(folder / "master_table.csv", rows(studies))
  if zipped:
    with zipfile.ZipFile(folder / "master_table.csv.zip", "w") as archive:
      archive.write(folder / "master_table.csv", "master_table.csv")
    (folder / "master_table.csv").unlink()
  for i, (name, *_) in enumerate(studies):
    image(folder / "Padchest_GR_files/PadChest_GR" / f"{name}.png", 80, 64, seed=i, bits=bits)
  # A prior study may be an image of the set itself.
  prior = folder / "PadChest_GR_progression_prior_studies"
  image(prior / f"{studies[0][0]}.png", 80, 64, bits=bits)
  return folder
