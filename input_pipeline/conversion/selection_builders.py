"""Selections of the field, by name: which images an evaluation has in which split.

All but one draw by a hash of seed and name, so that a draw depends neither on the listing's order
nor on the version of a random generator, and a smaller draw lies within a larger one.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.example import SPLITS
from input_pipeline.readers.source import Item

CLASSES = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
PER_CLASS = 200
_FRONTAL = ("AP", "PA")
_RSNA_PATIENTS = 26_684
_RSNA_HELD = 5337  # patients of validation, and of test

Splits = dict[str, Sequence[str]]


class SelectionError(UserError):
  """A selection cannot be made or read; the message says why."""


def draw(names: Iterable[str], count: int, seed: int) -> list[str]:
  """Returns the first `count` of the names in an order that seed and name alone decide."""

  def order(name: str) -> tuple[bytes, str]:
    return hashlib.blake2b(f"{seed}\t{name}".encode(), digest_size=16).digest(), name

  return sorted(set(names), key=order)[:count]


def subset(patients: Iterable[str], fraction: float, seed: int) -> set[str]:
  """Draws a share of the patients, one at least; a smaller share lies within a larger one.

  Raises SelectionError where there are none, or the fraction is not above 0 and at most 1.
  """
  patients = set(patients)
  if not 0 < fraction <= 1:
    raise SelectionError(f"a share is above 0 and at most 1, not {fraction}")
  if not patients:
    raise SelectionError("there are no training patients to draw a share of")
  return set(draw(patients, max(1, round(fraction * len(patients))), seed))


def eligible(items: Sequence[Item]) -> dict[str, list[str]]:
  """Returns class -> ids of the images that 5x200 may draw, in the listing's order.

  Frontal training images of which exactly one of the 13 pathologies is 1, one of the five classes,
  and none is uncertain (after GLoRIA's preprocessing; Huang et al. 2021). As there, only training
  images: CheXpert's draw does not change with the tables of validation and test beside it. Frontal
  means a view of AP or PA: stricter than the file's name, which would admit three more of CheXpert.
  """
  ids: dict[str, list[str]] = {name: [] for name in CLASSES}
  for item in items:
    values = [(name, value) for name, value in item.labels if name != "No Finding"]
    present = [name for name, value in values if value == 1]
    uncertain = any(value == -1 for _, value in values)
    fits = item.split == "train" and item.view in _FRONTAL
    if fits and len(present) == 1 and not uncertain and present[0] in ids:
      ids[present[0]].append(item.image_id)
  return ids


def _five_by_200(items: Sequence[Item], seed: int) -> Splits:
  images = eligible(items)
  counts = ", ".join(f"{name} {len(ids)}" for name, ids in images.items())
  if min(map(len, images.values())) < PER_CLASS:
    raise SelectionError(f"5x200 needs {PER_CLASS} training images a class; eligible are {counts}")
  return {"test": [i for ids in images.values() for i in draw(ids, PER_CLASS, seed)]}


def _without_5x200(items: Sequence[Item], seed: int) -> Splits:
  """Takes the reader's splits without the patients of 5x200: to train on, and evaluate on 5x200.

  Where this listing is a part of the one that 5x200 was drawn from, with the same seed, no patient
  of that draw remains either: images that are missing here only let others in.
  """
  held = set(_five_by_200(items, seed)["test"])
  patients = {item.patient_id for item in items if item.image_id in held}
  return _by_split(item for item in items if item.patient_id not in patients)


def _rsna_detection(items: Sequence[Item], seed: int) -> Splits:
  return _draw_splits(_rsna_ids(items), _RSNA_HELD, seed)


def _rsna_detection_mgca(items: Sequence[Item], seed: int) -> Splits:
  """Repeats MGCA's draw: twice scikit-learn's train_test_split with random_state 0, ids sorted.

  That split permutes with NumPy's legacy generator and takes the first as held out.
  """
  ids = np.array(sorted(_rsna_ids(items)))
  first = np.random.RandomState(0).permutation(len(ids))
  held, train = ids[first[: 2 * _RSNA_HELD]], ids[first[2 * _RSNA_HELD :]]
  second = np.random.RandomState(0).permutation(len(held))
  return {
    "train": train.tolist(),
    "validation": held[second[:_RSNA_HELD]].tolist(),
    "test": held[second[_RSNA_HELD:]].tolist(),
  }


def _rsna_ids(items: Sequence[Item]) -> list[str]:
  """Returns the image ids. One missing would move most others, so all must be listed."""
  patients = {item.patient_id for item in items}
  if not len(items) == len(patients) == _RSNA_PATIENTS:
    raise SelectionError(
      f"an RSNA detection split is of {_RSNA_PATIENTS} patients with an image each; the source"
      f" lists {len(items)} images of {len(patients)} patients"
    )
  return [item.image_id for item in items]


def _siim_images(items: Sequence[Item], seed: int) -> Splits:
  """Splits 70/15/15 by image: the table has several rows an image, and splits by row leak."""
  ids = {item.image_id for item in items}
  return _draw_splits(ids, round(0.15 * len(ids)), seed)


def _draw_splits(ids: Collection[str], held: int, seed: int) -> Splits:
  """Draws `held` images each for validation and test; the others are train."""
  order = draw(ids, len(ids), seed)
  return {"validation": order[:held], "test": order[held : 2 * held], "train": order[2 * held :]}


def _all_test(items: Sequence[Item], seed: int) -> Splits:
  return {"test": [item.image_id for item in items]}


def _own_test(items: Sequence[Item], seed: int) -> Splits:
  return {"test": [item.image_id for item in items if item.split == "test"]}


def _train_share(fraction: float) -> Callable[[Sequence[Item], int], Splits]:
  def build(items: Sequence[Item], seed: int) -> Splits:
    kept = subset((i.patient_id for i in items if i.split == "train"), fraction, seed)
    return _by_split(item for item in items if item.split != "train" or item.patient_id in kept)

  return build


def _by_split(items: Iterable[Item]) -> Splits:
  """Lists the images in the reader's own splits."""
  splits: dict[str, list[str]] = {split: [] for split in SPLITS}
  for item in items:
    splits[item.split].append(item.image_id)
  return splits


# name -> function of the listing and a seed: split -> image ids.
SELECTIONS: dict[str, Callable[[Sequence[Item], int], Splits]] = {
  "5x200": _five_by_200,
  "without_5x200": _without_5x200,
  "rsna_detection": _rsna_detection,
  "rsna_detection_mgca": _rsna_detection_mgca,
  "siim_images": _siim_images,
  "all_test": _all_test,
  "own_test": _own_test,
  "train_1pct": _train_share(0.01),
  "train_10pct": _train_share(0.1),
}
