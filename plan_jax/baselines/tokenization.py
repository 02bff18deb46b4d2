"""Texts as the baselines read them: tokens, and the word that each token belongs to."""

import html
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.text import reports
from input_pipeline.text import vocabulary as vocabularies
from input_pipeline.text.vocabulary import TokenizerError
from plan_jax.inference.spec import EncodedTexts, Text

BERT = ("[CLS]", "[SEP]", "[PAD]")
CLIP = ("<|startoftext|>", "<|endoftext|>", "<|endoftext|>")
SIGLIP = ("", "</s>", "</s>")
MPNET = ("<s>", "</s>", "<pad>")
_BREAK = re.compile(r"[0-9]+\.|\.")  # between the statements of a report
_LENGTHS = (16, 32, 64, 128, 256, 512)  # of batches, so that few programs are compiled


class Vocabulary:
  """Tokens of a local Hugging Face folder.

  Attributes:
    backend: of the tokenizer, without special tokens.
    first_ids, last_id, pad_id: the special ones, before (if any) and behind a text's own.
    size: how many tokens there are.
  """

  def __init__(self, folder: str | Path, key: str, special: tuple[str, str, str] = BERT):
    """Reads tokenizer.json, or vocab.txt with the case that tokenizer_config.json says.

    `special` are the first, the last and the padding token; the first may be empty.

    Raises UserError, naming `key` of the config, where there is neither, one of them is broken, or
    the vocabulary has no such tokens.
    """
    advice = "name the folder of the weights' own vocabulary"
    try:
      self.backend, _ = vocabularies.read_backend(Path(folder))
    except TokenizerError as error:
      raise UserError(f"{key}: {error}; {advice}") from error
    tokens = self.backend.get_vocab(with_added_tokens=False)
    names = dict.fromkeys(filter(None, special))
    if any(name not in tokens for name in names):
      raise UserError(f"{key}: {folder} is no vocabulary with {', '.join(names)}; {advice}")
    first, last, pad = special
    self.first_ids = [tokens[first]] if first else []
    self.last_id, self.pad_id = tokens[last], tokens[pad]
    self.size = len(tokens)


class Word(NamedTuple):
  """A word as a baseline reads it, from `start` to `end` in the sentence of that number."""

  text: str
  sentence: int
  start: int
  end: int


class Reading(NamedTuple):
  """The tokens and words of a text.

  Attributes:
    tokens: ids, [CLS] and [SEP] with them.
    owner: the word of each token, from 1; [CLS] is 0, [SEP] the number after the last word's; -1 of
      tokens whose words have no vectors.
    words: those that fit.
    cut: whether others did not.
  """

  tokens: list[int]
  owner: list[int]
  words: list[Word]
  cut: bool

  @property
  def places(self) -> list[int]:
    """The place of each word's vector; that of [CLS], 0, where words have none."""
    has_vectors = self.owner[-1] > 0
    return [number if has_vectors else 0 for number in range(1, len(self.words) + 1)]


def read_cleaned(vocabulary: Vocabulary, max_tokens: int, sentences: Text) -> Reading:
  """Reads as GLoRIA and MGCA do: lower-case words without punctuation.

  The vector of a word is the sum of its tokens. The whole text, its sentences joined by spaces, is
  broken up at full stops and numbered points alone: what ends otherwise goes on in the next
  sentence. A statement of one word is dropped, as in their code, unless nothing else would be left
  (ours: a finding's name must be readable).
  """
  statements = _statements(sentences)
  kept = [words for words in statements if len(words) > 1] or statements
  cleaned = [word for words in kept for word in words if word.text]
  text = " ".join(word.text for word in cleaned)
  tokens = vocabulary.backend.encode(text, add_special_tokens=False)
  ends = np.cumsum([len(word.text) + 1 for word in cleaned])
  words, owner = [], []
  for token, (start, _) in zip(tokens.tokens, tokens.offsets, strict=True):
    if not token.startswith("##") or not words:
      words.append(cleaned[int(np.searchsorted(ends, start, side="right"))])
    owner.append(len(words))
  room = max_tokens - 2
  cut, owner = len(owner) > room, owner[:room]
  words = words[: max(owner, default=0)]
  ids = [*vocabulary.first_ids, *tokens.ids[:room], vocabulary.last_id]
  return Reading(ids, [0, *owner, len(words) + 1], words, cut)


def without_end(text: str) -> str:
  """Takes the punctuation off a text's end, as CXR-BERT has it."""
  return text.rstrip("!?.")


def unescaped(text: str) -> str:
  """Reads entities of HTML as their letters, twice, as CLIP does."""
  return html.unescape(html.unescape(text)).strip()


