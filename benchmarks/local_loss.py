"""Local loss, all words against all images: python -m benchmarks.local_loss.

Forwards and backwards, side by side in one process, turn by turn: ours (`chunked`, and `full` where
it fits) with PLAN's score and with GLoRIA's, and GLoRIA as published, a
loop over reports each repeated over the batch, written in torch from the formula (left out where
torch is not installed). Times are medians of the turns. Memory is XLA's own count of temporaries,
and how far one step raises the resident memory of a process of its own above what it held before
(inputs are held by then; gradients and temporaries come). Where JAX sees a GPU torch is given the
same one, products in float32 are TF32 on both sides, and what grows is the GPU's memory: set
XLA_PYTHON_CLIENT_PREALLOCATE=false, so that JAX leaves memory to torch.

  python -m benchmarks.local_loss --json=out.json                       # all rows
  python -m benchmarks.local_loss --shapes 48,25,361,768 --repeats=5    # B,W,P,D
"""

import argparse
import gc
import json
import math
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from plan_jax.alignment import blockwise, losses, pairwise
from plan_jax.alignment.methods.base import choose_tile_mib
from plan_jax.alignment.methods.gloria import GloriaScore
from plan_jax.alignment.methods.plan import PlanScore
from plan_jax.alignment.similarity import narrow
from plan_jax.runtime.mesh import make_mesh, memory_bytes

SHAPES = (
  (48, 25, 361, 768),
  *((batch, 32, 196, 128) for batch in (16, 64, 256, 1024)),
  (64, 97, 49, 128),
  (64, 97, 361, 128),
  (64, 25, 196, 768),
)
_FULL_BYTES = 2**30  # the largest [J, W, I, P] array for which `full` is tried
_TURN_SECONDS = 15  # contenders that take longer are measured once
_SETTLE_SECONDS = 0.3  # the previous contender's threads may spin for a while
_TORCH = "gloria, torch loop"


def arrays(batch: int, words: int, pixels: int, channels: int):
  """Draws unit-norm images [B, P, D] and words [B, W, D], float32 NumPy."""
  rng = np.random.default_rng(0)
  drawn = (rng.standard_normal((batch, n, channels), np.float32) for n in (pixels, words))
  return tuple(x / np.linalg.norm(x, axis=-1, keepdims=True) for x in drawn)


def ours(method: str, implementation: str, shape, dtype: str, mib: int):
  """Compiles value and gradients; returns them with their arguments."""
  batch, words, pixels, channels = shape
  plan = PlanScore(0.2, 5.0, True, dtype)
  score = {"plan": plan, "gloria": GloriaScore(dtype)}[method]
  index = jnp.arange(batch, dtype=jnp.int32)
  keys = pairwise.Keys(index, index + 1, index, jnp.ones(batch, bool))
  contrast = partial(pairwise.full, score)
  if implementation == "chunked":
    features = (batch, pixels, channels), (batch, words, channels)
    tile = pairwise.tile(score, *features, images=0, reports=0, mib=mib)
    contrast = partial(blockwise.chunked, score, tile)

  def loss(pixels, words, word_weights, scale):
    pixels, words = narrow(pixels, dtype), narrow(words, dtype)
    terms = contrast(pairwise.PairFeatures(pixels, words, word_weights, scale), keys)
    total = losses.info_nce(terms, keys.valid)[0]
    if terms.positive_word.size:
      total += losses.word_info_nce(terms, keys.valid, word_weights)
    return total

  inputs = (*arrays(*shape), np.ones((batch, words), np.float32), np.float32(10))
  inputs = jax.device_put(inputs)
  step = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*inputs).compile()
  return step, inputs


