"""The rows of benchmarks.train_step in torch, by the models of transformers."""

import os

import jax

from benchmarks.step_inputs import Size, arrays


def encoders(size: Size):
  """Builds ResNetModel, BertModel and ViTModel of the same sizes, in training mode."""
  from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel, ViTConfig, ViTModel

  channels = max(8, int(64 * size.width) // 8 * 8)
  image = ResNetModel(
    ResNetConfig(
      num_channels=1,
      embedding_size=channels,
      hidden_sizes=[4 * channels * 2**stage for stage in range(4)],
    )
  )
  report = BertModel(
    BertConfig(
      vocab_size=size.vocabulary,
      hidden_size=size.embed_dim,
      num_hidden_layers=size.depth,
      num_attention_heads=size.num_heads,
      intermediate_size=4 * size.embed_dim,
      hidden_dropout_prob=0.0,
      attention_probs_dropout_prob=0.0,
      attn_implementation="sdpa",
    ),
    add_pooling_layer=False,
  )
  vit = ViTModel(
    ViTConfig(
      num_channels=1,
      image_size=size.image_px,
      patch_size=16,
      hidden_size=size.embed_dim,
      num_hidden_layers=size.depth,
      num_attention_heads=size.num_heads,
      intermediate_size=4 * size.embed_dim,
      attn_implementation="sdpa",
    ),
    add_pooling_layer=False,
  )
  return image.train(), report.train(), vit.train()


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
  heads = [
    torch.nn.Linear(width, 128, device=device)
    for width in (resnet.config.hidden_sizes[-1], size.embed_dim)
  ]
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

  return {
    "ResNet-50, forward": waiting(forward, resnet, image),
    "ResNet-50, forward + backward": waiting(backward, resnet, image),
    "ViT-B/16, forward": waiting(forward, vit, image),
    "ViT-B/16, forward + backward": waiting(backward, vit, image),
    "BERT, forward": waiting(forward, report, tokens),
    "BERT, forward + backward": waiting(backward, report, tokens),
    "whole step": waiting(step),
  }
