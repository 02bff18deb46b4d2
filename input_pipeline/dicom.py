"""DICOM radiographs as 8-bit grey, as a viewer shows them."""

import io
import warnings

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from input_pipeline.study import UnreadableError

_GREY = ("MONOCHROME1", "MONOCHROME2")


def to_pgm(data: bytes) -> bytes:
  """A DICOM file -> binary PGM (8-bit grey), which Pillow reads and which costs no compression.

  The modality transform, then the first VOI transform (a table, else a window; else the span from
  the least to the greatest value); MONOCHROME1 is inverted, so that bone is bright. Pixel padding
  counts for nothing in the span, and becomes black.

  Raises UnreadableError: no DICOM, no pixel data, several frames, colour, a compression without a
  decoder, damaged pixels.
  """
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of values that break the standard but can be read
      dataset = pydicom.dcmread(io.BytesIO(data))
      grey = _grey(dataset)
  except UnreadableError:
    raise
  except MemoryError:
    raise
  except Exception as error:  # pydicom and its decoders raise many kinds
    reason = " ".join(str(error).split())[:300]
    raise UnreadableError(
      f"not a readable DICOM film ({type(error).__name__}: {reason})"
    ) from error
  height, width = grey.shape
  return b"P5\n%d %d\n255\n" % (width, height) + grey.tobytes()


def _grey(dataset: pydicom.Dataset) -> np.ndarray:
  """uint8 [H, W]."""
  if "PixelData" not in dataset:
    raise UnreadableError("the DICOM file has no pixel data")
  kind = dataset.get("PhotometricInterpretation", "")
  if kind not in _GREY:
    raise UnreadableError(f"its photometric interpretation is {kind or 'missing'}, not grey")
  stored = dataset.pixel_array
  if stored.ndim != 2:
    raise UnreadableError(f"its pixels are {stored.shape}, not one film")
  values = apply_modality_lut(stored, dataset)
  padding = _padding(stored, dataset)
  windowed = "VOILUTSequence" in dataset or ("WindowCenter" in dataset and "WindowWidth" in dataset)
  seen = values if padding is None or padding.all() else values[~padding]
  values = (apply_voi_lut(values, dataset) if windowed else values).astype(np.float32)
  if windowed:
    low, high = _voi_range(dataset, seen)
  else:
    low, high = float(seen.min()), float(seen.max())
  grey = np.clip((values - low) * (255 / (high - low) if high != low else 0), 0, 255)
  if kind == "MONOCHROME1":
    grey = 255 - grey
  if padding is not None:
    grey[padding] = 0
  return np.rint(grey).astype(np.uint8)


def _voi_range(dataset: pydicom.Dataset, seen: np.ndarray) -> tuple[float, float]:
  """What black and white are after the VOI transform: the ends of its output, not of the film."""
  if "VOILUTSequence" in dataset:
    table = dataset.VOILUTSequence[0].LUTDescriptor
    return 0.0, float(2 ** int(table[2]) - 1)
  # pydicom's window maps onto the span of the stored type, after the modality transform.
  bits, signed = int(dataset.BitsStored), int(dataset.get("PixelRepresentation", 0))
  low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
  if "ModalityLUTSequence" in dataset:
    low, high = 0, 2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
  elif "RescaleSlope" in dataset:
    slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
    low, high = low * slope + intercept, high * slope + intercept
  return float(low), float(high)


def _padding(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray | None:
  """Where the film is padded, bool [H, W]; None where nothing says so."""
  if "PixelPaddingValue" not in dataset:
    return None
  first = int(dataset.PixelPaddingValue)
  last = int(dataset.get("PixelPaddingRangeLimit", first))
  return (stored >= min(first, last)) & (stored <= max(first, last))
