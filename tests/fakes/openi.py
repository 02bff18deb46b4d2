"""An OpenI folder: reports as published or archived; images as PNG, DICOM or Kaggle names them."""

import io
import tarfile

import numpy as np
import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from fakes.images import image, table

REPORTS = {
  1: dict(
    findings="The heart is normal. There is no XXXX of a pleural effusion.",
    impression="Normal chest x-XXXX.",
    major=["normal"],
    images=["CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"],  # the one id that says 1 twice
  ),
  2: dict(
    findings="",
    impression="1. Cardiomegaly &lt; prior. 2. Left base opacity.",
    major=["Cardiomegaly/borderline", "Opacity/lung/base/left", "Opacity/lung/apex "],
    automatic=["cardiomegaly"],
    images=["CXR2_IM-0652-1001", "CXR2_IM-0652-2001-0001"],
  ),
  10: dict(findings="", impression="", major=["No Indexing"], images=["CXR10_IM-0002-1001"]),
  11: dict(findings="Clear.", impression="No acute disease.", major=["normal"], images=[]),
}
FRONTAL = ("CXR1_1_IM-0001-4001", "CXR2_IM-0652-1001")


def xml(uid, *, findings, impression, major=(), automatic=(), images=()):
  sections = {"COMPARISON": "None.", "INDICATION": "Cough."}
  sections |= {"FINDINGS": findings, "IMPRESSION": impression}
  text = "".join(f'<AbstractText Label="{k}">{v}</AbstractText>\n' for k, v in sections.items())
  terms = "".join(f"<major>{term}</major>" for term in major)
  terms += "".join(f"<automatic>{term}</automatic>" for term in automatic)
  elements = "".join(
    f'<parentImage id="{name}"><caption>Chest</caption><panel type="single"/></parentImage>\n'
    for name in images
  )
  return (
    f'<?xml version="1.0" encoding="utf-8"?>\n<eCitation><meta type="rr"/><uId id="CXR{uid}"/>\n'
    f"<MedlineCitation><Article><Abstract>\n{text}</Abstract></Article></MedlineCitation>\n"
    f"<MeSH>{terms}</MeSH>\n{elements}</eCitation>"
  ).encode()


def short(name):
  return name.replace("CXR1_1_", "CXR1_").removeprefix("CXR")


def dicom(path, width, height):
  """A 12-bit MONOCHROME1 image, as the collection's originals are."""
  path.parent.mkdir(parents=True, exist_ok=True)
  meta = pydicom.dataset.FileMetaDataset()
  meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
  meta.MediaStorageSOPInstanceUID = "1.2.3"
  data = pydicom.Dataset()
  data.file_meta = meta
  data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, "1.2.3"
  data.Rows, data.Columns, data.SamplesPerPixel = height, width, 1
  data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
  data.PhotometricInterpretation = "MONOCHROME1"
  pixels = np.linspace(0, 4095, width * height).astype(np.uint16)
  data.PixelData = pixels.tobytes()
  data.save_as(path, enforce_file_format=True)


def write(folder, *, archive=False, images="png", projections=False, reports=REPORTS):
  """The folder; `images` is "png", "dcm" or "kaggle"."""
  files = {f"ecgen-radiology/{uid}.xml": xml(uid, **report) for uid, report in reports.items()}
  folder.mkdir(parents=True, exist_ok=True)
  if archive:
    with tarfile.open(folder / "NLMCXR_reports.tgz", "w:gz") as tar:
      for name, data in files.items():
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
  else:
    (folder / "ecgen-radiology").mkdir(exist_ok=True)
    for name, data in files.items():
      (folder / name).write_bytes(data)
  names = [name for report in reports.values() for name in report["images"]]
  for i, name in enumerate(names):
    if images == "dcm":
      uid = short(name).split("_")[0]
      dicom(folder / "NLMCXR_dcm" / uid / f"{short(name)}.dcm", 80, 64 + i)
    elif images == "kaggle":
      image(folder / "images" / "images_normalized" / f"{short(name)}.dcm.png", 80, 64 + i, seed=i)
    else:
      image(folder / "NLMCXR_png" / f"{name}.png", 80, 64 + i, seed=i)
  if projections:
    rows = [
      {
        "uid": name.split("_")[0].removeprefix("CXR"),
        "filename": f"{short(name)}.dcm.png",
        "projection": "Frontal" if name in FRONTAL else "Lateral",
      }
      for name in names[:-1]  # the table is not complete
    ]
    table(folder / "indiana_projections.csv", rows)
  return folder
