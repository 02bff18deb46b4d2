import json
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, trainers

from input_pipeline.text import reports
from input_pipeline.text.tokenizer import Tokenizer, copy, train
from input_pipeline.text.vocabulary import TokenizerError
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


BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]


def byte_pairs(folder, pre_tokenizer, **settings):
  """Writes a vocabulary as others than BERT have it, trained on TEXTS."""
  backend = Backend(models.BPE(unk_token="<unk>"))
  backend.pre_tokenizer = pre_tokenizer
  trainer = trainers.BpeTrainer(
    vocab_size=300,
    special_tokens=ROBERTA,
    show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
  )
  backend.train_from_iterator(TEXTS, trainer)
  folder.mkdir()
  backend.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(json.dumps(settings))
  return folder


@pytest.mark.parametrize(
  "pre_tokenizer",
  [
    pre_tokenizers.Metaspace(),
    pre_tokenizers.ByteLevel(trim_offsets=False),
    pre_tokenizers.ByteLevel(trim_offsets=False, add_prefix_space=False),
    pre_tokenizers.ByteLevel(trim_offsets=True),
  ],
)
@pytest.mark.parametrize("settings", [{}, {"cls_token": {"content": "<s>"}, "sep_token": "</s>"}])
def test_tokens_that_begin_with_a_blank_know_their_words(tmp_path, pre_tokenizer, settings):
  folder = byte_pairs(tmp_path / "bpe", pre_tokenizer, **settings)
  for tokenizer in (Tokenizer(folder), copy(folder, tmp_path / "copy")):
    got = tokenizer.encode([TEXTS[0].rstrip(".")], max_tokens=64, max_words=16)
    assert got.words == ("There", "is", "a", "small", "left", "pleural", "effusion")
    assert got.word_mask.sum() == 7
    assert (tokenizer.pad_id, tokenizer.class_id, tokenizer.separator_id) == (0, 2, 3)
    for number, word in enumerate(got.words):
      tokens = tokenizer._backend.decode(got.tokens[got.word_index == number].tolist())
      assert re.sub("[ \u2581\u0120]", "", tokens) == word
    assert (got.tokens[got.word_index == -1] < 4).all()  # special ones alone have none


def test_a_folder_that_names_code_is_read_as_data(tmp_path):
  """As CXR-BERT is published."""
  (tmp_path / "vocab.txt").write_text("\n".join([*BERT, "small", "eff", "##usion", "is"]) + "\n")
  for name, entry in (
    ("tokenizer_config", {"tokenizer_class": "CXRBertTokenizer", "do_lower_case": True}),
    ("config", {"model_type": "cxr-bert"}),
  ):
    code = {"AutoTokenizer": ["code.CXRBertTokenizer", None], "AutoConfig": "code.CXRBertConfig"}
    (tmp_path / f"{name}.json").write_text(json.dumps(entry | {"auto_map": code}))
  (tmp_path / "code.py").write_text("raise AssertionError('executed')")
  for tokenizer in (Tokenizer(tmp_path), copy(tmp_path, tmp_path / "copy")):
    got = tokenizer.encode(["Small effusion"], max_tokens=8, max_words=4)
    assert got.tokens.tolist() == [2, 5, 6, 7, 3, 0, 0, 0]
    assert got.word_index.tolist() == [-1, 0, 1, 1, -1, -1, -1, -1]
  assert "code" not in (tmp_path / "copy" / "tokenizer_config.json").read_text()


def test_special_tokens_in_a_report_are_its_letters(tokenizer, tmp_path):
  for each in (tokenizer, copy(tokenizer.folder, tmp_path / "copy")):
    got = each.encode(["No [SEP] effusion [PAD]."], max_tokens=48, max_words=8)
    assert got.words == ("No", "SEP", "effusion", "PAD") and got.word_mask.sum() == 4
    assert (got.tokens == each.separator_id).sum() == 1


def test_case_of_a_bare_vocabulary(tmp_path):
  (tmp_path / "vocab.txt").write_text("\n".join([*BERT, "small", "Small", "is"]))
  for lower, token in ((True, 5), (False, 6)):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
    got = Tokenizer(tmp_path).encode(["Small"], max_tokens=3, max_words=1)
    assert got.tokens.tolist() == [2, token, 3]


def put(folder, **contents):
  folder.mkdir(exist_ok=True)
  for name, content in contents.items():
    (folder / name.replace("_json", ".json").replace("_txt", ".txt")).write_text(content)


def without_unknown(folder):
  path = folder / "tokenizer.json"
  content = json.loads(path.read_text())
  content["model"]["unk_token"] = None
  path.write_text(json.dumps(content))


def bert(*added):
  """BERT's kind of tokenizer, with tokens that were added to its vocabulary."""
  backend = Backend(models.WordPiece({name: i for i, name in enumerate([*BERT, "is"])}))
  backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  backend.model.unk_token = "[UNK]"
  backend.add_tokens(list(added))
  return backend


