import pickle
import subprocess
import sys

import numpy as np
import pytest

from input_pipeline.text import reports
from input_pipeline.text.tokenizer import Tokenizer, TokenizerError, copy, train
from paths import ROOT

TEXTS = ["There is a small left pleural effusion.", "No pneumothorax is seen.", "Heart size."] * 20


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return train(TEXTS, tmp_path_factory.mktemp("tokenizer"), vocabulary_size=200)


def test_every_token_knows_its_word(tokenizer):
  sentences = ["There is a left-sided effusion (small).", "No pneumothorax!"]
  got = tokenizer.encode(sentences, max_tokens=64, max_words=16)
  want = [s[a:b] for s in sentences for a, b in reports.words(s)]
  assert list(got.words) == want
  assert got.word_mask.sum() == len(want) and got.word_mask[: len(want)].all()
  assert sorted(set(got.word_index)) == list(range(-1, len(want)))
  for number, word in enumerate(want):
    ids = got.tokens[got.word_index == number]
    alone = tokenizer._backend.encode(word, add_special_tokens=False).ids
    assert ids.tolist() == alone


def test_a_sentence_reads_the_same_wherever_it_stands(tokenizer):
  first, second = "Heart size.", "No pneumothorax is seen."
  both = tokenizer.encode([first, second], max_tokens=32, max_words=16)
  alone = tokenizer.encode([second], max_tokens=32, max_words=16)
  second_of_both = both.sentence_index == 1
  real = alone.sentence_index == 0
  assert both.tokens[second_of_both].tolist() == alone.tokens[real].tolist()
  assert both.position[second_of_both].tolist() == alone.position[real].tolist()
  assert both.tokens[second_of_both][0] == tokenizer.class_id
  assert both.tokens[second_of_both][-1] == tokenizer.separator_id


def test_what_finds_no_room_is_left_out_whole_and_counted(tokenizer):
  got = tokenizer.encode(TEXTS[:3], max_tokens=64, max_words=9)
  assert got.dropped == 1 and got.kept == (0, 2)
  assert got.words == ("There", "is", "a", "small", "left", "pleural", "effusion", "Heart", "size")


def test_a_single_long_sentence_is_cut_and_counted(tokenizer):
  for room in ({"max_tokens": 5, "max_words": 16}, {"max_tokens": 64, "max_words": 3}):
    got = tokenizer.encode([TEXTS[0]], **room)
    assert got.words == ("There", "is", "a")
    assert got.word_mask.sum() == 3 and got.dropped == 1 and got.kept == (0,)
    real = got.sentence_index >= 0
    assert got.tokens[real][-1] == tokenizer.separator_id


def test_nothing_to_encode(tokenizer):
  got = tokenizer.encode([], max_tokens=8, max_words=4)
  assert not got.word_mask.any() and (got.tokens == tokenizer.pad_id).all() and got.words == ()


def test_pickles(tokenizer):
  again = pickle.loads(pickle.dumps(tokenizer))
  for a, b in zip(
    *(t.encode(TEXTS[:2], max_tokens=32, max_words=16) for t in (tokenizer, again)), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_copy_of_a_hugging_face_folder(tokenizer, tmp_path):
  again = copy(tokenizer.folder, tmp_path / "copy")
  assert again.vocabulary_size == tokenizer.vocabulary_size
  a, b = (t.encode(TEXTS[:1], max_tokens=32, max_words=16) for t in (tokenizer, again))
  assert a.tokens.tolist() == b.tokens.tolist()


def test_copy_of_a_bare_vocabulary(tmp_path):
  words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "small", "left", "eff", "##usion", "no"]
  (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
  tokenizer = copy(tmp_path, tmp_path / "copy")
  assert tokenizer.vocabulary_size == len(words)
  got = tokenizer.encode(["Small effusion"], max_tokens=8, max_words=4)
  assert got.tokens.tolist() == [2, 5, 7, 8, 3, 0, 0, 0]
  assert got.word_index.tolist() == [-1, 0, 1, 1, -1, -1, -1, -1]


def test_a_folder_without_a_tokenizer(tmp_path):
  with pytest.raises(TokenizerError, match="neither tokenizer.json nor vocab.txt"):
    copy(tmp_path, tmp_path / "copy")
  with pytest.raises(TokenizerError, match="no tokenizer_config.json"):
    Tokenizer(tmp_path)


def test_the_same_texts_give_the_same_vocabulary(tmp_path):
  """Across processes too: a vocabulary that differs makes every later number differ."""
  code = (
    "import sys; from input_pipeline.text import tokenizer;"
    f"tokenizer.train({TEXTS[:3]!r} * 20, sys.argv[1], vocabulary_size=60)"
  )
  folders = [tmp_path / name for name in "abc"]
  for folder in folders:
    subprocess.run(
      [sys.executable, "-c", code, str(folder)], check=True, capture_output=True, cwd=ROOT
    )
  contents = {(folder / "tokenizer.json").read_bytes() for folder in folders}
  assert len(contents) == 1
