"""Tiny CLIP and SigLIP of transformers' classes with random weights, as checkpoints.

Preprocessing is written from the code that is named at each part; a text is one string, as theirs.
"""

import json
import re
import string

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from torch.nn import functional
from transformers import (
  AutoTokenizer,
  CLIPConfig,
  CLIPModel,
  CLIPTokenizer,
  SiglipConfig,
  SiglipModel,
)

import tiny_baselines
import torch_reference as reference
from input_pipeline.phantom import radiograph
from tiny_baselines import IMAGES, JOINED
from torch_baselines import bert

SENTENCES = [" ".join(radiograph.example(1, i, 96).sentences) for i in range(40)]
SIZES = dict(hidden_size=128, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)
TINY = dict(
  text=SIZES | dict(max_position_embeddings=40),
  vision=SIZES | dict(image_size=32, patch_size=8),
  projection=24,
)
VIT_B_32 = dict(text={}, vision={}, projection=512)  # of transformers' CLIPConfig
CLIP_PIXELS = (
  (0.48145466, 0.4578275, 0.40821073),
  (0.26862954, 0.26130258, 0.27577711),
)
CHEXZERO_PIXELS = (101.48761 / 255, 83.43944 / 255)


@pytest.fixture(scope="module")
def byte_pairs(tmp_path_factory):
  """A folder with byte pairs of the phantom's words, saved by transformers."""
  return save_byte_pairs(tmp_path_factory.mktemp("byte_pairs"))


def save_byte_pairs(folder):
  """Orders tokens as OpenAI does: bytes, bytes that end a word, pairs, and the special ones."""
  trained = CLIPTokenizer().backend_tokenizer
  letters = ByteLevel.alphabet()
  trainer = BpeTrainer(vocab_size=700, end_of_word_suffix="</w>", initial_alphabet=letters)
  trained.train_from_iterator(SENTENCES, trainer)
  merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
  tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
  tokens += ["<|startoftext|>", "<|endoftext|>"]
  numbers = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
  CLIPTokenizer(vocab=numbers, merges=merges).save_pretrained(folder)
  return folder


def files_of(folder, name, vocabulary, tokenizer):
  """A tiny checkpoint of any baseline, as `config.baseline` names it."""
  if name in ("clip", "chexzero"):
    byte_pairs = save_byte_pairs(folder / "byte_pairs")
    return dict(weights=clip(folder, byte_pairs, **TINY)[-1], tokenizer=byte_pairs)
  if name == "biomedclip":
    return dict(weights=biomedclip(folder, tokenizer)[-1], tokenizer=vocabulary)
  if name in ("siglip", "medsiglip"):
    return dict(weights=siglip(folder)[-1])
  return tiny_baselines.files_of(folder, name, vocabulary, tokenizer)


def clip(folder, byte_pairs, text, vision, projection):
  """A CLIP, its folder as transformers saves it, and a file in OpenAI's names."""
  tokenizer = AutoTokenizer.from_pretrained(str(byte_pairs), local_files_only=True)
  end = tokenizer.eos_token_id
  special = dict(bos_token_id=end - 1, eos_token_id=end, pad_token_id=end)
  text = text | special | dict(vocab_size=len(tokenizer))
  config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)
  model, side = CLIPModel(config), config.vision_config.image_size
  reference.randomise(model)
  with torch.no_grad():
    model.logit_scale.fill_(2.5)
    patches, _ = clip_image(model, middle(IMAGES[1], side), CLIP_PIXELS)
    if (patches @ clip_text(model, tokenizer, JOINED[0])).mean() < 0:
      model.visual_projection.weight.neg_()  # an image that is like the text somewhere
  model.save_pretrained(folder / "clip")
  torch.save(openai_names(model.state_dict()), folder / "clip.pt")
  return model, tokenizer, folder / "clip", folder / "clip.pt"