WRONG = {
  "absent": (lambda folder: None, "there is no folder .*, and nothing is downloaded"),
  "empty": (put, "holds none of tokenizer.json, vocab.txt, spiece.model"),
  "no_json": (lambda folder: put(folder, tokenizer_json="{"), "tokenizer.json is no JSON"),
  "list": (lambda folder: put(folder, tokenizer_json="[]"), "tokenizer.json holds a list"),
  "deep": (lambda folder: put(folder, tokenizer_json="[" * 100_000), "tokenizer.json is no JSON"),
  "no_model": (lambda folder: put(folder, tokenizer_json="{}"), "tokenizer.json is no whole tok"),
  "no_normalizer": (
    lambda folder: put(folder, tokenizer_json='{"normalizer": [1]}'),
    "tokenizer.json is no whole tokenizer",
  ),
  "no_special": (lambda folder: put(folder, vocab_txt="heart\nsize\n"), "vocab.txt is no whole"),
  "no_pad": (
    lambda folder: put(folder, vocab_txt="\n".join([*BERT[1:], "is"])),
    r"has no \[PAD\]; one as of BERT",
  ),
  "settings": (
    lambda folder: put(folder, vocab_txt="\n".join(BERT), tokenizer_config_json="\xff{"),
    "tokenizer_config.json is no JSON",
  ),
  "settings_list": (
    lambda folder: put(folder, vocab_txt="\n".join(BERT), tokenizer_config_json="[]"),
    "tokenizer_config.json holds a list",
  ),
  "settings_deep": (
    lambda folder: put(folder, vocab_txt="", tokenizer_config_json="[" * 100_000),
    "tokenizer_config.json is no JSON",
  ),
  "settings_name": (
    lambda folder: put(folder, vocab_txt="", tokenizer_config_json='{"pad_token": ["x"]}'),
    r"tokenizer_config.json: pad_token is \['x'\], of type list, not str",
  ),
  "settings_content": (
    lambda folder: put(folder, vocab_txt="", tokenizer_config_json='{"sep_token": {"content": 3}}'),
    "tokenizer_config.json: sep_token is 3, of type int, not str",
  ),
  "settings_switch": (
    lambda folder: put(folder, vocab_txt="", tokenizer_config_json='{"do_lower_case": "no"}'),
    "tokenizer_config.json: do_lower_case is 'no', of type str, not bool",
  ),
  "no_words": (lambda folder: put(folder, vocab_txt="\n".join(BERT)), "knows no word of"),
  "no_unknown": (
    lambda folder: put(folder, vocab_txt="\n".join([*(set(BERT) - {"[UNK]"}), "is"])),
    "cannot be encoded: WordPiece error: Missing",
  ),
  "no_unknown_of_pairs": (
    lambda folder: without_unknown(byte_pairs(folder, pre_tokenizers.Whitespace())),
    "the words \U00010380 have no token.*with one for letters that it does not know",
  ),
  "added_words": (
    lambda folder: put(folder, tokenizer_json=bert("lobe opacity").to_str()),
    "the added token 'lobe opacity' holds several words.*take it out",
  ),
  "across_words": (
    lambda folder: byte_pairs(folder, pre_tokenizers.Metaspace(split=False)),
    "the words .*is.* have no token",
  ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_folder_without_a_tokenizer(tmp_path, name):
  """One line that names the folder, before a word is lost."""
  write, message = WRONG[name]
  folder = tmp_path / "folder"
  write(folder)
  for read in (Tokenizer, lambda folder: copy(folder, tmp_path / "copy")):
    with pytest.raises(TokenizerError, match=message) as error:
      read(folder)
    assert str(folder) in str(error.value) and "\\n" not in str(error.value)
  assert not (tmp_path / "copy").exists()


def test_words_without_a_token_are_counted(tmp_path):
  """Such as those that the vocabulary's normalizer takes out."""
  backend = bert()
  backend.normalizer = normalizers.Replace("\u00b5", "")
  put(tmp_path / "a", tokenizer_json=backend.to_str())
  got = Tokenizer(tmp_path / "a").encode(["is \u00b5", "is", "is"], max_tokens=32, max_words=8)
  assert got.words == ("is", "\u00b5", "is", "is") and got.word_mask[:4].tolist() == [1, 0, 1, 1]
  assert got.dropped == 1 and got.kept == (0, 1, 2)


def test_an_added_token_of_one_word(tmp_path):
  put(tmp_path / "a", tokenizer_json=bert("covid-19").to_str())
  got = Tokenizer(tmp_path / "a").encode(["is covid-19"], max_tokens=8, max_words=4)
  assert got.tokens.tolist() == [2, 5, 6, 3, 0, 0, 0, 0] and got.dropped == 0


BERT_NORMALIZER = normalizers.BertNormalizer
CASES = {  # of a normalizer -> whether it makes letters small, None where no part says
  "bert": (BERT_NORMALIZER(lowercase=True), True),
  "bert_cased": (BERT_NORMALIZER(lowercase=False), False),
  "alone": (normalizers.Lowercase(), True),
  "sequence": (normalizers.Sequence([normalizers.NFC(), BERT_NORMALIZER(lowercase=True)]), True),
  "sequence_cased": (
    normalizers.Sequence([BERT_NORMALIZER(lowercase=False), normalizers.NFC()]),
    False,
  ),
  "within": (normalizers.Sequence([normalizers.Sequence([normalizers.Lowercase()])]), True),
  "both": (normalizers.Sequence([BERT_NORMALIZER(lowercase=False), normalizers.Lowercase()]), True),
  "neither": (normalizers.Sequence([normalizers.NFC()]), None),
}


@pytest.mark.parametrize("name", CASES)
def test_two_files_that_disagree_on_case(tokenizer, tmp_path, name):
  folder = copy(tokenizer.folder, tmp_path / "copy").folder
  backend = Backend.from_file(str(folder / "tokenizer.json"))
  backend.normalizer, lowers = CASES[name]
  backend.save(str(folder / "tokenizer.json"))
  for wanted in (True, False, None):
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": wanted}))
    if None in (lowers, wanted) or lowers == wanted:
      Tokenizer(folder)
      continue
    with pytest.raises(TokenizerError, match=f"has lowercase {lowers}, tokenizer_config.json do_"):
      Tokenizer(folder)


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
