"""Tiny models of every baseline with random weights, in the layouts of their projects.

  python tests/random_baselines.py FOLDER

Writes FOLDER/NAME, and prints for each the flags that evaluate it, to be followed by the data's.
What they measure is that the way is whole, and what chance gives; not the quality of a baseline.
"""

import shlex
import sys
from pathlib import Path

import torch

import tiny_pairs
from configs import baselines
from tiny_baselines import read_tokenizer, write_vocabulary


def write(out: Path) -> dict[str, list[str]]:
  """Writes the models; returns the flags of each, by name."""
  torch.manual_seed(0)
  vocabulary = out / "vocabulary"
  vocabulary.mkdir(parents=True)
  write_vocabulary(vocabulary)
  tokenizer = read_tokenizer(vocabulary)
  flags = {}
  for name in baselines.BASELINES:
    folder = out / name
    folder.mkdir()
    files = tiny_pairs.files_of(folder, name, vocabulary, tokenizer)
    flags[name] = [f"--config=configs/baselines.py:{name}"]
    flags[name] += [f"--config.baseline.{key}={path}" for key, path in files.items()]
  return flags


if __name__ == "__main__":
  for each in write(Path(sys.argv[1]).absolute()).values():
    print(shlex.join(each))
