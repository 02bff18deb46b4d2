import importlib.util
import json
import os
import types

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from input_pipeline.errors import UserError
from plan_jax.alignment.similarity import product
from plan_jax.commands import compile as command
from plan_jax.commands import programs as compiled_programs
from plan_jax.models.layers import attention, dense
from plan_jax.models.layers.convolution import convolve
from plan_jax.runtime import hlo, mesh, topology
from plan_jax.training import assembly, footprint
from plan_jax.training.assembly import assemble_on
from tiny_runs import TINY, flags, mesh_of, tiny, two_stages

HAS_LIBTPU = bool(os.environ.get("TPU_LIBRARY_PATH") or importlib.util.find_spec("libtpu"))
needs_libtpu = pytest.mark.skipif(not HAS_LIBTPU, reason="libtpu is not installed")
# Of ml_collections, which reads the config file.
pytestmark = pytest.mark.filterwarnings("ignore:.*load_module")
CPU_FORMS = ("reduce_precision", "optimization_barrier")


def fake(text, *, temporaries):
  """A compiled program of 1 MiB of arguments that says what it is made to say."""
  memory = types.SimpleNamespace(
    argument_size_in_bytes=2**20,
    temp_size_in_bytes=temporaries,
    output_size_in_bytes=2**20,
    alias_size_in_bytes=2**20,
    generated_code_size_in_bytes=0,
  )
  return types.SimpleNamespace(
    memory_analysis=lambda: memory,
    cost_analysis=lambda: {"bytes accessed": 819e6},
    as_text=lambda: text,
  )


class Lowered:
  def __init__(self, result):
    self._result = result

  def compile(self):
    if isinstance(self._result, Exception):
      raise self._result
    return self._result


@pytest.fixture
def eight(monkeypatch):
  """The command with the eight CPU devices in place of a topology, and faked programs."""
  text = "ENTRY %main (x: f32[4]) -> f32[8] {\n  %all = f32[262144]{0} all-gather(%x)\n}\n"
  programs = {
    "step of stage words": lambda: Lowered(fake(text, temporaries=2**30)),
    "step of stage late": lambda: Lowered(fake(text, temporaries=17 * 2**30)),
  }
  monkeypatch.setattr(topology, "devices", lambda name: jax.devices())
  monkeypatch.setattr(compiled_programs, "_programs", lambda parts, stage: programs)
  return programs


def run(*more):
  command.main(["--config=configs/phantom.py", "--topology=v5e:2x4", *flags(), *more])


def test_the_table_and_its_values(eight, capsys, tmp_path):
  """A program that fits, one that does not: exit status 1, with the keys that may mend it."""
  with pytest.raises(SystemExit) as ended:
    run(f"--json={tmp_path / 'new/a.json'}", "--config.train.batch_size=64", "--config.seed=3")
  assert ended.value.code == 1
  out, err = capsys.readouterr()
  assert "1 of 2: step of stage words ..." in err and "compiled in 0:0" in err
  cells = [[cell.strip() for cell in row.split("|")] for row in out.splitlines()]
  rows = {row[1]: row[2:4] for row in cells if len(row) > 3}
  assert rows["temporaries, MiB"] == ["1,024.0", "17,408.0"]
  assert rows["total, GiB"] == ["1.00", "17.00"]
  assert rows["fits into 16 GiB"] == ["yes", "NO"]
  assert rows["estimate: memory at the peak, ms"] == ["1.00", "1.00"]
  assert "docs.cloud.google.com/tpu/docs/v5e" in out and "not measured" in out
  assert "step of stage late: 17.00 GiB a chip do not fit: 1.00 too many" in out
  assert "--config.train.micro_batches=2" in out and "--config.train.batch_size=56" in out
  record = json.loads((tmp_path / "new/a.json").read_text())
  assert record["chips"] == 8 and record["batch_size"] == 64
  first, second = record["programs"].values()
  assert first["collectives"] == [
    {"kind": "all-gather", "shape": "f32[262144]", "bytes": 2**20, "runs": 1, "source": ""}
  ]
  assert (first["fits"], second["fits"], first["temporaries_bytes"]) == (True, False, 2**30)


