import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from fakes.records import write
from input_pipeline import images, loader
from input_pipeline.errors import UserError
from input_pipeline.phantom import radiograph
from input_pipeline.records import RecordSource
from input_pipeline.text import diagnostic_terms, mirror, tokenizer

IMAGES = [radiograph.example(0, i, 64) for i in range(10)]


@pytest.fixture(scope="module")
def encode(tmp_path_factory):
  texts = [" ".join(example.sentences) for example in IMAGES]
  trained = tokenizer.train(texts, tmp_path_factory.mktemp("tokenizer"), vocabulary_size=300)
  return loader.Encode(trained, diagnostic_terms.load(), 64, 48, 24, images.Augment())


def take(encode, count, source=IMAGES, **options):
  options = {"batch_size": 4, "seed": 3} | options
  batches = loader.batches(source, encode, **options)
  out = list(itertools.islice(batches, count))
  batches.close()
  return out


def same(a, b):
  return all((a[name] == b[name]).all() for name in a)


def test_shapes_and_types(encode):
  (batch,) = take(encode, 1)
  assert {name: (value.shape, str(value.dtype)) for name, value in batch.items()} == {
    "image": ((4, 64, 64, 1), "float32"),
    "tokens": ((4, 48), "int32"),
    "word_index": ((4, 48), "int32"),
    "sentence_index": ((4, 48), "int32"),
    "position": ((4, 48), "int32"),
    "word_mask": ((4, 24), "bool"),
    "term": ((4, 24), "bool"),
    "half": ((4, 24), "int32"),
    "report_key": ((4,), "int32"),
    "study_key": ((4,), "int32"),
    "dropped_sentences": ((4,), "int32"),
  }
  assert batch["image"].min() >= 0 and batch["image"].max() <= 1
  assert (batch["report_key"] > 0).all()


def test_batch_is_a_function_of_seed_and_step(encode):
  first, again, other = take(encode, 4), take(encode, 4), take(encode, 4, seed=4)
  assert all(same(a, b) for a, b in zip(first, again, strict=True))
  assert not any(same(a, b) for a, b in zip(first, other, strict=True))
  for step in (1, 3):
    (resumed,) = take(encode, 1, start_step=step)
    assert same(resumed, first[step])


@pytest.mark.parametrize(
  ("text", "flipped"),
  [("Small left effusion.", "Small right effusion."), ("Lingular opacity on the left.", None)],
)
def test_flipped_rows_are_mirror_images_with_sides_exchanged(encode, text, flipped):
  encode = replace(encode, augment=None)
  as_is = encode.random_map(replace(IMAGES[0], sentences=(text,)), np.random.default_rng(0))
  want = as_is
  if flipped:
    want = encode.random_map(replace(IMAGES[0], sentences=(flipped,)), np.random.default_rng(0))
    want["image"] = want["image"][:, ::-1]
    assert not same(want, as_is)
  example = replace(IMAGES[0], sentences=(text,))
  always, half = (replace(encode, flip_fraction=share) for share in (1.0, 0.5))
  assert same(always.random_map(example, np.random.default_rng(0)), want)
  drawn = [same(half.random_map(example, np.random.default_rng(seed)), want) for seed in range(20)]
  assert all(drawn) if want is as_is else 3 < sum(drawn) < 17


def test_concise_sentences_keep_their_terms_alone(encode):
  sentences = ("Small left effusion.", "No pneumothorax.", "A nodule of the right apex.")
  concise = {"Small left effusion.": "effusion", "A nodule of the right apex.": "nodule"}
  example = replace(IMAGES[0], sentences=sentences)
  encode = replace(encode, augment=None, max_tokens=96)
  always, half = (replace(encode, concise_fraction=share) for share in (1.0, 0.5))
  lengths = set()
  for seed in range(40):
    row = always.random_map(example, np.random.default_rng(seed))
    ordered = [sentences[i] for i in np.random.default_rng(seed).permutation(3)]
    want = encode.tokenizer.encode(
      [concise.get(x, x) for x in ordered], max_tokens=encode.max_tokens, max_words=encode.max_words
    )
    assert all((row[name] == array).all() for name, array in want.arrays().items())
    assert row["term"].sum() == 2 and not row["half"].any()
    # What the report says, as a whole, is what makes it equal to others.
    plain = encode.random_map(example, np.random.default_rng(seed))
    assert row["report_key"] == plain["report_key"]
    lengths.add(int(half.random_map(example, np.random.default_rng(seed))["word_mask"].sum()))
  assert lengths == {11, 9, 6, 4}  # neither, one or both are cut


