"""Cost of the local loss on a mesh: a model, its check against XLA, and its predictions.

  python -m benchmarks.scaling            # checks the model on 8 fake devices, then predicts
  python -m benchmarks.scaling --batch=64 --words=64 --pixels=196 --channels=512
  python -m benchmarks.scaling --topology=v5e:2x4   # what the TPU's compiler says (needs libtpu)

The model is docs/scaling.md's. Predictions are made from the makers' numbers of the chips; nothing
was measured on them.
"""

import argparse
import math
import re
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tabulate import tabulate

from plan_jax.alignment import losses, pairwise
from plan_jax.alignment.blockwise import ring
from plan_jax.alignment.methods.plan import PlanScore
from plan_jax.alignment.similarity import narrow
from plan_jax.runtime import hlo, topology

_KEYS = 3 * 4 + 1  # bytes of a report's keys: index, text, study, valid


@dataclass(frozen=True)
class Shape:
  """Sizes of one local contrast by PLAN's score, words contrasted too.

  Attributes:
    devices, words, pixels, channels: n, W, P, D.
    batch: b, pairs of one device.
    feature_bytes: of a number of images and words: 4, or 2 in bfloat16.
  """

  devices: int
  batch: int
  words: int
  pixels: int
  channels: int
  feature_bytes: int = 4

  @property
  def pair_flops(self) -> int:
    """Operations of matrix products for one pair: forwards 2, backwards 6 (2 of them anew)."""
    return 8 * self.words * self.pixels * self.channels

  @property
  def device_flops(self) -> int:
    """Operations of matrix products on one device in one training step."""
    return self.pair_flops * self.batch**2 * self.devices

  @property
  def _forward_bytes(self) -> tuple[int, int]:
    """Bytes of one report, and of its sums: highest and total, and of words the positive logit."""
    report = self.words * (self.channels * self.feature_bytes + 4) + _KEYS
    return report, 4 * (2 + 3 * self.words)

  @property
  def _backward_bytes(self) -> tuple[int, int]:
    """Bytes with log-partitions and their gradients; of gradients of words and weights."""
    slopes = 3 * 4 * (1 + self.words)
    return self._forward_bytes[0] + slopes, 4 * self.words * (self.channels + 1)

  @property
  def sent_bytes(self) -> int:
    """Bytes that each device sends in one step: n times what travels, and the sums sent home."""
    return self.batch * sum(
      self.devices * (report + gathered) + gathered
      for report, gathered in (self._forward_bytes, self._backward_bytes)
    )

  @property
  def ring_held_bytes(self) -> int:
    """Bytes on each device beside the tile, whatever n: reports, gradients, here and underway."""
    images = 4 * self.batch * self.pixels * self.channels
    return 2 * self.batch * sum(self._backward_bytes) + images

  @property
  def gather_held_bytes(self) -> int:
    """Bytes on each device, were all reports gathered: they and their gradients."""
    report, _ = self._forward_bytes
    return self.batch * self.devices * (report + 4 * self.words * (self.channels + 1))


def score_of(shape: Shape) -> PlanScore:
  """Returns the score that `Shape` counts."""
  dtype = "bfloat16" if shape.feature_bytes == 2 else "float32"
  return PlanScore(0.2, 5.0, single=True, dtype=dtype)


