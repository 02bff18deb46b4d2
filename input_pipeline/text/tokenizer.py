"""Vocabulary of a run, and reports as arrays in which each token knows its word."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from input_pipeline.files import replacing
from input_pipeline.text import reports, vocabulary
from input_pipeline.text.vocabulary import TokenizerError

# Read whenever a vocabulary is loaded; the last letter, of a script long dead, is in none.
_PROBE = "Heart size is normal; a small left-sided effusion of 1.5 cm is seen \U00010380."


class Encoded(NamedTuple):
  """Report as arrays of L tokens and W words.

  Attributes:
    tokens: [L] int32 token ids; each sentence is [CLS] tokens [SEP].
    word_index: [L] int32, number of the token's word; -1 for specials, punctuation, padding.
    sentence_index: [L] int32, number of the token's sentence; -1 for padding.
    position: [L] int32, place in the sentence: a sentence reads the same wherever it stands.
    word_mask: [W] bool.
    words: the words' text, in the order of word_index.
    kept: numbers of the sentences that are there, whole or cut.
    dropped: how many sentences are not there whole, by words without a token too.
  """

  tokens: np.ndarray
  word_index: np.ndarray
  sentence_index: np.ndarray
  position: np.ndarray
  word_mask: np.ndarray
  words: tuple[str, ...]
  kept: tuple[int, ...]
  dropped: int

  def arrays(self) -> dict[str, np.ndarray]:
    """Returns the model's inputs by their names in a batch."""
    names = ("tokens", "word_index", "sentence_index", "position", "word_mask")
    return {name: getattr(self, name) for name in names}


@dataclass
class Tokenizer:
  """Tokens with their words; picklable, so that loader workers can hold one.

  The folder holds one of `vocabulary.FILES`; nothing in it is executed.

  Raises TokenizerError, naming the folder, where it holds none, or a vocabulary without [CLS],
  [SEP] and [PAD], or one whose tokens do not tell their words.
  """

  folder: Path

  def __post_init__(self):
    self._backend, names = vocabulary.read(Path(self.folder))
    self._check_words(names.get("unk_token"))
    tokens = self._backend.get_vocab()
    ids = (tokens[names[name]] for name in ("cls_token", "sep_token", "pad_token"))
    self.class_id, self.separator_id, self.pad_id = ids
    self.vocabulary_size = 1 + max(tokens.values())

  def _check_words(self, unknown: str | None) -> None:
    """Raises TokenizerError unless each word of a sentence has a token, and one is known."""
    spans = reports.words(_PROBE)
    try:
      encoding = self._backend.encode(_PROBE, add_special_tokens=False)
    except Exception as error:  # tokenizers has no class of its own
      raise TokenizerError(f"{self.folder}: {_PROBE!r} cannot be encoded: {error}") from error
    owners = _owners(encoding.offsets, spans)
    without = [_PROBE[slice(*span)] for i, span in enumerate(spans) if i not in owners]
    if without:
      raise TokenizerError(
        f"{self.folder}: in {_PROBE!r} the words {', '.join(without)} have no token; a tokenizer is"
        " needed whose tokens end where words end, with one for letters that it does not know"
      )
    if not any(i >= 0 for i, t in zip(owners, encoding.tokens, strict=True) if t != unknown):
      raise TokenizerError(f"{self.folder}: the vocabulary knows no word of {_PROBE!r}")

  def __reduce__(self):
    return Tokenizer, (self.folder,)

  def knows(self, text: str, *, is_general: bool = False) -> bool:
    """Tells whether a word of a text is known, see `vocabulary.knows`."""
    return vocabulary.knows(self._backend, text, is_general=is_general)

  def encode(self, sentences: Sequence[str], *, max_tokens: int, max_words: int) -> Encoded:
    """Encodes sentences in their order; a sentence that does not fit whole is left out and counted.

    A first sentence that is too long by itself is cut, and counted as well, so that a report with
    words never becomes empty. Also counted are sentences with a word that no token reaches.
    `[L] = max_tokens`, `[W] = max_words`.
    """
    tokens = np.full(max_tokens, self.pad_id, np.int32)
    word_index = np.full(max_tokens, -1, np.int32)
    sentence_index = np.full(max_tokens, -1, np.int32)
    position = np.zeros(max_tokens, np.int32)
    words: list[str] = []
    kept: list[int] = []
    used = dropped = 0
    for number, sentence in enumerate(sentences):
      spans = reports.words(sentence)
      encoding = self._backend.encode(sentence, add_special_tokens=False)
      ids = [self.class_id, *encoding.ids, self.separator_id]
      owner = [-1, *_owners(encoding.offsets, spans), -1]
      fits = used + len(ids) <= max_tokens and len(words) + len(spans) <= max_words
      dropped += not fits or len(set(owner)) <= len(spans)
      if not fits:
        if used:
          continue
        beyond = (i for i, word in enumerate(owner) if word >= max_words)
        room = min(next(beyond, len(ids) - 1), max_tokens - 1)
        ids, owner = [*ids[:room], self.separator_id], [*owner[:room], -1]
        spans = spans[: max(owner) + 1]
      here = slice(used, used + len(ids))
      tokens[here] = ids
      word_index[here] = [word + len(words) if word >= 0 else -1 for word in owner]
      sentence_index[here] = number
      position[here] = np.arange(len(ids))
      words += [sentence[start:end] for start, end in spans]
      kept.append(number)
      used += len(ids)
    # A word whose every token was cut away has no vector; it is no word then.
    word_mask = np.isin(np.arange(max_words), word_index)
    return Encoded(
      tokens, word_index, sentence_index, position, word_mask, tuple(words), tuple(kept), dropped
    )


