"""Helpers that many tests share: images, tables, and the way from a raw folder to a batch."""

import csv
import gzip

import cv2
import numpy as np

from input_pipeline import images, loader, records
from input_pipeline.conversion import convert as convert_lib
from input_pipeline.example import check
from input_pipeline.text import diagnostic_terms, tokenizer


def png(pixels, suffix=".png"):
  """Encodes pixels as PNG, or as the format of another suffix."""
  return cv2.imencode(suffix, pixels)[1].tobytes()


def noise(width=80, height=64, *, seed=0):
  """Draws uint8 noise."""
  return np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)


def image(path, width=80, height=64, *, seed=0, bits=8):
  """Writes noise, or for 16 bits a ramp from 1,000 to 3,000, whose windowing can be reckoned."""
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = noise(width, height, seed=seed)
  if bits == 16:
    pixels = np.linspace(1000, 3000, width * height).reshape(height, width).astype(np.uint16)
  path.write_bytes(png(pixels, path.suffix))


def table(path, rows, columns=None):
  """Writes dicts as CSV, gzipped where the name says so; a column that a row lacks stays empty."""
  path.parent.mkdir(parents=True, exist_ok=True)
  columns = columns or list(rows[0])
  opened = gzip.open if path.suffix == ".gz" else open
  with opened(path, "wt", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows([row.get(name, "") for name in columns] for row in rows)


def manifest(folder, rows, columns=None):
  """Writes the table of the folder reader."""
  table(folder / "manifest.csv", rows, columns)


def converted(dataset, source, out, **options):
  """Converts a folder and reads the records back: the summary, and split -> checked examples."""
  options = {"image_px": 4096, "workers": 1, "progress": False} | options
  summary = convert_lib.convert(dataset, out, source=str(source), **options)
  examples = {split: list(records.RecordSource(out, split)) for split in summary["images"]}
  for example in by_id(examples).values():
    check(example)
  return summary, examples


def by_id(examples):
  """Maps image ids to the examples of all splits."""
  return {example.image_id: example for split in examples.values() for example in split}


def noted(source, words):
  """Finds the one note that holds the words."""
  (note,) = [note for note in source.notes if words in note]
  return note


def batch(examples, folder):
  """Makes one training batch of the examples."""
  texts = [" ".join(example.sentences) for example in examples]
  words = tokenizer.train([*texts, "No effusion."], folder, vocabulary_size=300)
  encode = loader.Encode(words, diagnostic_terms.load(), 64, 64, 32, images.Augment())
  batches = loader.batches(examples, encode, batch_size=len(examples), seed=0)
  first = next(batches)
  batches.close()
  return first
