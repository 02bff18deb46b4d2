"""DICOM radiographs."""

import io

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid


def image(pixels, *, bits=None, photometric="MONOCHROME2", syntax=ExplicitVRLittleEndian, **more):
  """A DICOM file of grey pixels; `more` are further elements."""
  pixels = np.asarray(pixels)
  meta = FileMetaDataset()
  meta.TransferSyntaxUID = ExplicitVRLittleEndian
  meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
  meta.MediaStorageSOPInstanceUID = generate_uid()
  data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
  data.SOPClassUID = meta.MediaStorageSOPClassUID
  data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
  data.Rows, data.Columns = pixels.shape
  data.SamplesPerPixel, data.PhotometricInterpretation = 1, photometric
  data.BitsAllocated = 8 * pixels.itemsize
  data.BitsStored = bits or data.BitsAllocated
  data.HighBit = data.BitsStored - 1
  data.PixelRepresentation = int(pixels.dtype.kind == "i")
  data.PixelData = pixels.tobytes()
  for name, value in more.items():
    setattr(data, name, value)
  if syntax != ExplicitVRLittleEndian:
    data.compress(syntax, generate_instance_uid=False)
  file = io.BytesIO()
  data.save_as(file, enforce_file_format=True)
  return file.getvalue()


def write(path, *, width=64, height=64, seed=0, jpeg=False, **more):
  """A smooth 8-bit image; `jpeg` compresses it as RSNA's and SIIM's are."""
  y, x = np.mgrid[:height, :width]
  pixels = (120 + 60 * np.sin((y + 7 * seed) / 9) + 50 * np.cos(x / 7)).astype(np.uint8)
  data = image(pixels, **more)
  if jpeg:
    encoded, parsed = io.BytesIO(), pydicom.dcmread(io.BytesIO(data))
    Image.fromarray(pixels).save(encoded, "JPEG", quality=95)
    parsed.PixelData = pydicom.encaps.encapsulate([encoded.getvalue()])
    parsed.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    file = io.BytesIO()
    parsed.save_as(file, enforce_file_format=True)
    data = file.getvalue()
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)
