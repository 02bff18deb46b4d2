"""One training step, and its parts, beside torch: python -m benchmarks.train_step.

ResNet-50, ViT-B/16 and a BERT-base, as plan_jax builds them, against ResNetModel, ViTModel and
BertModel of transformers with the same widths, strides and number of threads: random weights, batch
norm in training mode, no dropout. The whole step is ResNet and BERT, the global contrast and AdamW;
ours computes the pixel heads and the norms of the step besides. Contenders take turns; times are
medians. With --apart each row of each contender is measured in processes of its own, one after the
other and the order changed every time, all with huge pages (docs/launching.md); the ratio is the
median over the pairs. Where JAX sees a GPU torch is given the same one; products in float32 are
then TF32 on both sides, and bfloat16 is torch's autocast. Torch runs as its models come: eager,
channels first.

  python -m benchmarks.train_step --json=out.json
  python -m benchmarks.train_step --batch=4 --apart=3 --rows=BERT --json=out.json
  XLA_PYTHON_CLIENT_PREALLOCATE=false python -m benchmarks.train_step --batch=64 --dtype=bfloat16
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from functools import cache, cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from benchmarks import torch_steps
from benchmarks.local_loss import ceiling, has_torch
from benchmarks.step_inputs import SMALL, Size, arrays
from configs import base
from plan_jax.alignment import curriculum
from plan_jax.alignment.methods.base import Alignment
from plan_jax.models.bert import Bert
from plan_jax.models.resnet import ResNet
from plan_jax.models.two_towers import build
from plan_jax.models.vit import ViT
from plan_jax.runtime.mesh import quick_draws
from plan_jax.training.optimizer import make_optimizer
from plan_jax.training.state import initial_state
from plan_jax.training.step import dropout_key, make_step

_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
_SETTLE_SECONDS = 0.3  # the previous contender's threads may spin for a while


def config(size: Size, output_stride: int) -> ConfigDict:
  """Configures the full-size run, learning by the global contrast alone."""
  made = base.get_config()
  made.model.dtype = size.dtype
  made.model.image.update(width=size.width, output_stride=output_stride)
  made.model.text.update(size.transformer, dropout=0.0)
  made.alignment.method = "none"
  return made


def ours(size: Size) -> dict:
  """Builds row -> step to time; weights are made when the first step that needs them runs."""
  made = config(size, 32)
  model, dilated = (build(config(size, s).model, size.vocabulary) for s in (32, 16))
  optimizer, schedule = make_optimizer(made.train, made.train.steps)
  batch = arrays(size)
  bert, vit = Bert(**model.text), patches(size)

  @cache
  def state():
    with quick_draws():
      return jax.jit(lambda: initial_state(model, optimizer, batch, seed=0, ema=False))()

  @cache
  def vit_params():
    with quick_draws():
      return jax.jit(vit.init)(jax.random.key(0), batch["image"])["params"]

  def image_loss(model):
    image = ResNet(**model.image)

    def loss(params, batch):
      variables = {"params": params, "batch_stats": state().batch_stats["image_encoder"]}
      out, _ = image.apply(variables, batch["image"], train=True, mutable=["batch_stats"])
      return jnp.square(out).mean()

    return loss

  def vit_loss(params, batch):
    return jnp.square(vit.apply({"params": params}, batch["image"], train=True)).mean()

  def bert_loss(params, batch):
    inputs = batch["tokens"], batch["sentence_index"], batch["position"]
    return jnp.square(bert.apply({"params": params}, *inputs, train=True)).mean()

  def whole(model):
    stage = curriculum.stages(made.curriculum)[0]
    update = make_step(model, optimizer, schedule, stage, Alignment(**made.alignment), made.train)
    key = dropout_key(0)
    step = jax.jit(lambda state, batch: update(state, batch, key), donate_argnums=0)
    return _Step(step, copied, batch, keep=True)

  def copied():  # for the step donates its state, of which the other rows hold parts
    return jax.tree.map(jnp.copy, state())

  def image_params():
    return state().params["image_encoder"]

  rows = {}
  for name, loss, params in (
    ("ResNet-50", image_loss(model), image_params),
    ("ViT-B/16", vit_loss, vit_params),
    ("BERT", bert_loss, lambda: state().params["text_encoder"]),
  ):
    rows[f"{name}, forward"] = _Step(jax.jit(loss), params, batch)
    rows[f"{name}, forward + backward"] = _Step(jax.jit(jax.value_and_grad(loss)), params, batch)
  rows["whole step"] = whole(model)
  gradients = jax.jit(jax.value_and_grad(image_loss(dilated)))
  rows["ResNet-50, forward + backward, stride 16"] = _Step(gradients, image_params, batch)
  rows["whole step, stride 16"] = whole(dilated)
  return rows


def patches(size: Size) -> ViT:
  """Builds the ViT with patches of 16 px."""
  grid, dtype = size.image_px // 16, jnp.dtype(size.dtype)
  return ViT(**size.transformer, patch_px=16, grid=grid, dtype=dtype)


class _Step:
  """Jitted function, a function to its first argument, and a batch on the device.

  With `keep` the first argument is what the last call returned.
  """

  def __init__(self, jitted, make_first, batch, *, keep: bool = False):
    self._jitted, self._make_first, self._keep = jitted, make_first, keep
    self._batch = jax.device_put(batch)

  @cached_property
  def _first(self):
    return self._make_first()

  @property
  def flops(self) -> float:
    """Operations of the program lowered for a GPU, not yet optimised.

    XLA counts neither what a library does (flash attention on a GPU) nor the turns of a loop, such
    as a CPU gets.
    """
    shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (self._first, self._batch)
    )
    with jax.default_device(jax.devices("cpu")[0]):  # plugins for GPUs cannot count
      program = self._jitted.trace(*shapes).lower(lowering_platforms=("cuda",))
    return program.cost_analysis()["flops"]

  def __call__(self):
    out = self._jitted(self._first, self._batch)
    if self._keep:
      self._first = out[0]
    return jax.block_until_ready(out)


def turns(steps: dict, repeats: int) -> dict:
  """Measures the seconds of each step of each turn."""
  times = {key: [] for key in steps}
  for step in steps.values():
    step()  # warm-up
  for _ in range(repeats):
    for key, step in steps.items():
      time.sleep(_SETTLE_SECONDS)
      began = time.perf_counter()
      step()
      times[key].append(time.perf_counter() - began)
  return times


def contender(name: str, size: Size, rows: str) -> dict:
  """Builds row -> step of "ours" or "torch", where the regular expression matches the row."""
  steps = {"ours": ours, "torch": torch_steps.steps}[name](size)
  return {row: step for row, step in steps.items() if re.search(rows, row)}


def measure_apart(options) -> list[dict]:
  """Measures each part in processes of one contender and one row each."""
  table = []
  with tempfile.TemporaryDirectory() as cache:  # compiled programs, for all but the first
    environment = {**os.environ, **_HUGE_PAGES, "JAX_COMPILATION_CACHE_DIR": cache}
    for row in contender("torch", SMALL, options.rows):
      seconds = {"ours": [], "torch": []}
      for pair in range(options.apart):
        for name in list(seconds)[:: 1 if pair % 2 else -1]:
          seconds[name].append(_alone(name, row, options, environment))
        print(f"{row}: pair {pair + 1} of {options.apart}", file=sys.stderr)
      mine, theirs = seconds.values()
      ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
      table.append(
        {"row": row, "seconds": mine, "torch_seconds": theirs, "ratio": statistics.median(ratios)}
      )
  return table


def _alone(name: str, row: str, options, environment: dict[str, str]) -> float:
  """Measures the median seconds of one row of one contender, in a process of its own."""
  call = [sys.executable, "-m", "benchmarks.train_step", f"--only={name}"]
  call += [f"--{key}={getattr(options, key)}" for key in ("batch", "repeats", "dtype")]
  call.append(f"--rows=^{re.escape(row)}$")
  done = subprocess.run(call, env=environment, stdout=subprocess.PIPE, check=True, text=True)
  return json.loads(done.stdout.splitlines()[-1])[row]


def measure(size: Size, repeats: int, *, with_torch: bool, rows: str = "") -> list[dict]:
  """Measures each part whose name the regular expression `rows` matches.

  Torch's seconds are None without it, and where it has no such row.
  """
  names = ("ours", "torch") if with_torch else ("ours",)
  steps = {(name, row): step for name in names for row, step in contender(name, size, rows).items()}
  times = turns(steps, repeats)
  medians = {key: statistics.median(taken) for key, taken in times.items()}
  table = []
  for (who, name), seconds in medians.items():
    if who == "ours":
      torch_seconds = medians.get(("torch", name))
      table.append(
        {
          "row": name,
          "seconds": seconds,
          "fastest": min(times[who, name]),
          "torch_seconds": torch_seconds,
          "torch_fastest": min(times.get(("torch", name), [None])),
          "ratio": None if torch_seconds is None else torch_seconds / seconds,
          "gflops": 1e-9 * steps[who, name].flops / seconds,
        }
      )
  return table


def _print_apart(rows: list[dict], options) -> None:
  print(
    f"{jax.devices()[0].device_kind}, {options.dtype}, batch {options.batch}; medians of"
    f" {options.repeats} in each of {options.apart} pairs of processes\n\n"
    "| | ours, ms | torch, ms | torch / ours |\n|---|---:|---:|---:|"
  )
  for row in rows:
    mine, theirs = (
      ", ".join(f"{1e3 * s:.0f}" for s in row[key]) for key in ("seconds", "torch_seconds")
    )
    print(f"| {row['row']} | {mine} | {theirs} | {row['ratio']:.2f} |")
  _write(rows, options, repeats=options.repeats, apart=options.apart, environment=_HUGE_PAGES)


def _write(rows: list[dict], options, **facts) -> None:
  if not options.json:
    return
  common = {"device": jax.devices()[0].device_kind, "dtype": options.dtype, "batch": options.batch}
  Path(options.json).write_text(json.dumps(common | facts | {"rows": rows}, indent=1) + "\n")


def main() -> None:
  """Prints the table, and writes the JSON."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
  parser.add_argument("--rows", default="", help="regular expression of the rows to measure")
  parser.add_argument("--json", help="where to write all measurements")
  parser.add_argument("--apart", type=int, help="pairs of processes, one contender each")
  parser.add_argument("--only", choices=["ours", "torch"], help="medians of one, as JSON")
  options = parser.parse_args()
  size = Size(options.batch, dtype=options.dtype)
  if options.only:
    times = turns(contender(options.only, size, options.rows), options.repeats)
    print(json.dumps({row: statistics.median(taken) for row, taken in times.items()}))
    return
  with_torch = has_torch()
  if options.apart:
    if not with_torch:
      parser.error("--apart needs torch")
    _print_apart(measure_apart(options), options)
    return
  peak = ceiling(options.dtype)
  rows = measure(size, options.repeats, with_torch=with_torch, rows=options.rows)
  print(
    f"{jax.devices()[0].device_kind}, {options.dtype}, batch {options.batch};"
    f" matrix product {peak:.0f} GFLOP/s\n\n"
    "| | ms (fastest) | torch, ms (fastest) | torch / ours | GFLOP/s |\n"
    "|---|---:|---:|---:|---:|"
  )
  for row in rows:
    mine = f"{1e3 * row['seconds']:.1f} ({1e3 * row['fastest']:.1f})"
    theirs, ratio = "-", "-"
    if row["ratio"] is not None:
      theirs = f"{1e3 * row['torch_seconds']:.1f} ({1e3 * row['torch_fastest']:.1f})"
      ratio = f"{row['ratio']:.2f}"
    print(f"| {row['row']} | {mine} | {theirs} | {ratio} | {row['gflops']:.0f} |")
  _write(rows, options, ceiling_gflops=peak)


if __name__ == "__main__":
  main()
