"""Texts as the baselines read them, against torch and transformers."""

import json

import pytest

from input_pipeline.errors import UserError
from plan_jax.baselines import tokenization

torch = pytest.importorskip("torch")
theirs = pytest.importorskip("torch_baselines")
tiny_baselines = pytest.importorskip("tiny_baselines")
TEXTS = tiny_baselines.TEXTS
# Their cleaning takes the whole text: a sentence without a full stop goes on in the next.
UNSTOPPED = [
  ("A nodule!", "Normal."),
  ("A nodule.", "Normal."),
  ("No edema", "Normal", "Stable. Heart normal"),
  ("Stable", "1", ". Heart large"),
  ("Line at T10.5", "cm\nfrom the carina;", "é_è 5.", "new", "", "small\ufffd\ufffdnodule"),
]
vocabulary, tokenizer = tiny_baselines.vocabulary, tiny_baselines.tokenizer


def cleaned(folder, most=97):
  vocabulary = tokenization.Vocabulary(folder, "key")
  return tokenization.BaselineTexts(vocabulary, most, tokenization.read_cleaned)


@pytest.mark.parametrize("most", [97, 112, 9])
def test_cleaned_texts_of_gloria_and_mgca(vocabulary, tokenizer, most):
  reader = cleaned(vocabulary, most)
  for text in (*TEXTS[:2], TEXTS[3], *UNSTOPPED):
    ids, mask, _ = theirs.tokens(tokenizer, " ".join(text), most)
    reading = reader.read(text)
    assert reading.tokens == ids[0, : mask.sum()].tolist()
    names, _ = theirs.aggregated(tokenizer, ids[0], torch.zeros(most, 1))
    assert reading.owner[-1] == len(names) - 1 == len(reading.words) + 1
    # The tokens of a word put together again are its name.
    for number, name in enumerate(names):
      ids_of = [
        i for i, owner in zip(reading.tokens, reading.owner, strict=True) if owner == number
      ]
      parts = tokenizer.convert_ids_to_tokens(ids_of)
      assert "".join(part.removeprefix("##") for part in parts) == name
    assert reading.cut == (len(tokenizer(theirs.cleaned(" ".join(text)))["input_ids"]) > most)
    for word in reading.words:
      span = text[word.sentence][word.start : word.end].lower()
      assert span.encode("ascii", "ignore").decode() == word.text


def test_words_are_those_of_the_joined_text(vocabulary):
  words = [[word.text for word in cleaned(vocabulary).read(text).words] for text in UNSTOPPED[:2]]
  assert words == [["a", "nodule", "normal"], ["a", "nodule"]]
  (*_, last) = cleaned(vocabulary).read(("A nodule!", "", "All normal.")).words
  assert last == tokenization.Word("normal", 2, 4, 10)


@pytest.mark.parametrize("name", ["[SEP]", "[PAD]", "[CLS]", "[MASK]"])
def test_a_special_token_s_name_in_a_text_is_its_letters(vocabulary, tokenizer, name):
  """Where CXR-BERT's project refuses the text."""
  model = theirs.CxrBert(len(tokenizer), 64, 1, 8)
  if name != "[MASK]":
    with pytest.raises(ValueError, match="special token"):
      model.prompts(tokenizer, [f"No {name} edema"])
  plain = tokenization.BaselineTexts(
    tokenization.Vocabulary(vocabulary, "key"), 128, tokenization.read_plain
  )
  ids = plain.read((f"No {name} edema",)).tokens
  assert tokenizer.convert_tokens_to_ids(name) not in ids[1:-1]


def test_a_broken_vocabulary_is_one_line(tmp_path):
  (tmp_path / "tokenizer.json").write_bytes(b"{")
  with pytest.raises(
    UserError, match="key: .*tokenizer.json is no JSON: .* own vocabulary$"
  ) as error:
    tokenization.Vocabulary(tmp_path, "key")
  assert "\\n" not in str(error.value)


def test_a_text_of_one_word_is_read_all_the_same(vocabulary):
  """Its own project would drop it; in company it is dropped here, too."""
  reader = cleaned(vocabulary)
  assert [word.text for word in reader.read(TEXTS[2]).words] == ["edema"]
  words = [word.text for word in reader.read(TEXTS[1]).words]
  assert words == ["no", "pneumothorax", "5", "cm", "right", "sided", "nodule", "normal"]
  for nothing in ((), ("",), ("...",), ("é",)):
    reading = reader.read(nothing)
    assert (len(reading.tokens), reading.words, reading.cut) == (2, [], False)
    assert not tokenization.to_arrays(reading, 16, 0)["word_mask"].any()


def test_vocabularies(vocabulary, tmp_path):
  whole = tokenization.Vocabulary(vocabulary, "key")
  names = sorted(whole.backend.get_vocab(), key=whole.backend.get_vocab().get)
  (tmp_path / "vocab.txt").write_text("\n".join(names))
  plain = tokenization.Vocabulary(tmp_path, "key")
  assert plain.size == whole.size == len(names)
  text = ("Small LEFT effusion.",)
  first, second = (tokenization.read_cleaned(v, 97, text).tokens for v in (whole, plain))
  assert first == second
  (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
  cased = tokenization.read_plain(tokenization.Vocabulary(tmp_path, "key"), 512, text).tokens
  assert cased != tokenization.read_plain(plain, 512, text).tokens
  (tmp_path / "vocab.txt").write_text("a\nb")
  with pytest.raises(UserError, match="key: .*vocab.txt is no whole tokenizer"):
    tokenization.Vocabulary(tmp_path, "key")
  with pytest.raises(UserError, match="key: there is no folder .*nowhere"):
    tokenization.Vocabulary(tmp_path / "nowhere", "key")
