"""An RSNA Pneumonia Detection folder: rows by box, JPEG-compressed DICOM."""

from fakes import dicom

HEADER = "patientId,x,y,width,height,Target"
ROWS = (
  "p0,,,,,0",
  "p1,264.0,152.0,213.0,379.0,1",
  "p1,562.0,152.0,256.0,453.0,1",
  "p2,,,,,0",
  "p3,900.0,900.0,200.0,200.0,1",  # beyond the edge: clipped
)
CLASSES = {
  "p0": "Normal",
  "p1": "Lung Opacity",
  "p2": "No Lung Opacity / Not Normal",
  "p3": "Lung Opacity",
}


def write(folder, rows=ROWS, *, classes=True, size_px=128, images=tuple(CLASSES)):
  """The folder; p1's class stands twice, as a row a box does."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "stage_2_train_labels.csv").write_text("\n".join([HEADER, *rows]) + "\n")
  if classes:
    lines = ["patientId,class", *(f"{p},{c}" for p, c in CLASSES.items()), "p1,Lung Opacity"]
    (folder / "stage_2_detailed_class_info.csv").write_text("\n".join(lines) + "\n")
  for i, name in enumerate(images):
    path = folder / "stage_2_train_images" / f"{name}.dcm"
    view = "PA" if i % 2 else "AP"
    dicom.write(path, width=size_px, height=size_px, seed=i, jpeg=True, ViewPosition=view)
  return folder
