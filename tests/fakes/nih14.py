"""An NIH ChestX-ray14 folder: commas in header names, tables of two vintages, both layouts."""

from fakes.images import image

HEADER = (
  "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
  "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
IMAGES = {
  "00000001_000.png": "Cardiomegaly",
  "00000001_001.png": "Cardiomegaly|Emphysema",
  "00000002_000.png": "No Finding",
  "00000003_000.png": "Infiltration|Effusion",
  "00000004_000.png": "Mass",
  "00000005_000.png": "Pleural_Thickening",
}
TEST = ("00000003_000.png", "00000004_000.png")
BOXES = (
  "00000003_000.png,Infiltrate,102.4,204.8,512.0,256.0",
  "00000003_000.png,Effusion,900.5,900.5,200.0,200.0",  # beyond the edge: clipped
  "00000004_000.png,Mass,0.0,0.0,64.0,64.0",
)


def entry(name, labels, patient=None, view="PA"):
  patient = patient or int(name[:8])
  return f"{name},{labels},{int(name[9:12])},{patient},57,M,{view},2682,2749,0.143,0.143"


def write(folder, *, size_px=96, archives=False, old=False, extra=(), boxes=BOXES):
  """The folder; `archives` has images_001/images and images_002/images, `old` the 2017 table."""
  rows = [HEADER] + [entry(name, labels) for name, labels in IMAGES.items()] + list(extra)
  tables = {"Data_Entry_2017_v2020.csv": rows, "BBox_List_2017.csv": [BOX_HEADER, *boxes]}
  if old:  # every row of the old tables ends with empty cells
    del tables["Data_Entry_2017_v2020.csv"]
    tables["Data_Entry_2017.csv"] = [f"{row}," for row in rows]
    tables["BBox_List_2017.csv"] = [BOX_HEADER] + [f"{row},,," for row in boxes]
  tables["train_val_list.txt"] = [name for name in IMAGES if name not in TEST]
  tables["test_list.txt"] = list(TEST)
  folder.mkdir(parents=True, exist_ok=True)
  for name, lines in tables.items():
    (folder / name).write_text("\n".join(lines) + "\n")
  for i, name in enumerate(IMAGES):
    place = f"images_{i % 2 + 1:03d}/images" if archives else "images"
    image(folder / place / name, size_px, size_px, seed=i)
  return folder
