"""Groundings: in the pixels of the image, scored against the run's own validation images."""

import inspect

import jax
import numpy as np
import pytest

from input_pipeline import digests, images
from input_pipeline.digests import DamagedError
from input_pipeline.phantom import radiograph
from input_pipeline.text import diagnostic_terms
from input_pipeline.text import tokenizer as tokens
from plan_jax.inference import calibration, prompts
from plan_jax.inference.calibration import Calibration
from plan_jax.inference.grounding import Box, Grounding
from plan_jax.inference.inputs import InputError
from plan_jax.inference.load import of_state
from plan_jax.training.assembly import assemble
from tiny_runs import tiny

EXAMPLES = [radiograph.example(1, i, 64) for i in range(20)]
IMAGE = images.decode(EXAMPLES[0].image)[:40]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  texts = [" ".join(example.sentences) for example in EXAMPLES]
  tokenizer = tokens.train(texts, tmp_path_factory.mktemp("tokenizer"), vocabulary_size=400)
  config = tiny()
  parts = assemble(config, tokenizer)
  state = jax.device_get(parts.initial_state())
  return of_state(parts, state.replace(step=config.train.steps), tokenizer)


@pytest.fixture
def calibrated(model):
  model.calibration = Calibration(model.step, np.linspace(-1, 1, 101).tolist(), 0.2)
  yield model
  model.calibration = None


def grounding(heatmap, image=None) -> Grounding:
  heatmap = np.asarray(heatmap, np.float32)
  image = np.zeros(heatmap.shape, np.uint8) if image is None else image
  return Grounding("opacity", image, heatmap, 0.5, None, "", [], np.asarray)


def test_a_grounding_is_of_the_image(model):
  phrase = "small left effusion"
  result = model.ground(IMAGE, phrase)
  assert (result.phrase, result.warning, result.quantile) == (phrase, "", None)
  assert result.image is IMAGE and result.map.dtype == np.float32
  np.testing.assert_allclose(result.map, model.maps([IMAGE], [phrase])[0], atol=1e-4)
  assert result.score == pytest.approx(model.peaks([IMAGE], [phrase])[0], abs=1e-5)
  (attended,) = model.attend([IMAGE], [(phrase,)])
  assert [word.text for word in result.words] == phrase.split()
  for word, (_, weight, region) in zip(result.words, attended, strict=True):
    assert word.weight == pytest.approx(weight, abs=1e-5)
    want = model.to_image(region / region.max(), IMAGE.shape)
    np.testing.assert_allclose(word.map, want, atol=1e-3)
  assert repr(result).startswith("Grounding(phrase='small left effusion', score=")


def test_one_or_many(model, tmp_path):
  path, other = tmp_path / "image.png", np.ascontiguousarray(IMAGE[:, ::-1])
  path.write_bytes(EXAMPLES[0].image)
  single = model.ground(path, "opacity")
  assert isinstance(single, Grounding) and single.map.shape == (64, 64)
  for given, phrases, count in (
    (IMAGE, ["opacity", "effusion"], 2),
    ([IMAGE, other], "effusion", 2),
    ([IMAGE, other], ["opacity", "effusion"], 2),
    ([IMAGE], "opacity", 1),
    (IMAGE, ["opacity"], 1),
  ):
    results = model.ground(given, phrases)
    assert isinstance(results, list) and len(results) == count
  pairs = model.ground([IMAGE, other], ["opacity", "effusion"])
  assert [each.phrase for each in pairs] == ["opacity", "effusion"]
  assert [each.image is want for each, want in zip(pairs, (IMAGE, other), strict=True)] == [
    True
  ] * 2
  np.testing.assert_allclose(pairs[1].map, model.ground(other, "effusion").map, atol=1e-4)
  with pytest.raises(InputError, match="2 images and 3 phrases"):
    model.ground([IMAGE, other], ["opacity"] * 3)
  with pytest.raises(InputError, match="nothing to embed"):
    model.ground([], "opacity")
  with pytest.raises(InputError, match="stored features"):
    model.ground(images.EncodedImage((64, 64), np.zeros((4, 4), np.float16)), "opacity")


