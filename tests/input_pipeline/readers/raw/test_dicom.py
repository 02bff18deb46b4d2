import io

import gdcm
import numpy as np
import pydicom
import pytest
import scipy
from PIL import Image
from pydicom.uid import (
  JPEG2000Lossless,
  RLELossless,
)

from fakes.dicom import image
from input_pipeline.example import UnreadableError
from input_pipeline.readers.raw import dicom
from input_pipeline.readers.raw.stored_images import bounded


def grey(data):
  with Image.open(io.BytesIO(dicom.to_image(data)[0])) as image:
    assert (image.format, image.mode) == ("PPM", "L")
    return np.asarray(image).astype(int)


def lookup(data, first=0, bits=16, vr="OW", entries=None):
  """An item of a look-up table sequence."""
  item = pydicom.Dataset()
  count = len(data) if entries is None else entries
  item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [count % 65536, first, bits])
  item.add_new("LUTData", vr, data.tobytes() if vr == "OW" else data.tolist())
  return item


RAMP = np.arange(0, 4096, 16, np.uint16).reshape(8, 32)


def test_without_a_window_least_is_black_and_greatest_white():
  np.testing.assert_array_equal(grey(image(RAMP + 100, bits=13)), np.rint(RAMP * (255 / 4080)))


PLAIN = {  # transfer syntaxes: is the VR implicit, the first byte the little one?
  "ImplicitVRLittleEndian": (True, True),
  "ExplicitVRLittleEndian": (False, True),
  "DeflatedExplicitVRLittleEndian": (False, True),
  "ExplicitVRBigEndian": (False, False),
}


def rewritten(data, *elements, syntax="ExplicitVRLittleEndian"):
  """The file with elements (keyword, VR, value) as given, in another plain syntax."""
  parsed = pydicom.dcmread(io.BytesIO(data))
  for keyword, vr, value in elements:
    parsed.add_new(keyword, vr, value)
  implicit, little = PLAIN[syntax]
  if not little:
    parsed.PixelData = parsed.pixel_array.byteswap().tobytes()
    for item in parsed.get("VOILUTSequence", []):
      item.LUTData = np.frombuffer(item.LUTData, np.uint16).byteswap().tobytes()
  if not parsed.file_meta.TransferSyntaxUID.is_compressed:
    parsed.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
  encoding = {"implicit_vr": implicit, "little_endian": little, "force_encoding": True}
  out = io.BytesIO()
  pydicom.dcmwrite(out, parsed, **encoding)
  return out.getvalue()


def by_gdcm(data, kind, folder):
  """The file in a transfer syntax that gdcm alone writes."""
  (folder / "a.dcm").write_bytes(data)
  reader = gdcm.ImageReader()
  reader.SetFileName(str(folder / "a.dcm"))
  assert reader.Read()
  change = gdcm.ImageChangeTransferSyntax()
  change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, kind)))
  change.SetInput(reader.GetImage())
  assert change.Change()
  writer = gdcm.ImageWriter()
  writer.SetFileName(str(folder / "b.dcm"))
  writer.SetFile(reader.GetFile())
  writer.SetImage(change.GetOutput())
  assert writer.Write()
  return (folder / "b.dcm").read_bytes()


@pytest.mark.parametrize(
  "syntax",
  [
    *PLAIN,
    "RLELossless",
    "JPEG2000Lossless",
    "JPEGLosslessProcess14_1",
    "JPEGLSLossless",
  ],
)
def test_monochrome1_is_inverted_in_every_transfer_syntax(tmp_path, syntax):
  def encode(photometric):
    data = image(WIDE, bits=12, photometric=photometric)
    if syntax in PLAIN:
      return rewritten(data, syntax=syntax)
    if syntax in ("RLELossless", "JPEG2000Lossless"):
      return image(WIDE, bits=12, photometric=photometric, syntax=getattr(pydicom.uid, syntax))
    return by_gdcm(data, syntax, tmp_path)

  plain = encode("MONOCHROME2")
  np.testing.assert_array_equal(probe(plain), READ)
  np.testing.assert_array_equal(probe(encode("MONOCHROME1")), [255, 194, 130, 65, 0])


