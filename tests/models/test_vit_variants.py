"""ViTs of the field: equal to transformers' classes with the same weights."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from foreign_weights import COLOUR, assert_same_images, image, saved, torch_image
from plan_jax.models.vit import ViT
from plan_jax.models.weights.load import load_image

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from torch_reference import DinoV2, randomise  # noqa: E402

SIZES = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=32)
SIZES |= dict(patch_size=8, attn_implementation="eager")
VIT = dict(embed_dim=24, depth=2, num_heads=3, mlp_dim=40, patch_px=8, grid=4)
MLP = dict(intermediate_size=40)
DINO = dict(mlp_ratio=2)


def model_of(name, **more):
  config = getattr(transformers, f"{name}Config")(**SIZES | more)
  return randomise(getattr(transformers, f"{name}Model")(config))


CASES = {
  "dinov2": ("Dinov2", DINO, dict(mlp_dim=48)),
  "dinov2 gated": ("Dinov2", dict(mlp_ratio=2, use_swiglu_ffn=True), dict(mlp_dim=32, gated=True)),
  "dinov2_registers": ("Dinov2WithRegisters", DINO, dict(registers=4, mlp_dim=48)),
  "dinov3": ("DINOv3ViT", MLP | dict(num_register_tokens=3), dict(registers=3)),
  "dinov3 gated": (
    "DINOv3ViT",
    MLP | dict(use_gated_mlp=True, num_register_tokens=1, hidden_act="silu"),
    dict(gated=True, registers=1),
  ),
  "clip": ("CLIPVision", MLP, {}),
  "siglip": ("SiglipVision", MLP, {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(32, 32), (48, 48), (40, 24)])
def test_the_encoder_is_that_of_transformers(tmp_path, case, shape):
  """On the grid of its positions and on others; patches, and the class token or the pooled."""
  name, settings, ours = CASES[case]
  variant = case.split()[0]
  model = model_of(name, **settings)
  model.save_pretrained(tmp_path)
  encoder = ViT(**VIT | ours, **COLOUR, variant=variant)
  loaded = load_image(tmp_path, encoder)
  x = image(*shape)
  more = {"interpolate_pos_encoding": True} if variant in ("clip", "siglip") else {}
  with torch.no_grad():
    out = model(torch_image(x), **more)
    states = out.last_hidden_state
    if variant == "clip":  # transformers norms the class token alone
      states = getattr(model, "vision_model", model).post_layernorm(states)
  first = encoder.registers + (variant != "siglip")
  want = states[:, first:].numpy().reshape(2, shape[0] // 8, shape[1] // 8, 24)
  grid = encoder.apply({"params": loaded.params}, x)
  np.testing.assert_allclose(grid, want, atol=1e-4 * np.abs(want).max())
  assert np.abs(want).std() > 1e-2
  if variant != "siglip":
    _, pooled = encoder.apply({"params": loaded.params}, x, class_too=True)
    np.testing.assert_allclose(pooled, out.pooler_output.numpy(), atol=1e-4 * np.abs(want).max())
  assert not [n for n in loaded.provenance["left_aside"] if "layer" in n and "head" not in n]
  assert json.loads((tmp_path / "config.json").read_text())["patch_size"] == 8


@pytest.mark.parametrize("case", CASES)
def test_our_export_of_it_is_weights_too(tmp_path, case):
  encoder = ViT(**VIT | CASES[case][2], **COLOUR, variant=case.split()[0])
  params = encoder.init(jax.random.key(0), image(16, 16))["params"]
  named = {f"image_encoder.{name}": x for name, x in flatten_dict(params, sep=".").items()}
  save_file(jax.device_get(named), tmp_path / "model.safetensors")
  loaded = load_image(tmp_path, encoder)
  assert loaded.provenance["source"].startswith("plan_jax ViT")
  jax.tree.map(np.testing.assert_array_equal, loaded.params, params)


@pytest.mark.parametrize("timm", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_under_the_names_of_its_authors_and_of_timm(tmp_path, registers, gated, timm):
  model = randomise(DinoV2(*VIT.values(), registers=registers, gated=gated, timm=timm))
  path = saved(tmp_path / "dinov2.pth", model.state_dict())
  variant = "dinov2_registers" if registers else "dinov2"
  encoder = ViT(**VIT, **COLOUR, variant=variant, registers=registers, gated=gated)
  loaded = assert_same_images(path, encoder, model, image(32, 32))
  assert loaded.provenance["left_aside"] == ([] if timm else ["mask_token"])
  if registers:  # without them there are several ways to resample positions
    assert_same_images(path, encoder, model, image(48, 40))


@pytest.mark.parametrize("layers", [(1,), (3, 1)])
def test_features_of_earlier_blocks(tmp_path, layers):
  """Hidden states of transformers behind the last norm; later blocks are neither run nor read."""
  model = model_of("Dinov2", mlp_ratio=2, num_hidden_layers=4)
  model.save_pretrained(tmp_path)
  encoder = ViT(**VIT | dict(depth=4, mlp_dim=48), **COLOUR, variant="dinov2", layers=layers)
  loaded = load_image(tmp_path, encoder)
  x = image(48, 32)
  with torch.no_grad():
    states = model(torch_image(x), output_hidden_states=True).hidden_states
    want = torch.cat([model.layernorm(states[number])[:, 1:] for number in layers], -1).numpy()
  grid = encoder.apply({"params": loaded.params}, x)
  assert grid.shape == (2, 6, 4, 24 * len(layers))
  np.testing.assert_allclose(grid.reshape(2, 24, -1), want, atol=1e-4 * np.abs(want).max())
  blocks = {name for name in loaded.params if name.startswith("block")}
  assert blocks == {f"block{number}" for number in range(1, max(layers) + 1)}
  left = {name.split(".")[2] for name in loaded.provenance["left_aside"] if "layer." in name}
  assert left == {str(number) for number in range(max(layers), 4)}


def test_patches_that_are_dark_have_no_features():
  encoder = ViT(**VIT, **COLOUR, variant="dinov2")
  x = np.full((2, 32, 32, 1), 0.5, np.float32)
  x[0, 8:16, 16:24] = 0.1
  x[1, :8, :8] = 0.3  # with one bright point: the mean counts
  x[1, 8:16, :8] = 0.0
  x[1, 8, 0] = 1.0
  params = encoder.init(jax.random.key(0), x)
  plain = encoder.apply(params, x)
  got = encoder.clone(dark_below_fraction=0.2).apply(params, x)
  dark = np.zeros((2, 4, 4), bool)
  dark[0, 1, 2] = dark[1, 1, 0] = True
  assert (np.asarray(got)[dark] == 0).all()
  np.testing.assert_array_equal(np.asarray(got)[~dark], np.asarray(plain)[~dark])
