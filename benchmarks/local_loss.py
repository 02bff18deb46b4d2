"""All words against all films, forwards and backwards: python -m benchmarks.local_loss.

Side by side in one process, turn by turn: ours (`chunked`, and `full` where it fits) with PLAN's
score and with GLoRIA's, and GLoRIA as published, a loop over reports each repeated over the batch,
written in torch from the formula (left out where torch is not installed). Times are medians of the
turns; memory is XLA's own count of temporaries, and for torch the growth of the peak of a process
of its own.

  python -m benchmarks.local_loss --json=out.json                       # all rows
  python -m benchmarks.local_loss --shapes 48,25,361,768 --repeats=5    # B,W,P,D
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from plan_jax.alignment import contrast, pairwise, scores

SHAPES = (
  (48, 25, 361, 768),
  *((batch, 32, 196, 128) for batch in (16, 64, 256, 1024)),
  (64, 97, 49, 128), (64, 97, 361, 128), (64, 25, 196, 768),
)  # fmt: skip
_FULL_BYTES = 2 * 2**30  # the largest [J, W, I, P] array for which `full` is tried


def arrays(batch: int, words: int, pixels: int, size: int):
  """Unit-norm films [B, P, D] and words [B, W, D], float32 NumPy."""
  rng = np.random.default_rng(0)
  found = (rng.standard_normal((batch, n, size), np.float32) for n in (pixels, words))
  return tuple(x / np.linalg.norm(x, axis=-1, keepdims=True) for x in found)


def ours(method: str, evaluation: str, shape, dtype: str, mib: int):
  """The compiled value and gradients, and its arguments."""
  batch, words, pixels, size = shape
  rounds = scores.Rounds((0.2,), (1.0,), 0.5, "threshold", dtype=dtype)
  score = scores.PlanScore(rounds, 5.0, True) if method == "plan" else scores.GloriaScore(dtype)
  index = jnp.arange(batch, dtype=jnp.int32)
  keys = pairwise.Keys(index, index + 1, index, jnp.ones(batch, bool))
  evaluate = pairwise.full
  if evaluation == "chunked":
    tile = pairwise.tile(
      score, (batch, pixels, size), (batch, words, size), images=0, reports=0, mib=mib
    )

    def evaluate(*inputs):
      return pairwise.chunked(score, tile, *inputs[1:])

  def loss(pixels, words, say, scale):
    pixels, words = scores.narrow(pixels, dtype), scores.narrow(words, dtype)
    pairs = evaluate(score, pixels, words, say, scale, keys)
    total = contrast.info_nce(pairs, keys.valid)[0].sum()
    if pairs.word.size:
      total += contrast.word_info_nce(pairs, keys.valid, say).sum()
    return total

  films, text = arrays(*shape)
  inputs = (films, text, np.ones((batch, words), np.float32), np.float32(10))
  inputs = jax.device_put(inputs)
  step = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*inputs).compile()
  return step, inputs


def gloria_torch(shape):
  """The published formulation: () -> value, gradients of films and words."""
  import torch

  films, text = (torch.tensor(x, requires_grad=True) for x in arrays(*shape))
  batch = shape[0]
  target = torch.arange(batch)

  def step():
    films.grad = text.grad = None
    columns = []
    for report in text:  # [W, D]
      words = report.repeat(batch, 1, 1)  # [B, W, D]
      similarity = torch.bmm(films, words.transpose(1, 2))  # [B, P, W]
      among = torch.softmax(similarity, dim=2)
      attention = torch.softmax(4 * among.transpose(1, 2), dim=2)  # [B, W, P]
      context = torch.bmm(attention, films)
      cosine = torch.nn.functional.cosine_similarity(words, context, dim=2)
      columns.append(10 * torch.logsumexp(5 * cosine, dim=1))
    matrix = torch.stack(columns, dim=1)
    entropy = torch.nn.functional.cross_entropy
    loss = (entropy(matrix, target) + entropy(matrix.T, target)) / 2
    loss.backward()
    return float(loss.detach()), films.grad.numpy(), text.grad.numpy()

  return step


def _peak() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def torch_memory(shape) -> int | None:
  """Bytes by which one step raises the peak of a process of its own, gradients included."""
  command = [
    sys.executable,
    "-m",
    "benchmarks.local_loss",
    "--torch-memory",
    ",".join(map(str, shape)),
  ]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def measure(shape, repeats: int, dtype: str, mib: int, with_torch: bool) -> list[dict]:
  """One row a contender."""
  batch, words, pixels, size = shape
  steps, memory, values = {}, {}, {}
  evaluations = ["chunked"] + ["full"] * (4 * batch * batch * words * pixels <= _FULL_BYTES)
  for method in ("plan", "gloria"):
    for evaluation in evaluations:
      compiled, inputs = ours(method, evaluation, shape, dtype, mib)
      name = f"{method}, {evaluation}"
      steps[name] = lambda c=compiled, i=inputs: jax.block_until_ready(c(*i))
      memory[name] = compiled.memory_analysis().temp_size_in_bytes
  # The loop's graph holds about a dozen [B, B, W, P] arrays until its backward pass.
  if with_torch and 12 * 4 * batch * batch * words * pixels < 12 * 2**30:
    steps["gloria, torch loop"] = gloria_torch(shape)
    memory["gloria, torch loop"] = torch_memory(shape)
  for name, step in steps.items():
    values[name] = step()  # warm-up
  if "gloria, torch loop" in values:
    np.testing.assert_allclose(
      values["gloria, torch loop"][0], values["gloria, chunked"][0], rtol=2e-3
    )
  times = {name: [] for name in steps}
  for _ in range(repeats):
    for name, step in steps.items():
      began = time.perf_counter()
      step()
      times[name].append(time.perf_counter() - began)
  return [
    {
      "contender": name, "B": batch, "W": words, "P": pixels, "D": size,
      "seconds": statistics.median(taken), "fastest": min(taken),
      "us_per_pair": 1e6 * statistics.median(taken) / batch**2, "temporary_mib":
      None if memory[name] is None else memory[name] / 2**20,
      # Of what any evaluation must do: similarities, and their gradients to films and words.
      "gflops": 6e-9 * batch**2 * words * pixels * size / statistics.median(taken),
    }
    for name, taken in times.items()
  ]  # fmt: skip


def ceiling(dtype: str) -> float:
  """GFLOP/s of a large matrix product here."""
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
  parser.add_argument("--tile_mib", type=int, default=16)
  parser.add_argument("--json", help="where to write all figures")
  parser.add_argument("--torch-memory", help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.torch_memory:
    step = gloria_torch(tuple(map(int, options.torch_memory.split(","))))
    before = _peak()
    step()
    print(_peak() - before)
    return
  try:
    import torch  # noqa: F401

    with_torch = True
  except ImportError:
    with_torch = False
    print("torch is not installed: its loop is left out")
  shapes = [tuple(map(int, s.split(","))) for s in options.shapes or ()] or SHAPES
  most = ceiling(options.dtype)
  print(f"{jax.devices()[0].device_kind}, {options.dtype}; matrix product {most:.0f} GFLOP/s\n")
  print("| B | W | P | D | contender | s | us a pair | GFLOP/s | temporaries, MiB |")
  print("|---:|---:|---:|---:|---|---:|---:|---:|---:|")
  rows = []
  for shape in shapes:
    for row in measure(shape, options.repeats, options.dtype, options.tile_mib, with_torch):
      rows.append(row)
      held = "-" if row["temporary_mib"] is None else f"{row['temporary_mib']:.0f}"
      print(
        f"| {row['B']} | {row['W']} | {row['P']} | {row['D']} | {row['contender']} |"
        f" {row['seconds']:.3f} | {row['us_per_pair']:.1f} | {row['gflops']:.0f} | {held} |",
        flush=True,
      )
  if options.json:
    with open(options.json, "w") as file:
      json.dump({"ceiling_gflops": most, "dtype": options.dtype, "rows": rows}, file, indent=1)


if __name__ == "__main__":
  main()
