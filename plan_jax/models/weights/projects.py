"""Layouts of one encoder of other projects' checkpoints: ResNets, ViTs and BERTs."""

from plan_jax.models.weights.layouts import Layout, Row, into, under

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5,) * 3, (0.5,) * 3)
_PLAIN = ((0.0,) * 3, (1.0,) * 3)


# --- encoders ---------------------------------------------------------------------------------


def _resnet(stem: str, norm: str, block: str, stage: str) -> tuple[Row, ...]:
  """Lists torchvision's ResNet; `block` has the groups stage and block, `stage` is ours."""
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
GLORIA_RESNET = under(r"gloria\.img_encoder\.model\.", RESNET)
BIOVIL_RESNET = under(r"encoder\.encoder\.", RESNET)
# The same modules, named by their number in a Sequential.
NUMBERED_RESNET = under(r"res_features\.", _resnet("0", "1", r"(\d)\.(\d+)", r"\1-3"))

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


def _hf_attention(layer: str) -> tuple[Row, ...]:
  return (
    Row(rf"{layer}\.attention\.attention\.(query|key|value)", r"block\1+1/\2", "dense"),
    Row(rf"{layer}\.attention\.output\.dense", r"block\1+1/attention_out", "dense"),
  )


_HF_LAYER = r"encoder\.layer\.(\d+)"
HF_VIT = (
  Row(r"embeddings\.patch_embeddings\.projection", "patch_embedding", "patches"),
  Row(r"embeddings\.cls_token", "class_token", "class_token"),
  Row(r"embeddings\.position_embeddings", "", "positions"),
  Row(rf"{_HF_LAYER}\.layernorm_before", r"block\1+1/attention_norm", "layer_norm"),
  *_hf_attention(_HF_LAYER),
  Row(rf"{_HF_LAYER}\.layernorm_after", r"block\1+1/mlp_norm", "layer_norm"),
  Row(rf"{_HF_LAYER}\.intermediate\.dense", r"block\1+1/mlp_in", "dense"),
  Row(rf"{_HF_LAYER}\.output\.dense", r"block\1+1/mlp_out", "dense"),
  Row("layernorm", "norm", "layer_norm"),
)

# As timm and its authors have it; a row of its own comes first, by which the layout is known.
DINOV2 = (
  Row(r"blocks\.(\d+)\.ls1\.gamma", r"block\1+1/attention_scale", "array"),
  Row(r"blocks\.(\d+)\.ls2\.gamma", r"block\1+1/mlp_scale", "array"),
  Row(r"blocks\.(\d+)\.mlp\.w12", r"block\1+1", "gate_and_in"),
  Row(r"blocks\.(\d+)\.mlp\.w3", r"block\1+1/mlp_out", "dense"),
  *VIT,
)
DINOV2_REGISTERS = (Row(r"reg_token|register_tokens", "registers", "registers"), *DINOV2)


def hf_dinov2_blocks(layer: str) -> tuple[Row, ...]:
  """Lists the blocks of Hugging Face's DINOv2; `layer` has their number in a group."""
  return (
    Row(rf"{layer}\.layer_scale1\.lambda1", r"block\1+1/attention_scale", "array"),
    Row(rf"{layer}\.layer_scale2\.lambda1", r"block\1+1/mlp_scale", "array"),
    Row(rf"{layer}\.norm1", r"block\1+1/attention_norm", "layer_norm"),
    Row(rf"{layer}\.norm2", r"block\1+1/mlp_norm", "layer_norm"),
    Row(rf"{layer}\.mlp\.fc1", r"block\1+1/mlp_in", "dense"),
    Row(rf"{layer}\.mlp\.(?:fc2|weights_out)", r"block\1+1/mlp_out", "dense"),
    Row(rf"{layer}\.mlp\.weights_in", r"block\1+1", "gate_and_in"),
    *_hf_attention(layer),
  )


HF_DINOV2 = (*hf_dinov2_blocks(_HF_LAYER), *HF_VIT)
HF_DINOV2_REGISTERS = (
  Row(r"embeddings\.register_tokens", "registers", "registers"),
  *HF_DINOV2,
)

