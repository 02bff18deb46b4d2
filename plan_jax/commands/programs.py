"""The programs of a config, compiled for a TPU topology, and what a table says of them."""

import argparse
import contextlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags
from tabulate import tabulate

from input_pipeline.errors import UserError
from input_pipeline.files import replace_text
from input_pipeline.terminal import escape
from input_pipeline.text.tokenizer import Tokenizer
from plan_jax import config as config_lib
from plan_jax.commands import inputs
from plan_jax.inference.run_spec import embed_images
from plan_jax.runtime import bundled, hlo, topology
from plan_jax.runtime.logging import duration
from plan_jax.runtime.mesh import batch_sharding, everywhere, shared_rows
from plan_jax.runtime.run_flags import config_error
from plan_jax.training import footprint, pretrained
from plan_jax.training.assembly import TOKENS, Assembly, assemble_on
from plan_jax.training.footprint import Footprint
from plan_jax.training.state import weights_of
from plan_jax.training.step import dropout_key, jit_step

_MIB = 2**20
_GIB = 2**30
_SIZES = {"K": 2**10, "M": _MIB, "G": _GIB}
_TELL_EVERY_S = 30
# Two messages of libtpu: "Used 20.50G of 15.75G hbm", "... temporaries (47.72G) exceeds available
# HBM (15.75G)".
_REFUSAL = re.compile(
  r"(?:Used |\()([\d.]+)([KMG])\)? (?:of |exceeds available HBM \()([\d.]+)([KMG])"
)


class Compiled(NamedTuple):
  """A program that is compiled.

  Attributes:
    name: "step of stage NAME", "image encoder" or "text encoder".
    seconds: that tracing and compiling took.
    footprint: of a chip's memory; None where it does not fit.
    needed, available: bytes a chip that the compiler counts where it does not fit, else 0.
    does: what it does on a chip; None where it does not fit.
    bytes: read and written, by XLA's count, the body of a loop once; 0 where it does not fit.
  """

  name: str
  seconds: float
  footprint: Footprint | None
  needed: int
  available: int
  does: hlo.Program | None
  bytes: float


def run(options: argparse.Namespace, rest: Sequence[str]) -> bool:
  """Does what the flags of `plan-jax compile` say; tells whether all programs fit.

  `rest` are the overrides of the config. Raises UserError.
  """
  jax.config.update("jax_platforms", "cpu")
  out = Path(options.json) if options.json else None
  if out:
    inputs.check_place("--json", options.json)
  devices = topology.devices(options.topology)
  chip = topology.CHIPS[options.topology.partition(":")[0]]
  config, size = _read(options.config, rest)
  config_lib.check_programs(config)
  mesh = config_lib.check_devices(config, devices)
  parts = assemble_on(mesh, config, size)
  programs = _programs(parts, options.stage)
  done = []
  for number, (name, lower) in enumerate(programs.items(), 1):
    with _elapsed(f"{number} of {len(programs)}: {name}") as began:
      done.append(_compile(name, lower, parts, began))
  print(f"\n{options.topology}: {mesh.size} chips, {config.train.batch_size} pairs a step")
  print(_table(done, parts, chip))
  for program in done:
    if program.does and program.does.collectives:
      print(f"\ncollectives of the {program.name}, on each chip\n{_collectives(program.does)}")
    if not _fits(program, chip):
      print(f"\n{_advice(program, parts, program.available or chip.hbm_bytes)}")
  if out:
    replace_text(out, json.dumps(_record(done, parts, chip, options), indent=2))
  return all(_fits(program, chip) for program in done)


def _read(file: str, rest: Sequence[str]) -> tuple[ConfigDict, int]:
  """Returns the config, with the sizes of its weights where these are here, and its vocabulary."""
  from configs.local import localised

  values = flags.FlagValues()
  argv = ["plan-jax compile", f"--config={bundled.find(file)}", *rest]
  config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
  try:
    if wrong := values(argv)[1:]:
      raise UserError(f"unexpected argument {wrong[0]!r}: flags begin with --")
    config = values["config"].value
    given = config_flags.get_override_values(values["config"])
  except UserError:
    raise
  except Exception as error:  # whatever the file of --config does
    raise UserError(f"in the flags: {config_error(error, argv)}") from error
  if "baseline" in config:
    raise UserError(f"--config={file}: a baseline is not trained; name the config of a run")
  config = localised(config, given)
  return _with_sizes(config, given), _vocabulary_size(config)


def _with_sizes(config: ConfigDict, given: Collection[str]) -> ConfigDict:
  present = ConfigDict(config.to_dict())
  for key in ("image", "text"):
    weights = config.model[key].weights
    if weights and not Path(weights).exists():
      _note(f"config.model.{key}.weights: {weights} is not here: sizes are those of the config")
      present.model[key].weights = ""
  sized = ConfigDict(pretrained.with_settings(present, None, given).to_dict())
  for key in ("image", "text"):
    sized.model[key].weights = config.model[key].weights
  return sized


