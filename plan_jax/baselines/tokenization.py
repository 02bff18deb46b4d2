"""How baselines read a text: its tokens, and which of their words each belongs to."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.text import reports

_NAMES = ("[CLS]", "[SEP]", "[PAD]")
_BREAK = re.compile(r"[0-9]+\.|\.")  # between the statements of a report
_LENGTHS = (16, 32, 64, 128, 256, 512)  # of batches, so that few programs are compiled


class Vocabulary:
  """Tokens of a local Hugging Face folder.

  Attributes:
    backend: of the tokenizer, without special tokens.
    class_id, separator_id, pad_id: the special ones.
    size: how many tokens there are.
  """

  def __init__(self, folder: str | Path, key: str):
    """Reads tokenizer.json, or vocab.txt with the case that tokenizer_config.json says.

    Raises UserError, naming `key` of the config, where there is neither, or no BERT's vocabulary.
    """
    from transformers import BertTokenizerFast, PreTrainedTokenizerFast

    folder = Path(folder)
    if (folder / "tokenizer.json").is_file():
      tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    elif (folder / "vocab.txt").is_file():
      settings = folder / "tokenizer_config.json"
      said = json.loads(settings.read_text()) if settings.is_file() else {}
      tokenizer = BertTokenizerFast(
        vocab=str(folder / "vocab.txt"), do_lower_case=said.get("do_lower_case", True)
      )
    else:
      raise UserError(
        f"{key}: {folder} holds neither tokenizer.json nor vocab.txt; name the local Hugging Face"
        " folder of the vocabulary that the weights were trained with"
      )
    self.backend = tokenizer.backend_tokenizer
    self.backend.no_padding()
    self.backend.no_truncation()
    tokens = self.backend.get_vocab(with_added_tokens=False)
    if any(name not in tokens for name in _NAMES):
      raise UserError(f"{key}: {folder} is no BERT's vocabulary, with {', '.join(_NAMES)}")
    self.class_id, self.separator_id, self.pad_id = (tokens[name] for name in _NAMES)
    self.size = len(tokens)


class Word(NamedTuple):
  """A word as a baseline reads it, from `start` to `end` in the sentence of that number."""

  text: str
  sentence: int
  start: int
  end: int


class Reading(NamedTuple):
  """A text.

  Attributes:
    tokens: ids, [CLS] and [SEP] with them.
    owner: of each token its word, from 1; [CLS] is 0, [SEP] the number after the last word's.
    words: those that found room.
    cut: whether some did not.
  """

  tokens: list[int]
  owner: list[int]
  words: list[Word]
  cut: bool


@dataclass(frozen=True)
class CleanedReader:
  """GLoRIA's and MGCA's: lower-case words without punctuation, a word the sum of its tokens.

  A report is broken up at full stops and numbered points; a statement of one word is dropped, as
  there, unless nothing else would be left (ours: a finding's name must be readable).

  Attributes:
    vocabulary: the tokens.
    max_tokens: with [CLS] and [SEP]; what goes beyond is cut.
  """

  vocabulary: Vocabulary
  max_tokens: int

  def read(self, sentences: Sequence[str]) -> Reading:
    """Of the sentences of a text."""
    statements = [some for number, text in enumerate(sentences) for some in _cleaned(text, number)]
    kept = [some for some in statements if len(some) > 1] or statements
    cleaned = [word for some in kept for word in some if word.text]
    tokens = self.vocabulary.backend.encode(
      " ".join(word.text for word in cleaned), add_special_tokens=False
    )
    ends = np.cumsum([len(word.text) + 1 for word in cleaned])
    words, owner = [], []
    for token, (start, _) in zip(tokens.tokens, tokens.offsets, strict=True):
      if not token.startswith("##") or not words:
        words.append(cleaned[int(np.searchsorted(ends, start, side="right"))])
      owner.append(len(words))
    room = self.max_tokens - 2
    cut, owner = len(owner) > room, owner[:room]
    words = words[: max(owner, default=0)]
    return Reading(
      [self.vocabulary.class_id, *tokens.ids[:room], self.vocabulary.separator_id],
      [0, *owner, len(words) + 1], words, cut,
    )  # fmt: skip


@dataclass(frozen=True)
class PlainReader:
  """CXR-BERT's: the text as it is, without the punctuation at its end; its words are ours.

  No token belongs to a word: only [CLS] is looked at.

  Attributes:
    vocabulary, max_tokens: as of `CleanedReader`.
  """

  vocabulary: Vocabulary
  max_tokens: int = 512

  def read(self, sentences: Sequence[str]) -> Reading:
    """Of the sentences of a text."""
    ids = self.vocabulary.backend.encode(
      " ".join(sentences).rstrip("!?."), add_special_tokens=False
    ).ids
    words = [
      Word(text[start:end], number, start, end)
      for number, text in enumerate(sentences)
      for start, end in reports.words(text)
    ]
    room = self.max_tokens - 2
    tokens = [self.vocabulary.class_id, *ids[:room], self.vocabulary.separator_id]
    return Reading(tokens, [0] + [-1] * (len(tokens) - 1), words, len(ids) > room)


Reader = CleanedReader | PlainReader


def arrays(readings: Sequence[Reading], length: int, pad_id: int) -> dict[str, np.ndarray]:
  """N readings as the networks take them, [N, length] each.

  tokens, position, sentence_index (0, -1 pads) and word_index (`Reading.owner`, -1 pads) are int32;
  word_mask is bool, which numbers of word_index are words.
  """
  shape = (len(readings), length)
  out = {
    "tokens": np.full(shape, pad_id, np.int32),
    "word_index": np.full(shape, -1, np.int32),
    "sentence_index": np.full(shape, -1, np.int32),
    "position": np.broadcast_to(np.arange(length, dtype=np.int32), shape).copy(),
    "word_mask": np.zeros(shape, bool),
  }
  for i, reading in enumerate(readings):
    here = slice(0, len(reading.tokens))
    out["tokens"][i, here] = reading.tokens
    out["word_index"][i, here] = reading.owner
    out["sentence_index"][i, here] = 0
    if reading.owner[-1] > 0:
      out["word_mask"][i, 1 : reading.owner[-1]] = True
  return out


def room(readings: Sequence[Reading], most: int) -> int:
  """A length that the longest fits in, of few; at most `most`."""
  longest = max(len(reading.tokens) for reading in readings)
  return min(next(length for length in (*_LENGTHS, longest) if length >= longest), most)


def _cleaned(text: str, number: int) -> list[list[Word]]:
  """The statements of a sentence, each a list of words; what is not ASCII is dropped."""
  statements, start = [], 0
  for end, following in [*(match.span() for match in _BREAK.finditer(text)), (len(text), 0)]:
    found = re.finditer(r"\w+", text[start:end])
    words = [
      Word(
        match[0].lower().encode("ascii", "ignore").decode(),
        number, start + match.start(), start + match.end(),
      )
      for match in found
    ]  # fmt: skip
    statements.append(words)
    start = following
  return [words for words in statements if words]
