"""DICOM radiographs as 8-bit grey, as a viewer shows them.

DICOM PS3.3, C.11.1 (modality transform) and C.11.2 (VOI transform) give the formulas. A pixel holds
8 or 16 bits, so they are worked out once for every value that can be stored, and pixels look theirs
up.
"""

import contextlib
import io
import itertools
import struct
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
import pydicom
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset, read_preamble
from pydicom.pixels import pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000TransferSyntaxes, RLELossless

from input_pipeline import images
from input_pipeline.errors import one_line
from input_pipeline.example import UnreadableError
from input_pipeline.readers.raw.stored_images import check_size, encode_pgm, most_px

_GREY = ("MONOCHROME1", "MONOCHROME2")
_HEADER_BYTES = 2**24  # of a deflated file, beside its pixels
_NOT_FINITE = "its rescale or window values are not finite"


def to_image(data: bytes) -> tuple[bytes, str]:
  """Reads a DICOM file: its image and its view position ("PA", "AP", ...; "" where it says none).

  The image is binary PGM (8-bit grey).

  The modality transform, then the first VOI transform: a table, else a window, else (also where a
  window's width cannot be, such as 0) the span from the least to the greatest value. MONOCHROME1 is
  inverted, so that bone is bright. Pixel padding counts for nothing in the span and becomes black.

  Raises UnreadableError: no DICOM, no pixel data, several frames, colour, more than 16 bits, more
  pixels than may be decoded, a compression without a decoder, damaged pixels.
  """
  with _errors():
    _check_inflated(data)
    dataset = pydicom.dcmread(io.BytesIO(data))
    view = str(dataset.get("ViewPosition") or "").strip()
    return encode_pgm(_grey(dataset)), view


def is_dicom(data: bytes) -> bool:
  """Tells whether bytes begin as a DICOM file does."""
  return data[128:132] == b"DICM"


def to_pixels(image: bytes | pydicom.Dataset) -> np.ndarray:
  """Returns the pixels of a DICOM file, or of a dataset, as `to_image` does: uint8 [H, W]."""
  if isinstance(image, bytes):
    return images.decode(to_image(image)[0])
  with _errors():
    return _grey(image)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of values that break the standard but can be read
      yield
  except (UnreadableError, MemoryError):
    raise
  except Exception as error:  # pydicom and its decoders raise many kinds
    reason = one_line(error)[:300]
    raise UnreadableError(
      f"not a readable DICOM image ({type(error).__name__}: {reason})"
    ) from error


def _check_inflated(data: bytes) -> None:
  """Raises UnreadableError where a deflated file inflates to more than an image can need."""
  file, most = io.BytesIO(data), 2 * most_px.get() + _HEADER_BYTES
  read_preamble(file, force=False)
  meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
  if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
    return
  inflater = zlib.decompressobj(-zlib.MAX_WBITS)
  inflater.decompress(data[file.tell() :], most)
  if inflater.unconsumed_tail:
    raise UnreadableError(
      f"it inflates to more than {most} bytes; max_decoded_px={most_px.get()} bounds them"
    )


def _check_frame(dataset: pydicom.Dataset, width: int, height: int) -> None:
  """Raises UnreadableError for a compressed frame of another size than the header states."""
  syntax = dataset.file_meta.TransferSyntaxUID
  if not syntax.is_encapsulated:
    return
  frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
  most = 4 * width * height  # bytes; 32 bits a pixel have a refusal of their own
  if syntax == RLELossless and _has_more(frame, most):
    raise UnreadableError(f"its pixels are more than the {width} x {height} of its header")
  stated = None if syntax == RLELossless else _stream_size(frame)
  if stated not in (None, (width, height)):
    raise UnreadableError(
      f"its pixels are {stated[0]} x {stated[1]}, its header says {width} x {height}"
    )


def _has_more(frame: bytes, most: int) -> bool:
  """Tells whether an RLE frame (DICOM PS3.5, annex G) holds more than `most` bytes."""
  count, *starts = struct.unpack_from("<16I", frame)
  total = 0
  for at, end in itertools.pairwise([*starts[:count], len(frame)]):
    while at < end and total <= most:
      code = frame[at]  # below 128, of that many bytes and one more as they are; 128 is of none
      total += code + 1 if code < 128 else (257 - code) % 129
      at += code + 2 if code < 128 else 2 - (code == 128)
  return total > most


def _stream_size(stream: bytes) -> tuple[int, int] | None:
  """Reads width and height of a JPEG, JPEG-LS or JPEG 2000 stream; None where it is no such."""
  if not stream.startswith(b"\xff\xd8"):
    start = stream.find(b"\xff\x4f\xff\x51")  # of JPEG 2000, also within a JP2
    if start < 0:
      return None
    right, bottom, left, top = struct.unpack_from(">4I", stream, start + 8)
    return right - left, bottom - top
  at = 2
  while True:
    marker, length, _, height, width = struct.unpack_from(">HHBHH", stream, at)
    if marker == 0xFFF7 or (0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC)):
      return width, height
    at += 1 if marker == 0xFFFF else 2 + length


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
  width, height = int(dataset.Columns), int(dataset.Rows)
  check_size(width, height)
  _check_frame(dataset, width, height)  # before it is decoded
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
    raise UnreadableError(_NOT_FINITE)
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
  if not np.isfinite([centre or 0, width or 0]).all():
    raise UnreadableError(_NOT_FINITE)
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
