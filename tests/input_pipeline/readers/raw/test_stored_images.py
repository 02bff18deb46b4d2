import io
import struct

import cv2
import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageOps

from input_pipeline.example import Example, Region, UnreadableError
from input_pipeline.readers.raw.stored_images import bounded, decode_mask, image_size, store_image


def encoded(pixels, form="PNG", **options):
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, form, **options)
  return out.getvalue()


def example_of(image, width, height, regions=()):
  return Example(image, width, height, "i", "s", "p", regions=regions)


def grey(width, height):
  return np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)


def stored(example, image_px=512, image_format="keep"):
  out = store_image(example, image_px, image_format)
  image = Image.open(io.BytesIO(out.image))
  assert image.mode == "L"
  assert image.size == (out.width, out.height)
  # OpenCV, which trains, sees the same image as Pillow.
  decoded = cv2.imdecode(np.frombuffer(out.image, np.uint8), cv2.IMREAD_GRAYSCALE)
  assert np.abs(decoded.astype(int) - np.asarray(image)).max() <= 1
  return out, np.asarray(image), image.format


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_plain_grey_within_the_bound_keeps_its_bytes(form):
  example = example_of(encoded(grey(60, 40), form), 60, 40)
  for image_format in ("keep", form.lower()):
    assert store_image(example, 40, image_format) is example
  other = "jpeg" if form == "PNG" else "png"
  assert stored(example, image_format=other)[2] == other.upper()


def test_reduction_bounds_the_short_side_and_scales_boxes_and_masks():
  pixels = np.repeat(np.repeat(grey(60, 40), 4, 0), 4, 1)
  inside = np.zeros((160, 240), np.uint8)
  inside[40:80, 80:120] = 255
  boxes = np.array([[80, 40, 120, 80], [0, 0, 240, 160]], np.float32)
  speck = np.zeros((160, 240), np.uint8)
  speck[9, 13] = 1
  regions = (
    Region("a", "a", boxes, encoded(inside)),
    Region("b", "b", boxes[:0], encoded(speck)),
    Region("c", "c", boxes),
  )
  out, got, form = stored(example_of(encoded(pixels), 240, 160, regions), image_px=40)
  assert (out.width, out.height, form) == (60, 40, "PNG")
  np.testing.assert_array_equal(got, grey(60, 40))  # the mean of each area
  first, second, third = out.regions
  np.testing.assert_array_equal(first.boxes, [[20, 10, 30, 20], [0, 0, 60, 40]])
  assert first.boxes.dtype == np.float32
  mask = np.asarray(Image.open(io.BytesIO(first.mask)))
  np.testing.assert_array_equal(mask > 0, inside[::4, ::4] > 0)
  mask = np.asarray(Image.open(io.BytesIO(second.mask)))
  np.testing.assert_array_equal(np.argwhere(mask), [[2, 3]])
  assert third.mask == b""


def test_sixteen_bits_are_stretched():
  pixels = np.linspace(1000, 3000, 24, dtype=np.uint16).reshape(4, 6)
  _, got, form = stored(example_of(encoded(pixels), 6, 4))
  assert form == "PNG"
  assert (got.min(), got.max()) == (0, 255)
  np.testing.assert_allclose(got, (pixels - 1000.0) * 255 / 2000, atol=0.51)
  flat = stored(example_of(encoded(np.full((4, 6), 7, np.uint16)), 6, 4))[1]
  assert (flat == 0).all()