# A ramp of 12 bits; columns PLACES read as READ.
WIDE = np.tile(np.linspace(0, 4095, 64).round().astype(np.uint16), (32, 1))
PLACES, READ = [0, 15, 31, 47, 63], [0, 61, 125, 190, 255]


def probe(data):
  return grey(data)[0, PLACES]


def header(**values):
  """Elements of a header that the pixels do not follow."""
  return [(keyword, "US", value) for keyword, value in values.items()]


def marked(pixels, value):
  """The pixels with a bar of another value, in rows that `probe` does not read."""
  pixels = pixels.copy()
  pixels[8:12, 20:40] = value
  return pixels


LINE = np.arange(4096).astype(np.uint16)
SIGNED, HIGH = WIDE.astype(np.int16) - 2048, WIDE + np.uint16(40000)
OVERLAY, SIGNED_OVERLAY = marked(WIDE, 0x8000 + 2000), marked(SIGNED, -32768 + 2000)
CASES = {
  "VOI table of 12 bits, 16 stated": lambda: image(WIDE, VOILUTSequence=[lookup(LINE)]),
  "VOI table of 12 bits, 8 stated": lambda: image(WIDE, VOILUTSequence=[lookup(LINE, bits=8)]),
  "signed pixels, table from a US": lambda: image(
    SIGNED, VOILUTSequence=[lookup(LINE, 65536 - 2048)]
  ),
  "unsigned pixels, table from an SS": lambda: image(
    HIGH, VOILUTSequence=[lookup(LINE, 40000 - 65536)]
  ),
  "signed pixels, modality table from a US": lambda: image(
    SIGNED, ModalityLUTSequence=[lookup(LINE, 65536 - 2048)]
  ),
  "unsigned pixels, modality table from an SS": lambda: image(
    HIGH, ModalityLUTSequence=[lookup(LINE, 40000 - 65536)]
  ),
  "table of signed entries": lambda: image(
    WIDE, VOILUTSequence=[lookup((LINE * 16).astype(np.int16), vr="SS")]
  ),
  "signed pixels, padding in US": lambda: rewritten(
    image(marked(WIDE.astype(np.int16), -2000)), ("PixelPaddingValue", "US", 63536)
  ),
  "unsigned pixels, padding in SS": lambda: rewritten(
    image(marked(WIDE, 63536)), ("PixelPaddingValue", "SS", -2000)
  ),
  "signed pixels, a range of padding in US": lambda: rewritten(
    image(marked(WIDE.astype(np.int16), -1990)),
    *header(PixelPaddingValue=63536, PixelPaddingRangeLimit=63556),
  ),
  "padding above the bits stored": lambda: rewritten(
    image(marked(WIDE + np.uint16(1), 0x8000)),
    *header(PixelPaddingValue=0x8000, BitsStored=13, HighBit=12),
  ),
  "JPEG 2000 with an overlay": lambda: rewritten(
    image(OVERLAY, syntax=JPEG2000Lossless), *header(BitsStored=12, HighBit=11)
  ),
  "JPEG 2000 with an overlay in the next bit": lambda: rewritten(
    image(marked(WIDE, 0x1000 + 2000), syntax=JPEG2000Lossless), *header(BitsStored=12, HighBit=11)
  ),
  "JPEG 2000, signed, with an overlay": lambda: rewritten(
    image(SIGNED_OVERLAY, syntax=JPEG2000Lossless), *header(BitsStored=12, HighBit=11)
  ),
  "JPEG 2000 of 16 bits, 12 stated": lambda: rewritten(
    image(WIDE * np.uint16(16), syntax=JPEG2000Lossless), *header(BitsStored=12, HighBit=11)
  ),
  "JPEG 2000 of 12 bits, 10 stated": lambda: rewritten(
    image(WIDE, bits=12, syntax=JPEG2000Lossless), *header(BitsStored=10, HighBit=9)
  ),
  "JPEG 2000 of 12 bits, 16 stated": lambda: rewritten(
    image(WIDE, bits=12, syntax=JPEG2000Lossless), *header(BitsStored=16, HighBit=15)
  ),
  "overlay, uncompressed": lambda: image(OVERLAY, bits=12),
  "left-aligned": lambda: image(WIDE * np.uint16(16), bits=12, HighBit=15),
  "left-aligned, signed": lambda: image(SIGNED * np.int16(16), bits=12, HighBit=15),
  "left-aligned over an overlay": lambda: image(
    WIDE * np.uint16(16) + np.uint16(3), bits=12, HighBit=15
  ),
  "left-aligned, JPEG 2000": lambda: rewritten(
    image(WIDE * np.uint16(16), syntax=JPEG2000Lossless), *header(BitsStored=12, HighBit=15)
  ),
  "right-aligned, high bit wrong": lambda: image(WIDE, bits=12, HighBit=15),
  "slope 0": lambda: image(WIDE, RescaleSlope=0, RescaleIntercept=-9),
}


