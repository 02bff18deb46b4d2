"""What a Predictor is handed: one meaning is converted, the rest refused in one line."""

import io

import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageOps
import pydicom
import pytest

from fakes import dicom
from input_pipeline.readers.raw import stored_images
from plan_jax.inference.inputs import InputError, check_images, check_phrases, check_texts, pair

RAMP = np.linspace(0, 255, 40).round().astype(np.uint8).reshape(5, 8)
COLOURS = np.stack([RAMP, RAMP, 255 - RAMP], -1)
GREY = np.repeat(RAMP[..., None], 3, -1)


@pytest.mark.parametrize(
  "images",
  [
    [RAMP, RAMP],
    (RAMP[..., None], GREY),
    np.stack([RAMP, RAMP]),
    np.stack([RAMP, RAMP])[..., None],
    np.stack([GREY, GREY]),
    (image for image in (RAMP, RAMP)),
    [jnp.asarray(RAMP), np.asfortranarray(RAMP)],
    [RAMP / 255.0, (RAMP / 255).astype(np.float32)],
    [RAMP / np.float32(255), jnp.asarray(RAMP, jnp.float32)[..., None] / 255],
    [PIL.Image.fromarray(RAMP), PIL.Image.fromarray(GREY)],
    [RAMP, PIL.Image.fromarray(RAMP).convert("RGBA"), PIL.Image.fromarray(RAMP).convert("LA")],
    [PIL.Image.fromarray(RAMP).convert("P"), PIL.Image.fromarray(RAMP / np.float32(255))],
    RAMP,
    GREY,
    RAMP[..., None],
    PIL.Image.fromarray(RAMP),
    jnp.asarray(RAMP),
  ],
)
def test_forms_of_one_meaning(images):
  checked = check_images(images)
  assert checked
  for image in checked:
    assert type(image) is np.ndarray and image.dtype == np.uint8
    np.testing.assert_array_equal(image, RAMP)


def test_images_as_they_should_be_are_not_copied():
  assert all(image is RAMP for image in check_images([RAMP, RAMP]))


@pytest.mark.parametrize(
  ("image", "message"),
  [
    (RAMP / 254.0, r"float64 \[5, 8\] of values from 0 to 1.00394: scale it to 0 for black"),
    ((RAMP / 127.5 - 1).astype(np.float32), r"float32 \[5, 8\] of values from -1 to 1: scale it"),
    (np.full((5, 8), np.nan), "float64.*from nan to nan: scale it"),
    (np.where(RAMP, 0.5, np.inf), "float64.*to inf: scale it"),
    (RAMP.astype(np.float16), "float16.*scale it"),
    (jnp.asarray(RAMP, jnp.bfloat16), "bfloat16.*scale it"),
    (RAMP.astype(np.int16) - 1024, "int16.*window it"),
    (RAMP.astype(np.int64), "int64.*window it"),
    (PIL.Image.fromarray(RAMP.astype(np.int32)), "int32.*window it"),
    (RAMP.astype(complex), "complex128.*window it"),
    (RAMP.astype([("grey", "f4")]), r".*'grey', '<f4'.*window it"),
    (np.zeros((5, 8), "V3"), r"\|V3 \[5, 8\].*window it"),
    (
      np.concatenate([GREY, GREY[..., :1]], -1),
      r"uint8 \[5, 8, 4\], with transparency; .*without the last channel, image\[\.\.\., :-1\]",
    ),
    (GREY[..., :2], r"uint8 \[5, 8, 2\], with transparency; an image is uint8 \[H, W\]: give it"),
    (np.ma.masked_equal(RAMP, 0), r"a masked array.*give image.filled\(0\)"),
    (np.array(7, np.uint8), r"uint8 \[\]; an image is"),
    (GREY.transpose(2, 0, 1), r"uint8 \[3, 5, 8\]; an image is"),
    (RAMP[:0], r"uint8 \[0, 8\].*one pixel at least"),
    (np.zeros((0, 0), np.uint8), ".*one pixel at least"),
    (np.zeros((0, 8, 1), np.uint8), ".*one pixel at least"),
    (RAMP[0], r"uint8 \[8\]; an image is"),
    (RAMP.tolist(), "of type list: give a path, an image of Pillow, a DICOM dataset, or an array"),
    (None, "of type NoneType: give a path"),
  ],
)
def test_images_that_may_mean_anything(image, message):
  with pytest.raises(InputError, match=rf"^images\[1\] is {message}") as error:
    check_images([RAMP, image])
  assert "\\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(5, 8), (5, 8, 1), (5, 8, 3)])
def test_an_image_given_twice_stays_one_object(shape):
  image, other = np.full(shape, 7, np.uint8), np.full(shape, 7, np.uint8)
  first, again, apart, last = check_images([image, image, other, image])
  assert first is again is last and apart is not first