def test_colour_palette_bilevel_and_low_depth_become_grey():
  plain = grey(6, 4)
  colour = encoded(np.stack([plain] * 3, -1))
  np.testing.assert_array_equal(stored(example_of(colour, 6, 4))[1], plain)
  jpeg = encoded(np.stack([plain] * 3, -1), "JPEG")
  assert stored(example_of(jpeg, 6, 4))[2] == "JPEG"
  bilevel = encoded(plain > 127)
  np.testing.assert_array_equal(stored(example_of(bilevel, 6, 4))[1], (plain > 127) * 255)
  palette = io.BytesIO()
  Image.fromarray(plain).convert("P").save(palette, "PNG", bits=8)
  np.testing.assert_array_equal(stored(example_of(palette.getvalue(), 6, 4))[1], plain)
  tiff = encoded(plain, "TIFF")
  assert stored(example_of(tiff, 6, 4))[2] == "PNG"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_and_masks_follow_the_exif_orientation(form, orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  pixels, inside = np.zeros((40, 60), np.uint8), np.zeros((40, 60), np.uint8)
  pixels[8:16, 32:56], inside[8:16, 32:40] = 255, 1
  image = encoded(pixels, form, exif=exif)
  assert image_size(image) == (60, 40)  # of the file, in whose pixels boxes and masks are
  boxes = np.array([[32, 8, 56, 16], [0, 0, 60, 40]], np.float32)
  regions = (Region("a", "a", boxes), Region("b", "b", boxes[:0], encoded(inside)))
  for image_px, scale in ((40, 1), (20, 2)):
    out, got, _ = stored(example_of(image, 60, 40, regions), image_px)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(image)))
    assert (out.width * scale, out.height * scale) == upright.size
    if scale == 1:
      np.testing.assert_array_equal(got, upright)
    boxed, masked = out.regions
    x, y, width, height = cv2.boundingRect(np.uint8(got > 128))
    ends = [[x, y, x + width, y + height], [0, 0, out.width, out.height]]
    np.testing.assert_array_equal(boxed.boxes, ends)
    assert masked.boxes.shape == (0, 4)
    mask = np.asarray(Image.open(io.BytesIO(masked.mask))) > 0
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(inside, exif=exif))))
    np.testing.assert_array_equal(mask, np.asarray(turned)[::scale, ::scale] > 0)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_truncated_image_is_unreadable(form):
  whole = encoded(grey(60, 40), form)
  stored(example_of(whole + b"trailing bytes do no harm", 60, 40))
  for length in [*range(0, len(whole), 37), *range(len(whole) - 20, len(whole))]:
    with pytest.raises(UnreadableError, match="not a whole image"):
      store_image(example_of(whole[:length], 60, 40), 512)


def test_an_image_of_another_size_than_its_example_is_an_error():
  with pytest.raises(ValueError, match="the image is 60 x 40, the example says 61 x 40"):
    store_image(example_of(encoded(grey(60, 40)), 61, 40), 512)


def smooth(width, height, seed=0):
  """An image: broad shadows, fine structure, some noise."""
  rng = np.random.default_rng(seed)
  coarse = rng.uniform(80, 170, (6, 5)).astype(np.float32)
  pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
  pixels += 30 * np.sin(np.arange(width) * (60 / width))
  pixels += 30 * np.sin(np.arange(height) * (60 / height))[:, None]
  return np.clip(pixels + rng.normal(size=pixels.shape) * 2, 0, 255).astype(np.uint8)


def averaged(pixels, width, height):
  """The mean of each area by brute force, in float64."""

  def shares(count, size):
    edges = np.arange(count + 1) * (size / count)
    low, high = edges[:-1, None], edges[1:, None]
    inside = np.minimum(high, np.arange(1, size + 1)) - np.maximum(low, np.arange(size))
    return np.maximum(inside, 0) * (count / size)

  rows, columns = shares(height, pixels.shape[0]), shares(width, pixels.shape[1])
  return rows @ pixels.astype(np.float64) @ columns.T


def psnr(a, b):
  return 10 * np.log10(255**2 / np.mean((np.asarray(a, np.float64) - b) ** 2))


