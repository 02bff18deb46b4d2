"""What a Predictor is handed: one meaning is converted, the rest refused in one line."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from plan_jax.inference.inputs import InputError, check_images, check_phrases, check_texts

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
  ],
)
def test_forms_of_one_meaning(images):
  for image in check_images(images):
    assert type(image) is np.ndarray and image.dtype == np.uint8
    np.testing.assert_array_equal(image, RAMP)


def test_images_as_they_should_be_are_not_copied():
  assert all(image is RAMP for image in check_images([RAMP, RAMP]))


@pytest.mark.parametrize(
  ("image", "message"),
  [
    (RAMP / 255.0, r"float64 \[5, 8\]; an image is uint8 \[H, W\]: scale it to 0 for black"),
    ((RAMP / 127.5 - 1).astype(np.float32), r"float32 \[5, 8\].*scale it"),
    (np.full((5, 8), np.nan), "float64.*scale it"),
    (RAMP.astype(np.float16), "float16.*scale it"),
    (jnp.asarray(RAMP, jnp.bfloat16), "bfloat16.*scale it"),
    (RAMP.astype(np.uint16) * 16, "uint16.*window it"),
    (RAMP.astype(np.int16) - 1024, "int16.*window it"),
    (RAMP.astype(np.int64), "int64.*window it"),
    (RAMP > 9, "bool.*a mask is no image"),
    (COLOURS, r"uint8 \[5, 8, 3\] in colours: give a grey image"),
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
    (RAMP.tolist(), "of type list: give an array"),
    ("image.png", "of type str: give an array.*images.decode"),
    (Path("image.png"), "of type .*Path: give an array"),
    (b"\x89PNG", "of type bytes: give an array"),
    (PIL.Image.fromarray(RAMP), "of type Image: give an array"),
    (None, "of type NoneType: give an array"),
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
    (RAMP, r"images is one array, uint8 \[5, 8\]: give a list of images, \[image\]"),
    (GREY, "images is one array"),
    (RAMP[..., None], "images is one array"),
    (jnp.asarray(RAMP), "images is one array"),
    (PIL.Image.fromarray(RAMP), "images is of type Image: give a list of arrays"),
    ("image.png", "images is of type str: give a list"),
    (Path("image.png"), "images is of type .*Path: give a list"),
    ({"a": RAMP}, "images is of type dict"),
    (None, "images is of type NoneType"),
  ],
)
def test_one_image_is_no_list(images, message):
  with pytest.raises(InputError, match=message):
    check_images(images)


def test_texts():
  given = [["Heart size is normal.", "No effusion."], ("Opacity.",), np.array(["1.5 cm nodule"])]
  wanted = [tuple(given[0]), ("Opacity.",), ("1.5 cm nodule",)]
  assert check_texts(given) == wanted and check_texts(iter(given)) == wanted
  assert check_phrases(("left effusion", "è")) == ["left effusion", "è"]


@pytest.mark.parametrize(
  ("check", "given", "message"),
  [
    (
      check_texts,
      "No effusion.",
      "texts is of type str: give a list of texts, each",
    ),
    (check_texts, None, "texts is of type NoneType"),
    (check_texts, [["Normal."], "No effusion."], r"texts\[1\] is a string, 'No effusion.': give a"),
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
    (check_phrases, "left effusion", "phrases is of type str: give a list of strings"),
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