@pytest.mark.parametrize("case", CASES)
def test_a_ramp_is_read_by_its_pixels_where_the_header_contradicts_them(case):
  np.testing.assert_array_equal(probe(CASES[case]()), READ)


@pytest.mark.parametrize("kind", ["JPEGLosslessProcess14_1", "JPEGLSLossless"])
@pytest.mark.parametrize("pixels", [OVERLAY, SIGNED_OVERLAY])
def test_an_overlay_in_lossless_jpeg(tmp_path, kind, pixels):
  data = rewritten(by_gdcm(image(pixels), kind, tmp_path), *header(BitsStored=12, HighBit=11))
  np.testing.assert_array_equal(probe(data), READ)


@pytest.mark.parametrize("syntax", PLAIN)
def test_tables_and_padding_in_every_plain_syntax(syntax):
  data = image(marked(SIGNED, -3000), VOILUTSequence=[lookup(LINE, -2048)], PixelPaddingValue=-3000)
  got = grey(rewritten(data, syntax=syntax))
  np.testing.assert_array_equal(got[0, PLACES], READ)
  assert not got[8:12, 20:40].any()


@pytest.mark.parametrize("name", ["RescaleSlope", "RescaleIntercept", "WindowCenter"])
def test_values_that_are_not_finite_are_refused(name):
  data = image(WIDE, **{"WindowCenter": 2048, "WindowWidth": 4096, name: 7777})
  with pytest.raises(UnreadableError, match="its rescale or window values are not finite"):
    dicom.to_image(data.replace(b"7777.0", b"nan   "))


@pytest.mark.parametrize("name", ["WindowWidth", "WindowCenter"])
@pytest.mark.parametrize("function", ["LINEAR", "SIGMOID"])
@pytest.mark.parametrize("value", [b"inf   ", b"-inf  ", b"nan   "])
def test_windows_that_are_not_finite_are_refused(name, function, value):
  window = {"WindowCenter": 2048, "WindowWidth": 4096, name: 7777}
  data = image(WIDE, VOILUTFunction=function, **window)
  with pytest.raises(UnreadableError, match="its rescale or window values are not finite"):
    dicom.to_image(data.replace(b"7777.0", value))


def test_a_deflated_file_that_inflates_beyond_any_image_is_refused():
  data = rewritten(
    image(WIDE), (0x00091001, "OB", bytes(2**25)), syntax="DeflatedExplicitVRLittleEndian"
  )
  with bounded(WIDE.size), pytest.raises(UnreadableError, match="inflates to more than 16781312"):
    dicom.to_image(data)
  np.testing.assert_array_equal(probe(data), READ)  # within the bound by default


@pytest.mark.parametrize(
  "syntax", ["JPEG2000Lossless", "JPEGLosslessProcess14_1", "JPEGLSLossless", "RLELossless"]
)
def test_a_stream_of_another_size_than_its_header_is_not_decoded(tmp_path, monkeypatch, syntax):
  if syntax in ("JPEG2000Lossless", "RLELossless"):
    data = image(WIDE, syntax=getattr(pydicom.uid, syntax))
  else:
    data = by_gdcm(image(WIDE), syntax, tmp_path)
  monkeypatch.setattr(dicom, "pixel_array", lambda *_, **__: pytest.fail("it was decoded"))
  with pytest.raises(UnreadableError, match="its pixels are (64 x 32|more than).* header"):
    dicom.to_image(rewritten(data, *header(Columns=16)))