def openai_names(tensors):
  """A state dict of transformers' CLIP in the names of OpenAI's (openai/CLIP, clip/model.py)."""
  named = {"logit_scale": tensors["logit_scale"]}
  named["visual.proj"] = tensors["visual_projection.weight"].T
  named["text_projection"] = tensors["text_projection.weight"].T
  plain = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
  }
  for bias in ("weight", "bias"):
    plain[f"vision_model.pre_layrnorm.{bias}"] = f"visual.ln_pre.{bias}"
    plain[f"vision_model.post_layernorm.{bias}"] = f"visual.ln_post.{bias}"
    plain[f"text_model.final_layer_norm.{bias}"] = f"ln_final.{bias}"
    for ours, theirs in (("vision_model", "visual.transformer"), ("text_model", "transformer")):
      for number in range(
        sum(f"{ours}." in name and "layer_norm1.bias" in name for name in tensors)
      ):
        start, block = f"{ours}.encoder.layers.{number}", f"{theirs}.resblocks.{number}"
        for one, other in (
          ("self_attn.out_proj", "attn.out_proj"),
          ("layer_norm1", "ln_1"),
          ("layer_norm2", "ln_2"),
          ("mlp.fc1", "mlp.c_fc"),
          ("mlp.fc2", "mlp.c_proj"),
        ):
          plain[f"{start}.{one}.{bias}"] = f"{block}.{other}.{bias}"
        fused = [tensors[f"{start}.self_attn.{x}_proj.{bias}"] for x in "qkv"]
        named[f"{block}.attn.in_proj_{bias}"] = torch.cat(fused)
  return named | {theirs: tensors[ours] for ours, theirs in plain.items()}


def middle(image, side):
  """[side, side] in [0, 1] (openai/CLIP, clip.py: Resize(bicubic), CenterCrop)."""
  image = Image.fromarray(image)
  width, height = image.size
  short = min(width, height)
  size = (int(side * width / short), int(side * height / short))
  image = image.resize(size, Image.Resampling.BICUBIC)
  left, top = (int(round((length - side) / 2.0)) for length in size)
  return torch.tensor(np.asarray(image.crop((left, top, left + side, top + side)))).float() / 255