@pytest.mark.parametrize(
  ("phrase", "known"),
  [
    ("zxqv banana", False),
    ("q", False),
    ("effusion", True),
    ("zxqv effusion", True),
    ("no", True),
    ("Effusions!", True),
    ("\u4e00\u4e01", False),
  ],
)
def test_a_phrase_without_a_known_word(model, phrase, known, caplog):
  results = [model.ground(IMAGE, phrase) for _ in range(2)]
  assert ("has no word that the model knows" in results[1].warning) is not known
  assert len(caplog.records) == (not known)  # logged once


def test_a_phrase_that_is_cut(model):
  room = len(model.significances([("effusion " * 400,)])[0])
  assert model.ground(IMAGE, "effusion " * room).warning == ""
  warning = model.ground(IMAGE, "effusion " * (room + 3)).warning
  assert warning.endswith(f"is too long: the map is of the first {room} of its {room + 3} words")


def test_score_against_the_validation_images(calibrated):
  score = float(calibrated.peaks([IMAGE], ["left effusion"])[0])
  for chance, warned in ((score + 0.01, True), (score - 0.01, False)):
    calibrated.calibration = Calibration(6, np.linspace(-1, 1, 101).tolist(), chance)
    result = calibrated.ground(IMAGE, "left effusion")
    assert result.quantile == pytest.approx((result.score + 1) / 2, abs=1e-3)
    assert ("lights no more than a random phrase" in result.warning) is warned
    assert "no word" in calibrated.ground(IMAGE, "zxqv").warning


def test_calibration_is_measured_on_affirmed_and_on_random_phrases(model):
  terms = diagnostic_terms.load()
  measured = calibration.measure(model, EXAMPLES, terms)
  named = [
    (images.decode(example.image), sentence)
    for example in EXAMPLES
    for sentence in example.sentences
    if any(terms.named(sentence))
  ]
  peaks = model.peaks(*zip(*named, strict=True))
  assert len(named) > 20 and measured.step == model.step
  np.testing.assert_allclose(
    [measured.affirmed[i] for i in (0, 50, 100)], np.quantile(peaks, (0, 0.5, 1)), atol=1e-4
  )
  assert [measured.quantile(score) for score in (-2.0, 2.0)] == [0, 1]
  assert measured.quantile(float(np.median(peaks))) == pytest.approx(0.5, abs=0.02)
  assert calibration.measure(model, EXAMPLES, terms) == measured
  nothing = diagnostic_terms.Terms(frozenset({"nothing"}), frozenset())
  assert calibration.measure(model, EXAMPLES, nothing) is None


def test_calibration_is_of_one_step_and_sealed(model, tmp_path):
  path, written = tmp_path / "calibration.json", Calibration(6, [0.0] * 101, 0.5)
  assert calibration.read(path, 6) is None
  calibration.write(path, written)
  assert calibration.read(path, 6) == written and calibration.read(path, 5) is None
  path.write_text(path.read_text().replace("0.5", "0.4"))
  with pytest.raises(DamagedError, match="calibration.json is not as it was written.*evaluate"):
    calibration.read(path, 6)
  path.write_text(digests.seal({"step": 6}))
  with pytest.raises(DamagedError, match="calibration.json is of another version"):
    calibration.read(path, 6)