_V3_LAYER = r"(?:model\.)?layer\.(\d+)"
HF_DINOV3 = (
  Row(rf"{_V3_LAYER}\.layer_scale1\.lambda1", r"block\1+1/attention_scale", "array"),
  Row(rf"{_V3_LAYER}\.layer_scale2\.lambda1", r"block\1+1/mlp_scale", "array"),
  Row(r"embeddings\.patch_embeddings", "patch_embedding", "patches"),
  Row(r"embeddings\.cls_token", "class_token", "class_token"),
  Row(r"embeddings\.register_tokens", "registers", "registers"),
  Row(rf"{_V3_LAYER}\.norm1", r"block\1+1/attention_norm", "layer_norm"),
  Row(rf"{_V3_LAYER}\.norm2", r"block\1+1/mlp_norm", "layer_norm"),
  Row(rf"{_V3_LAYER}\.attention\.q_proj", r"block\1+1/query", "dense"),
  Row(rf"{_V3_LAYER}\.attention\.k_proj", r"block\1+1/key", "dense"),
  Row(rf"{_V3_LAYER}\.attention\.v_proj", r"block\1+1/value", "dense"),
  Row(rf"{_V3_LAYER}\.attention\.o_proj", r"block\1+1/attention_out", "dense"),
  Row(rf"{_V3_LAYER}\.mlp\.up_proj", r"block\1+1/mlp_in", "dense"),
  Row(rf"{_V3_LAYER}\.mlp\.gate_proj", r"block\1+1/mlp_gate", "dense"),
  Row(rf"{_V3_LAYER}\.mlp\.down_proj", r"block\1+1/mlp_out", "dense"),
  Row("norm", "norm", "layer_norm"),
)

_CLIP_LAYER = r"encoder\.layers\.(\d+)"
CLIP_BLOCKS = (
  Row(rf"{_CLIP_LAYER}\.layer_norm1", r"block\1+1/attention_norm", "layer_norm"),
  Row(rf"{_CLIP_LAYER}\.layer_norm2", r"block\1+1/mlp_norm", "layer_norm"),
  Row(rf"{_CLIP_LAYER}\.self_attn\.q_proj", r"block\1+1/query", "dense"),
  Row(rf"{_CLIP_LAYER}\.self_attn\.k_proj", r"block\1+1/key", "dense"),
  Row(rf"{_CLIP_LAYER}\.self_attn\.v_proj", r"block\1+1/value", "dense"),
  Row(rf"{_CLIP_LAYER}\.self_attn\.out_proj", r"block\1+1/attention_out", "dense"),
  Row(rf"{_CLIP_LAYER}\.mlp\.fc1", r"block\1+1/mlp_in", "dense"),
  Row(rf"{_CLIP_LAYER}\.mlp\.fc2", r"block\1+1/mlp_out", "dense"),
)
_CLIP_TRUNK = (
  Row(r"embeddings\.patch_embedding", "patch_embedding", "patches"),
  *CLIP_BLOCKS,
  Row("post_layernorm", "norm", "layer_norm"),
)
CLIP_VISION = (
  Row("pre_layrnorm", "first_norm", "layer_norm"),  # spelt so by its authors
  Row(r"embeddings\.class_embedding", "class_token", "class_token"),
  Row(r"embeddings\.position_embedding", "", "position_table"),
  *_CLIP_TRUNK,
)
SIGLIP_POOLING = (
  Row(r"head\.probe", "probe", "class_token"),
  Row(r"head\.attention", "", "in_proj"),
  Row(r"head\.attention\.out_proj", "attention_out", "dense"),
  Row(r"head\.layernorm", "mlp_norm", "layer_norm"),
  Row(r"head\.mlp\.fc1", "mlp_in", "dense"),
  Row(r"head\.mlp\.fc2", "mlp_out", "dense"),
)
SIGLIP_TRUNK = (Row(r"embeddings\.position_embedding", "", "patch_positions"), *_CLIP_TRUNK)

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
# BLIP's BERT, which MGCA took over, has no token types, and takes positions third: MGCA calls it
# with types there, all 0, so that every token has the position 0, in training too. A file that has
# types is of another BERT, with positions of its own.
BLIP_BERT = (
  BERT[0],
  Row(r"embeddings\.position_embeddings", "position_embedding", "first_row_only"),
  *BERT[3:],
)
_MP_ATTENTION = rf"{_HF_LAYER}\.attention\.attn"
MPNET = (
  Row(r"encoder\.relative_attention_bias", "position_bias", "embedding"),
  Row(r"embeddings\.word_embeddings", "token_embedding", "embedding"),
  Row(r"embeddings\.position_embeddings", "position_embedding", "from_third"),
  Row(r"embeddings\.LayerNorm", "embedding_norm", "layer_norm"),
  Row(rf"{_MP_ATTENTION}\.q", r"layer\1+1/query", "dense"),
  Row(rf"{_MP_ATTENTION}\.k", r"layer\1+1/key", "dense"),
  Row(rf"{_MP_ATTENTION}\.v", r"layer\1+1/value", "dense"),
  Row(rf"{_MP_ATTENTION}\.o", r"layer\1+1/attention_out", "dense"),
  Row(rf"{_HF_LAYER}\.attention\.LayerNorm", r"layer\1+1/attention_norm", "layer_norm"),
  Row(rf"{_HF_LAYER}\.intermediate\.dense", r"layer\1+1/mlp_in", "dense"),
  Row(rf"{_HF_LAYER}\.output\.dense", r"layer\1+1/mlp_out", "dense"),
  Row(rf"{_HF_LAYER}\.output\.LayerNorm", r"layer\1+1/mlp_norm", "layer_norm"),
)
CXR_BERT_PROJECTOR = (
  Row(r"cls_projection_head\.dense_to_hidden", "projector_in", "dense"),
  Row(r"cls_projection_head\.LayerNorm", "projector_norm", "layer_norm"),
  Row(r"cls_projection_head\.dense_to_output", "projector_out", "dense"),
)