@pytest.mark.parametrize(
  "message",
  [
    "Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.",
    "Ran out of memory on HBM, the total memory required for HLO temporaries (20.50G) exceeds"
    " available HBM (15.75G).",
  ],
)
def test_what_the_compiler_refuses_does_not_fit(eight, capsys, tmp_path, message):
  error = jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {message}")
  eight["step of stage words"] = lambda: Lowered(error)
  with pytest.raises(SystemExit):
    run(f"--json={tmp_path / 'a.json'}")
  refused = json.loads((tmp_path / "a.json").read_text())["programs"]["step of stage words"]
  assert (refused["fits"], refused["collectives"]) == (False, [])
  assert "step of stage words: 20.50 GiB a chip do not fit: 4.75 too" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("more", "message"),
  [
    (["--config.train.stepz=3"], "in the flags: .*stepz"),
    (["--config.train.steps=0"], r"config\.train\.steps"),
    (["--config.train.batch_size=12"], r"config\.train\.batch_size: is 12; .* the 8 devices"),
    (["--config.mesh.fsdp=3"], r"config\.mesh\.fsdp: is 3; must divide the 8 devices"),
    (["rest"], "unexpected argument 'rest'"),
    (["--json=configs"], "--json=configs cannot be written: name another path"),
    (["--json=README.md/a.json"], "--json=README.md/a.json cannot be written"),
  ],
)
def test_an_error_is_one_line(eight, more, message):
  del eight["step of stage late"]
  with pytest.raises(SystemExit, match=f"^error: .*{message}") as ended:
    run(*more)
  assert "\n" not in str(ended.value)


def test_a_stage_that_is_none_is_named():
  parts = assemble_on(mesh_of(), two_stages(), 50)
  with pytest.raises(UserError, match="--stage=none: the config has the stages words, late"):
    compiled_programs._programs(parts, "none")
  assert list(compiled_programs._programs(parts, "late")) == ["step of stage late"]
  assert list(compiled_programs._programs(parts, None))[2:] == ["image encoder", "text encoder"]


def test_weights_that_are_not_here_are_told(eight, capsys):
  del eight["step of stage late"]
  run("--config.model.text.weights=/models/bert")
  err = capsys.readouterr().err
  assert "config.model.text.weights: /models/bert is not here: sizes are those" in err
  assert "the vocabulary of /models/bert is not here: config.text.vocabulary_size, 200" in err


