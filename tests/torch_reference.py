"""Encoders in torch, under the names that torchvision, timm and hi-ml give their weights."""

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
  """Basic block, or with `deep` a bottleneck; the stride is in the 3x3 convolution."""

  def __init__(self, inside, channels, stride, deep, dilation):
    super().__init__()
    outside = 4 * channels if deep else channels
    three = dict(kernel_size=3, padding=dilation, dilation=dilation, bias=False)
    if deep:
      self.conv1 = nn.Conv2d(inside, channels, 1, bias=False)
      self.conv2 = nn.Conv2d(channels, channels, stride=stride, **three)
      self.conv3 = nn.Conv2d(channels, outside, 1, bias=False)
      self.bn3 = nn.BatchNorm2d(outside)
    else:
      self.conv1 = nn.Conv2d(inside, channels, stride=stride, **three)
      self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
    if stride != 1 or inside != outside:
      self.downsample = nn.Sequential(
        nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
      )
    self.deep = deep

  def forward(self, x):
    y = functional.relu(self.bn1(self.conv1(x)))
    y = self.bn2(self.conv2(y))
    if self.deep:
      y = self.bn3(self.conv3(functional.relu(y)))
    return functional.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class ResNet(nn.Module):
  """Encoder of `blocks` a stage; `dilated` stages keep the stride before them."""

  def __init__(self, blocks, deep, *, base=64, channels=3, dilated=(), classes=0):
    super().__init__()
    self.conv1 = nn.Conv2d(channels, base, 7, 2, 3, bias=False)
    self.bn1 = nn.BatchNorm2d(base)
    self.maxpool = nn.MaxPool2d(3, 2, 1)
    inside, dilation = base, 1
    for stage, count in enumerate(blocks):
      made = []
      for i in range(count):
        stride, before = (2, dilation) if stage and not i else (1, dilation)
        if stride == 2 and stage + 1 in dilated:
          stride, dilation = 1, 2 * dilation
        made.append(Block(inside, base * 2**stage, stride, deep, before))
        inside = base * 2**stage * (4 if deep else 1)
      setattr(self, f"layer{stage + 1}", nn.Sequential(*made))
    self.stages = len(blocks)
    if classes:
      self.fc = nn.Linear(inside, classes)

  def forward(self, x):
    x = self.maxpool(functional.relu(self.bn1(self.conv1(x))))
    for stage in range(self.stages):
      x = getattr(self, f"layer{stage + 1}")(x)
    return x


class Projector(nn.Module):
  def __init__(self, inside, size):
    super().__init__()
    self.model = nn.Sequential(
      nn.Conv2d(inside, size, 1, bias=False),
      nn.BatchNorm2d(size),
      nn.ReLU(),
      nn.Conv2d(size, size, 1),
    )

  def forward(self, x):
    return self.model(x)


class BioViL(nn.Module):
  def __init__(self, trunk, inside, size):
    super().__init__()
    self.encoder = nn.Module()
    self.encoder.encoder = trunk
    self.projector = Projector(inside, size)

  def forward(self, x):
    return self.projector(self.encoder.encoder(x))


class Attention(nn.Module):
  def __init__(self, size, heads):
    super().__init__()
    self.qkv, self.proj, self.heads = nn.Linear(size, 3 * size), nn.Linear(size, size), heads

  def forward(self, x):
    q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
    weight = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    return self.proj((weight @ v).transpose(1, 2).reshape(x.shape))


class Mlp(nn.Module):
  def __init__(self, size, inside):
    super().__init__()
    self.fc1, self.fc2 = nn.Linear(size, inside), nn.Linear(inside, size)

  def forward(self, x):
    return self.fc2(functional.gelu(self.fc1(x)))


class SwiGlu(nn.Module):
  """Gated perceptron; its first layer gives the gates, and then what they multiply."""

  def __init__(self, size, inside, names):
    super().__init__()
    self.names = names
    self.add_module(names[0], nn.Linear(size, 2 * inside))
    self.add_module(names[1], nn.Linear(inside, size))

  def forward(self, x):
    first, last = (getattr(self, name) for name in self.names)
    gate, x = first(x).chunk(2, -1)
    return last(functional.silu(gate) * x)


