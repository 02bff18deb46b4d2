"""An Object-CXR folder: rectangles, ellipses, polygons, clean images, images of several sizes."""

from fakes.images import image, table

TRAIN = {
  "00001.jpg": "0 10 12 30 40",
  "00002.jpg": "",
  "00003.jpg": "1 10 10 50 30;0 60 5 70 9",
  "00004.jpg": "2 5 5 25 5 25 45 5 45",
  "00005.jpg": "",
}
DEV = {"08001.jpg": "0 70 50 90 70; 0 1 1 4 4;", "08002.jpg": ""}


def write(folder, train=TRAIN, dev=DEV):
  """Images of 80 x 64 pixels and more, and their tables."""
  for part, rows in (("train", train), ("dev", dev)):
    cells = [{"image_name": name, "annotation": text} for name, text in rows.items()]
    table(folder / f"{part}.csv", cells)
    for i, name in enumerate(rows):
      image(folder / part / name, 80, 64 + i, seed=i)
  return folder