@pytest.mark.parametrize(
  ("images", "message"),
  [
    ({"a": RAMP}, "images is of type dict"),
    (None, "images is of type NoneType"),
  ],
)
def test_what_is_neither_an_image_nor_a_list(images, message):
  with pytest.raises(InputError, match=message):
    check_images(images)


def test_colours_become_luma():
  luma = np.asarray(PIL.Image.fromarray(COLOURS).convert("L"))
  assert len(np.unique(luma)) > 30
  for image in (COLOURS, PIL.Image.fromarray(COLOURS), COLOURS / 255):
    np.testing.assert_array_equal(check_images(image)[0], luma)


def test_a_mask_is_black_and_white():
  for image in (RAMP > 9, PIL.Image.fromarray(RAMP > 9)):
    np.testing.assert_array_equal(check_images(image)[0], np.where(RAMP > 9, 255, 0))


def png(pixels, **options) -> bytes:
  file = io.BytesIO()
  PIL.Image.fromarray(pixels).save(file, "PNG", **options)
  return file.getvalue()


DEEP = (RAMP.astype(np.uint16) * 16 + 7).astype(np.uint16)


BIG_ENDIAN = PIL.Image.frombytes("I;16B", RAMP.shape[::-1], DEEP.astype(">u2").tobytes())


@pytest.mark.parametrize(
  "image", [DEEP, DEEP.astype(">u2"), PIL.Image.fromarray(DEEP), BIG_ENDIAN, png(DEEP)]
)
def test_sixteen_bits_are_stretched_and_that_is_logged(image, caplog):
  (pixels,) = check_images(image)
  assert pixels.dtype == np.uint8
  np.testing.assert_array_equal(pixels, RAMP)
  assert [record.levelname for record in caplog.records] == ["WARNING"]
  assert "1 of 1 images have more than 8 bits: each is stretched by its range" in caplog.text


@pytest.mark.parametrize("slope", [1, -1])
def test_forms_of_a_dicom(tmp_path, slope):
  """File, bytes and dataset; inverted, rescaled and signed as its header says."""
  stored = RAMP.astype(np.int16) * slope - 100
  kind = "MONOCHROME2" if slope == 1 else "MONOCHROME1"
  encoded = dicom.image(stored, photometric=kind, RescaleSlope=2, RescaleIntercept=5)
  (tmp_path / "a.png").write_bytes(encoded)  # by its content, not by its name
  dataset = pydicom.dcmread(io.BytesIO(encoded))
  for image in (encoded, tmp_path / "a.png", str(tmp_path / "a.png"), dataset, [dataset]):
    np.testing.assert_array_equal(check_images(image)[0], RAMP)


def test_a_window_of_a_dataset_counts():
  encoded = dicom.image(RAMP, WindowCenter=100.5, WindowWidth=101)
  (pixels,) = check_images(pydicom.dcmread(io.BytesIO(encoded)))
  np.testing.assert_array_equal(pixels, np.rint(np.clip((RAMP - 50.0) / 100, 0, 1) * 255))


@pytest.mark.parametrize("form", [io.BytesIO, PIL.Image.open])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_upright(orientation, form):
  exif = PIL.Image.Exif()
  exif[0x0112] = orientation
  encoded = png(RAMP, exif=exif)
  image = encoded if form is io.BytesIO else PIL.Image.open(io.BytesIO(encoded))
  upright = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(encoded)))
  np.testing.assert_array_equal(check_images(image)[0], np.asarray(upright))


def two_frames() -> bytes:
  file = io.BytesIO()
  frames = [PIL.Image.fromarray(RAMP), PIL.Image.fromarray(255 - RAMP)]
  frames[0].save(file, "TIFF", save_all=True, append_images=frames[1:])
  return file.getvalue()


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "not a whole image of BMP"),
    (b"a report", "not a whole image of BMP"),
    (png(RAMP)[:-20], "not a whole image"),
    (png(RAMP[:1]), "the image is 8 x 1"),
    (two_frames(), "it has 2 frames, not one image"),
    (dicom.image(RAMP)[:-20], "not a readable DICOM image"),
    (dicom.image(RAMP, NumberOfFrames=2), "it has 2 frames, not one image"),
    (dicom.image(RAMP, photometric="RGB"), "its photometric interpretation is RGB, not grey"),
  ],
)
def test_files_that_are_no_image_are_named(tmp_path, content, message):
  path = tmp_path / "a\nb.dcm"
  path.write_bytes(content)
  with pytest.raises(InputError, match=rf"a\\nb.dcm: {message}") as error:
    check_images([RAMP, path])
  assert "\n" not in str(error.value)
  with pytest.raises(InputError, match=rf"^images\[1\]: {message}"):
    check_images([RAMP, content])