def test_the_bound_on_decoded_pixels_is_that_of_the_header():
  data = rewritten(image(WIDE), *header(Rows=60000, Columns=60000))
  with pytest.raises(UnreadableError, match="60000 x 60000, 3600000000 pixels; max_decoded_px="):
    dicom.to_image(data)


def test_a_window_cuts_and_stretches_what_lies_in_it():
  got = grey(image(RAMP, bits=12, WindowCenter=2048.5, WindowWidth=1025))
  expected = np.clip((RAMP.astype(float) - 1536) / 1024, 0, 1) * 255
  np.testing.assert_allclose(got, expected, atol=0.51)


def test_several_windows_take_the_first():
  both = grey(image(RAMP, bits=12, WindowCenter=[2048.5, 100], WindowWidth=[1025, 10]))
  first = grey(image(RAMP, bits=12, WindowCenter=2048.5, WindowWidth=1025))
  np.testing.assert_array_equal(both, first)


@pytest.mark.parametrize(("slope", "intercept"), [(2.0, -1000.0), (0.5, 0.0)])
def test_the_window_counts_in_rescaled_values(slope, intercept):
  scaled = RAMP * slope + intercept
  centre, width = float(scaled.mean()), float(np.ptp(scaled) / 2)
  got = grey(
    image(
      RAMP,
      bits=12,
      RescaleSlope=slope,
      RescaleIntercept=intercept,
      WindowCenter=centre + 0.5,
      WindowWidth=width + 1,
    )
  )
  expected = np.clip((scaled - centre) / width + 0.5, 0, 1) * 255
  np.testing.assert_allclose(got, expected, atol=0.51)


def test_a_negative_slope_turns_the_image():
  got = grey(image(RAMP, bits=12, RescaleSlope=-1.0, RescaleIntercept=4095.0))
  np.testing.assert_array_equal(got, np.rint((4080 - RAMP) * (255 / 4080)))
  windowed = grey(
    image(
      RAMP,
      bits=12,
      RescaleSlope=-1.0,
      RescaleIntercept=4095.0,
      WindowCenter=2048.0,
      WindowWidth=4096.0,
    )
  )
  assert windowed[0, 0] == 255 and windowed[-1, -1] < 2


def test_a_voi_table():
  table = pydicom.Dataset()
  table.LUTDescriptor = [256, 0, 16]
  table.LUTData = np.arange(65535, -1, -257, np.uint16)[:256].tobytes()
  pixels = np.arange(256, dtype=np.uint8).reshape(8, 32)
  got = grey(image(pixels, VOILUTSequence=[table]))
  np.testing.assert_array_equal(got, 255 - pixels.astype(int))


@pytest.mark.parametrize("vr", ["OW", "US"])
def test_a_voi_table_clamps_and_wins_over_a_window(vr):
  # 4,096 levels through a table of 8-bit output: places in it need more bits than its entries.
  data = (np.arange(3000) ** 2 / 2999**2 * 255).astype(np.uint16)
  got = grey(
    image(
      RAMP,
      bits=12,
      VOILUTSequence=[lookup(data, 500, 8, vr)],
      WindowCenter=9,
      WindowWidth=2,
    )
  )
  expected = [int(data[min(max(int(v) - 500, 0), 2999)]) for v in RAMP.ravel()]
  np.testing.assert_array_equal(got.ravel(), expected)


def test_tables_of_bytes_and_of_65536_entries():
  data = np.arange(255, -1, -1).astype(np.uint8)
  pixels = np.arange(256, dtype=np.uint8).reshape(8, 32)
  got = grey(image(pixels, VOILUTSequence=[lookup(data, bits=8)]))
  np.testing.assert_array_equal(got, 255 - pixels.astype(int))
  whole = np.arange(65536).astype(np.uint16)
  wide = np.arange(0, 65536, 256).astype(np.uint16).reshape(8, 32)
  got = grey(image(wide, VOILUTSequence=[lookup(whole)]))  # 65536 is written as 0
  np.testing.assert_array_equal(got, np.rint(wide * (255 / 65535)))
  with pytest.raises(UnreadableError, match="table has 256 entries, its header says 300"):
    dicom.to_image(image(wide, VOILUTSequence=[lookup(whole[:256], entries=300)]))[0]


