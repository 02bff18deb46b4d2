"""Settings of encoders from the JSON files of their folders."""

import json

import pytest

from plan_jax.models.weights.files import WeightsError
from plan_jax.models.weights.settings import image_settings, text_settings

BASE = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12)
BASE_VIT = {
  "image.name": "vit",
  "image.vit.embed_dim": 768,
  "image.vit.depth": 12,
  "image.vit.num_heads": 12,
  "image.vit.mlp_dim": 3072,
  "image.vit.registers": 0,
  "image.vit.gated": False,
}
DINO = BASE | dict(model_type="dinov2", image_size=518, patch_size=14, mlp_ratio=4)
RAD_DINO = {
  "crop_size": {"height": 518, "width": 518},
  "do_center_crop": True,
  "do_normalize": True,
  "do_rescale": True,
  "image_mean": [0.5307, 0.5307, 0.5307],
  "image_std": [0.2583, 0.2583, 0.2583],
  "rescale_factor": 0.00392156862745098,
  "size": {"shortest_edge": 518},
}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
HALF_PIXELS = {"image.mean": (0.5,) * 3, "image.std": (0.5,) * 3}


def folder(path, config, images=None, file="preprocessor_config.json"):
  (path / "config.json").write_text(json.dumps(config))
  if images is not None:
    (path / file).write_text(json.dumps(images))
  return path


def vit(variant, patch_px, grid, **more):
  own = {"image.vit.variant": variant, "image.vit.patch_px": patch_px, "image.vit.grid": grid}
  return BASE_VIT | own | more


CASES = {
  "RAD-DINO": (
    DINO | dict(use_swiglu_ffn=False),
    RAD_DINO,
    vit("dinov2", 14, 37, image_px=518) | {"image.mean": (0.5307,) * 3, "image.std": (0.2583,) * 3},
  ),
  "DINOv2-giant, cropped": (
    DINO
    | dict(hidden_size=1536, num_hidden_layers=40, num_attention_heads=24)
    | dict(use_swiglu_ffn=True),
    RAD_DINO | dict(crop_size={"height": 224, "width": 224}, size={"shortest_edge": 256}) | HALF,
    vit("dinov2", 14, 37, image_px=224)
    | HALF_PIXELS
    | {"image.vit.embed_dim": 1536, "image.vit.depth": 40, "image.vit.num_heads": 24}
    | {"image.vit.mlp_dim": 4096, "image.vit.gated": True},
  ),
  "with registers": (
    DINO | dict(model_type="dinov2_with_registers", num_register_tokens=4),
    None,
    vit("dinov2_registers", 14, 37) | {"image.vit.registers": 4},
  ),
  "DINOv3, without positions": (
    BASE
    | dict(model_type="dinov3_vit", intermediate_size=3072, num_register_tokens=4)
    | dict(patch_size=16, image_size=224, use_gated_mlp=False),
    HALF | dict(size={"height": 224, "width": 224}, do_center_crop=None, crop_size=None),
    BASE_VIT
    | HALF_PIXELS
    | {"image.vit.variant": "dinov3", "image.vit.patch_px": 16, "image.vit.registers": 4}
    | {"image_px": 224},
  ),
  "CLIP beside its text encoder": (
    dict(model_type="clip", vision_config=dict(BASE, patch_size=16), hidden_size=7),
    HALF | dict(do_center_crop=True, crop_size=224, size=256),
    vit("clip", 16, 14, image_px=224) | HALF_PIXELS,
  ),
  "SigLIP by its defaults": (
    dict(model_type="siglip", vision_config=dict(model_type="siglip_vision_model")),
    dict(HALF, size={"height": 224, "width": 224}, do_normalize=False),
    vit("siglip", 16, 14, image_px=224) | {"image.mean": (0.0,) * 3, "image.std": (1.0,) * 3},
  ),
  "a rest that is no patch": (
    BASE
    | dict(model_type="siglip_vision_model", image_size=384, patch_size=14)
    | dict(intermediate_size=3072),
    dict(size={"height": 384, "width": 384}),
    vit("siglip", 14, 27, image_px=378),
  ),
  "ViT": (
    BASE | dict(model_type="vit", intermediate_size=3072, image_size=224, patch_size=16),
    HALF | dict(size=224),
    vit("vit", 16, 14, image_px=224) | HALF_PIXELS,
  ),
  "ResNet": (
    dict(model_type="resnet", depths=[3, 4, 6, 3], layer_type="bottleneck", embedding_size=64),
    HALF | dict(size={"shortest_edge": 224}, crop_pct=0.875),
    HALF_PIXELS | {"image.name": "resnet", "image.depth": 50, "image.width": 1.0, "image_px": 224},
  ),
  "timm": (
    {
      "architecture": "x",
      "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3} | {"input_size": [3, 518, 518]},
    },
    None,
    HALF_PIXELS | {"image_px": 518},
  ),
  "plan_jax.export": (
    {
      "run": {
        "model": {"image_px": 96, "scale_max": 9.0, "text": {"depth": 3}}
        | {"image": {"name": "vit", "mean": [0.4], "norm": "batch", "vit": {"depth": 2}}}
      }
    },
    None,
    {"image_px": 96, "image.name": "vit", "image.mean": (0.4,), "image.vit.depth": 2},
  ),
  "another model": (dict(model_type="swin", hidden_size=7), None, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_an_image_encoder_s_settings(tmp_path, case):
  config, images, want = CASES[case]
  assert image_settings(folder(tmp_path, config, images)) == want


def test_pixels_in_the_file_of_both_encoders(tmp_path):
  both = {"image_processor": HALF | dict(size=224), "processor_class": "CLIPProcessor"}
  assert image_settings(folder(tmp_path, {}, both, "processor_config.json")) == (
    HALF_PIXELS | {"image_px": 224}
  )


@pytest.mark.parametrize(
  ("config", "images", "message"),
  [
    (DINO | {"hidden_size": "768"}, None, r"config\.json: hidden_size is '768', which cannot be"),
    (DINO | {"patch_size": 0}, None, r"config\.json: patch_size is 0"),
    (DINO | {"image_size": [224, 448]}, None, r"config\.json: image_size is \[224, 448\]"),
    (DINO | {"mlp_ratio": "4"}, None, r"config\.json: mlp_ratio is '4'"),
    (DINO, {"image_mean": [0.5, "x", 0.5]}, r"preprocessor_config\.json: mean is \[0\.5, 'x'"),
    (DINO, {"image_std": 0.5}, r"preprocessor_config\.json: std is 0\.5"),
    (DINO, {"size": {"height": "a"}}, r"preprocessor_config\.json: size is 'a'"),
    (DINO, {"rescale_factor": 1 / 127.5}, r"preprocessor_config\.json: rescale_factor is 0\.007"),
    (DINO, [1], r"preprocessor_config\.json holds a list"),
  ],
)
def test_entries_that_cannot_be(tmp_path, config, images, message):
  with pytest.raises(WeightsError, match=message):
    image_settings(folder(tmp_path, config, images))


def test_a_text_encoder_s_settings(tmp_path):
  config = BASE | dict(intermediate_size=3072, max_position_embeddings=512, vocab_size=9)
  assert text_settings(folder(tmp_path, config)) == {
    "text.embed_dim": 768,
    "text.depth": 12,
    "text.num_heads": 12,
    "text.mlp_dim": 3072,
    "text.max_position": 512,
  }
  assert text_settings(tmp_path / "model.safetensors") == {}
