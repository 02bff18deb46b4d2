"""The names that other projects give their weights, and where each belongs in our encoders."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
  r"""Modules of one sort.

  Attributes:
    pattern: of the module's name there, a regular expression.
    path: of the module in our parameters; \1 is the first group, \1+1 its number plus one.
    kind: a name of KINDS: which tensors it has, and how they are turned.
  """

  pattern: str
  path: str
  kind: str


class Layout(NamedTuple):
  """Where one project keeps one of the encoders.

  Attributes:
    name: of the project and the encoder.
    encoder: "resnet", "vit" or "bert"; of a whole model, its name in BASELINE_LAYOUTS.
    rows: every tensor that is ours; the first row tells that a file has this layout.
    left_aside: patterns of the names that are not ours: heads, and the other encoder.
    normalisation: of pixels, as the project has it: (mean, std); None: it depends on the weights.
    zeros: paths of ours that the project does without; where they are missing, they are zero.
  """

  name: str
  encoder: str
  rows: tuple[Row, ...]
  left_aside: tuple[str, ...] = ()
  normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
  zeros: tuple[str, ...] = ()


class Part(NamedTuple):
  """Where a tensor, or a piece of it, goes.

  Attributes:
    collection: "params" or "batch_stats".
    leaf: name below the module's path.
    turn: from their axes to ours.
  """

  collection: str
  leaf: str
  turn: Callable[[np.ndarray], np.ndarray]


def convolution(x: np.ndarray) -> np.ndarray:
  """[out, in, rows, columns] -> [rows, columns, in, out], a 1x1 kernel -> [in, out]."""
  x = x.transpose(2, 3, 1, 0)
  return x[0, 0] if x.shape[:2] == (1, 1) else x


def patch_kernel(x: np.ndarray) -> np.ndarray:
  """[out, in, rows, columns] -> [rows * columns * in, out], for a dot with flat patches."""
  return x.transpose(2, 3, 1, 0).reshape(-1, len(x))


def positions(x: np.ndarray) -> np.ndarray:
  """[1, 1 + n * n, C] -> [n, n, C], without the class token's; as they are where no square."""
  side = round((x.shape[1] - 1) ** 0.5)
  return x[0, 1:].reshape(side, side, -1) if side**2 == x.shape[1] - 1 else x[0, 1:]


def _third(number: int) -> Callable:
  return lambda x: np.split(x, 3)[number].T


def _same(x: np.ndarray) -> np.ndarray:
  return x


def _param(leaf: str, turn: Callable = _same) -> tuple[Part, ...]:
  return (Part("params", leaf, turn),)


_NORM = {"weight": _param("scale"), "bias": _param("bias")}
_QKV = tuple(
  Part("params", f"{name}/LEAF", _third(i)) for i, name in enumerate(("query", "key", "value"))
)

# Of each kind of module: its tensors' names, and where they go. "" is a tensor without a module.
KINDS: Mapping[str, Mapping[str, tuple[Part, ...]]] = {
  "convolution": {"weight": _param("kernel", convolution), "bias": _param("bias")},
  "patches": {"weight": _param("kernel", patch_kernel), "bias": _param("bias")},
  "dense": {"weight": _param("kernel", np.transpose), "bias": _param("bias")},
  "qkv": {
    name: tuple(part._replace(leaf=part.leaf.replace("LEAF", leaf)) for part in _QKV)
    for name, leaf in (("weight", "kernel"), ("bias", "bias"))
  },
  # Checkpoints converted from TensorFlow call them gamma and beta.
  "layer_norm": _NORM | {"gamma": _param("scale"), "beta": _param("bias")},
  "batch_norm": _NORM
  | {
    "running_mean": (Part("batch_stats", "mean", _same),),
    "running_var": (Part("batch_stats", "var", _same),),
    "num_batches_tracked": (),  # a counter of torch's
  },
  "embedding": {"weight": _param("embedding")},
  # As plan_jax.export writes them.
  "ours": {name: _param(name) for name in ("kernel", "bias", "scale", "embedding")}
  | {name: (Part("batch_stats", name, _same),) for name in ("mean", "var")},
  "our_array": {"": _param("")},
  "first_row": {"weight": _param("", lambda x: x[0])},  # ours has one kind of token
  "class_token": {"": _param("", np.ravel)},
  "convolution_1d": {
    "weight": _param("kernel", lambda x: x[..., 0].T if x.shape[2:] == (1,) else x),
    "bias": _param("bias"),
  },
  "positions": {
    "": (
      Part("params", "position_embedding", positions),
      Part("params", "class_position", lambda x: x[0, 0]),
    )
  },
}


