"""Layouts of other projects' whole models, heads and all."""

from plan_jax.models.weights.layouts import Layout, Row, into, under
from plan_jax.models.weights.projects import (
  BERT,
  BIOVIL_HEADS,
  BIOVIL_PROJECTOR,
  BIOVIL_RESNET,
  BLIP_BERT,
  CLIP_BLOCKS,
  CLIP_VISION,
  CXR_BERT_PROJECTOR,
  HF_DINOV2,
  MGCA_ATTENTION,
  MPNET,
  RESNET,
  SIGLIP_POOLING,
  SIGLIP_TRUNK,
  VIT,
  hf_dinov2_blocks,
  not_bert,
)


def _mgca_head(module: str, path: str, kind: str) -> tuple[Row, ...]:
  """Lists a dense layer, batch norm, ReLU, dense layer, batch norm."""
  return (
    Row(rf"{module}\.head\.0", f"{path}/hidden", kind),
    Row(rf"{module}\.head\.1", f"{path}/hidden_norm", "batch_norm"),
    Row(rf"{module}\.head\.3", f"{path}/out", kind),
    Row(rf"{module}\.head\.4", f"{path}/out_norm", "batch_norm"),
  )


def _mgca(name: str, trunk: tuple[Row, ...]) -> Layout:
  rows = (
    *into("image_encoder", under(r"img_encoder_q\.model\.", trunk)),
    *_mgca_head(r"img_encoder_q\.global_embed", "image_head", "dense"),
    *_mgca_head(r"img_encoder_q\.local_embed", "pixel_head", "convolution_1d"),
    *into("text_encoder", under(r"text_encoder_q\.model\.", BLIP_BERT)),
    *_mgca_head(r"text_encoder_q\.global_embed", "report_head", "dense"),
    *_mgca_head(r"text_encoder_q\.local_embed", "word_head", "convolution_1d"),
  )
  aside = (*not_bert(r"text_encoder_q\.model\."), *MGCA_ATTENTION)
  zeros = ("text_encoder/type_embedding",)
  return Layout(f"MGCA {name}", f"mgca_{name.lower()}", rows, aside, zeros=zeros)


def _gloria(name: str, *aside: str) -> Layout:
  """Lists GLoRIA, or what goes by its names under another."""
  start = name.lower()
  rows = (
    *into("image_encoder", under(rf"{start}\.img_encoder\.model\.", RESNET)),
    Row(rf"{start}\.img_encoder\.global_embedder", "image_head", "dense"),
    Row(rf"{start}\.img_encoder\.local_embedder", "pixel_head", "convolution"),
    *into("text_encoder", under(rf"{start}\.text_encoder\.model\.", BERT)),
  )
  return Layout(name, start, rows, (*not_bert(rf"{start}\.text_encoder\.model\."), *aside))


_BIOVIL = into("image_encoder", BIOVIL_RESNET) + BIOVIL_PROJECTOR
_BIOVIL_T = (
  Row(r"encoder\.backbone_to_vit", "reduced", "convolution"),
  Row(r"encoder\.missing_previous_emb", "no_previous", "class_token"),
  *_BIOVIL,
)