def _vocabulary_size(config: ConfigDict) -> int:
  folder = config.text.tokenizer or config.model.text.weights
  if folder and Path(folder).exists():
    return Tokenizer(Path(pretrained.tokenizer_folder(config))).vocabulary_size
  size = config.text.vocabulary_size
  if folder:
    _note(f"the vocabulary of {folder} is not here: config.text.vocabulary_size, {size}, counts")
  return size


def _note(text: str) -> None:
  print(escape(text), file=sys.stderr, flush=True)


def _programs(parts: Assembly, stage: str | None) -> dict[str, Callable[[], jax.stages.Lowered]]:
  """Returns, by name, what lowers each program; `stage`: of its step alone."""
  stages = {each.name: each for each in parts.stages}
  if stage is not None and stage not in stages:
    raise UserError(f"--stage={stage}: the config has the stages {', '.join(stages)}")
  steps = {
    f"step of stage {name}": partial(_lower_step, parts, name)
    for name in (stages if stage is None else [stage])
  }
  return steps if stage is not None else steps | _encoders(parts)


def _lower_step(parts: Assembly, name: str) -> jax.stages.Lowered:
  stage = next(stage for stage in parts.stages if stage.name == name)
  step, key = jit_step(parts, stage), jax.eval_shape(dropout_key, 0)
  with jax.set_mesh(parts.mesh):
    return step.lower(parts.abstract_state, parts.abstract_batch(), key)


def _encoders(parts: Assembly) -> dict[str, Callable[[], jax.stages.Lowered]]:
  """Returns what lowers the encoders as `Predictor` runs them."""
  evaluation = parts.config.evaluation
  batch = shared_rows(evaluation.batch_size, parts.mesh.size)

  def arrays(shape, dtype):
    return jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=batch_sharding(parts.mesh))

  image = parts.abstract_batch()["image"]  # stored features, where the run has such
  image = arrays(image.shape[1:], image.dtype)
  tokens = arrays((evaluation.max_tokens,), np.int32)
  text = dict.fromkeys(TOKENS, tokens) | {"word_mask": arrays((evaluation.max_words,), np.bool_)}

  def lower(function, batch):
    jitted = jax.jit(function, out_shardings=everywhere(parts.mesh))
    with jax.set_mesh(parts.mesh):
      return jitted.lower(weights_of(parts.abstract_state), batch)

  embeds_images = partial(embed_images, parts.model, parts.alignment)
  embeds_texts = partial(parts.model.apply, method=parts.model.embed_texts)
  return {
    "image encoder": partial(lower, embeds_images, image),
    "text encoder": partial(lower, embeds_texts, text),
  }


@contextlib.contextmanager
def _elapsed(title: str) -> Iterator[float]:
  """Tells on stderr, while a program is compiled, how long that takes; yields when it began."""
  began, ended = time.monotonic(), threading.Event()

  def tell():
    while not ended.wait(_TELL_EVERY_S):
      _note(f"  {title}: {duration(time.monotonic() - began)} so far")

  _note(f"{title} ...")
  threading.Thread(target=tell, daemon=True).start()
  try:
    yield began
  finally:
    ended.set()
  _note(f"  compiled in {duration(time.monotonic() - began)}")


def _compile(name: str, lower: Callable, parts: Assembly, began: float) -> Compiled:
  lowered = lower()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if not (refusal := _REFUSAL.search(str(error))):
      raise
    needed, available = (int(float(refusal[i]) * _SIZES[refusal[i + 1]]) for i in (1, 3))
    return Compiled(name, time.monotonic() - began, None, needed, available, None, 0)
  cost = compiled.cost_analysis()
  return Compiled(
    name,
    time.monotonic() - began,
    Footprint.of(compiled),
    0,
    0,
    hlo.read(compiled.as_text()),
    cost["bytes accessed"],
  )


def _fits(program: Compiled, chip: topology.Chip) -> bool:
  return program.footprint is not None and program.footprint.total <= chip.hbm_bytes