def test_boxes_are_the_parts_of_the_map():
  heatmap = np.zeros((10, 20))
  heatmap[1:3, 2:4] = 0.8  # 4 pixels, the highest
  heatmap[5:8, 6:12] = 0.5  # 18 pixels
  heatmap[8, 12] = 0.41  # touches them at a corner
  heatmap[0, 19] = 0.3
  result = grounding(heatmap)
  assert (
    result.boxes()
    == result.boxes(0.5)
    == [
      Box(6, 5, 13, 9, np.float32(0.5)),
      Box(2, 1, 4, 3, np.float32(0.8)),
    ]
  )
  assert result.boxes(1) == [Box(2, 1, 4, 3, np.float32(0.8))]
  assert result.boxes(0.3)[-1] == Box(19, 0, 20, 1, np.float32(0.3))
  heatmap[:, :2] = np.nan
  assert grounding(heatmap).boxes() == result.boxes()
  assert grounding(np.zeros((3, 3))).boxes() == grounding(np.full((3, 3), np.nan)).boxes() == []


@pytest.mark.parametrize("threshold", [0, 1.1, -1, float("nan"), True, "0.5", None])
def test_thresholds_that_are_no_share(threshold):
  result = grounding(np.ones((2, 2)))
  with pytest.raises(InputError, match="threshold is .*: give a share of the maximum"):
    inspect.unwrap(Grounding.region)(result, threshold)
  if isinstance(threshold, (int, float)):
    with pytest.raises(InputError, match="threshold is"):
      result.boxes(threshold)


@pytest.mark.parametrize("alpha", [2, -0.1, "x", None, True])
def test_opacities_that_are_no_share(alpha):
  with pytest.raises(InputError, match=f"alpha is {alpha!r}: give a share from 0 to 1"):
    inspect.unwrap(Grounding.overlay)(grounding(np.ones((2, 2))), alpha)


def test_overlay():
  image = np.full((10, 20), 100, np.uint8)
  heatmap = np.zeros((10, 20))
  heatmap[:, 10:] = 1
  heatmap[0] = np.nan
  overlay = grounding(heatmap, image).overlay(0.5)
  assert overlay.mode == "RGB" and overlay.size == (20, 10)
  pixels = np.asarray(overlay)
  assert (pixels[:, :10] == 100).all() and (pixels[0] == 100).all()
  red, _, blue = pixels[5, 15].astype(int)
  assert red > 150 and red > blue  # towards yellow
  assert (np.asarray(grounding(heatmap, image).overlay(0)) == 100).all()


def test_similarity_is_a_cosine(model):
  texts = ["Small left effusion. No pneumothorax.", "Heart size is normal.", "Opacity."]
  table = model.similarity([IMAGE, IMAGE], texts)
  assert table.shape == (2, 3) and table.dtype == np.float32
  image, text = model.embed_images(IMAGE), model.embed_texts(texts)
  np.testing.assert_allclose(table[1:], image @ text.T, atol=1e-5)
  assert (np.abs(table) <= 1.00001).all() and model.similarity(IMAGE, texts[0]).shape == (1, 1)


def test_classes_score_as_the_zero_shot_evaluator_has_it(model):
  names, (chosen,) = ["pneumothorax", "Effusion", "odd mass"], prompts.load(["ours"])
  scores = model.classify([IMAGE, IMAGE[:, ::-1]], names)
  assert [list(each) for each in scores] == [names] * 2
  image = model.embed_images(IMAGE)
  for name, score in model.classify(IMAGE, names).items():
    positive, negative = (
      prompts.similarities(image, model.embed_prompts([(t,) for t in texts]), chosen.ensemble)[0]
      for texts in chosen.prompts(name)
    )
    assert score == pytest.approx(1 / (1 + np.exp(negative - positive)), abs=1e-4)
    assert scores[0][name] == pytest.approx(score, abs=1e-4) and 0 < score < 1
  assert set(model.classify(IMAGE, "effusion")) == {"effusion"}
  with pytest.raises(InputError, match="prompts 'ours' have none for the class 'other opacity'"):
    model.classify(IMAGE, ["effusion", "other opacity"])
  with pytest.raises(prompts.PromptsError, match="there is no set 'mine'; it must be one of"):
    model.classify(IMAGE, ["effusion"], "mine")
  with pytest.raises(InputError, match="classes is empty"):
    model.classify(IMAGE, [])