@pytest.mark.parametrize("size", [(640, 768), (641, 771), (646, 523), (350, 900), (1201, 517)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_reduced_as_it_is_decoded_is_the_mean_of_each_area(size, options):
  image = encoded(smooth(*size), "JPEG", quality=95, **options)
  whole = np.asarray(Image.open(io.BytesIO(image)))
  for image_px in (40, 64, 100, 256):
    out, got, _ = stored(example_of(image, *size), image_px, "png")
    assert out.width == round(size[0] * image_px / min(size))
    wanted = averaged(whole, out.width, out.height)
    assert psnr(got, wanted) > 48
    # At the far edge too, where pixels that the decoder adds would have shifted the image.
    assert psnr(got[-9:, -9:], wanted[-9:, -9:]) > 48


def test_boxes_and_masks_of_a_reduced_jpeg_follow_its_true_size():
  size, factor = (643, 517), 40 / 517
  inside = np.zeros(size[::-1], np.uint8)
  inside[400:517, 500:643] = 255
  boxes = np.array([[500, 400, 643, 517]], np.float32)
  pixels = np.where(inside, 220, 30).astype(np.uint8)
  example = example_of(
    encoded(pixels, "JPEG"), *size, regions=(Region("a", "a", boxes, encoded(inside)),)
  )
  out, got, _ = stored(example, 40)
  assert (out.width, out.height) == (50, 40)
  (region,) = out.regions
  np.testing.assert_allclose(region.boxes, boxes * [50 / 643, factor, 50 / 643, factor], rtol=1e-6)
  mask = np.asarray(Image.open(io.BytesIO(region.mask)))
  np.testing.assert_array_equal(mask > 0, got > 125)


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "YCbCr"])
def test_a_large_colour_jpeg_becomes_luma(mode):
  pixels = smooth(640, 768)
  colours = Image.fromarray(np.stack([pixels, 255 - pixels, pixels // 2], -1)).convert(mode)
  out = io.BytesIO()
  colours.save(out, "JPEG", quality=95, subsampling=0)
  whole = np.asarray(Image.open(io.BytesIO(out.getvalue())).convert("L"))
  for image_px in (64, 640):
    small, got, form = stored(example_of(out.getvalue(), 640, 768), image_px)
    assert form == "JPEG"
    assert psnr(got, averaged(whole, small.width, small.height)) > 40


def test_exif_rotation_of_a_large_jpeg():
  exif, pixels = Image.Exif(), smooth(643, 517)
  exif[0x0112] = 6
  turned = np.rot90(pixels, -1)
  out, got, _ = stored(example_of(encoded(pixels, "JPEG", exif=exif, quality=95), 643, 517), 64)
  assert psnr(got, averaged(turned, out.width, out.height)) > 40
  exif[0x0112] = 9  # there is no such orientation
  image = encoded(pixels, "JPEG", exif=exif)
  assert image_size(image) == (643, 517)
  stored(example_of(image, 643, 517), 64)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_large_truncated_jpeg_is_unreadable(options):
  exif = Image.Exif()
  exif[0x010E] = "\xff\xd9 a thumbnail has an end marker of its own"
  whole = encoded(smooth(640, 768), "JPEG", exif=exif, **options)
  stored(example_of(whole, 640, 768), 64)
  for length in [*range(len(whole) // 3, len(whole), 4999), *range(len(whole) - 20, len(whole))]:
    with pytest.raises(UnreadableError, match="not a whole image"):
      store_image(example_of(whole[:length], 640, 768), 64)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_binary_pgm(dtype):
  pixels = smooth(60, 40).astype(dtype) * (1 if dtype == np.uint8 else 9)
  greatest = np.iinfo(dtype).max
  header = b"P5\n# a comment\n60 40\n%d\n" % greatest
  image = header + pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
  assert image_size(image) == (60, 40)
  _, got, form = stored(example_of(image, 60, 40))
  low, high = (0, 255) if dtype == np.uint8 else (int(pixels.min()), int(pixels.max()))
  assert form == "PNG"
  np.testing.assert_allclose(got, (pixels - float(low)) * 255 / (high - low), atol=0.51)
  reduced = averaged(pixels, 30, 20)
  got = stored(example_of(image, 60, 40), 20)[1]
  np.testing.assert_allclose(got, (reduced - low) * 255 / (high - low), atol=0.51)
  assert stored(example_of(image, 60, 40), image_format="jpeg")[2] == "JPEG"
  for length in (0, 2, 9, len(header), len(image) - 1):
    with pytest.raises(UnreadableError, match="not a whole image"):
      store_image(example_of(image[:length], 60, 40), 512)


def test_sixteen_bit_png_and_pgm_are_stored_alike():
  pixels = np.random.default_rng(0).integers(500, 3500, (40, 60)).astype(np.uint16)
  pgm = b"P5 60 40 65535\n" + pixels.astype(">u2").tobytes()
  for image_px in (20, 40):
    first, second = (
      store_image(example_of(image, 60, 40), image_px) for image in (encoded(pixels), pgm)
    )
    assert first.image == second.image


def test_exif_that_follows_the_pixels_of_a_png_counts():
  exif = Image.Exif()
  exif[0x0112] = 6
  before = encoded(grey(60, 40), exif=exif)
  at = before.index(b"eXIf") - 4
  end = at + 12 + int.from_bytes(before[at : at + 4], "big")
  after = before[:at] + before[end:-12] + before[at:end] + before[-12:]  # IEND has 12 bytes
  for image in (before, after):
    np.testing.assert_array_equal(stored(example_of(image, 60, 40))[1], np.rot90(grey(60, 40), -1))


@pytest.mark.parametrize(
  ("size", "reason"),
  [
    ((1, 40), "; an image has 2 pixels a side or more"),
    ((40, 1), "; an image has 2 pixels a side or more"),
    ((16000, 16000), ", 256000000 pixels; max_decoded_px=64000000 bounds them"),
    ((1 << 20, 1 << 20), ", 1099511627776 pixels; max_decoded_px=64000000 bounds them"),
  ],
)
def test_a_size_that_no_image_may_have_is_unreadable(size, reason):
  message = f"the image is {size[0]} x {size[1]}{reason}"
  image = b"P5 %d %d 255\n" % size + bytes(40)
  with pytest.raises(UnreadableError, match=message):
    image_size(image)
  with pytest.raises(UnreadableError, match=message):
    store_image(example_of(image, *size), 512)


def test_the_bound_on_decoded_pixels():
  image = b"P5 10000 9000 255\n" + bytes(90_000_000)  # Pillow would warn
  with bounded(90_000_000):
    assert image_size(image) == (10000, 9000)
    assert store_image(example_of(image, 10000, 9000), 64).width == 71
  small = example_of(encoded(grey(60, 40)), 60, 40)
  with bounded(60 * 40 - 1), pytest.raises(UnreadableError, match="60 x 40, 2400 pixels"):
    store_image(small, 512)
  store_image(small, 512)


@pytest.mark.parametrize("form", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_all_bits_of_colours_count(form, channels):
  ramp = np.tile(np.array([0, 980, 2007, 3051, 4095], np.uint16), (4, 1))
  pixels = ramp if channels == 1 else np.stack([ramp] * channels, -1)
  if channels == 4:
    pixels[..., 3] = 65535
  got = stored(example_of(cv2.imencode(form, pixels)[1].tobytes(), 5, 4))[1]
  np.testing.assert_array_equal(got[0], [0, 61, 125, 190, 255])


def with_tag(tiff, tag, value):
  """The little-endian TIFF with one tag more, a SHORT, or with another value of it."""
  start = struct.unpack_from("<I", tiff, 4)[0]
  count = struct.unpack_from("<H", tiff, start)[0]
  entries = [tiff[start + 2 + 12 * i :][:12] for i in range(count)]
  tags = {struct.unpack_from("<H", entry)[0]: entry for entry in entries}
  tags[tag] = struct.pack("<HHIHH", tag, 3, 1, value, 0)
  tiff += bytes(len(tiff) % 2)
  entries = b"".join(tags[name] for name in sorted(tags))
  end = struct.pack("<H", len(tags)) + entries + bytes(4)
  return tiff[:4] + struct.pack("<I", len(tiff)) + tiff[8:] + end


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, "colours"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_of_any_depth_is_turned_once(dtype, orientation):
  pixels, exif = grey(6, 4), Image.Exif()
  pixels.flat[:2] = 0, 255
  exif[0x0112] = orientation
  if dtype == "colours":
    image = cv2.imencode(".tiff", np.stack([pixels * np.uint16(257)] * 3, -1))[1].tobytes()
  else:
    image = encoded(pixels.astype(dtype), "TIFF")
  image = with_tag(image, 0x0112, orientation)
  assert image_size(image) == (6, 4)
  upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(pixels, exif=exif))))
  np.testing.assert_array_equal(stored(example_of(image, 6, 4))[1], upright)


@pytest.mark.parametrize(
  ("samples", "sample_format", "values"),
  [
    (np.int32, 1, np.array([0, 980, 2007, 3051, 4095]) * 1048832),  # unsigned: up to 2**32
    (np.int32, 1, np.array([0, 980, 2007, 3051, 4095]) + 2**31),
    (np.int32, 2, np.array([0, 980, 2007, 3051, 4095]) + 2**30),
    (np.int32, 2, np.array([0, 980, 2007, 3051, 4095]) * 1048832 - 2**31),
    (np.uint8, 2, np.array([0, 61, 125, 190, 255]) - 128),
  ],
)
def test_samples_of_a_tiff_are_of_the_type_that_it_states(samples, sample_format, values):
  ramp = np.tile(values.astype(np.int64).astype(samples), (4, 1))
  got = stored(example_of(with_tag(encoded(ramp, "TIFF"), 339, sample_format), 5, 4))[1]
  np.testing.assert_array_equal(got[0], [0, 61, 125, 190, 255])


def test_a_png_that_training_could_not_decode_is_refused():
  whole = encoded(grey(40, 30))
  pixels = cv2.imdecode(np.frombuffer(whole, np.uint8), cv2.IMREAD_GRAYSCALE)
  for place in range(len(whole)):
    damaged = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    try:
      kept = stored(example_of(damaged, 40, 30))[1]
    except (UnreadableError, ValueError):  # ValueError: of another size
      continue
    np.testing.assert_array_equal(kept, pixels)
  damaged = whole[:33] + bytes([whole[33] ^ 1]) + whole[34:]
  with pytest.raises(UnreadableError, match="not a whole image"):
    store_image(example_of(damaged, 40, 30), 512)


def test_a_refusal_is_the_same_in_each_run():
  with pytest.raises(UnreadableError) as error:
    image_size(b"no image")
  formats = "BMP, GIF, JPEG, JPEG2000, PNG, PPM, TIFF, WEBP"
  assert str(error.value) == f"not a whole image of {formats}; save other formats as PNG"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_whose_white_is_zero(dtype):
  ramp = np.tile(np.array([0, 61, 125, 190, 255], dtype), (4, 1))
  image = encoded(ramp, "TIFF")
  tag = struct.pack("<HHI", 262, 3, 1)
  image = image.replace(tag + struct.pack("<H", 1), tag + struct.pack("<H", 0))
  got = stored(example_of(image, 5, 4))[1]
  np.testing.assert_array_equal(got[0], [255, 194, 130, 65, 0])


@pytest.mark.parametrize("form", ["TIFF", "GIF", "PNG", "WEBP"])
def test_several_frames_are_refused(form):
  frames, out = [Image.fromarray(grey(60, 40)), Image.fromarray(255 - grey(60, 40))], io.BytesIO()
  frames[0].save(out, form, save_all=True, append_images=frames[1:])
  with pytest.raises(UnreadableError, match="it has 2 frames, not one image"):
    image_size(out.getvalue())


def test_a_hot_pixel_takes_the_range_as_documented():
  pixels = np.tile(np.array([0, 980, 2007, 3051, 4095], np.uint16), (4, 1))
  pixels[3, 0] = 65535
  got = stored(example_of(encoded(pixels), 5, 4))[1]
  np.testing.assert_array_equal(got[0], [0, 4, 8, 12, 16])


NO_CONTAINER = "^not a whole image of BMP, .*, TIFF, WEBP; save other formats as PNG$"


def test_no_image_is_handed_to_ghostscript(monkeypatch):
  program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n"
  monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("it was started"))
  for read in (image_size, lambda image: store_image(example_of(image, 40, 30), 512)):
    with pytest.raises(UnreadableError, match=NO_CONTAINER):
      read(program)


@pytest.mark.parametrize("form", ["TGA", "PCX", "ICO", "AVIF"])
def test_an_image_that_is_not_read_on_purpose_says_what_is(form):
  out = io.BytesIO()
  Image.fromarray(grey(60, 40)).convert("RGB").save(out, form)
  store = lambda image: store_image(example_of(image, 60, 40), 512)  # noqa: E731
  for read in (image_size, store, decode_mask):
    with pytest.raises(UnreadableError, match=NO_CONTAINER):
      read(out.getvalue())
