import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from foreign_weights import (
  COLOUR,
  SMALL_BERT,
  VIT,
  changed,
  saved,
  small_bert,
  torch_resnet,
  torch_vit,
)
from plan_jax.models.resnet import ResNet
from plan_jax.models.vit import ViT
from plan_jax.models.weights import files
from plan_jax.models.weights.files import WeightsError
from plan_jax.models.weights.load import load_image, load_text

LAYER = "encoder.layer.0"


@pytest.mark.parametrize(
  ("change", "messages"),
  [
    (
      lambda t: t.pop(f"{LAYER}.output.dense.bias"),
      ["missing layer1/mlp_out/bias"],
    ),
    (lambda t: t.update({"adapter.weight": np.ones(3, np.float32)}), ["unexpected adapter.weight"]),
    (
      lambda t: t.update({f"{LAYER}.attention.self.key.weight": np.ones((16, 8), np.float32)}),
      [rf"{LAYER}.attention.self.key.weight is \(8, 16\) for our layer1/key/kernel of \(16, 16\)"],
    ),
    (
      lambda t: t.update({"embeddings.LayerNorm.bias": np.full(16, np.nan, np.float32)}),
      ["embeddings.LayerNorm.bias is not finite"],
    ),
    (
      lambda t: (t.pop(f"{LAYER}.output.dense.bias"), t.update({"new": np.ones(1, np.float32)})),
      ["missing layer1/mlp_out/bias", "unexpected new"],
    ),
    (
      lambda t: t.update({"encoder.layer.1.output.dense.bias": np.ones(16, np.float32)}),
      [r"set text\.depth=2 \(is 1\)"],
    ),
    (
      lambda t: t.update({"bert.embeddings.LayerNorm.beta": np.ones(16, np.float32)}),
      ["embeddings.LayerNorm.beta are both our embedding_norm/bias"],
    ),
    (lambda t: [t.pop(key) for key in list(t)[1:]], ["none of the layouts MPNet, BERT, GLoRIA"]),
  ],
)
def test_every_name_is_accounted_for(tmp_path, change, messages):
  small_bert(tmp_path)
  load_text(tmp_path, SMALL_BERT)
  changed(tmp_path, change)
  with pytest.raises(WeightsError) as error:
    load_text(tmp_path, SMALL_BERT)
  for message in messages:
    assert re.search(message, str(error.value)) or message in str(error.value)


def test_sizes_that_differ_are_reported_at_once_with_what_to_set(tmp_path):
  small_bert(tmp_path, embed_dim=32, mlp_dim=64, depth=2, position=64)
  with pytest.raises(WeightsError) as error:
    load_text(tmp_path, SMALL_BERT.clone(vocabulary_size=150, num_heads=4))
  for part in (
    "text.embed_dim=32 (is 16)",
    "text.depth=2 (is 1)",
    "text.mlp_dim=64 (is 16)",
    "text.max_position=64 (is 128)",
    "text.num_heads=2 (is 4)",
    "200 tokens, the tokenizer 150",
  ):
    assert part in str(error.value)


def test_tensors_without_the_axes_of_their_kind(tmp_path):
  patch = {"patch_embed.proj.weight": np.ones((24, 192), np.float32)}
  qkv = {"blocks.0.attn.qkv.weight": np.ones((70, 24), np.float32)}
  save_file(patch | qkv, tmp_path / "vit.safetensors")
  with pytest.raises(WeightsError) as error:
    load_image(tmp_path / "vit.safetensors", ViT(**VIT | {"depth": 1}, **COLOUR))
  for part in ("proj.weight is (24, 192), which", "qkv.weight is (70, 24), which", "missing norm"):
    assert part in str(error.value)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"hidden_act": "relu"}, "hidden_act 'relu', ours is 'gelu'"),
    ({"position_embedding_type": "relative_key"}, "'relative_key', ours is 'absolute'"),
    ({"layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05, ours is at most 1e-06"),
    ({"layer_norm_eps": "x"}, "layer_norm_eps 'x', ours is at most 1e-06"),
    ({"vision_config": 3, "layer_norm_eps": None}, "layer_norm_eps None, ours is at most 1e-06"),
  ],
)
def test_another_computation_is_refused(tmp_path, settings, message):
  small_bert(tmp_path)
  (tmp_path / "config.json").write_text(json.dumps(settings))
  with pytest.raises(WeightsError, match=message):
    load_text(tmp_path, SMALL_BERT)


