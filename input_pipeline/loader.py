"""Loader of training batches, through Grain.

Batch s is a function of (seed, s) alone: the same on any number of workers and hosts, so a run
resumes from its step and needs no iterator state.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import grain
import numpy as np

from input_pipeline import images
from input_pipeline.errors import UserError
from input_pipeline.example import Example
from input_pipeline.text import mirror, reports
from input_pipeline.text.diagnostic_terms import Terms
from input_pipeline.text.tokenizer import Encoded, Tokenizer

RandomMap = grain.transforms.RandomMap  # base class of what turns an Example into arrays
_IMAGES = 2**40  # "endless": Grain cannot count further than an index goes


@dataclass(frozen=True)
class Encode(RandomMap):
  """Random map from an Example to the arrays of one row of the batch.

  Attributes:
    tokenizer: of the run.
    terms: the diagnostic terms.
    image_px: side of the model's square image.
    max_tokens, max_words: L and W.
    augment: change of the image, None for none. Sentences are put in random order either way, so
      that those left out for want of room differ from epoch to epoch.
    flip_fraction: share of the images that are mirrored, left and right exchanged in their reports;
      those whose sides cannot be told (see `mirror`) stay as they are.
    swaps: whether to give the report's tokens with left and right exchanged too.
    concise_fraction: share of the sentences that are cut to their diagnostic terms (ours): a
      finding is then learned by its name alone too, without its side and size.
  """

  tokenizer: Tokenizer
  terms: Terms
  image_px: int
  max_tokens: int
  max_words: int
  augment: images.Augment | None
  flip_fraction: float = 0.0
  swaps: bool = False
  concise_fraction: float = 0.0

  def random_map(self, example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns the arrays that `batches` lists, without the batch axis."""
    sentences = example.sentences
    flips = self._flips(sentences, rng)
    if flips:
      sentences = tuple(map(mirror.swapped, sentences))
    key = reports.key(" ".join(sentences))
    image = self._image(example, flips, rng)
    sentences = self._concise([sentences[i] for i in rng.permutation(len(sentences))], rng)
    text = self.tokenizer.encode(sentences, max_tokens=self.max_tokens, max_words=self.max_words)
    # A first sentence that was cut has fewer words than it had.
    named = [(flag, i) for i in text.kept for flag in self.terms.named(sentences[i])]
    named = named[: self.max_words]
    term, half = np.zeros(self.max_words, bool), np.zeros(self.max_words, np.int32)
    term[: len(named)] = [flag for flag, _ in named]
    if not example.is_lateral:
      halves = {i: mirror.half(sentences[i]) for i in text.kept}
      half[: len(named)] = [flag * halves[i] for flag, i in named]
    half *= text.word_mask
    return {
      "image": image,
      **text.arrays(),
      **(self._swapped(sentences, text, half, [i for _, i in named]) if self.swaps else {}),
      "term": term & text.word_mask,
      "half": half,
      "report_key": np.int32(key),
      "study_key": np.int32(reports.identity(example.study_id)),
      "dropped_sentences": np.int32(text.dropped),
    }

  def _concise(self, sentences, rng: np.random.Generator) -> list[str]:
    if not self.concise_fraction:  # no draw, as of `_flips`
      return sentences
    cut = rng.random(len(sentences)) < self.concise_fraction
    return [self.terms.concise(x) if drawn else x for x, drawn in zip(sentences, cut, strict=True)]

  def _swapped(self, sentences, text: Encoded, half, owners) -> dict[str, np.ndarray]:
    """Exchanges left and right in sentences of one half, which are then untrue of the image.

    Not where another sentence names what they name on the other side. Where the number of tokens
    changes, as of "RLL" in a foreign vocabulary, nothing is exchanged. `owners` are the sentences
    of the words, `half` as in the row.
    """
    terms = [self._term_words(sentence) for sentence in sentences]
    sides = [mirror.sides(sentence) for sentence in sentences]
    untrue = [
      mirror.half(sentence) != 0
      and not any(sides[j] - sides[i] and terms[j] & terms[i] for j in range(len(sides)))
      for i, sentence in enumerate(sentences)
    ]
    swapped = self.tokenizer.encode(
      [mirror.swapped(x) if swaps else x for x, swaps in zip(sentences, untrue, strict=True)],
      max_tokens=self.max_tokens,
      max_words=self.max_words,
    )
    if not np.array_equal(swapped.word_index, text.word_index):
      return {"swapped_tokens": text.tokens, "swapped_half": np.zeros_like(half)}
    exchanged = np.zeros_like(half)
    exchanged[: len(owners)] = [untrue[i] for i in owners]
    return {"swapped_tokens": swapped.tokens, "swapped_half": -half * exchanged}

  def _term_words(self, sentence: str) -> set[str]:
    spans, flags = reports.words(sentence), self.terms.named(sentence)
    words = [sentence[start:end].lower() for start, end in spans]
    return {word.rstrip("s") for word, flag in zip(words, flags, strict=True) if flag}

  def _image(self, example: Example, flips: bool, rng: np.random.Generator) -> np.ndarray:
    if example.features is not None:
      return example.features(int(flips))
    pixels, size = images.decode_example(example), self.image_px
    if flips:
      pixels = np.fliplr(pixels).copy()
    square = self.augment(pixels, size, rng) if self.augment else images.fit(pixels, size)
    return square[..., None]

  def _flips(self, sentences, rng: np.random.Generator) -> bool:
    # No draw where nothing is ever mirrored: what is drawn after it stays the same.
    drawn = self.flip_fraction > 0 and rng.random() < self.flip_fraction
    return drawn and mirror.can_be_swapped(sentences)