def canonical(text: str) -> str:
  """Takes punctuation and capitals away, as SigLIP does."""
  return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def read_plain(
  vocabulary: Vocabulary,
  max_tokens: int,
  sentences: Text,
  *,
  clean: Callable[[str], str] = without_end,
) -> Reading:
  """Reads a cleaned text as it is.

  Words are those of `input_pipeline.text.reports`, and have no vectors.
  """
  text = clean(" ".join(sentences))
  ids = vocabulary.backend.encode(text, add_special_tokens=False).ids
  words = [
    Word(sentence[start:end], number, start, end)
    for number, sentence in enumerate(sentences)
    for start, end in reports.words(sentence)
  ]
  room = max_tokens - 1 - len(vocabulary.first_ids)
  tokens = [*vocabulary.first_ids, *ids[:room], vocabulary.last_id]
  return Reading(tokens, [0] + [-1] * (len(tokens) - 1), words, len(ids) > room)


@dataclass(frozen=True)
class BaselineTexts:
  """Texts as a baseline's arrays.

  Attributes:
    vocabulary: the tokens.
    max_tokens: with [CLS] and [SEP]; what goes beyond is cut.
    reader: `read_cleaned` or `read_plain`.
    padded: whether all texts have `max_tokens`, of a model that attends to padding.
  """

  vocabulary: Vocabulary
  max_tokens: int
  reader: Callable[[Vocabulary, int, Text], Reading]
  padded: bool = False

  def read(self, text: Text) -> Reading:
    """Reads the sentences of a text."""
    return self.reader(self.vocabulary, self.max_tokens, text)

  def encode(self, texts: Sequence[Text], *, same_length: bool = False) -> EncodedTexts:
    """Arrays of N texts, see `to_arrays`; counts the texts that were cut."""
    readings = [self.read(text) for text in texts]
    length = self.max_tokens
    if not (same_length or self.padded):
      longest = max((len(reading.tokens) for reading in readings), default=0)
      length = min(next(n for n in (*_LENGTHS, longest) if n >= longest), length)
    arrays = [to_arrays(reading, length, self.vocabulary.pad_id) for reading in readings]
    return EncodedTexts(arrays, sum(reading.cut for reading in readings))

  def knows(self, text: str) -> bool:
    """Tells whether the vocabulary knows a word of a text."""
    text = text.lower()  # as all of them read
    return vocabularies.knows(self.vocabulary.backend, text, is_general=True)

  def words(self, text: Text) -> list[tuple[str, int]]:
    """The words that the baseline reads, and the places of their vectors."""
    reading = self.read(text)
    return [(w.text, place) for w, place in zip(reading.words, reading.places, strict=True)]

  def report_words(self, text: Text) -> list[tuple[str, list[int]]]:
    """The words of the report as far as it is read, with the baseline's words in each."""
    reading = self.read(text)
    read = list(zip(reading.words, reading.places, strict=True))
    spans = [(number, *span) for number, s in enumerate(text) for span in reports.words(s)]
    if reading.cut:
      last = reading.words[-1] if reading.words else Word("", 0, 0, 0)
      spans = [span for span in spans if span[:2] <= (last.sentence, last.start)]
    return [
      (
        text[number][start:end],
        [p for word, p in read if word.sentence == number and start <= word.start < end],
      )
      for number, start, end in spans
    ]


def to_arrays(reading: Reading, length: int, pad_id: int) -> dict[str, np.ndarray]:
  """Arrays [length] of a text, as the networks take them.

  tokens, position, sentence_index (0, -1 pads) and word_index (`Reading.owner`, -1 pads) are int32;
  word_mask is bool, true at the numbers of word_index that are words.
  """
  count = len(reading.tokens)
  tokens = np.full(length, pad_id, np.int32)
  word_index, sentence_index = np.full((2, length), -1, np.int32)
  word_mask = np.zeros(length, bool)
  tokens[:count], word_index[:count], sentence_index[:count] = reading.tokens, reading.owner, 0
  word_mask[1 : max(reading.owner[-1], 1)] = True
  return {
    "tokens": tokens,
    "word_index": word_index,
    "sentence_index": sentence_index,
    "position": np.arange(length, dtype=np.int32),
    "word_mask": word_mask,
  }


def _statements(sentences: Text) -> list[list[Word]]:
  """Breaks a text up into statements, each a list of words; what is not ASCII is dropped."""
  text = " ".join(sentences)
  starts = np.cumsum([0, *(len(sentence) + 1 for sentence in sentences)])
  statements, start = [], 0
  for end, following in [*(match.span() for match in _BREAK.finditer(text)), (len(text), 0)]:
    words = []
    for match in re.finditer(r"\w+", text[start:end]):
      place = start + match.start()
      number = int(np.searchsorted(starts, place, side="right")) - 1
      first = place - int(starts[number])
      word = match[0].lower().encode("ascii", "ignore").decode()
      words.append(Word(word, number, first, first + len(match[0])))
    statements.append(words)
    start = following
  return [words for words in statements if words]
