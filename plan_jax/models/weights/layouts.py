"""Layouts: declarative tables of where another project's tensors belong in our encoders."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
  r"""Modules of one sort.

  Attributes:
    pattern: regular expression of the module's name in the other project.
    path: of the module in our parameters; \1 is the first group, \1+1 its number plus one.
    kind: a name of KINDS: which tensors it has, and how they are transposed.
  """

  pattern: str
  path: str
  kind: str


class Layout(NamedTuple):
  """Names of one encoder, or of one whole model, in one project.

  Attributes:
    name: of the project and the encoder.
    encoder: "resnet", "vit", "bert" or "mpnet"; of a whole model, the baseline's own.
    rows: every tensor that is ours; the first row tells that a file has this layout.
    left_aside: patterns of the names that are not ours: heads, and the other encoder.
    normalisation: (mean, std) of pixels in the project; None: it depends on the weights.
    zeros: patterns of paths of ours that the project does without; where they are missing, they are
      zero.
    variant: of a ViT, a name of vit.VARIANTS; empty: the names do not tell it.
  """

  name: str
  encoder: str
  rows: tuple[Row, ...]
  left_aside: tuple[str, ...] = ()
  normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
  zeros: tuple[str, ...] = ()
  variant: str = "vit"


class Target(NamedTuple):
  """Place of a tensor, or of a part of it.

  Attributes:
    collection: "params" or "batch_stats".
    path: in our parameters; in KINDS below the module's path.
    transform: from their axes to ours.
  """

  collection: str
  path: str
  transform: Callable[[np.ndarray], np.ndarray]


def convolution(x: np.ndarray) -> np.ndarray:
  """Turns [out, in, rows, columns] to [rows, columns, in, out], a 1x1 kernel to [in, out]."""
  x = x.transpose(2, 3, 1, 0)
  return x[0, 0] if x.shape[:2] == (1, 1) else x


def patch_kernel(x: np.ndarray) -> np.ndarray:
  """Turns [out, in, rows, columns] to [rows * columns * in, out], for a dot with flat patches."""
  return x.transpose(2, 3, 1, 0).reshape(-1, len(x))


def positions(x: np.ndarray) -> np.ndarray:
  """Turns [1 + n * n, C], or [n * n, C], to [n, n, C] of the patches; flat where no square."""
  x = x.reshape(-1, x.shape[-1])
  x = x[len(x) - round(len(x) ** 0.5) ** 2 == 1 :]
  side = round(len(x) ** 0.5)
  return x.reshape(side, side, -1) if side**2 == len(x) else x


def class_position(x: np.ndarray) -> np.ndarray:
  """Turns [1 + n * n, C] to the class token's [C]; of [n * n, C] zeros, for it has none."""
  x = x.reshape(-1, x.shape[-1])
  return np.zeros_like(x[0]) if round(len(x) ** 0.5) ** 2 == len(x) else x[0]


def convolution_1d(x: np.ndarray) -> np.ndarray:
  """Turns [out, in, 1] to [in, out]; leaves wider kernels as they are."""
  return x[..., 0].T if x.shape[2:] == (1,) else x


def _identity(x: np.ndarray) -> np.ndarray:
  return x


def _param(leaf: str, transform: Callable = _identity) -> tuple[Target, ...]:
  return (Target("params", leaf, transform),)


def _statistic(leaf: str) -> tuple[Target, ...]:
  return (Target("batch_stats", leaf, _identity),)


def _fused(leaf: str, *names: str) -> tuple[Target, ...]:
  """Splits a tensor of several projections."""

  def part(number):
    return lambda x: np.split(x, len(names))[number].T

  return tuple(Target("params", f"{name}/{leaf}", part(i)) for i, name in enumerate(names))


def _qkv(leaf: str) -> tuple[Target, ...]:
  return _fused(leaf, "query", "key", "value")


_POSITIONS = _param("position_embedding", positions)
_NORM = {"weight": _param("scale"), "bias": _param("bias")}