def test_threads_change_nothing(encode):
  for a, b in zip(take(encode, 3, threads=1), take(encode, 3, threads=4), strict=True):
    assert same(a, b)


def test_worker_processes_change_nothing(encode):
  want = take(encode, 3)
  for a, b in zip(take(encode, 3, workers=2), want, strict=True):
    assert same(a, b)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_global_batch(encode, hosts):
  want = take(encode, 3)
  parts = [take(encode, 3, process=(host, hosts)) for host in range(hosts)]
  for step, batch in enumerate(want):
    joined = {name: np.concatenate([part[step][name] for part in parts]) for name in batch}
    assert same(joined, batch)


def test_hosts_resume_alike(encode):
  want = take(encode, 3, process=(1, 2))
  (resumed,) = take(encode, 1, process=(1, 2), start_step=2)
  assert same(resumed, want[2])


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order(encode):
  keys = [int(key) for batch in take(encode, 10, batch_size=2) for key in batch["study_key"]]
  first, second = keys[:10], keys[10:]
  assert sorted(first) == sorted(second) and len(set(first)) == len(IMAGES)
  assert first != second


def test_an_image_is_changed_anew_each_epoch(encode):
  shown = {}
  for batch in take(encode, 10, batch_size=2):
    for key, image in zip(batch["study_key"], batch["image"], strict=True):
      shown.setdefault(int(key), []).append(image)
  assert all((a != b).any() for a, b in shown.values())


def test_sentences_without_room_are_counted(encode):
  total = sum(int(batch["dropped_sentences"].sum()) for batch in take(encode, 5, batch_size=2))
  room = loader.Encode(encode.tokenizer, encode.terms, 64, 256, 128, None)
  assert total > 0
  assert all((batch["dropped_sentences"] == 0).all() for batch in take(room, 5, batch_size=2))


def test_a_sentence_that_is_cut_is_counted(encode):
  short = loader.Encode(encode.tokenizer, encode.terms, 64, 256, 3, None)
  example = replace(IMAGES[0], sentences=("There is a small left effusion.",))
  assert short.random_map(example, np.random.default_rng(0))["dropped_sentences"] == 1


def test_terms_stand_beside_their_words(encode):
  """Also where sentences are shuffled and a few find no room."""
  count = 0
  for seed in range(4):
    for image in IMAGES:
      example = encode.random_map(image, np.random.default_rng(seed))
      rng = np.random.default_rng(seed)
      encode.augment(images.decode(image.image), 64, rng)  # draws before the sentences do
      sentences = [image.sentences[i] for i in rng.permutation(len(image.sentences))]
      text = encode.tokenizer.encode(sentences, max_tokens=48, max_words=24)
      named = dict.fromkeys(range(24), False)
      words = iter(range(24))
      for i in text.kept:
        for flag, place in zip(encode.terms.named(sentences[i]), words, strict=False):
          named[place] = flag
      np.testing.assert_array_equal(example["term"], [named[w] for w in range(24)])
      assert not (example["term"] & ~example["word_mask"]).any()
      count += example["term"].sum()
  assert count > 0