def gloria_torch(shape):
  """Builds the published formulation: () -> value, gradients of images and words."""
  import torch

  device = torch.device("cuda" if jax.default_backend() == "gpu" else "cpu")
  torch.set_float32_matmul_precision("high")  # what XLA does on GPUs; nothing on CPUs
  images, text = (torch.tensor(x, requires_grad=True, device=device) for x in arrays(*shape))
  batch = shape[0]
  target = torch.arange(batch, device=device)

  def step():
    columns = []
    for report in text:  # [W, D]
      words = report.repeat(batch, 1, 1)  # [B, W, D]
      similarity = torch.bmm(images, words.transpose(1, 2))  # [B, P, W]
      over_words = torch.softmax(similarity, dim=2)
      attention = torch.softmax(4 * over_words.transpose(1, 2), dim=2)  # [B, W, P]
      context = torch.bmm(attention, images)
      cosine = torch.nn.functional.cosine_similarity(words, context, dim=2)
      columns.append(10 * torch.logsumexp(5 * cosine, dim=1))
    matrix = torch.stack(columns, dim=1)
    entropy = torch.nn.functional.cross_entropy
    loss = (entropy(matrix, target) + entropy(matrix.T, target)) / 2
    loss.backward()
    gradients = images.grad, text.grad
    images.grad = text.grad = None  # held by nobody once they are read
    return float(loss.detach()), *gradients  # a GPU is waited for

  return step


def contenders(shape, with_torch: bool) -> list[str]:
  """Names the contenders that can run this shape."""
  batch, words, pixels, _ = shape
  array = 4 * batch * batch * words * pixels
  names = ["plan, chunked", "gloria, chunked"]
  if array <= _FULL_BYTES:
    names += ["plan, full", "gloria, full"]
  # The loop's graph holds about a dozen [B, B, W, P] arrays until its backward pass.
  return names + [_TORCH] * (with_torch and 12 * array < 12 * 2**30)


def step_of(name: str, shape, dtype: str, mib: int):
  """Builds () -> value and gradients, and counts XLA's temporary bytes (None for torch)."""
  if name == _TORCH:
    return gloria_torch(shape), None
  method, implementation = name.split(", ")
  compiled, inputs = ours(method, implementation, shape, dtype, mib)
  return (
    lambda: jax.block_until_ready(compiled(*inputs)),
    compiled.memory_analysis().temp_size_in_bytes,
  )


def growth(name: str, shape, dtype: str, mib: int) -> int:
  """Measures the bytes by which one step raises this process's highest resident memory."""
  step, _ = step_of(name, shape, dtype, mib)
  gc.collect()
  Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten

  def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))

  before = status("VmRSS:")
  step()
  return status("VmHWM:") - before


def gpu_growth(step, temporaries: int | None) -> int:
  """Measures the bytes of a GPU's memory that a step takes beside its inputs.

  Ours are by XLA, with the results, for its allocator's peak counts what the compiler tried.
  """
  if temporaries is not None:
    return temporaries + sum(x.nbytes for x in jax.tree.leaves(step()))
  import torch

  torch.cuda.reset_peak_memory_stats()
  before = torch.cuda.memory_allocated()
  step()
  return torch.cuda.max_memory_allocated() - before


def _growth_elsewhere(name, shape, dtype, mib) -> int | None:
  shapes = ",".join(map(str, shape))
  options = {"shapes": shapes, "dtype": dtype, "tile_mib": mib, "growth": name}
  command = [sys.executable, "-m", "benchmarks.local_loss"]
  command += [f"--{key}={value}" for key, value in options.items()]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def measure(
  shape, repeats: int, dtype: str, mib: int, *, with_torch: bool, resident: bool
) -> list[dict]:
  """Measures one row a contender; with `resident` by how much memory grows, too."""
  names = contenders(shape, with_torch)
  on_gpu = jax.default_backend() == "gpu"
  held = dict.fromkeys(names)
  if resident and not on_gpu:
    held = {name: _growth_elsewhere(name, shape, dtype, mib) for name in names}
  made = {name: step_of(name, shape, dtype, mib) for name in names}
  times, values = {name: [] for name in names}, {}

  def turn(name):
    time.sleep(_SETTLE_SECONDS)
    began = time.perf_counter()
    value = made[name][0]()
    times[name].append(time.perf_counter() - began)
    return value

  for name in names:
    values[name] = float(turn(name)[0])
    if times[name][0] < _TURN_SECONDS:
      times[name].clear()  # it was the warm-up
  if resident and on_gpu:
    held = {name: gpu_growth(*made[name]) for name in names}
  if _TORCH in names:
    np.testing.assert_allclose(values[_TORCH], values["gloria, chunked"], rtol=2e-3)
  short = [name for name in names if not times[name]]
  for _ in range(repeats):
    for name in short:
      turn(name)
  rows = []
  for name in names:
    seconds, temporaries = statistics.median(times[name]), made[name][1]
    rows.append(
      {
        "contender": name,
        **dict(zip("BWPD", shape, strict=True)),
        "seconds": seconds,
        "fastest": min(times[name]),
        "turns": len(times[name]),
        "us_per_pair": 1e6 * seconds / shape[0] ** 2,
        "temporary_mib": None if temporaries is None else temporaries / 2**20,
        "growth_mib": None if held[name] is None else held[name] / 2**20,
        # Work of every implementation: similarities, and their gradients to images and words.
        "gflops": 6e-9 * shape[0] * math.prod(shape) / seconds,
      }
    )
  return rows