def targets(layout: Layout, key: str) -> Iterator[tuple[str, str, Callable]] | None:
  """(collection, path, turn) of each of our arrays that a tensor holds; None if it is not ours."""
  for row in layout.rows:
    tails = KINDS[row.kind]
    module, _, tail = ("", "", key) if "" in tails else key.rpartition(".")
    match = re.fullmatch(row.pattern, tail if "" in tails else module)
    if match and (parts := tails.get("" if "" in tails else tail)) is not None:
      path = _filled(row.path, match)
      return ((c, "/".join(filter(None, (path, leaf))), turn) for c, leaf, turn in parts)
  return None


def is_left_aside(layout: Layout, key: str) -> bool:
  """Whether the layout knows the name, and that it is not ours."""
  return any(re.fullmatch(pattern, key) for pattern in layout.left_aside)


def find(layouts: tuple[Layout, ...], keys) -> Layout | None:
  """The layout whose first row is among the keys."""
  for layout in layouts:
    first = layout._replace(rows=layout.rows[:1])
    if any(targets(first, key) is not None for key in keys):
      return layout
  return None


def _filled(path: str, match: re.Match) -> str:
  def number(found):
    group, plus = match[int(found[1])], found[2]
    return str(int(group) + int(plus)) if plus else group

  return re.sub(r"\\(\d)([+-]\d)?", number, path)


def _under(prefix: str, rows: tuple[Row, ...]) -> tuple[Row, ...]:
  return tuple(row._replace(pattern=prefix + row.pattern) for row in rows)


def _into(module: str, rows: tuple[Row, ...]) -> tuple[Row, ...]:
  return tuple(row._replace(path=f"{module}/{row.path}".rstrip("/")) for row in rows)


def _resnet(stem: str, norm: str, block: str, stage: str) -> tuple[Row, ...]:
  """ResNet as torchvision has it; `block` has the groups stage and block, `stage` is ours."""
  ours = rf"stage{stage}_block\2+1"
  return (
    Row(stem, "stem", "convolution"),
    Row(norm, "stem_norm", "batch_norm"),
    Row(rf"{block}\.conv(\d)", rf"{ours}/conv\3", "convolution"),
    Row(rf"{block}\.bn(\d)", rf"{ours}/norm\3", "batch_norm"),
    Row(rf"{block}\.downsample\.0", f"{ours}/shortcut", "convolution"),
    Row(rf"{block}\.downsample\.1", f"{ours}/shortcut_norm", "batch_norm"),
  )


RESNET = _resnet("conv1", "bn1", r"layer(\d)\.(\d+)", r"\1")
# The same modules, named by their number in a Sequential.
NUMBERED_RESNET = _resnet(r"0", r"1", r"(\d)\.(\d+)", r"\1-3")

_HF_BLOCK = r"encoder\.stages\.(\d)\.layers\.(\d+)"
_HF_OURS = r"stage\1+1_block\2+1"
HF_RESNET = (
  Row(r"embedder\.embedder\.convolution", "stem", "convolution"),
  Row(r"embedder\.embedder\.normalization", "stem_norm", "batch_norm"),
  Row(rf"{_HF_BLOCK}\.layer\.(\d)\.convolution", rf"{_HF_OURS}/conv\3+1", "convolution"),
  Row(rf"{_HF_BLOCK}\.layer\.(\d)\.normalization", rf"{_HF_OURS}/norm\3+1", "batch_norm"),
  Row(rf"{_HF_BLOCK}\.shortcut\.convolution", f"{_HF_OURS}/shortcut", "convolution"),
  Row(rf"{_HF_BLOCK}\.shortcut\.normalization", f"{_HF_OURS}/shortcut_norm", "batch_norm"),
)

