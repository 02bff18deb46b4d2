import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from foreign_weights import COLOUR, VIT, assert_same_images, image, saved, torch_resnet, torch_vit
from plan_jax.models.resnet import ResNet
from plan_jax.models.vit import ViT, interpolate
from plan_jax.models.weights import files
from plan_jax.models.weights.files import WeightsError
from plan_jax.models.weights.load import load_image


@pytest.mark.parametrize(
  ("depth", "stride", "shape"), [(18, 32, (64, 48)), (34, 32, (97, 65)), (50, 32, (65, 64))]
)
def test_resnet_is_torchvision_s(tmp_path, depth, stride, shape):
  pytest.importorskip("torch")
  model = torch_resnet(depth, classes=10)
  path = saved(tmp_path / "net.pth", model.state_dict())
  encoder = ResNet(depth, 0.125, output_stride=stride, **COLOUR)
  loaded = assert_same_images(path, encoder, model, image(*shape))
  assert loaded.provenance["source"] == "torchvision ResNet: net.pth"
  assert loaded.provenance["left_aside"] == ["fc.bias", "fc.weight"]
  assert loaded.provenance["sha256"] == files.read(path).sha256
  assert len(loaded.provenance["sha256"]) == 64


def test_dilated_resnet_is_torchvision_s(tmp_path):
  """replace_stride_with_dilation of the last two stages: stride 8."""
  pytest.importorskip("torch")
  model = torch_resnet(50, dilated=(3, 4))
  path = saved(tmp_path / "net.pth", model.state_dict())
  assert_same_images(path, ResNet(50, 0.125, output_stride=8, **COLOUR), model, image())


@pytest.mark.slow
def test_resnet_50_at_its_size(tmp_path):
  pytest.importorskip("torch")
  model = torch_resnet(50, base=64)
  path = saved(tmp_path / "net.pth", model.state_dict())
  assert_same_images(path, ResNet(output_stride=32, **COLOUR), model, image(224, 224))


def test_fewer_stages_leave_the_others_aside(tmp_path):
  """A stem for grey images needs no colour channels."""
  pytest.importorskip("torch")
  model = torch_resnet(18, channels=1)
  path = saved(tmp_path / "net.pth", {"state_dict": model.state_dict(), "epoch": 3})
  model.stages = 2
  encoder = ResNet(18, 0.125, 2, 8, mean=(0.4,), std=(0.2,))
  loaded = assert_same_images(path, encoder, model, image(), (0.4,), (0.2,))
  assert {name.split(".")[0] for name in loaded.provenance["left_aside"]} == {"layer3", "layer4"}


@pytest.mark.parametrize("shape", [(32, 32), (64, 48), (24, 16)])
def test_vit_is_timm_s(tmp_path, shape):
  """On the grid of its positions, on a finer and on a coarser one."""
  pytest.importorskip("torch")
  model = torch_vit(classes=7)
  path = tmp_path / "vit.safetensors"
  save_file({name: x.numpy() for name, x in model.state_dict().items()}, path)
  loaded = assert_same_images(path, ViT(**VIT, **COLOUR), model, image(*shape))
  assert loaded.provenance["source"] == "timm ViT: vit.safetensors" and not loaded.batch_stats
  assert loaded.provenance["left_aside"] == ["head.bias", "head.weight"]


@pytest.mark.slow
def test_vit_b_16_at_its_size(tmp_path):
  torch = pytest.importorskip("torch")
  reference = pytest.importorskip("torch_reference")
  model = reference.randomise(reference.ViT(768, 12, 12, 3072))
  path = saved(tmp_path / "vit.pth", {"model": model.state_dict()})
  assert_same_images(path, ViT(**COLOUR), model, image(224, 224))
  assert torch.is_tensor(model.pos_embed)


@pytest.mark.parametrize("shape", [(5, 5), (7, 9), (20, 3), (2, 2), (37, 37)])
def test_interpolation_is_torch_s(shape):
  torch = pytest.importorskip("torch")
  position = np.random.default_rng(0).normal(size=(7, 7, 3)).astype(np.float32)
  want = torch.nn.functional.interpolate(
    torch.tensor(position).permute(2, 0, 1)[None], shape, mode="bicubic", antialias=True
  )[0]
  resampled = interpolate(jnp.asarray(position), *shape)
  np.testing.assert_allclose(resampled, want.permute(1, 2, 0).numpy(), atol=1e-5)


def test_biovil_with_its_projector_and_without(tmp_path):
  pytest.importorskip("torch")
  reference = pytest.importorskip("torch_reference")
  model = reference.BioViL(torch_resnet(50, classes=4), 256, 12)
  reference.randomise(model, 1)
  path = saved(tmp_path / "biovil.pt", model.state_dict())
  plain = dict(mean=(0.0,) * 3, std=(1.0,) * 3)
  encoder = ResNet(50, 0.125, output_stride=32, projector=12, **plain)
  loaded = assert_same_images(path, encoder, model, image(), *plain.values())
  heads = ["encoder.encoder.fc.bias", "encoder.encoder.fc.weight"]
  assert loaded.provenance["left_aside"] == heads
  loaded = assert_same_images(
    path, encoder.clone(projector=0), model.encoder.encoder, image(), *plain.values()
  )
  assert {n for n in loaded.provenance["left_aside"] if "projector" not in n} == set(heads)
  assert len(loaded.provenance["left_aside"]) == 2 + 7


@pytest.mark.parametrize("prefix", ["", "vit."])
def test_hugging_face_vit(tmp_path, prefix):
  pytest.importorskip("torch")
  from transformers import ViTConfig, ViTModel

  from torch_reference import randomise

  model = randomise(
    ViTModel(
      ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        image_size=32,
        patch_size=8,
        attn_implementation="eager",
      )
    )
  )
  model.save_pretrained(tmp_path)
  tensors = load_file(tmp_path / "model.safetensors")
  save_file({f"{prefix}{name}": x for name, x in tensors.items()}, tmp_path / "model.safetensors")

  def grid(x):
    return model(x).last_hidden_state[:, 1:].transpose(1, 2).reshape(len(x), -1, 4, 4)

  loaded = assert_same_images(tmp_path, ViT(**VIT, **COLOUR), grid, image(32, 32))
  assert [n.split(".")[-1] for n in loaded.provenance["left_aside"]] == ["bias", "weight"]
  with pytest.raises(WeightsError, match=r"set image\.vit\.num_heads=3 \(is 2\)"):
    load_image(tmp_path, ViT(**VIT | {"num_heads": 2}, **COLOUR))


@pytest.mark.parametrize(("depth", "layer"), [(18, "basic"), (50, "bottleneck")])
def test_hugging_face_resnet(tmp_path, depth, layer):
  pytest.importorskip("torch")
  from transformers import ResNetConfig, ResNetModel

  from torch_reference import randomise

  wide = 4 if depth == 50 else 1
  model = randomise(
    ResNetModel(
      ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8 * wide * 2**i for i in range(4)],
        layer_type=layer,
        depths=[2, 2, 2, 2] if depth == 18 else [3, 4, 6, 3],
      )
    )
  )
  model.save_pretrained(tmp_path)
  encoder = ResNet(depth, 0.125, output_stride=32, **COLOUR)
  assert_same_images(tmp_path, encoder, lambda x: model(x).last_hidden_state, image())