class LayerScale(nn.Module):
  def __init__(self, size):
    super().__init__()
    self.gamma = nn.Parameter(torch.ones(size))

  def forward(self, x):
    return x * self.gamma


class VitBlock(nn.Module):
  def __init__(self, size, heads, inside):
    super().__init__()
    self.norm1, self.norm2 = (nn.LayerNorm(size, eps=1e-6) for _ in range(2))
    self.attn, self.mlp = Attention(size, heads), Mlp(size, inside)
    self.ls1, self.ls2 = nn.Identity(), nn.Identity()

  def forward(self, x):
    x = x + self.ls1(self.attn(self.norm1(x)))
    return x + self.ls2(self.mlp(self.norm2(x)))


class ViT(nn.Module):
  """Encoder with positions learned on `grid`; other grids are resampled as timm does it."""

  def __init__(self, size, layers, heads, mlp_dim, patch=16, grid=14, *, channels=3, classes=0):
    super().__init__()
    self.patch_embed = nn.Module()
    self.patch_embed.proj = nn.Conv2d(channels, size, patch, patch)
    self.cls_token = nn.Parameter(torch.randn(1, 1, size))
    self.pos_embed = nn.Parameter(torch.randn(1, 1 + grid * grid, size))
    self.blocks = nn.ModuleList([VitBlock(size, heads, mlp_dim) for _ in range(layers)])
    self.norm = nn.LayerNorm(size, eps=1e-6)
    self.grid = grid
    if classes:
      self.head = nn.Linear(size, classes)

  def forward(self, x):
    rows, columns = (length // self.patch_embed.proj.stride[0] for length in x.shape[2:])
    patches = self.tokens(x)[:, -rows * columns :]
    return patches.transpose(1, 2).reshape(len(x), -1, rows, columns)

  def first(self):
    """The tokens before the patches, and the positions of these."""
    return self.cls_token + self.pos_embed[:, :1], self.pos_embed[:, 1:]

  def tokens(self, x):
    """Encodes the tokens before the patches, and the patches."""
    x = self.patch_embed.proj(x)
    rows, columns = x.shape[2:]
    first, position = self.first()
    position = position.reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
    if (rows, columns) != (self.grid, self.grid):
      position = functional.interpolate(position, (rows, columns), mode="bicubic", antialias=True)
    x = (x + position).flatten(2).transpose(1, 2)
    x = torch.cat([first.expand(len(x), -1, -1), x], 1)
    for block in self.blocks:
      x = block(x)
    return self.norm(x)


class DinoV2(ViT):
  """DINOv2 under its authors' names; or timm's, where the class token contains its position."""

  def __init__(self, size, layers, heads, mlp_dim, *places, registers=0, gated=False, timm=False):
    super().__init__(size, layers, heads, mlp_dim, *places)
    for block in self.blocks:
      block.ls1, block.ls2 = LayerScale(size), LayerScale(size)
      if gated:
        block.mlp = SwiGlu(size, mlp_dim, ("fc1", "fc2") if timm else ("w12", "w3"))
    self.registers = "reg_token" if timm else "register_tokens"
    if registers:
      self.register_parameter(self.registers, nn.Parameter(torch.randn(1, registers, size)))
      if timm:
        self.pos_embed = nn.Parameter(self.pos_embed[:, 1:].detach())
    if not timm:
      self.mask_token = nn.Parameter(torch.zeros(1, size))

  def first(self):
    registers = getattr(self, self.registers, self.cls_token[:, :0])
    if self.registers == "reg_token" and registers.shape[1]:
      return torch.cat([self.cls_token, registers], 1), self.pos_embed
    token, position = super().first()
    return torch.cat([token, registers], 1), position


def randomise(model, seed=0):
  """Draws all weights, running statistics too, so that none can go missing."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, x in model.state_dict().items():
      if x.is_floating_point():
        fan = x[0].numel() if x.ndim > 1 else 1
        x.copy_(torch.randn(x.shape, generator=generator) * (1.4 / fan**0.5 if x.ndim > 1 else 0.1))
        if name.endswith("var") or (x.ndim == 1 and name.endswith("weight")):
          x.add_(1)
  return model.eval()