def train(texts: Iterable[str], folder: Path, *, vocabulary_size: int) -> Tokenizer:
  """Trains a lower-case WordPiece vocabulary on the texts and saves it as a Hugging Face folder.

  Equal texts give an equal vocabulary, bit by bit. Raises DiskError.
  """
  from tokenizers import BertWordPieceTokenizer

  texts = list(texts)
  trainer = BertWordPieceTokenizer(lowercase=True)
  letters = {letter for text in texts for letter in trainer.normalize(text) if letter.strip()}
  # The library numbers the letters inside words in the order of a random hash, and breaks ties by
  # number. Named as special tokens, they are numbered beforehand; the vocabulary is then put into a
  # tokenizer to which they are not special.
  inner = [f"##{letter}" for letter in sorted(letters)]
  trainer.train_from_iterator(
    texts,
    vocab_size=vocabulary_size,
    min_frequency=2,
    special_tokens=[*vocabulary.SPECIAL, *inner],
    show_progress=False,
  )
  tokenizer = BertWordPieceTokenizer(vocab=trainer.get_vocab(), lowercase=True)
  names = dict(zip(vocabulary.NAMES, vocabulary.SPECIAL, strict=True))
  vocabulary.save(tokenizer, {"do_lower_case": True} | names, folder)
  return Tokenizer(Path(folder))


def copy(source: Path, folder: Path) -> Tokenizer:
  """Copies a local Hugging Face tokenizer into `folder`, so that a run keeps its own.

  Raises TokenizerError as `Tokenizer` does, and DiskError.
  """
  Tokenizer(source)
  with replacing(folder) as temporary:
    vocabulary.save(*vocabulary.read(Path(source)), temporary)
    shutil.rmtree(folder, ignore_errors=True)
  return Tokenizer(Path(folder))


def _owners(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[int]:
  """Finds the first word that each token reaches into, -1 for none; tokens may hold blanks."""
  owners, word = [], 0
  for start, end in offsets:
    while word < len(spans) and spans[word][1] <= start:
      word += 1
    owners.append(word if word < len(spans) and spans[word][0] < end else -1)
  return owners