# Tensors of each kind of module, and where they go; "" is a tensor without a module.
KINDS: Mapping[str, Mapping[str, tuple[Target, ...]]] = {
  "convolution": {"weight": _param("kernel", convolution), "bias": _param("bias")},
  "convolution_1d": {"weight": _param("kernel", convolution_1d), "bias": _param("bias")},
  "patches": {"weight": _param("kernel", patch_kernel), "bias": _param("bias")},
  "dense": {"weight": _param("kernel", np.transpose), "bias": _param("bias")},
  "qkv": {"weight": _qkv("kernel"), "bias": _qkv("bias")},
  "in_proj": {"in_proj_weight": _qkv("kernel"), "in_proj_bias": _qkv("bias")},
  "gate_and_in": {
    "weight": _fused("kernel", "mlp_gate", "mlp_in"),
    "bias": _fused("bias", "mlp_gate", "mlp_in"),
  },
  # Checkpoints converted from TensorFlow call them gamma and beta.
  "layer_norm": _NORM | {"gamma": _param("scale"), "beta": _param("bias")},
  "batch_norm": _NORM
  | {
    "running_mean": _statistic("mean"),
    "running_var": _statistic("var"),
    "num_batches_tracked": (),  # a counter of torch's
  },
  "embedding": {"weight": _param("embedding")},
  "from_third": {"weight": _param("embedding", lambda x: x[2:])},  # the first belong to no token
  "first_row": {"weight": _param("", lambda x: x[0])},  # ours has one type of token
  # All places read the first row, as where a project gives every token the position 0.
  "first_row_only": {"weight": _param("embedding", lambda x: np.broadcast_to(x[:1], x.shape))},
  "class_token": {"": _param("", np.ravel)},
  "array": {"": _param("")},
  "scalar": {"": _param("", lambda x: x.reshape(()))},
  "negative_scalar": {"": _param("", lambda x: -x.reshape(()))},
  "registers": {"": _param("", lambda x: x[0])},
  "positions": {"": _POSITIONS + _param("class_position", class_position)},
  "position_table": {"weight": _POSITIONS + _param("class_position", class_position)},
  "patch_positions": {"weight": _POSITIONS},
  # As plan_jax.export writes them.
  "ours": {name: _param(name) for name in ("kernel", "bias", "scale", "embedding")}
  | {name: _statistic(name) for name in ("mean", "var")},
}


def targets(layout: Layout, key: str) -> list[Target] | None:
  """Finds each of our arrays that a tensor holds; None if it is not ours."""
  for row in layout.rows:
    tensors = KINDS[row.kind]
    module, name = (key, "") if "" in tensors else key.rpartition(".")[::2]
    match = re.fullmatch(row.pattern, module)
    if match and name in tensors:
      path = _expand(row.path, match)
      return [
        target._replace(path="/".join(filter(None, (path, target.path))))
        for target in tensors[name]
      ]
  return None


def with_named_gates(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Gives timm's gated perceptrons the names of DINOv2's authors; to timm all are fc1 and fc2.

  They are known by a first layer that gives twice what the second takes.
  """

  def is_gated(block):
    first, last = (tensors.get(f"{block}.mlp.{name}.weight") for name in ("fc1", "fc2"))
    return first is not None and last is not None and len(first) == 2 * last.shape[-1]

  named = {}
  for name, tensor in tensors.items():
    block, _, rest = name.partition(".mlp.fc")
    if rest and is_gated(block):
      name = f"{block}.mlp.{'w12' if rest[0] == '1' else 'w3'}{rest[1:]}"
    named[name] = tensor
  return named


def is_left_aside(layout: Layout, key: str) -> bool:
  """Tells whether the layout knows the name as none of ours."""
  return any(re.fullmatch(pattern, key) for pattern in layout.left_aside)


def find(layouts: Iterable[Layout], keys: Collection[str]) -> Layout | None:
  """Finds the layout whose first row is among the keys."""
  for layout in layouts:
    first = layout._replace(rows=layout.rows[:1])
    if any(targets(first, key) is not None for key in keys):
      return layout
  return None


def under(prefix: str, rows: tuple[Row, ...]) -> tuple[Row, ...]:
  """Puts a prefix, a regular expression, before their names."""
  return tuple(row._replace(pattern=prefix + row.pattern) for row in rows)


def into(module: str, rows: tuple[Row, ...]) -> tuple[Row, ...]:
  """Puts a module before our paths."""
  return tuple(row._replace(path=f"{module}/{row.path}".rstrip("/")) for row in rows)


def _expand(path: str, match: re.Match) -> str:
  def number(reference):
    group, plus = match[int(reference[1])], reference[2]
    return str(int(group) + int(plus)) if plus else group

  return re.sub(r"\\(\d)([+-]\d)?", number, path)
