"""A PadChest folder: the table of labels, 16-bit images in numbered folders."""

from fakes.images import image, table

ROWS = [
  ("1_a.png", "0", "p1", "PA", "['normal']", "Physician"),
  ("1_b.png", "0", "p1", "L", "['cardiomegaly', ' pleural effusion']", "Physician"),
  ("2_a.png", "1", "p2", "AP_horizontal", "['Cardiomegaly', '']", "Physician"),
  ("3_a.png", "1", "p3", "PA", "['nodule']", "RNN_model"),
  ("4_a.png", "2", "p4", "PA", "[]", "Physician"),
  ("5_a.png", "2", "p5", "PA", "", "Physician"),
]


def write(folder, rows=ROWS, *, zipped=False):
  columns = ("ImageID", "ImageDir", "PatientID", "Projection", "Labels", "MethodLabel")
  cells = [
    dict(zip(columns, (name, place, patient, view, labels, method), strict=True))
    for name, place, patient, view, labels, method in rows
  ]
  suffix = ".gz" if zipped else ""
  table(folder / f"PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv{suffix}", cells)
  for i, (name, place, *_) in enumerate(rows):
    image(folder / place / name, 80, 64 + i, bits=16)
  return folder