def not_bert(prefix: str) -> tuple[str, ...]:
  """Lists a buffer, a head behind [CLS], and attention to another sequence (unused by MGCA)."""
  names = (r"embeddings\.position_ids", r"pooler\..+", rf"{_HF_LAYER}\.crossattention\..+")
  return tuple(prefix + name for name in names)


def _ours(encoder: str, first: str) -> tuple[Row, ...]:
  return (
    Row(rf"{encoder}\.({first})", r"\1", "ours"),
    Row(rf"{encoder}\.(\w+)\.(\w+)", r"\1/\2", "ours"),
    Row(rf"{encoder}\.(\w+)", r"\1", "ours"),
    Row(rf"{encoder}\.(\w+_(?:token|position|embedding)|registers)", r"\1", "array"),
    Row(rf"{encoder}\.(\w+)\.(\w+_scale)", r"\1/\2", "array"),
  )


# --- one encoder of a checkpoint --------------------------------------------------------------

_OUR_HEADS = (
  r"(pixel|film|word|report|significance|attention)_(norm|head)\..+",
  r"image_adapter\..+",
  "log_scale",
)
_GLORIA_HEADS = (r"gloria\.img_encoder\.(global|local)_embedder\..+",)
MGCA_ATTENTION = (r"prototype_layer\..+", r"(patch|word)_local_atten_layer\..+")
_MGCA_HEADS = (r"(img|text)_encoder_q\.(global|local)_embed\..+", *MGCA_ATTENTION)
_CONVIRT_HEADS = (r"(img|text)_encoder\.(global|local)_embed\..+",)
_NUMBERED_HEADS = (r"(res|bert)_l[12]\..+",)
BIOVIL_HEADS = (r"encoder\.encoder\.fc\..+", r"classifier\..+")


def _of_mgca(name: str, rows: tuple[Row, ...], end: str, heads: tuple[str, ...]) -> Layout:
  """Lists the image encoder of MGCA, or of ConVIRT in MGCA's code."""
  aside = (rf"text_encoder{end}\..+", rf"img_encoder{end}\.model\.head\..+", *heads)
  rows = under(rf"img_encoder{end}\.model\.", rows)
  return Layout(name, name.split()[1].lower(), rows, aside, _HALF)


_HUB_RESNET = under(r"(?:resnet\.)?", HF_RESNET)
_HUB_VIT = under(r"(?:vit\.)?", HF_VIT)
# With BioViL-T's second image; its projector is behind both.
_SECOND_IMAGE = (r"encoder\.(backbone_to_vit|vit_pooler)\..+", r"encoder\.missing_previous_emb")
_BIOVIL_ASIDE = (*BIOVIL_HEADS, *_SECOND_IMAGE)
_MASK_TOKEN = r"(?:.+\.)?mask_token"
_CLIP_ASIDE = (
  r"text_model\..+",
  r"(text|visual)_projection\..+",
  r"logit_(scale|bias)",
  r".+\.position_ids",
)


def _dino(name: str, variant: str, rows: tuple[Row, ...], *aside: str, **more) -> Layout:
  return Layout(name, "vit", rows, (_MASK_TOKEN, *aside), _IMAGENET, variant=variant, **more)