BIOVIL_PROJECTOR = (
  Row(r"projector\.model\.0", "projector_in", "convolution"),
  Row(r"projector\.model\.1", "projector_norm", "batch_norm"),
  Row(r"projector\.model\.3", "projector_out", "convolution"),
)

VIT = (
  Row(r"patch_embed\.proj", "patch_embedding", "patches"),
  Row("cls_token", "class_token", "class_token"),
  Row("pos_embed", "", "positions"),
  Row(r"blocks\.(\d+)\.norm1", r"block\1+1/attention_norm", "layer_norm"),
  Row(r"blocks\.(\d+)\.attn\.qkv", r"block\1+1", "qkv"),
  Row(r"blocks\.(\d+)\.attn\.proj", r"block\1+1/attention_out", "dense"),
  Row(r"blocks\.(\d+)\.norm2", r"block\1+1/mlp_norm", "layer_norm"),
  Row(r"blocks\.(\d+)\.mlp\.fc1", r"block\1+1/mlp_in", "dense"),
  Row(r"blocks\.(\d+)\.mlp\.fc2", r"block\1+1/mlp_out", "dense"),
  Row("norm", "norm", "layer_norm"),
)

_HF_LAYER = r"encoder\.layer\.(\d+)"
HF_VIT = (
  Row(r"embeddings\.patch_embeddings\.projection", "patch_embedding", "patches"),
  Row(r"embeddings\.cls_token", "class_token", "class_token"),
  Row(r"embeddings\.position_embeddings", "", "positions"),
  Row(rf"{_HF_LAYER}\.layernorm_before", r"block\1+1/attention_norm", "layer_norm"),
  Row(rf"{_HF_LAYER}\.attention\.attention\.(query|key|value)", r"block\1+1/\2", "dense"),
  Row(rf"{_HF_LAYER}\.attention\.output\.dense", r"block\1+1/attention_out", "dense"),
  Row(rf"{_HF_LAYER}\.layernorm_after", r"block\1+1/mlp_norm", "layer_norm"),
  Row(rf"{_HF_LAYER}\.intermediate\.dense", r"block\1+1/mlp_in", "dense"),
  Row(rf"{_HF_LAYER}\.output\.dense", r"block\1+1/mlp_out", "dense"),
  Row("layernorm", "norm", "layer_norm"),
)

BERT = (
  Row(r"embeddings\.word_embeddings", "token_embedding", "embedding"),
  Row(r"embeddings\.position_embeddings", "position_embedding", "embedding"),
  Row(r"embeddings\.token_type_embeddings", "type_embedding", "first_row"),
  Row(r"embeddings\.LayerNorm", "embedding_norm", "layer_norm"),
  Row(rf"{_HF_LAYER}\.attention\.self\.(query|key|value)", r"layer\1+1/\2", "dense"),
  Row(rf"{_HF_LAYER}\.attention\.output\.dense", r"layer\1+1/attention_out", "dense"),
  Row(rf"{_HF_LAYER}\.attention\.output\.LayerNorm", r"layer\1+1/attention_norm", "layer_norm"),
  Row(rf"{_HF_LAYER}\.intermediate\.dense", r"layer\1+1/mlp_in", "dense"),
  Row(rf"{_HF_LAYER}\.output\.dense", r"layer\1+1/mlp_out", "dense"),
  Row(rf"{_HF_LAYER}\.output\.LayerNorm", r"layer\1+1/mlp_norm", "layer_norm"),
)
CXR_BERT_PROJECTOR = (
  Row(r"cls_projection_head\.dense_to_hidden", "projector_in", "dense"),
  Row(r"cls_projection_head\.LayerNorm", "projector_norm", "layer_norm"),
  Row(r"cls_projection_head\.dense_to_output", "projector_out", "dense"),
)
# A buffer, a head behind [CLS], and what looks at another sequence (MGCA never uses it).
_NOT_BERT = (r"embeddings\.position_ids", r"pooler\..+", rf"{_HF_LAYER}\.crossattention\..+")