def chexzero_square(image, side):
  """[side, side], 1 for 255 (CheXzero, data_process.py and zero_shot.py, with its torchvision)."""
  colours = Image.fromarray(image).convert("RGB")
  ratio = 320.0 / max(colours.size)
  size = tuple(int(length * ratio) for length in colours.size)
  square = Image.new("L", (320, 320))
  square.paste(
    colours.resize(size, Image.Resampling.LANCZOS), ((320 - size[0]) // 2, (320 - size[1]) // 2)
  )
  pixels = torch.tensor(np.array(square)).double()[None, None]
  small = functional.interpolate(pixels, (side, side), mode="bicubic", align_corners=False)
  return (small[0, 0] / 255).float()


def siglip(folder):
  """A tiny SigLIP, and its folder with a tokenizer of pieces; heads are not of 64 channels."""
  folder = folder / "siglip"
  folder.mkdir()
  pieces = Tokenizer(Unigram())
  pieces.pre_tokenizer = Metaspace()
  special = dict(unk_token="<unk>", special_tokens=["<pad>", "</s>", "<unk>"])
  trainer = UnigramTrainer(vocab_size=300, show_progress=False, **special)
  pieces.train_from_iterator([canonical(text) for text in SENTENCES], trainer)
  pieces.save(str(folder / "tokenizer.json"))
  sizes = SIZES | dict(num_attention_heads=4)
  text = sizes | dict(vocab_size=pieces.get_vocab_size(), bos_token_id=0, eos_token_id=1)
  vision = sizes | dict(image_size=32, patch_size=8)
  model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
  reference.randomise(model)
  with torch.no_grad():
    model.logit_scale.fill_(1.5)
    model.logit_bias.fill_(-0.7)
    patches, _ = siglip_image(model, squashed(IMAGES[1], 32))
    if (patches @ siglip_text(model, pieces, JOINED[0])).mean() < 0:
      for x in model.text_model.head.parameters():
        x.neg_()  # an image that is like the text somewhere
  model.save_pretrained(folder)
  return model, pieces, folder


def canonical(text):
  """transformers' SiglipTokenizer.canonicalize_text."""
  text = text.lower().translate(str.maketrans("", "", string.punctuation))
  return re.sub(r"\s+", " ", text).strip()


def squashed(image, side):
  """[side, side] in [0, 1] (SiglipImageProcessor)."""
  image = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
  return torch.tensor(np.array(image)).float() / 255


def squashed_bilinear(image, side):
  """tf.image.resize("bilinear", antialias=False), to whole grey values (MedSigLIP's card)."""
  pixels = torch.tensor(image).double()[None, None]
  small = functional.interpolate(pixels, (side, side), mode="bilinear", align_corners=False)
  return (small[0, 0] + 1e-9).floor().float() / 255


@torch.no_grad()
def siglip_image(model, pixels):
  """Patches [P, D], each pooled alone, and the image [D], unit norm."""
  x, vision = normalised(pixels, ((0.5,) * 3, (0.5,) * 3)), model.vision_model
  patches = vision.head(vision(x).last_hidden_state[0][:, None])
  return unit(patches), unit(model.get_image_features(x).pooler_output)[0]


@torch.no_grad()
def siglip_text(model, pieces, text):
  """The text [D], unit norm."""
  ids = pieces.encode(canonical(text), add_special_tokens=False).ids[:63] + [1]
  ids = torch.tensor([ids + [1] * (64 - len(ids))])
  return unit(model.get_text_features(input_ids=ids).pooler_output)[0]


class BiomedClip(torch.nn.Module):
  """open_clip's CustomTextCLIP (timm_model.py, hf_model.py) with timm's ViT and a BERT."""

  def __init__(self, words, out=24):
    super().__init__()
    self.visual, self.text = torch.nn.Module(), torch.nn.Module()
    self.visual.trunk = reference.ViT(128, 2, 2, 96)
    self.visual.head = torch.nn.Module()
    self.visual.head.proj = torch.nn.Linear(128, out, bias=False)
    self.text.transformer = words
    inside, outside = (words.config.hidden_size + out) // 2, words.config.hidden_size
    self.text.proj = torch.nn.Sequential(
      torch.nn.Linear(outside, inside, bias=False),
      torch.nn.GELU(),
      torch.nn.Linear(inside, out, bias=False),
    )
    self.logit_scale = torch.nn.Parameter(torch.tensor(1.0))

  @torch.no_grad()
  def image(self, pixels):
    """Projected patches [P, D] and the image [D], unit norm."""
    tokens = self.visual.head.proj(self.visual.trunk.tokens(normalised(pixels, CLIP_PIXELS)))
    return unit(tokens[0, 1:]), unit(tokens[0, 0])

  @torch.no_grad()
  def words(self, tokenizer, text, most=128):
    """The text [D], unit norm."""
    more = dict(return_tensors="pt", padding="max_length", truncation=True, max_length=most)
    ids = tokenizer(text, **more)["input_ids"]
    seen = (ids != tokenizer.pad_token_id).long()
    out = self.text.transformer(input_ids=ids, attention_mask=seen)
    return unit(self.text.proj(out.last_hidden_state[:, 0]))[0]


def biomedclip(folder, tokenizer):
  """A tiny BiomedCLIP and its file; the ViT reads 224 px."""
  model = BiomedClip(bert(len(tokenizer), 128, 2, add_pooling_layer=False))
  reference.randomise(model)
  with torch.no_grad():
    model.logit_scale.fill_(2.5)
    if (model.image(middle(IMAGES[1], 224))[0] @ model.words(tokenizer, JOINED[0])).mean() < 0:
      model.visual.head.proj.weight.neg_()  # an image that is like the text somewhere
  torch.save(model.state_dict(), folder / "biomedclip.bin")
  return model, folder / "biomedclip.bin"


def normalised(pixels, mean_and_std):
  mean, std = (torch.tensor(values).expand(3)[:, None, None] for values in mean_and_std)
  return ((pixels.expand(3, *pixels.shape) - mean) / std)[None]


def unit(x):
  return functional.normalize(x, dim=-1)


@torch.no_grad()
def clip_image(model, pixels, mean_and_std):
  """Projected patches [P, D] and the image [D], unit norm."""
  vision = model.vision_model
  x = normalised(pixels, mean_and_std)
  hidden = vision.post_layernorm(vision(x).last_hidden_state[:, 1:])
  image = model.get_image_features(x).pooler_output
  return unit(model.visual_projection(hidden))[0], unit(image)[0]


@torch.no_grad()
def clip_text(model, tokenizer, text, most=40):
  """The text [D], unit norm."""
  batch = tokenizer(text, return_tensors="pt", truncation=True, max_length=most)
  return unit(model.get_text_features(**batch).pooler_output)[0]
