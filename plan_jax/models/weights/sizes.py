"""Sizes of an encoder, as the shapes of its arrays tell them."""

import re
from collections.abc import Mapping

from plan_jax.models.resnet import BLOCKS

HEAD_DIM = 64  # of all BERT and ViT of the base size; no array tells it

Shapes = Mapping[str, tuple[int, ...]]  # by path of ours


def sizes(shapes: Shapes, encoder: str, module: str) -> dict:
  """Returns the attributes of the encoder that is a module of a model; the heads are the usual."""
  start = f"{module}/"
  own = {path.removeprefix(start): x for path, x in shapes.items() if path.startswith(start)}
  attributes = read_sizes(own, encoder)
  if "embed_dim" in attributes:
    attributes["num_heads"] = usual_heads(attributes["embed_dim"])
  return {key: x for key, x in attributes.items() if key not in ("channels", "projector")}


def usual_heads(embed_dim: int) -> int:
  """Returns the number of heads where each has 64 channels."""
  return max(1, embed_dim // HEAD_DIM)


def read_sizes(shapes: Shapes, encoder: str) -> dict:
  """Returns attributes without the heads, with the channels of an image, and the projector."""
  return {"resnet": _resnet_sizes, "vit": _vit_sizes}.get(encoder, _text_sizes)(shapes)


def _count(shapes: Shapes, pattern: str) -> int:
  matches = (re.match(pattern, path) for path in shapes)
  return len({match[0] for match in matches if match})


def _depth(shapes: Shapes, pattern: str) -> dict:
  count = _count(shapes, pattern)
  return {"depth": count} if count else {}


def _resnet_sizes(shapes: Shapes) -> dict:
  attributes = {}
  if len(stem := shapes.get("stem/kernel", ())) == 4:
    attributes |= {"channels": stem[2], "width": stem[3] / 64}
  counts = [_count(shapes, rf"stage{stage}_block\d+/") for stage in (1, 2, 3, 4)]
  counts = [count for count in counts if count]
  bottleneck = "stage1_block1/conv3/kernel" in shapes
  fits = [
    depth
    for depth, blocks in BLOCKS.items()
    if list(blocks[: len(counts)]) == counts and (depth == 50) == bottleneck
  ]
  # One stage alone may be of several; blocks of no depth we know are left to the list of names.
  if len(fits) == 1:
    attributes["depth"] = fits[0]
  if "projector_out/bias" in shapes:
    attributes["projector"] = shapes["projector_out/bias"][0]
  return attributes


def _vit_sizes(shapes: Shapes) -> dict:
  attributes = _depth(shapes, r"block\d+/")
  if len(patch := shapes.get("patch_embedding/kernel", ())) == 2:
    channels = 1 if round(patch[0] ** 0.5) ** 2 == patch[0] else 3
    side = round((patch[0] / channels) ** 0.5)
    attributes |= {"channels": channels, "patch_px": side, "embed_dim": patch[1]}
  if len(position := shapes.get("position_embedding", ())) == 3:
    attributes["grid"] = position[0]
  if "block1/mlp_in/bias" in shapes:
    attributes["mlp_dim"] = shapes["block1/mlp_in/bias"][0]
  if attributes:
    attributes["registers"] = shapes.get("registers", (0,))[0]
    attributes["gated"] = "block1/mlp_gate/bias" in shapes
  return attributes


def _text_sizes(shapes: Shapes) -> dict:
  attributes = _depth(shapes, r"(?:layer|block)\d+/")
  if len(token := shapes.get("token_embedding/embedding", ())) == 2:
    attributes |= {"vocabulary_size": token[0], "embed_dim": token[1]}
  for name, path in (
    ("max_position", "position_embedding/embedding"),
    ("mlp_dim", "layer1/mlp_in/bias"),
    ("mlp_dim", "block1/mlp_in/bias"),
    ("projector", "projector_out/bias"),
  ):
    if path in shapes:
      attributes[name] = shapes[path][0]
  return attributes