def program(shape: Shape, devices=None):
  """Compiles the loss and its gradients on the first devices here, one tile a device.

  For `devices` that are given, in tiles of 256 MiB.
  """
  score, tile = score_of(shape), pairwise.Tile(shape.batch, shape.batch)
  batch = shape.devices * shape.batch
  if devices is not None:
    sizes = (shape.batch, shape.pixels, shape.channels), (shape.batch, shape.words, shape.channels)
    tile = pairwise.tile(score, *sizes, images=0, reports=0, mib=256)

  def loss(pixels, words, word_weights, scale, keys):
    pixels, words = (narrow(x, score.dtype) for x in (pixels, words))
    terms = ring(score, tile, pairwise.PairFeatures(pixels, words, word_weights, scale), keys)
    pairs, _ = losses.info_nce(terms, keys.valid)
    return pairs + losses.word_info_nce(terms, keys.valid, word_weights)

  index = jax.ShapeDtypeStruct((batch,), jnp.int32)
  keys = pairwise.Keys(index, index, index, jax.ShapeDtypeStruct((batch,), bool))
  words = (batch, shape.words)
  axes = (batch, shape.pixels, shape.channels), (*words, shape.channels), words, ()
  arrays = [jax.ShapeDtypeStruct(x, jnp.float32) for x in axes]
  devices = (jax.devices() if devices is None else devices)[: shape.devices]
  mesh = jax.make_mesh((len(devices),), ("data",), devices=devices, axis_types=(AxisType.Auto,))
  split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
  with jax.set_mesh(mesh):
    shardings = (split, split, split, whole, split)
    step = jax.jit(jax.value_and_grad(loss, (0, 1, 2)), in_shardings=shardings)
    return step.lower(*arrays, keys).compile()


def sent_bytes(does: hlo.Program) -> int:
  """Adds up what one chip sends by collective-permute, each as often as its loop runs."""
  return sum(x.runs * x.bytes for x in does.collectives if x.kind == "collective-permute")


class Chip(NamedTuple):
  """Maker's numbers a second: bf16 operations, bytes of memory, bytes sent to a neighbour."""

  name: str
  flops: float
  memory: float
  link: float


_V5E, _V5P = ((chip.flops, chip.hbm_rate) for chip in map(topology.CHIPS.get, ("v5e", "v5p")))
# One direction of one link: a ring sends to one neighbour.
CHIPS = (
  # docs.cloud.google.com/tpu/docs, and NVIDIA's data sheet
  Chip("TPU v5e", *_V5E, 50e9),  # 4 links, 400 GB/s both ways
  Chip("TPU v5p", *_V5P, 100e9),  # 6 links of 800 Gbit/s
  Chip("H100, NVLink", 989e12, 3350e9, 450e9),  # SXM; 900 GB/s both ways
  Chip("H100, 400 Gbit/s network", 989e12, 3350e9, 50e9),  # the same, one adapter a GPU
)


class Prediction(NamedTuple):
  """Predicted times of one training step's local loss on one chip.

  Attributes:
    products: seconds of matrix products at half the peak.
    traffic: seconds to move what XLA counts for one pair, were none of it kept on the chip.
    sending: seconds of the ring, were nothing hidden.
    least_batch: pairs a device from which sending takes less time than the products.
  """

  products: float
  traffic: float
  sending: float
  least_batch: int


def predict(shape: Shape, chip: Chip, pair_bytes: float) -> Prediction:
  """Predicts times; `pair_bytes`: memory traffic of a pair, see `pair_traffic`."""
  products = shape.device_flops / (chip.flops / 2)
  sending = shape.sent_bytes / chip.link
  traffic = pair_bytes * shape.batch**2 * shape.devices / chip.memory
  least_batch = math.ceil(shape.batch * sending / products)  # it grows as b, the products as b^2
  return Prediction(products, traffic, sending, least_batch)


def pair_traffic(shape: Shape) -> float:
  """Counts the bytes that XLA reads and writes for one pair, in the program of one tile here."""
  tile = Shape(1, 8, shape.words, shape.pixels, shape.channels)
  return program(tile).cost_analysis()["bytes accessed"] / tile.batch**2


def check() -> list[dict]:
  """Puts the model beside XLA's counts, for rings of 2, 4 and 8 devices."""
  rows = []
  for devices in (2, 4, 8):
    shape = Shape(devices, batch=8, words=16, pixels=49, channels=256)
    compiled = program(shape)
    text = compiled.as_text()
    rows.append(
      {
        "devices": devices,
        "sent": shape.sent_bytes,
        "sent_xla": sent_bytes(hlo.read(text)),
        # XLA counts the body of a loop once: the visit of one device's reports.
        "flops": shape.device_flops / devices,
        "flops_xla": compiled.cost_analysis()["flops"],
        "held": shape.ring_held_bytes
        + score_of(shape).tile_bytes(8, 8, shape.pixels, shape.words, shape.channels),
        "held_xla": compiled.memory_analysis().temp_size_in_bytes,
        "gathers": len(re.findall(r"= .*\b(?:all-gather|all-to-all)", text)),
      }
    )
  return rows


