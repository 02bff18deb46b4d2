"""A SIIM-ACR Pneumothorax folder: relative run lengths, images in folders of their own."""

from fakes import dicom

HEADER = "ImageId, EncodedPixels"


def write(folder, rows=None, *, images="abc", flat=False, size_px=1024, height=None):
  """The folder of square images; image b has two masks."""
  folder.mkdir(parents=True, exist_ok=True)
  rows = rows or ("a, -1", "b,1024 10 1014 10", f"b,{500 * 1024 + 20} 3", "c,-1")
  (folder / "train-rle.csv").write_text("\n".join([HEADER, *rows]) + "\n")
  for i, name in enumerate(images):
    place = "" if flat else f"dicom-images-train/1.2.{i}/1.3.{i}"
    path = folder / place / f"{name}.dcm"
    dicom.write(path, width=size_px, height=height or size_px, seed=i, jpeg=True, ViewPosition="PA")
  return folder
