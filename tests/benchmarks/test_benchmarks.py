"""Benchmarks run and count as documented; their measurements are not tested."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks import (
  convert,
  evaluation,
  loader,
  local_loss,
  scale,
  stored_features,
  torch_steps,
  train_step,
)
from benchmarks.step_inputs import SMALL, arrays
from input_pipeline import images, records
from input_pipeline.loader import Encode
from input_pipeline.readers import by_name, folder
from input_pipeline.readers.raw import stored_images
from input_pipeline.text import diagnostic_terms, tokenizer
from paths import ROOT
from plan_jax.models.two_towers import build, image_encoder
from plan_jax.training import assembly
from tiny_runs import mesh_of

SHAPE = (4, 3, 9, 8)


def test_local_loss_has_a_row_for_every_contender():
  rows = local_loss.measure(SHAPE, 1, "float32", 16, with_torch=False, resident=False)
  assert [row["contender"] for row in rows] == [
    "plan, chunked",
    "gloria, chunked",
    "plan, full",
    "gloria, full",
  ]
  assert all(row["seconds"] > 0 and row["temporary_mib"] > 0 for row in rows)


def test_growth_counts_the_memory_of_a_step():
  """Compares all logits of 64 x 64 pairs at once with a tile of them."""
  shape = (64, 16, 49, 8)
  little, much = (
    local_loss.growth(name, shape, "float32", 1) for name in ("plan, chunked", "plan, full")
  )
  assert much > little + 4 * 64 * 64 * 16 * 49


def test_the_torch_loop_is_gloria():
  pytest.importorskip("torch")
  step, inputs = local_loss.ours("gloria", "full", SHAPE, "float32", 16)
  value, gradients = step(*inputs)
  wanted, *others = local_loss.gloria_torch(SHAPE)()
  np.testing.assert_allclose(value, wanted, rtol=1e-4)
  for a, b in zip(gradients, others, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-3 * float(b.abs().max()))


def test_the_count_of_an_encoder_is_that_of_xla():
  """Of its products; XLA adds a little for norms, softmax and GELU. Blocks above are not run."""
  made = stored_features.config("", 1)
  made.model.image_px = 112
  made.model.image.vit.update(embed_dim=256, num_heads=2, mlp_dim=1024, grid=8, layers=(2,))
  stored, flops = stored_features.count(made)
  assert stored == 2 * 8 * 8 * 256
  encoder = image_encoder(made.model.image)
  image = np.zeros((1, 112, 112, 1), np.float32)
  params = jax.eval_shape(encoder.init, jax.random.key(0), image)
  by_xla = jax.jit(encoder.apply).lower(params, image).cost_analysis()["flops"]
  assert 1 <= by_xla / flops < 1.05


def test_storing_is_predicted(capsys):
  stored_features.predict(1000)
  rows = [[cell.strip() for cell in row.split("|")] for row in capsys.readouterr().out.splitlines()]
  (row,) = (row[2:-1] for row in rows if len(row) > 1 and "518 px" in row[1])
  assert row[:2] == ["2,103", "2"]  # 37 x 37 x 768 numbers of 2 bytes
  gflop = float(row[2])
  assert [float(x) for x in row[3:]] == [
    pytest.approx(1000 * gflop / (3600 * rate), abs=1e-3) for rate in (239_277, 121)
  ]


@pytest.mark.slow  # compiles every encoder, forwards and backwards
def test_train_step_has_a_row_for_every_part():
  rows = train_step.measure(SMALL, 1, with_torch=False)
  assert [row["row"] for row in rows] == [
    "ResNet-50, forward",
    "ResNet-50, forward + backward",
    "ViT-B/16, forward",
    "ViT-B/16, forward + backward",
    "BERT, forward",
    "BERT, forward + backward",
    "whole step",
    "ResNet-50, forward + backward, stride 16",
    "whole step, stride 16",
  ]
  assert all(row["seconds"] > 0 and row["gflops"] > 0 for row in rows)
  assert all(row["torch_seconds"] is None for row in rows)


@pytest.mark.slow  # four processes at full size
def test_contenders_in_processes_of_their_own(tmp_path):
  pytest.importorskip("torch")
  call = ["--batch=1", "--repeats=1", "--apart=2", "--rows=^BERT, forward$", "--json=out.json"]
  environment = dict(os.environ, PYTHONPATH=str(ROOT))
  done = subprocess.run(
    [sys.executable, "-m", "benchmarks.train_step", *call],
    cwd=tmp_path,
    env=environment,
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr
  (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
  ratios = [b / a for a, b in zip(row["seconds"], row["torch_seconds"], strict=True)]
  assert len(ratios) == 2 and row["ratio"] == pytest.approx(np.mean(ratios))


def test_the_encoders_in_torch_are_as_large_as_ours():
  pytest.importorskip("torch")
  size = SMALL
  model = build(train_step.config(size, 32).model, size.vocabulary)
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), arrays(size)))["params"]
  resnet, bert, vit = torch_steps.encoders(size)

  def torchs(encoder):
    return sum(p.numel() for p in encoder.parameters())

  def ours(part):
    return sum(leaf.size for leaf in jax.tree.leaves(params[part]))

  assert ours("image_encoder") == torchs(resnet)
  patches = train_step.patches(size)
  image = arrays(size)["image"]
  shapes = jax.eval_shape(lambda: patches.init(jax.random.key(0), image))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == torchs(vit)
  # Ours has one type of token.
  assert ours("text_encoder") + size.embed_dim == torchs(bert)


def test_every_row_of_torch_runs():
  pytest.importorskip("torch")
  rows = torch_steps.steps(SMALL)
  assert len(rows) == 7
  for step in rows.values():
    step()


def test_loader_has_a_row_for_every_stage(tmp_path):
  folder = loader.draw(tmp_path / "records", 40, 64)
  source = records.RecordSource(folder, "train", where="text")
  tokenizer.train(
    (" ".join(example.sentences) for example in source), tmp_path / "words", vocabulary_size=200
  )
  encode = Encode(
    tokenizer.Tokenizer(tmp_path / "words"), diagnostic_terms.load(""), 32, 64, 32, images.Augment()
  )
  rows = loader.measure(source, encode, images=8, batches=1, repeats=1, workers=[0, 1])
  assert len(rows) == 8
  assert all(np.isfinite(row["images_per_s"]) and row["images_per_s"] > 0 for row in rows)
  assert [row["overhead"] is None for row in rows] == [True] * 6 + [False] * 2


def test_stored_features_and_encoding_take_turns(tmp_path, monkeypatch):
  monkeypatch.setattr(assembly, "make_mesh", lambda *_: mesh_of(1))
  made = stored_features.config("", 4, max_tokens=16, max_words=8)
  made.model.image.vit.update(embed_dim=16, num_heads=2, mlp_dim=16, grid=2, layers=(1,))
  made.model.update(image_px=28, embed_dim=8)
  made.text.vocabulary_size = 100
  made.model.text.update(embed_dim=16, num_heads=2, mlp_dim=16, depth=1)
  stored_features.draw_weights(made, tmp_path / "random.safetensors")
  folder = loader.draw(tmp_path / "records", 12, 64)
  values = stored_features.measure(made, folder, tmp_path, steps=1, repeats=2)
  assert values["storing"] > 0 and len(list((tmp_path / "features").glob("*.index.json"))) == 1
  ratios = [a / b for a, b in zip(values["stored"], values["encoding"], strict=True)]
  assert values["ratio"] == ratios and len(ratios) == 2 and min(ratios) > 0


def test_convert_has_rows_for_every_worker_count(tmp_path):
  raw = tmp_path / "raw"
  size = convert.draw(raw, 2, 5, (160, 192))
  assert size > 1000
  rows = convert.measure(raw, image_px=64, repeats=1, workers=[1, 2])
  assert [(row["workers"], row["row"]) for row in rows] == [
    (workers, name) for workers in (1, 2) for name in ("naive loop", "bare loop", "convert")
  ]
  assert all(np.isfinite(row["images_per_s"]) for row in rows)
  assert all(row["least_cpu_ms"] > 0 for row in rows if row["row"] != "convert")
  assert not list(tmp_path.glob("tmp*"))


def test_fidelity_falls_with_the_scale(tmp_path):
  convert.draw(tmp_path / "raw", 1, 1, (320, 384))
  rows = convert.fidelity(tmp_path / "raw", image_px=40)
  assert [row["row"] for row in rows] == ["decoded at 1/2", "decoded at 1/4", "decoded at 1/8"] + [
    "stored as JPEG"
  ]
  half, quarter, eighth, jpeg = (row["psnr_db"] for row in rows)
  assert half > quarter
  assert 20 < min(eighth, jpeg) < half < 70


def test_the_bare_loop_gives_what_the_converter_stores(tmp_path):
  convert.draw(tmp_path / "raw", 1, 1, (320, 384))
  (item,) = folder.open_source(str(tmp_path / "raw")).items
  example = folder.open_source(str(tmp_path / "raw")).read(item)
  ours = stored_images.store_image(example, 64).image
  assert convert.bare(example.image, 64) == ours
  difference = images.decode(convert.naive(example.image, 64)).astype(int) - images.decode(ours)
  assert 0 < np.abs(difference).mean() < 2


def test_evaluation_has_a_row_for_every_measure():
  rows = list(evaluation.measure([20], 10, 8))
  assert [(row["what"].split(",")[0], row["count"]) for row in rows] == [
    ("retrieval", 20),
    ("class retrieval", 20),
    ("grounding at 512 px", 10),
  ]
  assert all(row["seconds"] > 0 and row["peak_mib"] > 0 for row in rows)


def test_the_folder_of_the_scale_is_the_publishers(tmp_path):
  share = 2e-4
  for _ in range(2):  # the second time it stays
    scale.make_folder(tmp_path, share)
  source = by_name.open_reader("mimic_cxr", str(tmp_path), {"views": "all"})
  assert len(source.items) == round(share * scale.IMAGES)
  assert not source.left_out
  assert {item.split for item in source.items} == {"train", "validation", "test"}
  example = source.read(source.items[-1])
  assert example.sentences and images.decode(example.image).shape == (96, 96)


def test_the_memory_that_an_image_more_takes():
  rows = [
    {"step": "list", "share": share, "images": 1, "seconds": 2.0, "mib": mib}
    for share, mib in ((0.1, 100.0), (1.0, 100.0 + 0.9 * scale.STUDIES / 2**20))
  ]
  assert scale.table(rows).splitlines()[-1].split("|")[-2].strip() == "1.0"