@pytest.mark.parametrize(
  ("view", "flip_fraction", "sign"),
  [("PA", 0.0, 1), ("", 0.0, 1), ("PA", 1.0, -1), ("LATERAL", 0.0, 0), ("LL", 0.0, 0)]
  + [("LATERAL DECUBITUS", 0.0, 1), ("RLD", 0.0, 1)],
)
def test_terms_know_the_half_of_the_image_that_their_sentence_names(
  encode, view, flip_fraction, sign
):
  sentences = ("Small left effusion.", "Nodule, right apex.", "Cardiomegaly.", "No pneumothorax.")
  example = replace(IMAGES[0], sentences=sentences, view=view)
  flipping = replace(encode, flip_fraction=flip_fraction, augment=None)
  half = {"effusion": sign, "nodule": -sign}
  for seed in range(4):  # in any order of the sentences
    row = flipping.random_map(example, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    if flip_fraction:
      rng.random()
    ordered = [sentences[i] for i in rng.permutation(4)]
    words = [word.lower() for text in ordered for word in re.findall(r"\w+", text)]
    got = dict(zip(words, row["half"], strict=False))
    assert {word: got[word] for word in ("effusion", "nodule", "cardiomegaly", "small")} == {
      **half,
      "cardiomegaly": 0,
      "small": 0,
    }
    assert not row["half"][~row["term"]].any()


def test_words_of_a_sentence_that_was_cut_keep_their_half(encode):
  short = replace(encode, max_words=3, augment=None)
  example = replace(IMAGES[0], sentences=("There is effusion on the left.",))
  row = short.random_map(example, np.random.default_rng(0))
  assert row["half"].tolist() == [0, 0, 1]


def test_sentences_of_one_side_come_with_left_and_right_exchanged(encode):
  sentences = ("Small left effusion.", "Fractures, right and left.", "Right apex: nodule.")
  example = replace(IMAGES[0], sentences=sentences)
  encode = replace(encode, augment=None)
  row = replace(encode, swaps=True).random_map(example, np.random.default_rng(0))
  plain = encode.random_map(example, np.random.default_rng(0))
  assert same(plain, row) and set(row) - set(plain) == {"swapped_tokens", "swapped_half"}
  ordered = [sentences[i] for i in np.random.default_rng(0).permutation(3)]
  exchanged = {0: "Small right effusion.", 2: "Left apex: nodule."}
  other = [exchanged.get(sentences.index(text), text) for text in ordered]
  want = encode.tokenizer.encode(other, max_tokens=48, max_words=24)
  np.testing.assert_array_equal(row["swapped_tokens"], want.tokens)
  np.testing.assert_array_equal(row["swapped_half"], -row["half"])
  assert (row["half"] != 0).sum() == 2


@pytest.mark.parametrize(
  ("other", "exchanged"),
  [
    ("Small right effusion.", False),
    ("Bilateral effusions.", False),
    ("No right effusion.", True),
    ("Right nodule.", True),
  ],
)
def test_a_sentence_is_not_exchanged_where_its_opposite_is_true_too(encode, other, exchanged):
  sentences = ("Large left effusion.", other)
  example = replace(IMAGES[0], sentences=sentences)
  row = replace(encode, swaps=True).random_map(example, np.random.default_rng(0))
  large_first = encode.tokenizer.encode(sentences[:1], max_tokens=48, max_words=24).tokens[1]
  ordered = sentences if row["tokens"][1] == large_first else sentences[::-1]
  wanted = [mirror.swapped(x) if mirror.half(x) and exchanged else x for x in ordered]
  want = encode.tokenizer.encode(wanted, max_tokens=48, max_words=24)
  np.testing.assert_array_equal(row["swapped_tokens"], want.tokens)
  swapped = row["swapped_half"][row["half"] == 1]
  assert swapped.size and (swapped == (-1 if exchanged else 0)).all()


def test_nothing_is_exchanged_where_the_number_of_tokens_changes(encode, monkeypatch):
  monkeypatch.setattr(mirror, "swapped", lambda text: f"{text} Again.")
  example = replace(IMAGES[0], sentences=("Small left effusion.",))
  row = replace(encode, swaps=True).random_map(example, np.random.default_rng(0))
  np.testing.assert_array_equal(row["swapped_tokens"], row["tokens"])
  assert row["half"].any() and not row["swapped_half"].any()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_decoded_is_named(encode, tmp_path, workers):
  write(tmp_path, {"train": [[replace(IMAGES[0], image=b"no image")]]})
  place = rf"{tmp_path}/.*-train\.tfrecord-00000-of-00001: record 0, image {IMAGES[0].image_id}: "
  with pytest.raises(UserError, match=f"{place}the bytes are no readable JPEG or PNG; delete"):
    take(encode, 1, RecordSource(tmp_path, "train"), workers=workers)


def test_nothing_to_train_on(encode):
  with pytest.raises(UserError, match="no record with text"):
    take(encode, 1, source=[])


def test_batch_that_does_not_divide(encode):
  with pytest.raises(UserError, match="batch_size 4 does not divide over 3 hosts"):
    take(encode, 1, process=(0, 3))