_HF_CLIP_TEXT = (
  Row(r"embeddings\.token_embedding", "token_embedding", "embedding"),
  Row(r"embeddings\.position_embedding", "position_embedding", "embedding"),
  *CLIP_BLOCKS,
  Row("final_layer_norm", "norm", "layer_norm"),
)
_HF_CLIP = (
  *into("image_encoder", under(r"vision_model\.", CLIP_VISION)),
  Row("visual_projection", "image_head", "dense"),
  *into("text_encoder", under(r"text_model\.", _HF_CLIP_TEXT)),
  Row("text_projection", "text_head", "dense"),
  Row("logit_scale", "log_scale", "scalar"),
)
_OPENAI_LAYER = r"transformer\.resblocks\.(\d+)"
_OPENAI_BLOCKS = (
  Row(rf"{_OPENAI_LAYER}\.ln_1", r"block\1+1/attention_norm", "layer_norm"),
  Row(rf"{_OPENAI_LAYER}\.attn", r"block\1+1", "in_proj"),
  Row(rf"{_OPENAI_LAYER}\.attn\.out_proj", r"block\1+1/attention_out", "dense"),
  Row(rf"{_OPENAI_LAYER}\.ln_2", r"block\1+1/mlp_norm", "layer_norm"),
  Row(rf"{_OPENAI_LAYER}\.mlp\.c_fc", r"block\1+1/mlp_in", "dense"),
  Row(rf"{_OPENAI_LAYER}\.mlp\.c_proj", r"block\1+1/mlp_out", "dense"),
)
_OPENAI_VISION = (
  Row("ln_pre", "first_norm", "layer_norm"),
  Row("class_embedding", "class_token", "class_token"),
  Row("positional_embedding", "", "positions"),
  Row("conv1", "patch_embedding", "patches"),
  *_OPENAI_BLOCKS,
  Row("ln_post", "norm", "layer_norm"),
)
_OPENAI_TEXT = (
  Row("token_embedding", "token_embedding", "embedding"),
  Row("positional_embedding", "position_embedding/embedding", "array"),
  *_OPENAI_BLOCKS,
  Row("ln_final", "norm", "layer_norm"),
)
_OPENAI_CLIP = (
  *into("image_encoder", under(r"visual\.", _OPENAI_VISION)),
  Row(r"visual\.proj", "image_head/kernel", "array"),
  *into("text_encoder", _OPENAI_TEXT),
  Row("text_projection", "text_head/kernel", "array"),
  Row("logit_scale", "log_scale", "scalar"),
)
_NO_PATCH_BIAS = ("image_encoder/patch_embedding/bias",)
# Buffers, and what OpenAI's own files tell of sizes.
_CLIP_ASIDE = (r"(text|vision)_model\.embeddings\.position_ids",)
_OPENAI_ASIDE = ("input_resolution", "context_length", "vocab_size")

_SIGLIP = (
  *into("pooling", under(r"vision_model\.", SIGLIP_POOLING)),
  *into("image_encoder", under(r"vision_model\.", SIGLIP_TRUNK)),
  *into("text_encoder", under(r"text_model\.", _HF_CLIP_TEXT)),
  Row(r"text_model\.head", "text_head", "dense"),
  Row("logit_scale", "log_scale", "scalar"),
  Row("logit_bias", "logit_bias", "scalar"),
)
_BIOMEDCLIP = (
  *into("image_encoder", under(r"visual\.trunk\.", VIT)),
  Row(r"visual\.head\.proj", "image_head", "dense"),
  *into("text_encoder", under(r"text\.transformer\.", BERT)),
  Row(r"text\.proj\.0", "text_in", "dense"),
  Row(r"text\.proj\.2", "text_out", "dense"),
  Row("logit_scale", "log_scale", "scalar"),
)
_CXR_BERT = into("text_encoder", under(r"bert\.", BERT) + CXR_BERT_PROJECTOR)

_RADZERO_LOSS = r"loss_fns\.(?:RadZeroLoss|KeyPhraseAlignmentLoss)"  # the latter as released
_RADZERO = (
  Row(rf"{_RADZERO_LOSS}\.layer_norm", "token_norm", "layer_norm"),
  Row(rf"{_RADZERO_LOSS}\.loss_temperature", "log_scale", "negative_scalar"),
  *into("image_encoder", under(r"vision_model\.", HF_DINOV2)),
  *into("align", hf_dinov2_blocks(r"align_transformer\.transformer_layers\.layer\.(\d+)")),
  *into("text_encoder", under(r"text_model\.", MPNET)),
)
_RADZERO_ASIDE = (r"vision_model\.embeddings\.mask_token", *not_bert(r"text_model\."))

