"""Reads what a compiled program does from its text: collectives and products, loops counted.

XLA's own cost analysis counts the body of a loop once, however often it runs.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
_COLLECTIVE = re.compile(rf" = (.+?) ({_KINDS})(-start)?\(")
_HEAD = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLEES = re.compile(r"(?:calls|to_apply|body|\w+_computation)=%?([\w.-]+)")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z\d]*)\[([\d,]*)\]")
_NAMED = re.compile(r"\s*(?:ROOT )?%?([\w.-]+) = (\w+\[[\d,]*\])")
_CONVOLUTION = re.compile(
  r" convolution\(%?([\w.-]+), %?([\w.-]+)\)(?:, window=\{(.*?)\})?.*?dim_labels=(\w+)_(\w+)->(\w+)"
)
_DOT = re.compile(r" dot\(%?([\w.-]+), .*?lhs_contracting_dims=\{([\d,]*)\}")


class Collective(NamedTuple):
  """Collective of a program.

  Attributes:
    kind: as XLA calls it, e.g. "all-gather".
    shape: of what a chip has afterwards, e.g. "bf16[256,1024]"; several with ", " between.
    bytes: of that.
    runs: how often in a run of the program.
    source: path of the operation that it was made for.
  """

  kind: str
  shape: str
  bytes: int
  runs: int
  source: str


class Program(NamedTuple):
  """Work of one run of a program on one chip.

  Attributes:
    collectives: in the order of the text.
    product_flops: operations of matrix products and convolutions.
    cycles: that the compiler estimates; 0 where the text has none, as on CPUs.
  """

  collectives: tuple[Collective, ...]
  product_flops: int
  cycles: int


def read(text: str) -> Program:
  """Reads the text of a compiled program, `Compiled.as_text()`.

  A loop whose length the text does not tell counts once. A collective that runs beside several
  fusions, which each name it, is one.
  """
  collectives, chains, flops, cycles = [], set(), 0, 0
  computations = _computations(text)
  runs = _runs(computations)
  for name, lines in computations.items():
    shapes = dict(match.groups() for match in map(_NAMED.match, lines) if match)
    for line in lines:
      chain = re.search(r'(channel_id=\d+),.*"?chain_id', line)
      if (match := _COLLECTIVE.search(line)) and not (chain and chain[1] in chains):
        chains |= {chain[1]} if chain else set()
        collectives.append(_collective(*match.groups(), line, runs[name]))
      flops += runs[name] * _product_flops(line, shapes)
      if match := re.search(r'"estimated_cycles":"(\d+)"', line):
        cycles += runs[name] * int(match[1])
  return Program(tuple(collectives), flops, cycles)


def array_bytes(shape: str) -> int:
  """Adds up the bytes of the arrays of a shape such as "bf16[8,128]", padding not counted."""
  return sum(
    math.prod(_axes(axes)) * (int(bits[0]) // 8 if (bits := re.findall(r"\d+", dtype)) else 1)
    for dtype, axes in _ARRAY.findall(shape)
  )


def _computations(text: str) -> dict[str, list[str]]:
  """Splits a text into its computations: their lines by name; the entry, which is last, is ""."""
  parts, lines = {}, []
  for line in text.splitlines():
    if head := _HEAD.match(line):
      lines = parts.setdefault("" if head[1] else head[2], [])
    else:
      lines.append(line)
  return parts


def _runs(computations: dict[str, list[str]]) -> Counter:
  """Counts how often each computation runs; those that call others come after them."""
  runs = Counter({"": 1})
  for name, lines in reversed(computations.items()):
    for line in lines:
      times = _trips(line, computations) if " while(" in line else 1
      callees = _CALLEES.findall(line)
      if branches := re.search(r"branch_computations=\{(.*?)\}", line):
        callees += re.findall(r"[\w.-]+", branches[1])
      for callee in callees:
        runs[callee] += runs[name] * times
  return runs


def _trips(line: str, computations: dict[str, list[str]]) -> int:
  if known := re.search(r'known_trip_count\\?":\{\\?"n\\?":\\?"(\d+)', line):
    return int(known[1])
  condition = "\n".join(computations[re.search(r"condition=%?([\w.-]+)", line)[1]])
  limits = re.findall(r" s32\[\]\S* constant\((\d+)\)", condition)
  return int(limits[0]) if len(limits) == 1 and "direction=LT" in condition else 1


def _collective(shape: str, kind: str, start: str | None, line: str, runs: int) -> Collective:
  arrays = [f"{dtype}[{axes}]" for dtype, axes in _ARRAY.findall(shape)]
  if start and kind in ("all-gather", "collective-permute"):
    # What is sent, what arrives, and marks of the transfer.
    arrays = [array for array in arrays if array != "u32[]"]
    arrays = arrays[len(arrays) // 2 :]
  source = re.search(r'op_name="(.*?)"', line)
  shape = ", ".join(arrays)
  return Collective(kind, shape, array_bytes(shape), runs, source[1] if source else "")


def _product_flops(line: str, shapes: dict[str, str]) -> int:
  if match := _DOT.search(line):
    left = _axes_of(shapes[match[1]])
    contracted = math.prod(left[axis] for axis in _axes(match[2]))
    return 2 * contracted * math.prod(_axes_of(_NAMED.match(line)[2]))
  if not (match := _CONVOLUTION.search(line)):
    return 0
  left, right, window, left_labels, right_labels, out_labels = match.groups()
  left = dict(zip(left_labels, _axes_of(shapes[left]), strict=True))
  right = dict(zip(right_labels, _axes_of(shapes[right]), strict=True))
  out = dict(zip(out_labels, _axes_of(_NAMED.match(line)[2]), strict=True))
  flops = 2 * out["b"] * out["f"] * right["i"]
  for axis, settings in _window(window or ""):
    flops *= _reads(left[axis], out[axis], right[axis], **settings)
  return flops


def _window(text: str) -> Iterator[tuple[str, dict[str, int]]]:
  """Yields the settings of each spatial axis of a convolution."""
  given = dict(re.findall(r"(\w+)=(\S+)", text))
  for axis in range(given.get("size", "").count("x") + bool(given)):
    value = {key: text.split("x")[axis] for key, text in given.items()}
    yield (
      str(axis),
      {
        "stride": int(value.get("stride", 1)),
        "margin": int(value.get("pad", "0_0").split("_")[0]),
        "left_dilation": int(value.get("lhs_dilate", 1)),
        "right_dilation": int(value.get("rhs_dilate", 1)),
      },
    )


def _reads(
  left: int,
  out: int,
  size: int,
  *,
  stride: int,
  margin: int,
  left_dilation: int,
  right_dilation: int,
) -> int:
  """Counts the inputs that the outputs of an axis read: neither padding nor what dilation adds."""
  place = np.arange(out)[:, None] * stride + np.arange(size) * right_dilation - margin
  inside = (place >= 0) & (place < (left - 1) * left_dilation + 1)
  return int((inside & (place % left_dilation == 0)).sum())


def _axes(text: str) -> list[int]:
  return [int(n) for n in text.split(",") if n]


def _axes_of(shape: str) -> list[int]:
  return _axes(_ARRAY.search(shape)[2])