def test_files_that_cannot_be_read(tmp_path):
  for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "no", "No such file")):
    with pytest.raises(InputError, match=rf"{path} cannot be read \({reason}"):
      check_images(path)
  with pytest.raises(InputError, match="cannot be read .*null"):
    check_images("a\0b.png")


def test_what_is_too_large(tmp_path):
  path = tmp_path / "a.png"
  path.write_bytes(png(RAMP))
  with stored_images.bounded(39):
    with pytest.raises(InputError, match=r"^images\[0\] is uint8 \[5, 8\], too large: reduce it"):
      check_images(RAMP)
    for image in (path, PIL.Image.fromarray(RAMP)):
      with pytest.raises(InputError, match="8 x 5, 40 pixels; max_decoded_px=39 bounds them"):
        check_images(image)
  with stored_images.bounded(4), pytest.raises(InputError, match="bytes, too many for an image"):
    check_images(path)


def test_one_image_of_several_phrases_and_the_reverse():
  other = 255 - RAMP
  images, phrases = pair(RAMP, ["opacity", "effusion"])
  assert images[0] is images[1] is RAMP and phrases == ["opacity", "effusion"]
  images, phrases = pair([RAMP, other], "opacity")
  assert images[1] is other and phrases == ["opacity"] * 2
  assert pair([RAMP, other], ["opacity", "effusion"])[1] == ["opacity", "effusion"]
  with pytest.raises(InputError, match="2 images and 3 phrases: give one image, one phrase, or a"):
    pair([RAMP, other], ["opacity"] * 3)


def test_texts():
  given = [["Heart size is normal.", "No effusion."], ("Opacity.",), np.array(["1.5 cm nodule"])]
  wanted = [tuple(given[0]), ("Opacity.",), ("1.5 cm nodule",)]
  assert check_texts(given) == wanted and check_texts(iter(given)) == wanted
  report = "FINDINGS: Heart size is normal. No effusion.\nINDICATION: Cough."
  assert check_texts(report) == check_texts([report]) == wanted[:1]
  assert check_texts("Opacity.") == wanted[1:2] and check_phrases("opacity") == ["opacity"]
  assert check_phrases(("left effusion", "è")) == ["left effusion", "è"]


@pytest.mark.parametrize(
  ("check", "given", "message"),
  [
    (check_texts, None, "texts is of type NoneType"),
    (check_texts, "--.", r"texts\[0\] has no word"),
    (check_texts, [["Normal."], "left \ud800 sign"], r"texts\[1\] holds half a character"),
    (check_texts, [["Normal."], b"No"], r"texts\[1\] is of type bytes"),
    (check_texts, [["Normal."], None], r"texts\[1\] is of type NoneType"),
    (
      check_texts,
      [["Normal."], [["No effusion."]]],
      r"texts\[1\] is or holds a value of type list",
    ),
    (check_texts, [["Normal."], [float("nan")]], r"texts\[1\] is or holds a value of type float"),
    (check_texts, [["Normal."], []], r"texts\[1\] has no word"),
    (check_texts, [["Normal."], [" ", "--."]], r"texts\[1\] has no word"),
    (check_texts, np.array("Normal."), "texts is of type ndarray: give a list of texts"),
    (check_texts, [["Normal."], np.array("No")], r"texts\[1\] is of type ndarray: give a list"),
    (check_texts, [["Normal."], {"No effusion.", "Opacity."}], r"texts\[1\] is of type set: give"),
    (check_texts, [["Normal."], ["left", "\ud800 sign"]], r"texts\[1\] holds half a character"),
    (check_phrases, np.array("left effusion"), "phrases is of type ndarray: give a list of str"),
    (check_phrases, frozenset(["opacity"]), "phrases is of type frozenset: give a list of str"),
    (
      check_phrases,
      ["opacity", "left \ud800 sign"],
      r"phrases\[1\] holds half a character, '.ud800': decode the text anew",
    ),
    (check_phrases, "?", r"phrases\[0\] has no word"),
    (
      check_phrases,
      ["opacity", ("left", "effusion")],
      r"phrases\[1\] is or holds a value of type tuple",
    ),
    (check_phrases, ["opacity", None], r"phrases\[1\] is or holds a value of type None"),
    (check_phrases, ["opacity", ""], r"phrases\[1\] has no word"),
    (check_phrases, ["opacity", "\n?"], r"phrases\[1\] has no word"),
  ],
)
def test_texts_that_may_mean_anything(check, given, message):
  with pytest.raises(InputError, match=message) as error:
    check(given)
  assert "\n" not in error.value.args[0]