def test_remedies_are_those_that_save_enough():
  """Of a state that is split by fsdp, and of temporaries that micro-batches would halve."""
  large = {"model.text.embed_dim": 512, "model.text.mlp_dim": 2048}
  config = tiny(**large, **{"train.batch_size": 64})
  parts = assemble_on(mesh.make_mesh(-1, 1), config, 200)
  held = footprint.chip_bytes(parts.abstract_state)
  assert "mesh.fsdp=2" in footprint.remedies(parts, held // 4, 0)
  assert footprint.remedies(parts, held, 0) == []
  keys = footprint.remedies(parts, 2**24, 2**25)
  assert {"train.micro_batches=2", "train.batch_size=32"} <= set(keys)
  config.train.micro_batches = 4
  parts = assemble_on(mesh.make_mesh(-1, 1), config, 200)
  assert "train.batch_size=32" in footprint.remedies(parts, 2**20, 2**25)  # 7 pairs do not divide
  config.train.batch_size = 8
  parts = assemble_on(mesh_of(), config, 200)
  assert "train.batch_size=4" in footprint.remedies(parts, 2**20, 2**25)
  assert not any("batch_size" in key for key in footprint.remedies(parts, 2**25 - 1, 2**25))


@pytest.mark.parametrize("mib", [80, 0])
def test_a_smaller_tile_is_a_remedy_where_the_tile_is_large(monkeypatch, mib):
  """By what it holds: 48 MiB, of 32 images and reports, of those given or of those chosen."""
  monkeypatch.setattr(assembly, "memory_bytes", lambda mesh: 2**31)  # a sixteenth: 128 MiB

  def remedies(batch, words):
    sizes = {"train.batch_size": batch, "text.max_words": words, "alignment.tile_mib": mib}
    parts = assemble_on(mesh.make_mesh(-1, 1), tiny(**sizes), 200)
    return footprint.remedies(parts, 2**24, 2**25)

  assert "alignment.tile_mib=32" in remedies(256, 32)
  assert not any("tile" in key for key in remedies(64, 16))  # which holds 1.5 MiB in all


def test_a_tile_is_chosen_for_the_mesh_before_the_program_is_traced(monkeypatch):
  """Once: the step of 0 is, on CPUs, the step of 32; the config keeps its 0."""
  texts = []
  for mib in (0, 32):
    with monkeypatch.context() as patched:
      config = tiny(**{"alignment.tile_mib": mib, "train.batch_size": 64})
      parts = assemble_on(mesh.make_mesh(-1, 1), config, 200)
      assert (parts.alignment.tile_mib, config.alignment.tile_mib) == (32, mib)
      patched.setattr(assembly, "memory_bytes", lambda mesh: pytest.fail("it is traced"))
      texts.append(compiled_programs._lower_step(parts, "words").as_text())
  assert texts[0] == texts[1]


# --- programs for a TPU -----------------------------------------------------------------------


def test_layers_ask_the_mesh_that_a_program_is_for(monkeypatch):
  """Traced and lowered for a TPU on this CPU, no layer takes the form that CPUs want."""

  def refuse(*_):
    pytest.fail("attention as CPUs want it, in a TPU's program")

  monkeypatch.setattr(attention, "_attend_heads_first", refuse)
  device = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
  tpus = AbstractMesh((4, 1), ("data", "fsdp"), (AxisType.Auto,) * 2, abstract_device=device)
  heads, image, kernel = np.ones((2, 4, 2, 8)), np.ones((1, 16, 16, 64)), np.ones((3, 3, 64, 64))

  def everything(heads, image, kernel):
    assert mesh.platform() == "tpu"
    x = attention.attend(heads, heads, heads).sum()
    x += convolve(image, kernel, 1, 1).sum() + dense.product(image, kernel[0, 0]).sum()
    return x + product("hwc,cf->hwf", "bfloat16", image[0], kernel[0, 0]).sum()

  inputs = [x.astype(np.float32) for x in (heads, image, kernel)]
  with jax.sharding.use_abstract_mesh(tpus):
    traced = jax.jit(jax.grad(everything, (0, 1, 2))).trace(*inputs)
  text = traced.lower(lowering_platforms=("tpu",)).as_text()
  assert not any(form in text for form in CPU_FORMS)
  assert "bf16" in text


def test_without_a_mesh_the_platform_is_the_default():
  assert mesh.platform() == jax.default_backend()


@needs_libtpu
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
def test_a_tiny_step_for_four_chips():
  """The ring's reports travel, words and pixels are gathered nowhere, no form is of CPUs."""
  config = tiny(**{"alignment.dtype": "bfloat16", "alignment.implementation": "ring"})
  parts = assemble_on(mesh.make_mesh(4, 1, topology.devices("v5e:2x2")), config, 200)
  lowered = compiled_programs._lower_step(parts, "words")
  assert not any(form in lowered.as_text() for form in CPU_FORMS)
  does = hlo.read(lowered.compile().as_text())
  assert does.cycles > 0 and does.product_flops > 0
  words, channels = TINY["text.max_words"], TINY["model.embed_dim"]
  travels = [each for each in does.collectives if each.kind == "collective-permute"]
  features = [each for each in travels if each.shape == f"bf16[1,2,{words},{channels}]"]
  # Once round forwards, once backwards, and the gradients of what came back home.
  assert [each.runs for each in features] == [4, 4, 1]
  others = [each for each in does.collectives if each.kind == "all-gather"]
  assert {each.shape for each in others} == {f"f32[4,2,{channels}]"}  # of the global contrast


@needs_libtpu
@pytest.mark.slow
def test_a_step_on_stored_features_for_chips_that_are_not_here():
  """Nothing is computed on the way to the program, for no chip could."""
  small = {"embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 16, "patch_px": 16, "grid": 4}
  sizes = {f"model.image.vit.{name}": size for name, size in small.items()}
  sizes |= {"model.image.name": "vit", "model.image.spread_stage": 0, "data.store_features": True}
  config = tiny(**sizes, **{"train.freeze": ("^image_encoder/",)})
  parts = assemble_on(mesh.make_mesh(4, 1, topology.devices("v5e:2x2")), config, 200)
  batch = "tensor<8x16x16xf16>"  # 16 patches of 16 channels
  assert batch in compiled_programs._lower_step(parts, "words").as_text()