def test_another_stride_is_refused(tmp_path):
  pytest.importorskip("torch")
  from transformers import ResNetConfig, ResNetModel

  sizes = dict(embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[2, 2, 2, 2])
  variant = dict(layer_type="basic", downsample_in_bottleneck=True)
  ResNetModel(ResNetConfig(**sizes, **variant)).save_pretrained(tmp_path)
  with pytest.raises(WeightsError, match="downsample_in_bottleneck True, ours is False"):
    load_image(tmp_path, ResNet(18, 0.125, **COLOUR))


def test_image_sizes_that_differ(tmp_path):
  pytest.importorskip("torch")
  path = saved(tmp_path / "net.pth", torch_resnet(34).state_dict())
  with pytest.raises(WeightsError) as error:
    load_image(path, ResNet(50, 1.0, norm="group"))
  for part in (
    "image.mean and image.std to 3 values",
    "mean=(0.485, 0.456, 0.406)",
    "image.depth=34 (is 50)",
    "image.width=0.125 (is 1.0)",
    "image.norm=batch (is group)",
  ):
    assert part in str(error.value)
  with pytest.raises(WeightsError, match="torchvision ResNet: set image.name=resnet"):
    load_image(path, ViT(**VIT))
  path = saved(tmp_path / "vit.pth", torch_vit().state_dict())
  with pytest.raises(WeightsError) as error:
    load_image(path, ViT(**COLOUR))
  for part in ("vit.embed_dim=24", "vit.depth=2", "vit.mlp_dim=40", "vit.patch_px=8", "vit.grid=4"):
    assert f"set image.{part}" in str(error.value)


def test_code_in_a_torch_file_is_not_run(tmp_path):
  torch = pytest.importorskip("torch")
  marker = tmp_path / "was_run"

  class Evil:
    def __reduce__(self):
      return (Path.touch, (marker,))

  torch.save({"conv1.weight": Evil()}, tmp_path / "evil.pth")
  with pytest.raises(WeightsError, match=r"evil\.pth holds code besides tensors"):
    load_image(tmp_path / "evil.pth", ResNet())
  assert not marker.exists()


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
def test_broken_files(tmp_path, name):
  if name.endswith("pth"):
    pytest.importorskip("torch")
    saved(tmp_path / name, torch_resnet(18).state_dict())
  else:
    save_file({"conv1.weight": np.ones((8, 3, 7, 7), np.float32)}, tmp_path / name)
  whole = (tmp_path / name).read_bytes()
  for data in (whole[: len(whole) // 2], b"", b"no weights"):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(WeightsError, match=rf"{re.escape(name)} is no whole"):
      load_image(tmp_path / name, ResNet())


def test_flipped_torch_files_are_one_line(tmp_path):
  """They fail in a dozen ways, few of which torch has a class for."""
  torch = pytest.importorskip("torch")
  path, refused = tmp_path / "net.pth", 0
  torch.save({f"layer.{i}": torch.ones(2) for i in range(3)}, path)
  whole = path.read_bytes()
  for place in range(0, 700, 7):
    data = bytearray(whole)
    data[place] ^= 0x80
    path.write_bytes(data)
    try:
      files.read(path)
    except WeightsError as error:
      refused += 1
      assert str(path) in str(error) and "\\n" not in str(error)
  assert refused > 20


@pytest.mark.parametrize(
  "index", ["[1]", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', "{}", "[" * 100_000]
)
def test_broken_index_of_shards(tmp_path, index):
  (tmp_path / "model.safetensors.index.json").write_text(index)
  with pytest.raises(WeightsError, match=r"index\.json (holds a list|names shards|is no JSON)"):
    files.read(tmp_path)


def test_sums_of_others_are_theirs(tmp_path):
  """As `sha256sum * > SHA256SUMS` writes them; of a file that has another name by now."""
  save_file({"a": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
  (tmp_path / "SHA256SUMS").write_text(f"{64 * '0'}  weights.bin\n")
  for path in (tmp_path, tmp_path / "model.safetensors"):
    assert files.read(path).tensors["a"].tolist() == [1, 1, 1]


def test_a_torch_file_without_torch(tmp_path, monkeypatch):
  (tmp_path / "net.pth").write_bytes(b"anything")
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(WeightsError, match=r"net\.pth is a torch file.*pip install torch"):
    load_image(tmp_path / "net.pth", ResNet())


def test_files_that_are_not_there(tmp_path):
  with pytest.raises(WeightsError, match=r"text\.weights: .*nowhere is not there, and nothing"):
    load_text(tmp_path / "nowhere", SMALL_BERT)
  with pytest.raises(WeightsError, match=r"neither model\.safetensors"):
    load_text(tmp_path, SMALL_BERT)