def _ours(encoder: str, first: str) -> tuple[Row, ...]:
  return (
    Row(rf"{encoder}\.({first})", r"\1", "ours"),
    Row(rf"{encoder}\.(\w+)\.(\w+)", r"\1/\2", "ours"),
    Row(rf"{encoder}\.(\w+)", r"\1", "ours"),
    Row(rf"{encoder}\.(\w+_(?:token|position|embedding))", r"\1", "our_array"),
  )


_OUR_HEADS = (r"(pixel|image|word|report|significance|attention)_(norm|head)\..+", "log_scale")

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5,) * 3, (0.5,) * 3)
_PLAIN = ((0.0,) * 3, (1.0,) * 3)

_GLORIA_HEADS = (r"gloria\.img_encoder\.(global|local)_embedder\..+",)
_MGCA_HEADS = (
  r"(img|text)_encoder_q\.(global|local)_embed\..+", r"prototype_layer\..+",
  r"(patch|word)_local_atten_layer\..+",
)  # fmt: skip
_CONVIRT_HEADS = (r"(img|text)_encoder\.(global|local)_embed\..+",)
_NUMBERED_HEADS = (r"(res|bert)_l[12]\..+",)

IMAGE_LAYOUTS = (
  Layout("torchvision ResNet", "resnet", RESNET, (r"fc\..+",), _IMAGENET),
  Layout("timm ViT", "vit", VIT, (r"(head|pre_logits)\..+",)),
  Layout(
    "Hugging Face ResNet", "resnet", _under(r"(?:resnet\.)?", HF_RESNET), (r"classifier\..+",),
    _IMAGENET,
  ),
  Layout(
    "Hugging Face ViT", "vit", _under(r"(?:vit\.)?", HF_VIT),
    (r"(vit\.)?pooler\..+", r"classifier\..+"), _HALF,
  ),
  Layout(
    "BioViL", "resnet", _under(r"encoder\.encoder\.", RESNET) + BIOVIL_PROJECTOR,
    (
      r"encoder\.encoder\.fc\..+", r"classifier\..+",
      # BioViL-T's second image; its projector is behind both.
      r"encoder\.(backbone_to_vit|vit_pooler)\..+", r"encoder\.missing_previous_emb",
    ), _PLAIN,
  ),
  Layout(
    "GLoRIA", "resnet", _under(r"gloria\.img_encoder\.model\.", RESNET),
    (r"gloria\.text_encoder\..+", *_GLORIA_HEADS), _HALF,
  ),
  *(
    Layout(
      f"{project} {name}", encoder, _under(rf"img_encoder{end}\.model\.", rows),
      (rf"text_encoder{end}\..+", rf"img_encoder{end}\.model\.head\..+", *heads), _HALF,
    )
    for project, end, heads in (("MGCA", "_q", _MGCA_HEADS), ("ConVIRT", "", _CONVIRT_HEADS))
    for name, encoder, rows in (("ResNet", "resnet", RESNET), ("ViT", "vit", VIT))
  ),
  Layout(
    "ConVIRT-pytorch", "resnet", _under(r"res_features\.", NUMBERED_RESNET),
    (r"bert_model\..+", *_NUMBERED_HEADS),
  ),
  *(
    Layout(
      f"plan_jax {name}", encoder, _ours("image_encoder", first),
      (r"text_encoder\..+", *_OUR_HEADS),
    )
    for name, encoder, first in (
      ("ResNet", "resnet", "stem"), ("ViT", "vit", "patch_embedding")
    )
  ),
)  # fmt: skip

TEXT_LAYOUTS = (
  Layout(
    "BERT", "bert", _under(r"(?:bert\.)?", BERT) + CXR_BERT_PROJECTOR,
    (*(rf"(bert\.)?{name}" for name in _NOT_BERT), r"cls\..+"),
  ),
  *(
    Layout(
      name, "bert", _under(rf"{prefix}\.", BERT),
      (*(rf"{prefix}\.{pattern}" for pattern in _NOT_BERT), rf"{images}\..+", *heads),
      zeros=("type_embedding",) if name in ("MGCA", "ConVIRT") else (),  # their BERT is BLIP's
    )
    for name, prefix, images, heads in (
      ("GLoRIA", r"gloria\.text_encoder\.model", r"gloria\.img_encoder", _GLORIA_HEADS),
      ("MGCA", r"text_encoder_q\.model", "img_encoder_q", _MGCA_HEADS),
      ("ConVIRT", r"text_encoder\.model", "img_encoder", _CONVIRT_HEADS),
      ("ConVIRT-pytorch", "bert_model", "res_features", _NUMBERED_HEADS),
    )
  ),
  Layout(
    "plan_jax", "bert", _ours("text_encoder", "token_embedding"),
    (r"image_encoder\..+", *_OUR_HEADS),
  ),
)  # fmt: skip