def has_torch() -> bool:
  """Tells whether torch is installed and can use JAX's device; prints what is left out."""
  try:
    import torch
  except ImportError:
    print("torch is not installed: it is left out")
    return False
  if jax.default_backend() == "gpu" and not torch.cuda.is_available():
    print("torch sees no GPU: it is left out")
    return False
  return True


def ceiling(dtype: str) -> float:
  """Measures the GFLOP/s of a large matrix product here."""
  x = jnp.ones((4096, 4096), dtype)
  product = jax.jit(lambda a: jnp.dot(a, a, preferred_element_type=jnp.float32))
  product(x).block_until_ready()
  taken = []
  for _ in range(5):
    began = time.perf_counter()
    product(x).block_until_ready()
    taken.append(time.perf_counter() - began)
  return 2e-9 * 4096**3 / statistics.median(taken)


def main() -> None:
  """Prints the table as it grows, and writes the JSON."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--shapes", nargs="*", help="B,W,P,D each")
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
  parser.add_argument("--tile_mib", type=int, default=0, help="0: as training chooses it")
  parser.add_argument("--json", help="where to write all measurements")
  parser.add_argument("--growth", help=argparse.SUPPRESS)  # of this contender, in this process
  options = parser.parse_args()
  shapes = [tuple(map(int, s.split(","))) for s in options.shapes or ()] or SHAPES
  options.tile_mib = options.tile_mib or choose_tile_mib(memory_bytes(make_mesh(-1, 1)))
  if options.growth:
    print(growth(options.growth, shapes[0], options.dtype, options.tile_mib))
    return
  with_torch = has_torch()
  most = ceiling(options.dtype)
  kind = jax.devices()[0].device_kind
  print(
    f"{kind}, {options.dtype}; tiles of {options.tile_mib} MiB; matrix product {most:.0f} GFLOP/s\n"
  )
  print("| B | W | P | D | contender | s | us a pair | GFLOP/s | temporaries | growth, MiB |")
  print("|---:|---:|---:|---:|---|---:|---:|---:|---:|---:|")
  rows = []
  for shape in shapes:
    for row in measure(
      shape, options.repeats, options.dtype, options.tile_mib, with_torch=with_torch, resident=True
    ):
      rows.append(row)
      memory = [row[f"{name}_mib"] for name in ("temporary", "growth")]
      memory = ["-" if mib is None else f"{mib:.0f}" for mib in memory]
      print(
        f"| {row['B']} | {row['W']} | {row['P']} | {row['D']} | {row['contender']} |"
        f" {row['seconds']:.4f} | {row['us_per_pair']:.1f} | {row['gflops']:.0f} |"
        f" {' | '.join(memory)} |",
        flush=True,
      )
  if options.json:
    facts = {"device": kind, "dtype": options.dtype, "tile_mib": options.tile_mib}
    content = facts | {"ceiling_gflops": most, "rows": rows}
    Path(options.json).write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
  main()