def test_a_voi_table_of_negative_values():
  pixels = np.arange(-128, 128, dtype=np.int16).reshape(8, 32)
  data = np.arange(0, 65536, 256).astype(np.uint16)
  got = grey(image(pixels, VOILUTSequence=[lookup(data, -128)]))
  np.testing.assert_array_equal(got, np.rint(data.reshape(8, 32) * (255 / 65535)))


def test_a_modality_table_comes_before_the_window():
  data = np.arange(4095, -1, -1).astype(np.uint16)
  table = lookup(data, bits=12)
  table.ModalityLUTType = "US"
  got = grey(image(RAMP, bits=12, ModalityLUTSequence=[table], WindowCenter=1000, WindowWidth=2000))
  expected = np.clip((4095.0 - RAMP - 999.5) / 1999 + 0.5, 0, 1) * 255
  np.testing.assert_allclose(got, expected, atol=0.51)


def window_of_one(value, centre, width, function):
  """DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3, one pixel, white = 1."""
  if function == "SIGMOID":
    return scipy.special.expit(4 * (value - centre) / width)
  if function == "LINEAR":
    centre, width = centre - 0.5, width - 1
  if value <= centre - width / 2:
    return 0.0
  if value > centre + width / 2:
    return 1.0
  return (value - centre) / width + 0.5


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(2048, 1000), (3000.5, 1), (160, 2), (-50, 300)])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_window_functions(function, centre, width, dtype):
  pixels = RAMP.astype(dtype) - (2048 if dtype == np.int16 else 0)
  got = grey(
    image(pixels, bits=12, WindowCenter=centre, WindowWidth=width, VOILUTFunction=function)
  )
  expected = [255 * window_of_one(float(v), centre, width, function) for v in pixels.ravel()]
  np.testing.assert_allclose(got.ravel(), expected, atol=0.51)


@pytest.mark.parametrize(
  "blank",
  [
    {"WindowCenter": None, "WindowWidth": None},
    {"WindowCenter": 2048, "WindowWidth": None},
    {"WindowCenter": 2048},
    {"WindowCenter": 2048, "WindowWidth": 0},
    {"WindowCenter": 2048, "WindowWidth": 0.5},
    {"WindowCenter": 2048, "WindowWidth": -4},
    {"VOILUTSequence": []},
    {"ModalityLUTSequence": [], "RescaleSlope": None, "RescaleIntercept": None},
    {"PixelPaddingValue": None},
    {"HighBit": None},
  ],
)
def test_elements_that_say_nothing_change_nothing(blank):
  np.testing.assert_array_equal(grey(image(RAMP, bits=12, **blank)), grey(image(RAMP, bits=12)))


def test_a_window_function_that_dicom_does_not_know():
  with pytest.raises(UnreadableError, match="VOI LUT function is 'CUBIC'"):
    dicom.to_image(image(RAMP, WindowCenter=9, WindowWidth=9, VOILUTFunction="CUBIC"))[0]


@pytest.mark.parametrize("ends", [(4000, 4095), (4095, 4000)])
def test_a_range_of_padding(ends):
  got = grey(image(RAMP, bits=12, PixelPaddingValue=ends[0], PixelPaddingRangeLimit=ends[1]))
  assert not got[RAMP >= 4000].any()
  np.testing.assert_array_equal(got[RAMP < 4000], np.rint(RAMP[RAMP < 4000] * (255 / 3984)))
  assert not grey(image(RAMP, PixelPaddingValue=0, PixelPaddingRangeLimit=65535)).any()


def test_bits_above_those_stored_do_not_count():
  overlay = RAMP | np.uint16(0x8000)
  np.testing.assert_array_equal(grey(image(overlay, bits=12)), grey(image(RAMP, bits=12)))