def _values(program: Compiled, parts: Assembly, chip: topology.Chip) -> dict:
  """Returns what is known of a program, by name with its unit."""
  values = {"fits": _fits(program, chip), "compiled_s": round(program.seconds, 1)}
  if program.footprint is None:
    return values | {"total_bytes": program.needed}
  state = parts.abstract_state
  held = {"parameters_bytes": footprint.chip_bytes((state.params, state.batch_stats, state.ema))}
  if program.name.startswith("step"):
    held["optimizer_bytes"] = footprint.chip_bytes(state.opt_state)
    held["batch_bytes"] = footprint.chip_bytes(parts.abstract_batch())
  sizes = program.footprint
  does = program.does
  return values | {
    **held,
    "arguments_bytes": sizes.arguments,
    "temporaries_bytes": sizes.temporaries,
    "output_bytes": sizes.output,
    "code_bytes": sizes.code,
    "total_bytes": sizes.total,
    "product_flops": does.product_flops,
    "bytes_accessed": program.bytes,
    "estimated_products_s": does.product_flops / chip.flops,
    "estimated_memory_s": program.bytes / chip.hbm_rate,
    "compiler_cycles": does.cycles,
    **({"estimated_cycles_s": does.cycles / chip.clock} if chip.clock else {}),
  }


# Row of the table -> key of `_values`, its unit, digits.
_ROWS = {
  "parameters, MiB a chip": ("parameters_bytes", _MIB, 1),
  "optimizer, MiB": ("optimizer_bytes", _MIB, 1),
  "batch, MiB": ("batch_bytes", _MIB, 1),
  "arguments as padded, MiB": ("arguments_bytes", _MIB, 1),
  "temporaries, MiB": ("temporaries_bytes", _MIB, 1),
  "output, MiB": ("output_bytes", _MIB, 1),
  "code, MiB": ("code_bytes", _MIB, 1),
  "total, GiB": ("total_bytes", _GIB, 2),
  "products, GFLOP": ("product_flops", 1e9, 1),
  "bytes moved (loops once), GB": ("bytes_accessed", 1e9, 2),
  "the compiler's cycles, million": ("compiler_cycles", 1e6, 3),
  "estimate: products at the peak, ms": ("estimated_products_s", 1e-3, 2),
  "estimate: memory at the peak, ms": ("estimated_memory_s", 1e-3, 2),
  "estimate: the compiler's cycles, ms": ("estimated_cycles_s", 1e-3, 2),
}


def _table(done: Sequence[Compiled], parts: Assembly, chip: topology.Chip) -> str:
  values = [_values(program, parts, chip) for program in done]
  rows = [
    [
      row,
      *(f"{each[key] / unit:,.{digits}f}" if key in each else "" for each in values),
    ]
    for row, (key, unit, digits) in _ROWS.items()
  ]
  limit = f"fits into {chip.hbm_bytes / _GIB:.0f} GiB"
  rows.append([limit, *("yes" if each["fits"] else "NO" for each in values)])
  heads = ["", *(program.name for program in done)]
  align = ("left", *["right"] * len(done))
  table = tabulate(rows, heads, tablefmt="github", disable_numparse=True, colalign=align)
  peak = f"{chip.flops / 1e12:.0f} TFLOP/s and {chip.hbm_rate / 1e9:.0f} GB/s a chip"
  return f"{table}\nestimates, not measured: by {peak} ({chip.source})"


def _collectives(does: hlo.Program) -> str:
  """Returns a table of the kinds: how many there are, how often they run, what arrives by them."""
  kinds: dict[str, list[int]] = {}
  for each in does.collectives:
    count = kinds.setdefault(each.kind, [0, 0, 0])
    for i, value in enumerate((1, each.runs, each.runs * each.bytes)):
      count[i] += value
  rows = [(kind, *counts[:2], f"{counts[2] / _MIB:,.2f}") for kind, counts in kinds.items()]
  return tabulate(rows, ("kind", "in the program", "runs", "MiB"), tablefmt="github")


def _advice(program: Compiled, parts: Assembly, limit: int) -> str:
  sizes = program.footprint
  total = program.needed if sizes is None else sizes.total
  held = footprint.chip_bytes(parts.abstract_state) + footprint.chip_bytes(parts.abstract_batch())
  excess = total - limit
  text = f"{program.name}: {total / _GIB:.2f} GiB a chip do not fit: {excess / _GIB:.2f} too many"
  if not program.name.startswith("step"):
    return f"{text}; lower config.evaluation.batch_size"
  keys = footprint.remedies(parts, excess, total - held)
  tries = ", ".join(f"--config.{key}" for key in keys)
  return f"{text}; each of these may do: {tries}" if keys else f"{text}; take more chips"


def _record(
  done: Sequence[Compiled], parts: Assembly, chip: topology.Chip, options: argparse.Namespace
) -> dict:
  return {
    "config": options.config,
    "topology": options.topology,
    "chips": parts.mesh.size,
    "batch_size": parts.config.train.batch_size,
    "chip": chip._asdict(),
    "programs": {
      program.name: _values(program, parts, chip)
      | {
        "collectives": [
          each._asdict() for each in (program.does.collectives if program.does else ())
        ]
      }
      for program in done
    },
  }
