"""The memory that a program needs on each chip, and keys that would lower it."""

import math
from typing import NamedTuple

import jax

from plan_jax.alignment.methods.by_name import pair_score, pair_tile
from plan_jax.models.layers.remat import REMAT
from plan_jax.runtime.checkpoints import abstract_state
from plan_jax.runtime.mesh import make_mesh, state_sharding
from plan_jax.training.assembly import Assembly, pair_shapes


class Footprint(NamedTuple):
  """Bytes on each chip while a program runs.

  Attributes:
    arguments: of the state and the batch, as they are padded there.
    temporaries: of what is computed in between, activations above all.
    output: beyond what is written over arguments.
    code: of the program.
  """

  arguments: int
  temporaries: int
  output: int
  code: int

  @classmethod
  def of(cls, compiled: jax.stages.Compiled) -> "Footprint":
    """Reads what the compiler says of a program."""
    m = compiled.memory_analysis()
    return cls(
      m.argument_size_in_bytes,
      m.temp_size_in_bytes,
      m.output_size_in_bytes - m.alias_size_in_bytes,
      m.generated_code_size_in_bytes,
    )

  @property
  def total(self) -> int:
    """Bytes in all."""
    return sum(self)


def chip_bytes(tree) -> int:
  """Adds up the bytes of abstract arrays with shardings on each chip, padding not counted."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def remedies(parts: Assembly, excess: int, temporaries: int) -> list[str]:
  """Lists the keys, and values, of which each alone may save so many bytes a chip.

  Args:
    parts: of the program that does not fit.
    excess: bytes a chip beyond its memory.
    temporaries: bytes a chip of those.
  """
  config, chips = parts.config, parts.mesh.size
  share = config.train.batch_size // chips
  advice = []
  if temporaries > excess:
    counts = [n for n in range(config.train.micro_batches + 1, share + 1) if share % n == 0]
    kept = 1 - excess / temporaries  # share of the temporaries that there is room for
    if enough := [n for n in counts if config.train.micro_batches / n <= kept]:
      advice.append(f"train.micro_batches={enough[0]}")
    if REMAT[config.model.remat] is None:
      advice.append("model.remat=blocks")
    if config.model.dtype == "float32" and kept >= 0.5:
      advice.append("model.dtype=bfloat16")
    given = config.alignment.tile_images or config.alignment.tile_reports
    if not given and (tile := _smaller_tile(parts, excess)):
      advice.append(f"alignment.tile_mib={tile}")
    smaller = int(share * kept) // config.train.micro_batches * config.train.micro_batches
    if smaller * chips > 1:  # a contrast needs two pairs
      advice.append(f"train.batch_size={smaller * chips}")
  if fsdp := _wider_fsdp(parts, excess):
    advice.append(f"mesh.fsdp={fsdp}")
  return advice


def _smaller_tile(parts: Assembly, excess: int) -> int:
  """Returns a power of two of MiB, at least 16; 0 where tiles do not hold so much."""
  left = (_tile_bytes(parts) - excess) // 2**20
  return 2 ** int(math.log2(left)) if left >= 16 else 0


def _tile_bytes(parts: Assembly) -> int:
  """Returns what the largest tile of a stage holds, by the bound of its score; 0 without any."""
  pixels, words = pair_shapes(parts.config)
  held = [0]
  with jax.set_mesh(parts.mesh):
    for stage in parts.stages:
      if tile := pair_tile(parts.alignment, stage, pixels, words):
        score = pair_score(parts.alignment, stage)
        held.append(score.tile_bytes(*tile, pixels[1], words[1], pixels[2]))
  return max(held)


def _wider_fsdp(parts: Assembly, excess: int) -> int:
  """Returns the least size of the axis that splits the state enough; 0 where none does."""
  held = chip_bytes(parts.abstract_state)
  for fsdp in range(parts.mesh.shape["fsdp"] + 1, parts.mesh.size + 1):
    if parts.mesh.size % fsdp:
      continue
    mesh = make_mesh(-1, fsdp, parts.mesh.devices.ravel())
    shardings = state_sharding(parts.abstract_state, mesh)
    if held - chip_bytes(abstract_state(parts.abstract_state, shardings)) >= excess:
      return fsdp
  return 0
