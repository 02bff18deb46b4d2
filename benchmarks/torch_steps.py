"""The rows of benchmarks.train_step in torch, by the models of transformers."""

import os

import jax

from benchmarks.step_inputs import Size, arrays
from plan_jax.models.resnet import first_channels


def encoders(size: Size):
  """Builds ResNetModel, BertModel and ViTModel of the same sizes, in training mode."""
  from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel, ViTConfig, ViTModel

  channels = first_channels(size.width)
  widths = [4 * channels * 2**stage for stage in range(4)]
  image = ResNetConfig(num_channels=1, embedding_size=channels, hidden_sizes=widths)
  common = dict(
    hidden_size=size.embed_dim,
    num_hidden_layers=size.depth,
    num_attention_heads=size.num_heads,
    intermediate_size=4 * size.embed_dim,
    attn_implementation="sdpa",
  )
  none = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
  report = BertConfig(vocab_size=size.vocabulary, **none, **common)
  vit = ViTConfig(num_channels=1, image_size=size.image_px, patch_size=16, **common)
  models = (
    ResNetModel(image),
    BertModel(report, add_pooling_layer=False),
    ViTModel(vit, add_pooling_layer=False),
  )
  return tuple(model.train() for model in models)


def steps(size: Size) -> dict:
  """Builds the same rows in torch."""
  import torch

  torch.set_num_threads(os.cpu_count())
  torch.set_float32_matmul_precision("high")  # what XLA does on GPUs; nothing on CPUs
  device = torch.device("cuda" if jax.default_backend() == "gpu" else "cpu")
  half = torch.autocast(device.type, torch.bfloat16, enabled=size.dtype == "bfloat16")
  resnet, report, vit = (encoder.to(device) for encoder in encoders(size))
  made = arrays(size)
  image = torch.tensor(made["image"], device=device).permute(0, 3, 1, 2).contiguous()
  tokens = torch.tensor(made["tokens"], dtype=torch.long, device=device)
  widths = resnet.config.hidden_sizes[-1], size.embed_dim
  heads = [torch.nn.Linear(width, 128, device=device) for width in widths]
  parameters = [p for part in (resnet, report, *heads) for p in part.parameters()]
  optimizer = torch.optim.AdamW(parameters, lr=5e-4, weight_decay=0.05)
  normalize = torch.nn.functional.normalize

  def output(model, x):
    with half:
      return model(x).last_hidden_state.float()

  def forward(model, x):
    with torch.no_grad():
      output(model, x).square().mean()

  def backward(model, x):
    model.zero_grad()
    output(model, x).square().mean().backward()

  def step():
    optimizer.zero_grad()
    v = normalize(heads[0](output(resnet, image).mean((2, 3))), dim=1)
    t = normalize(heads[1](output(report, tokens).mean(1)), dim=1)
    logits, target = 10 * v @ t.T, torch.arange(size.batch, device=device)
    entropy = torch.nn.functional.cross_entropy
    ((entropy(logits, target) + entropy(logits.T, target)) / 2).backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()

  def waiting(run, *args):
    def timed():
      run(*args)
      if device.type == "cuda":
        torch.cuda.synchronize()

    return timed

  rows = {}
  named = ("ResNet-50", resnet, image), ("ViT-B/16", vit, image), ("BERT", report, tokens)
  for name, *parts in named:
    rows[f"{name}, forward"] = waiting(forward, *parts)
    rows[f"{name}, forward + backward"] = waiting(backward, *parts)
  return rows | {"whole step": waiting(step)}