def test_signed_pixels_and_padding():
  pixels = RAMP.astype(np.int16) - 2000
  padded = pixels.copy()
  padded[0] = -32768
  got = grey(image(padded, PixelPaddingValue=-32768))
  assert (got[0] == 0).all()
  rest = pixels[1:].astype(float)
  np.testing.assert_allclose(got[1:], (rest - rest.min()) / np.ptp(rest) * 255, atol=0.51)
  inverse = grey(image(padded, PixelPaddingValue=-32768, photometric="MONOCHROME1"))
  assert (inverse[0] == 0).all() and inverse[-1, -1] == 0 and inverse[1, 0] == 255


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("low", [0, -2048])
def test_compressed_pixels(syntax, low):
  rng = np.random.default_rng(0)
  pixels = rng.integers(low, low + 4096, (64, 48)).astype(np.int16 if low else np.uint16)
  data = image(pixels, bits=12, syntax=syntax)
  np.testing.assert_array_equal(grey(data), grey(image(pixels, bits=12)))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_jpeg_baseline(photometric):
  y, x = np.mgrid[:64, :48]
  pixels = (100 + 50 * np.sin(y / 9) + 40 * np.cos(x / 7)).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "JPEG", quality=95)
  plain = image(pixels, photometric=photometric)
  data = pydicom.dcmread(io.BytesIO(plain))
  data.PixelData = pydicom.encaps.encapsulate([file.getvalue()])
  data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
  out = io.BytesIO()
  data.save_as(out, enforce_file_format=True)
  difference = grey(out.getvalue()) - grey(plain)
  assert np.abs(difference).max() < 12


@pytest.mark.parametrize("kind", ["JPEGLosslessProcess14_1", "JPEGLSLossless"])
@pytest.mark.parametrize("low", [0, -2048])
def test_jpeg_lossless(tmp_path, kind, low):
  pixels = np.random.default_rng(1).integers(low, low + 4096, (64, 48))
  pixels = pixels.astype(np.int16 if low else np.uint16)
  data = by_gdcm(image(pixels, bits=12), kind, tmp_path)
  syntax = pydicom.dcmread(io.BytesIO(data)).file_meta.TransferSyntaxUID
  assert syntax.endswith(("4.70", "4.80"))
  np.testing.assert_array_equal(grey(data), grey(image(pixels, bits=12)))


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    (lambda data: b"", "not a readable DICOM"),
    (lambda data: b"\x89PNG" + bytes(200), "not a readable DICOM"),
    (lambda data: data[:-1000], "not a readable DICOM"),
    (lambda data: data[:200], "DICOM"),
  ],
)
def test_damage(change, reason):
  with pytest.raises(UnreadableError, match=reason):
    dicom.to_image(change(image(RAMP, bits=12, WindowCenter=1, WindowWidth=2) + b""))[0]


def without(name):
  data = pydicom.dcmread(io.BytesIO(image(RAMP)))
  delattr(data, name)
  out = io.BytesIO()
  data.save_as(out, enforce_file_format=True)
  return out.getvalue()


def test_what_is_no_grey_image():
  with pytest.raises(UnreadableError, match="no pixel data"):
    dicom.to_image(without("PixelData"))[0]
  with pytest.raises(UnreadableError, match="missing, not grey"):
    dicom.to_image(without("PhotometricInterpretation"))[0]
  with pytest.raises(UnreadableError, match="PALETTE COLOR, not grey"):
    dicom.to_image(image(RAMP, photometric="PALETTE COLOR"))[0]
  with pytest.raises(UnreadableError, match="2 frames, not one image"):
    dicom.to_image(image(RAMP, NumberOfFrames=2))[0]
  with pytest.raises(UnreadableError, match=r"uint32\(8, 32\), not one image of 8 or 16 bits"):
    dicom.to_image(image(RAMP.astype(np.uint32)))[0]


def test_a_constant_image_is_black_and_no_error():
  assert not grey(image(np.full((4, 5), 7, np.uint16))).any()