_HUB_HEAD = r"classifier\..+"
# The first that a file's names fit: the special ones come before the plain.
_SELF_SUPERVISED = (
  _dino("Hugging Face DINOv3", "dinov3", HF_DINOV3, zeros=(r"block\d+/key/bias",)),
  _dino("DINOv2 with registers", "dinov2_registers", DINOV2_REGISTERS, r"head\..+"),
  _dino("DINOv2", "dinov2", DINOV2, r"head\..+"),
  _dino(
    "Hugging Face DINOv2 with registers",
    "dinov2_registers",
    under(r"(?:dinov2_with_registers\.)?", HF_DINOV2_REGISTERS),
    _HUB_HEAD,
  ),
  _dino("Hugging Face DINOv2", "dinov2", under(r"(?:dinov2\.)?", HF_DINOV2), _HUB_HEAD),
)
_CLIP_NORMALISATION = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_LANGUAGE_SUPERVISED = (
  Layout(
    "Hugging Face CLIP",
    "vit",
    under(r"(?:vision_model\.)?", CLIP_VISION),
    _CLIP_ASIDE,
    _CLIP_NORMALISATION,
    zeros=("patch_embedding/bias",),
    variant="clip",
  ),
  Layout(
    "Hugging Face SigLIP",
    "vit",
    under(r"(?:vision_model\.)?", into("pooling", SIGLIP_POOLING) + SIGLIP_TRUNK),
    _CLIP_ASIDE,
    _HALF,
    variant="siglip",
  ),
)
_NOT_OUR_IMAGE = (r"text_encoder\..+", *_OUR_HEADS)
IMAGE_LAYOUTS = (
  *_SELF_SUPERVISED,
  *_LANGUAGE_SUPERVISED,
  Layout("torchvision ResNet", "resnet", RESNET, (r"fc\..+",), _IMAGENET),
  Layout("timm ViT", "vit", VIT, (r"(head|pre_logits)\..+",)),
  Layout("Hugging Face ResNet", "resnet", _HUB_RESNET, (r"classifier\..+",), _IMAGENET),
  Layout("Hugging Face ViT", "vit", _HUB_VIT, (r"(vit\.)?pooler\..+", r"classifier\..+"), _HALF),
  Layout("BioViL", "resnet", BIOVIL_RESNET + BIOVIL_PROJECTOR, _BIOVIL_ASIDE, _PLAIN),
  Layout("GLoRIA", "resnet", GLORIA_RESNET, (r"gloria\.text_encoder\..+", *_GLORIA_HEADS), _HALF),
  _of_mgca("MGCA ResNet", RESNET, "_q", _MGCA_HEADS),
  _of_mgca("MGCA ViT", VIT, "_q", _MGCA_HEADS),
  _of_mgca("ConVIRT ResNet", RESNET, "", _CONVIRT_HEADS),
  _of_mgca("ConVIRT ViT", VIT, "", _CONVIRT_HEADS),
  Layout("ConVIRT-pytorch", "resnet", NUMBERED_RESNET, (r"bert_model\..+", *_NUMBERED_HEADS)),
  Layout("plan_jax ResNet", "resnet", _ours("image_encoder", "stem"), _NOT_OUR_IMAGE),
  Layout(
    "plan_jax ViT", "vit", _ours("image_encoder", "patch_embedding"), _NOT_OUR_IMAGE, variant=""
  ),
)


def _bert_of(
  name: str, prefix: str, image: str, heads: tuple[str, ...], rows: tuple[Row, ...] = BERT
) -> Layout:
  """Lists the text encoder of a joint checkpoint."""
  aside = (*not_bert(rf"{prefix}\."), rf"{image}\..+", *heads)
  zeros = ("type_embedding",) if rows is BLIP_BERT else ()
  return Layout(name, "bert", under(rf"{prefix}\.", rows), aside, zeros=zeros)


_NOT_OUR_TEXT = (r"image_encoder\..+", *_OUR_HEADS)
TEXT_LAYOUTS = (
  Layout(
    "MPNet",
    "mpnet",
    under(r"(?:mpnet\.)?", MPNET),
    (*not_bert(r"(mpnet\.)?"), r"lm_head\..+"),
  ),
  Layout(
    "BERT",
    "bert",
    under(r"(?:bert\.)?", BERT) + CXR_BERT_PROJECTOR,
    (*not_bert(r"(bert\.)?"), r"cls\..+"),
  ),
  _bert_of("GLoRIA", r"gloria\.text_encoder\.model", r"gloria\.img_encoder", _GLORIA_HEADS),
  _bert_of("MGCA", r"text_encoder_q\.model", "img_encoder_q", _MGCA_HEADS, BLIP_BERT),
  _bert_of("ConVIRT", r"text_encoder\.model", "img_encoder", _CONVIRT_HEADS, BLIP_BERT),
  _bert_of("ConVIRT-pytorch", "bert_model", "res_features", _NUMBERED_HEADS),
  Layout("plan_jax MPNet", "mpnet", _ours("text_encoder", "position_bias"), _NOT_OUR_TEXT),
  Layout("plan_jax", "bert", _ours("text_encoder", "token_embedding"), _NOT_OUR_TEXT),
)