def _mgca_head(module: str, path: str, kind: str) -> tuple[Row, ...]:
  """Dense layer, batch norm, ReLU, dense layer, batch norm."""
  return (
    Row(rf"{module}\.head\.0", f"{path}/hidden", kind),
    Row(rf"{module}\.head\.1", f"{path}/hidden_norm", "batch_norm"),
    Row(rf"{module}\.head\.3", f"{path}/out", kind),
    Row(rf"{module}\.head\.4", f"{path}/out_norm", "batch_norm"),
  )


def _mgca(name: str, trunk: tuple[Row, ...]) -> Layout:
  return Layout(
    f"MGCA {name}", f"mgca_{name.lower()}",
    _into("image_encoder", _under(r"img_encoder_q\.model\.", trunk))
    + _mgca_head(r"img_encoder_q\.global_embed", "image_head", "dense")
    + _mgca_head(r"img_encoder_q\.local_embed", "pixel_head", "convolution_1d")
    + _into("text_encoder", _under(r"text_encoder_q\.model\.", BERT))
    + _mgca_head(r"text_encoder_q\.global_embed", "report_head", "dense")
    + _mgca_head(r"text_encoder_q\.local_embed", "word_head", "convolution_1d"),
    (
      *(rf"text_encoder_q\.model\.{pattern}" for pattern in _NOT_BERT),
      r"prototype_layer\..+", r"(patch|word)_local_atten_layer\..+",
    ),
    zeros=("text_encoder/type_embedding",),
  )  # fmt: skip


_BIOVIL_TRUNK = _into("image_encoder", _under(r"encoder\.encoder\.", RESNET))
_BIOVIL_ASIDE = (r"encoder\.encoder\.fc\..+", r"classifier\..+")

# Whole models, heads and all, by the name of the baseline; BioViL's texts are "cxr_bert", by itself.
BASELINE_LAYOUTS = {
  layout.encoder: layout
  for layout in (
    Layout(
      "GLoRIA", "gloria",
      _into("image_encoder", _under(r"gloria\.img_encoder\.model\.", RESNET))
      + (
        Row(r"gloria\.img_encoder\.global_embedder", "image_head", "dense"),
        Row(r"gloria\.img_encoder\.local_embedder", "pixel_head", "convolution"),
      )
      + _into("text_encoder", _under(r"gloria\.text_encoder\.model\.", BERT)),
      tuple(rf"gloria\.text_encoder\.model\.{pattern}" for pattern in _NOT_BERT),
    ),
    _mgca("ResNet", RESNET),
    _mgca("ViT", VIT),
    # The pooler compares with an earlier image, and is not asked where there is none.
    Layout(
      "BioViL-T", "biovil_t",
      (
        Row(r"encoder\.backbone_to_vit", "reduced", "convolution"),
        Row(r"encoder\.missing_previous_emb", "no_previous", "class_token"),
        *_BIOVIL_TRUNK, *BIOVIL_PROJECTOR,
      ),
      (*_BIOVIL_ASIDE, r"encoder\.vit_pooler\..+"),
    ),
    Layout("BioViL", "biovil", _BIOVIL_TRUNK + BIOVIL_PROJECTOR, _BIOVIL_ASIDE),
    Layout(
      "CXR-BERT", "cxr_bert",
      _into("text_encoder", _under(r"bert\.", BERT) + CXR_BERT_PROJECTOR),
      (*(rf"bert\.{name}" for name in _NOT_BERT), r"cls\..+"),
    ),
  )
}  # fmt: skip
