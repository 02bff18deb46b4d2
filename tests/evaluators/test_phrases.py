"""Phrases without a word, and phrases that are longer than the model reads."""

import cv2
import numpy as np

from input_pipeline.example import Example, Region
from input_pipeline.text import tokenizer
from plan_jax.evaluators import grounding
from plan_jax.evaluators.phrases import phrase_batches
from plan_jax.inference.run_spec import RunTexts


def test_phrases_without_a_word_are_left_out_and_counted(capsys):
  box = np.array([[1, 1, 5, 5]], np.float32)
  regions = tuple(Region(phrase, "mass", box) for phrase in ("...", "mass", "!", "Mass."))
  png = cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes()
  example = Example(png, 8, 8, "a", "a", "a", regions=regions)
  ((_, phrases),) = phrase_batches([example])
  assert [(phrase.text, len(phrase.regions)) for phrase in phrases] == [("mass", 2)]
  assert "phrases: 2 regions have a phrase without a word; left out" in capsys.readouterr().out
  assert grounding.box_prior([example] * 2).counts == {"mass": 2}
  left_out = "mean box of training: 4 regions have a phrase without a word; left out"
  assert left_out in capsys.readouterr().out


def test_a_phrase_that_is_cut_is_counted(tmp_path):
  phrase = "small left pleural effusion"
  words = tokenizer.train([phrase] * 20, tmp_path / "tokenizer", vocabulary_size=100)
  counts = [RunTexts(words, 64, n).encode([(phrase,), ("effusion",)]).left_out for n in (3, 4)]
  assert counts == [1, 0]
