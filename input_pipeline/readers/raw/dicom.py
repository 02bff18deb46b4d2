"""DICOM radiographs as 8-bit grey, as a viewer shows them.

DICOM PS3.3, C.11.1 (modality transform) and C.11.2 (VOI transform) give the formulas. A pixel holds
8 or 16 bits, so they are worked out once for every value that can be stored, and pixels look theirs
up.
"""

import io
import warnings

import numpy as np
import pydicom
from pydicom.pixels import pixel_array
from pydicom.uid import JPEG2000TransferSyntaxes

from input_pipeline.example import UnreadableError
from input_pipeline.readers.raw.stored_images import check_size, encode_pgm

_GREY = ("MONOCHROME1", "MONOCHROME2")


def to_image(data: bytes) -> tuple[bytes, str]:
  """Reads a DICOM file: its image and its view position ("PA", "AP", ...; "" where it says none).

  The image is binary PGM (8-bit grey).

  The modality transform, then the first VOI transform: a table, else a window, else (also where a
  window's width cannot be, such as 0) the span from the least to the greatest value. MONOCHROME1 is
  inverted, so that bone is bright. Pixel padding counts for nothing in the span and becomes black.

  Raises UnreadableError: no DICOM, no pixel data, several frames, colour, more than 16 bits, more
  pixels than may be decoded, a compression without a decoder, damaged pixels.
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
  check_size(int(dataset.Columns), int(dataset.Rows))
  raw = pixel_array(dataset, correct_unused_bits=False)
  if raw.ndim != 2 or raw.dtype.itemsize > 2:
    raise UnreadableError(f"its pixels are {raw.dtype}{raw.shape}, not one image of 8 or 16 bits")
  stored = _stored_values(raw, dataset)
  padded = _padded(raw, dataset) | _padded(stored, dataset)
  # Bit patterns number the table's rows: those of negative values come last.
  unsigned = np.dtype(f"u{stored.dtype.itemsize}")
  index = stored.view(unsigned)
  levels = np.arange(2 ** (8 * unsigned.itemsize)).astype(unsigned).view(stored.dtype).astype(float)
  shown = np.zeros(len(levels), bool)
  shown[index[~padded]] = True
  values = _modality(levels, shown, dataset)
  table = _voi(values, shown, dataset)
  if table is None:
    table = _stretch(values, shown)
  if not np.isfinite(table).all():
    raise UnreadableError("its rescale or window values are not finite")
  table = np.clip(table, 0, 1)
  if kind == "MONOCHROME1":
    table = 1 - table
  grey = np.rint(255 * table).astype(np.uint8)[index]
  grey[padded] = 0
  return grey


def _stored_values(raw: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
  """Returns the values that the bits from HighBit downwards hold; the others are no part of them.

  A HighBit above BitsStored - 1 counts where the bits there are used. JPEG 2000 says its own bits,
  so BitsStored may be wrong: bits above it count, unless they are an overlay, on or off, without
  which the image is smoother.
  """
  width, bits = 8 * raw.dtype.itemsize, int(dataset.BitsStored)
  high = int(dataset.get("HighBit") or bits - 1)
  unused = max(width - bits, 0)
  values = (raw << unused) >> unused  # of signed pixels, the last shift brings the sign back
  if (values == raw).all():
    return values
  if high >= bits:
    return (raw << max(width - 1 - high, 0)) >> unused
  if dataset.file_meta.TransferSyntaxUID not in JPEG2000TransferSyntaxes:
    return values
  is_overlay = len(np.unique(raw ^ values)) <= 2 and _roughness(values) <= _roughness(raw)
  return values if is_overlay else raw


def _roughness(pixels: np.ndarray) -> int:
  """Sums the differences of neighbours in a row."""
  return int(np.abs(np.diff(pixels.astype(np.int32))).sum())


def _modality(levels: np.ndarray, shown: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
  """Applies the modality transform: stored values to measured ones."""
  if dataset.get("ModalityLUTSequence"):
    return _look_up(levels, shown, dataset.ModalityLUTSequence[0], dataset)[0]
  slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
  return levels * float(slope or 1) + float(intercept or 0)  # no slope can be 0


def _voi(values: np.ndarray, shown: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray | None:
  """Applies the VOI transform: black 0 and white 1, not clipped; None where there is none.

  White of a table is the greatest number of as many bits as its greatest entry has: headers state
  16 for tables of 12.
  """
  if dataset.get("VOILUTSequence"):
    entries, greatest = _look_up(values, shown, dataset.VOILUTSequence[0], dataset)
    return entries / (2 ** max(greatest, 1).bit_length() - 1)
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
  values: np.ndarray, shown: np.ndarray, item: pydicom.Dataset, dataset: pydicom.Dataset
) -> tuple[np.ndarray, int]:
  """Looks values up in a table: their entries, and the table's greatest.

  Values before the first entry take the first, values behind the last take the last. The first
  value may be written with the other sign than the values have: a table that begins 65536 further
  down or up counts where it covers a shown value and the table as written does not.
  """
  entries, first, bits = map(int, item.LUTDescriptor)
  entries = entries % 65536 or 65536  # 16 bits cannot write 65536: it stands as 0
  data = item.LUTData
  if isinstance(data, bytes):
    order = ">" if dataset.original_encoding[1] is False else "<"
    is_bytes = bits <= 8 and len(data) in (entries, entries + 1)  # padded to an even length
    data = np.frombuffer(data, "u1" if is_bytes else f"{order}u2")
  data = np.atleast_1d(data)[:entries] % 65536.0  # entries have no sign, whatever type wrote them
  if len(data) < entries:
    raise UnreadableError(f"a look-up table has {len(data)} entries, its header says {entries}")
  places = np.rint(values)
  covers = [
    start
    for start in (first, first - 65536, first + 65536)
    if ((places >= start) & (places < start + entries))[shown].any()
  ]
  start = covers[0] if covers else first
  return data[np.clip(places - start, 0, entries - 1).astype(np.intp)], int(data.max())


def _first(value) -> float | None:
  """Returns the first of one or several numbers; None for none."""
  if value is None:
    return None
  values = np.atleast_1d(np.asarray(value, float))
  return float(values[0]) if values.size else None


def _padded(pixels: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
  """Marks the pixels that are padding, bool [H, W]; its value may be written with either sign."""
  first = dataset.get("PixelPaddingValue")
  if first is None:
    return np.zeros(pixels.shape, bool)
  last = dataset.get("PixelPaddingRangeLimit")
  ends = np.array([first, first if last is None else last], np.int64)
  if pixels.dtype.itemsize == 2:
    ends = ends.astype(pixels.dtype)
  return (pixels >= ends.min()) & (pixels <= ends.max())
