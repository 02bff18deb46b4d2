"""DICOM radiographs as 8-bit grey, as a viewer shows them.

DICOM PS3.3, C.11.1 (modality transform) and C.11.2 (VOI transform) give the formulas. A pixel holds
8 or 16 bits, so they are worked out once for every value that can be stored, and pixels look theirs
up.
"""

import io
import warnings

import numpy as np
import pydicom

from input_pipeline.example import UnreadableError
from input_pipeline.readers.raw.stored_images import encode_pgm

_GREY = ("MONOCHROME1", "MONOCHROME2")


def to_image(data: bytes) -> tuple[bytes, str]:
  """Reads a DICOM file: its image and its view position ("PA", "AP", ...; "" where it says none).

  The image is binary PGM (8-bit grey).

  The modality transform, then the first VOI transform: a table, else a window, else (also where a
  window's width cannot be, such as 0) the span from the least to the greatest value. MONOCHROME1 is
  inverted, so that bone is bright. Pixel padding counts for nothing in the span and becomes black.

  Raises UnreadableError: no DICOM, no pixel data, several frames, colour, more than 16 bits, a
  compression without a decoder, damaged pixels.
  """
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of values that break the standard but can be read
      dataset = pydicom.dcmread(io.BytesIO(data))
      grey = _grey(dataset)
      view = str(dataset.get("ViewPosition") or "").strip()
  except (UnreadableError, MemoryError):
    raise
  except Exception as error:  # pydicom and its decoders raise many kinds
    reason = " ".join(str(error).split())[:300]
    raise UnreadableError(
      f"not a readable DICOM image ({type(error).__name__}: {reason})"
    ) from error
  return encode_pgm(grey), view


def _grey(dataset: pydicom.Dataset) -> np.ndarray:
  """Returns the pixels as shown, uint8 [H, W]."""
  if "PixelData" not in dataset:
    raise UnreadableError("the DICOM file has no pixel data")
  kind = dataset.get("PhotometricInterpretation", "")
  if kind not in _GREY:
    raise UnreadableError(f"its photometric interpretation is {kind or 'missing'}, not grey")
  frames = int(dataset.get("NumberOfFrames") or 1)
  if frames != 1:  # refused before all are decoded
    raise UnreadableError(f"it has {frames} frames, not one image")
  stored = dataset.pixel_array
  if stored.ndim != 2 or stored.dtype.itemsize > 2:
    raise UnreadableError(
      f"its pixels are {stored.dtype}{stored.shape}, not one image of 8 or 16 bits"
    )
  # Bit patterns number the table's rows: those of negative values come last.
  unsigned = np.dtype(f"u{stored.dtype.itemsize}")
  index = stored.view(unsigned)
  levels = np.arange(2 ** (8 * unsigned.itemsize)).astype(unsigned).view(stored.dtype).astype(float)
  table = _voi(_modality(levels, dataset), dataset)
  padded = _padded(levels, dataset)
  if table is None:
    shown = np.zeros(len(levels), bool)
    shown[index] = True
    table = _stretch(_modality(levels, dataset), shown & ~padded)
  table = np.clip(table, 0, 1)
  if kind == "MONOCHROME1":
    table = 1 - table
  table[padded] = 0
  return np.rint(255 * table).astype(np.uint8)[index]


def _modality(levels: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
  """Applies the modality transform: stored values to measured ones."""
  if dataset.get("ModalityLUTSequence"):
    return _look_up(levels, dataset.ModalityLUTSequence[0], dataset)[0]
  slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
  return levels * float(1 if slope is None else slope) + float(intercept or 0)


def _voi(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray | None:
  """Applies the VOI transform: black 0 and white 1, not clipped; None where there is none."""
  if dataset.get("VOILUTSequence"):
    entries, white = _look_up(values, dataset.VOILUTSequence[0], dataset)
    return entries / white
  centre, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
  function = dataset.get("VOILUTFunction") or "LINEAR"
  if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
    raise UnreadableError(f"its VOI LUT function is {function!r}, which DICOM does not know")
  if centre is None or width is None or width <= 0 or (function == "LINEAR" and width < 1):
    return None
  if function == "SIGMOID":
    return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
  if function == "LINEAR":
    centre, width = centre - 0.5, width - 1
  if width == 0:
    return (values > centre).astype(float)
  return (values - centre) / width + 0.5


def _stretch(values: np.ndarray, shown: np.ndarray) -> np.ndarray:
  """Stretches the span of the shown values to 0 to 1; all black where they are but one value."""
  if not shown.any() or np.ptp(values[shown]) == 0:
    return np.zeros_like(values)
  return (values - values[shown].min()) / np.ptp(values[shown])


def _look_up(
  values: np.ndarray, item: pydicom.Dataset, dataset: pydicom.Dataset
) -> tuple[np.ndarray, float]:
  """Looks values up in a table: their entries, and the greatest that its bits can hold.

  Values before the first entry take the first, values behind the last take the last.
  """
  entries, first, bits = map(int, item.LUTDescriptor)
  entries = entries % 65536 or 65536  # 16 bits cannot write 65536: it stands as 0
  data = item.LUTData
  if isinstance(data, bytes):
    order = ">" if dataset.original_encoding[1] is False else "<"
    is_bytes = bits <= 8 and len(data) in (entries, entries + 1)  # padded to an even length
    data = np.frombuffer(data, "u1" if is_bytes else f"{order}u2")
  data = np.atleast_1d(data).astype(float)[:entries]
  if len(data) < entries:
    raise UnreadableError(f"a look-up table has {len(data)} entries, its header says {entries}")
  place = np.clip(np.rint(values) - first, 0, entries - 1).astype(np.intp)
  return data[place], float(2**bits - 1)


def _first(value) -> float | None:
  """Returns the first of one or several numbers; None for none."""
  if value is None:
    return None
  values = np.atleast_1d(np.asarray(value, float))
  return float(values[0]) if values.size else None


def _padded(levels: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
  """Marks the stored values that are padding, bool [levels]."""
  first = dataset.get("PixelPaddingValue")
  if first is None:
    return np.zeros(len(levels), bool)
  last = dataset.get("PixelPaddingRangeLimit")
  ends = sorted((int(first), int(first if last is None else last)))
  return (levels >= ends[0]) & (levels <= ends[1])