def for_topology(name: str, sizes: dict[str, int]) -> tuple:
  """Puts the model beside the TPU compiler's counts on a topology: a row."""
  devices = topology.devices(name)
  chip = topology.CHIPS[name.partition(":")[0]]
  shape = Shape(len(devices), **sizes, feature_bytes=2)
  compiled = program(shape, devices)
  does = hlo.read(compiled.as_text())
  counts = shape.device_flops / 1e9, does.product_flops / 1e9, shape.sent_bytes, sent_bytes(does)
  times = 1e3 * shape.device_flops / chip.flops, does.cycles / 1e6
  cycles_ms = 1e3 * does.cycles / chip.clock if chip.clock else None
  held = compiled.memory_analysis().temp_size_in_bytes / 2**20
  return name, shape.devices * shape.batch, *counts, *times, cycles_ms, held


_COMPILED = (
  "topology | batch | products, GFLOP | by the compiler | sent, bytes | by the compiler |"
  " products at the peak, ms | its cycles, million | the same, ms | temporaries, MiB"
)
_CHECKED = (
  "devices | sent, bytes | by XLA | products, MFLOP | all, by XLA | held at most |"
  " temporaries by XLA | gathers"
)
_PREDICTED = (
  "chip | chips | batch | products, ms | traffic, ms | sending, ms | hidden from b = |"
  " ring holds, MiB | gather would hold"
)


def _table(heads: str, rows: list, formats) -> str:
  return tabulate(rows, heads.split(" | "), tablefmt="github", floatfmt=formats, intfmt=",")


def main() -> None:
  """Prints the check and the predictions as tables."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  for name, default in (("batch", 128), ("words", 64), ("pixels", 196), ("channels", 512)):
    parser.add_argument(f"--{name}", type=int, default=default)
  parser.add_argument("--topology", help="of TPUs, e.g. v5e:2x4: compiles for it, and stops")
  options = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  sizes = {name: getattr(options, name) for name in ("batch", "words", "pixels", "channels")}
  if options.topology:
    formats = ("", "", ".1f", ".1f", "", "", ".1f", ".1f", ".1f", ".0f")
    print(_table(_COMPILED, [for_topology(options.topology, sizes)], formats))
    return
  jax.config.update("jax_num_cpu_devices", 8)
  print("The model and XLA's counts, b = 8, W = 16, P = 49, D = 256, float32\n")
  rows = [row | {key: row[key] / 1e6 for key in ("flops", "flops_xla")} for row in check()]
  print(_table(_CHECKED, [row.values() for row in rows], ".1f"))
  traffic = pair_traffic(Shape(1, **sizes))
  print("\nPredicted: the local loss in one training step, bfloat16, a device's")
  print(", ".join(f"{name} {value}" for name, value in sizes.items()), end="; ")
  print(f"{traffic / 1e6:.2f} MB of memory traffic a pair\n")
  rows = []
  for chip in CHIPS:
    for devices in (8, 64, 256):
      shape = Shape(devices, **sizes, feature_bytes=2)
      cost = predict(shape, chip, traffic)
      times = (1e3 * seconds for seconds in (cost.products, cost.traffic, cost.sending))
      held = shape.ring_held_bytes / 2**20, shape.gather_held_bytes / 2**20
      rows.append((chip.name, devices, devices * shape.batch, *times, cost.least_batch, *held))
  formats = ("", "", "", ".1f", ".1f", ".2f", "", ".0f", ".0f")
  print(_table(_PREDICTED, rows, formats))


if __name__ == "__main__":
  main()