_CONNS = (
  Row("vision_proj", "image_head", "dense"),
  Row("text_proj", "text_head", "dense"),
  Row(r"criterion\.loss_temperature", "log_scale", "negative_scalar"),
  *into("image_encoder", under(r"vision_encoder\.rad_dino_model\.", HF_DINOV2)),
  *into("align", hf_dinov2_blocks(r"vision_encoder\.transformer_blocks\.layer\.(\d+)")),
  *into("text_encoder", under(r"text_encoder\.model\.bert\.", BERT)),
)
_CONNS_ASIDE = (
  r"vision_encoder\.rad_dino_model\.embeddings\.mask_token",
  *not_bert(r"text_encoder\.model\.bert\."),
  r"text_encoder\.model\.(cls|cls_projection_head)\..+",  # of CXR-BERT, not asked for
  r"criterion\.nli_model\..+",  # that finds hard negatives
)

_CARZERO_LAYER = r"fusion_module\.decoder\.layers\.(\d+)"
_CARZERO_DECODER = (
  Row(r"fusion_module\.decoder_norm", "decoder_norm", "layer_norm"),
  Row(rf"{_CARZERO_LAYER}\.norm2", r"decoder/block\1+1/attention_norm", "layer_norm"),
  Row(rf"{_CARZERO_LAYER}\.multihead_attn", r"decoder/block\1+1", "in_proj"),
  Row(rf"{_CARZERO_LAYER}\.multihead_attn\.out_proj", r"decoder/block\1+1/attention_out", "dense"),
  Row(rf"{_CARZERO_LAYER}\.norm3", r"decoder/block\1+1/mlp_norm", "layer_norm"),
  Row(rf"{_CARZERO_LAYER}\.linear1", r"decoder/block\1+1/mlp_in", "dense"),
  Row(rf"{_CARZERO_LAYER}\.linear2", r"decoder/block\1+1/mlp_out", "dense"),
  # Between the dense layers of the perceptron are ReLU and dropout.
  *(Row(rf"fusion_module\.mlp_head\.{3 * i}", f"decoder/head{i + 1}", "dense") for i in range(4)),
)
_CARZERO = under(
  r"CARZero\.",
  (
    *_CARZERO_DECODER,
    *into("image_encoder", under(r"img_encoder\.model\.", VIT)),
    *into("text_encoder", under(r"text_encoder\.model\.", BERT)),
  ),
)
_CARZERO_ASIDE = (
  # Attention of queries to each other, built and not called; the norm's second name; a scale.
  rf"CARZero\.{_CARZERO_LAYER}\.(self_attn\..+|norm1\..+)",
  r"CARZero\.fusion_module\.(decoder\.norm\..+|logit_scale)",
  *not_bert(r"CARZero\.text_encoder\.model\."),
)

# The text encoder of BioViL is a file of its own.
BASELINE_LAYOUTS = (
  _gloria("GLoRIA"),
  # Of words, by which it is trained and does not ground.
  _gloria("AFLoc", r"afloc\.img_encoder\.local(2|_f)_embedder\.weight"),
  _mgca("ResNet", RESNET),
  _mgca("ViT", VIT),
  # The pooler compares with an earlier image, and is not asked for without.
  Layout("BioViL-T", "biovil_t", _BIOVIL_T, (*BIOVIL_HEADS, r"encoder\.vit_pooler\..+")),
  Layout("BioViL", "biovil", _BIOVIL, BIOVIL_HEADS),
  Layout("CXR-BERT", "cxr_bert", _CXR_BERT, (*not_bert(r"bert\."), r"cls\..+")),
  Layout("OpenAI CLIP", "clip", _OPENAI_CLIP, _OPENAI_ASIDE, zeros=_NO_PATCH_BIAS),
  Layout("Hugging Face CLIP", "clip", _HF_CLIP, _CLIP_ASIDE, zeros=_NO_PATCH_BIAS),
  Layout("Hugging Face SigLIP", "siglip", _SIGLIP, _CLIP_ASIDE),
  Layout("RadZero", "radzero", _RADZERO, _RADZERO_ASIDE),
  Layout("CARZero", "carzero", _CARZERO, _CARZERO_ASIDE),
  Layout("CoNNS", "conns", _CONNS, _CONNS_ASIDE),
  Layout("BiomedCLIP", "biomedclip", _BIOMEDCLIP, not_bert(r"text\.transformer\.")),
)