def batches(
  source,
  encode: RandomMap,
  *,
  batch_size: int,
  seed: int,
  start_step: int = 0,
  workers: int = 0,
  threads: int = 2,
  process: tuple[int, int] = (0, 1),
) -> Iterator[dict[str, np.ndarray]]:
  """Yields batches from `start_step` on without end, shuffled anew each epoch.

  Args:
    source: random access to examples (`__len__`, `__getitem__`), picklable if `workers`.
    encode: Example -> arrays of one row.
    batch_size: of all hosts together; a host gets its part, contiguous, in host order.
    seed: of shuffle and augmentation.
    start_step: number of batches to skip, at no cost.
    workers: processes that decode; 0 decodes in threads of this process.
    threads: reading ahead, in each process.
    process: index of this host, and the number of hosts.

  Yields:
    image [B, S, S, 1] float32 in [0, 1], or stored features [B, P, C] float16; tokens,
    word_index, sentence_index, position [B, L] int32; word_mask, term [B, W] bool (term: a word
    that names something visible); half [B, W] int32 (of a term: the half of the image that its
    sentence names, see `mirror.half`; 0 in lateral views); where `encode` swaps also
    swapped_tokens [B, L] and swapped_half [B, W]; report_key, study_key,
    dropped_sentences [B] int32. S is image_px, L max_tokens, W max_words.

  Raises:
    UserError: if the source is empty or the batch does not divide over the hosts.
  """
  if not len(source):
    raise UserError("the training split holds no record with text: nothing to train on")
  process_index, process_count = process
  if batch_size % process_count:
    raise UserError(f"batch_size {batch_size} does not divide over {process_count} hosts")
  data = (
    grain.MapDataset.source(source)
    .seed(seed)
    .shuffle()
    .repeat(_IMAGES // len(source) + 1)
    .random_map(encode)
    # A host's part is a batch of its own: the global batch is theirs, one after another.
    .batch(batch_size // process_count)
  )
  data = data.slice(slice(start_step * process_count + process_index, None, process_count))
  reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
  data = data.to_iter_dataset(reading)
  if workers:
    data = data.mp_prefetch(
      grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
      worker_init_fn=_start_worker,
    )
  iterator = iter(data)
  try:
    for batch in iterator:
      yield {name: np.asarray(value) for name, value in batch.items()}
  finally:
    if hasattr(iterator, "close"):
      iterator.close()


def _start_worker(*_) -> None:
  """Ignores SIGTERM, which may go to all processes: the step under way still needs its batches.

  A worker ends with the process that it serves, also where that is killed and cannot end it.
  """
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  parent = os.getppid()

  def watch():
    while os.getppid() == parent:
      time.sleep(1)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
