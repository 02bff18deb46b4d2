import inspect
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from damage import for_each_damage
from fakes.disk import full_disk
from input_pipeline import digests, images, records
from input_pipeline.digests import DamagedError
from input_pipeline.disk import DiskError
from input_pipeline.errors import UserError
from input_pipeline.phantom import radiograph
from input_pipeline.text import tokenizer as tokens
from plan_jax import export
from plan_jax.commands import export as command
from plan_jax.evaluators import datasets
from plan_jax.inference import calibration
from plan_jax.inference.load import load
from plan_jax.models.weights import files
from plan_jax.models.weights.files import WeightsError
from plan_jax.models.weights.load import load_image, load_text
from plan_jax.results import model_card
from plan_jax.results import rows as results
from plan_jax.runtime.checkpoints import Checkpoints
from plan_jax.runtime.workdir import Workdir, WorkdirError
from plan_jax.training.assembly import assemble
from tiny_runs import tiny

EXAMPLES = [radiograph.example(1, i, 64) for i in range(3)]
IMAGES = [images.decode(example.image) for example in EXAMPLES]
PHRASES = ["small left effusion", "the heart is large", "no pneumothorax"]


def make_run(folder, **change):
  """A run that has a checkpoint, a running mean, and records, without the training."""
  run, config = Workdir(folder), tiny(**{"train.ema_decay": 0.5, "train.steps": 1} | change)
  run.claim(config)
  datasets.make_records(config.data, run.records, config.data)
  run.claim_records(run.records, records.fingerprint(run.records))
  texts = [" ".join(example.sentences) for example in EXAMPLES]
  tokenizer = tokens.train(texts, run.tokenizer, vocabulary_size=200)
  digests.write_sums(run.tokenizer)
  state = assemble(config, tokenizer).initial_state()
  state = state.replace(step=state.step + 1, ema=jax.tree.map(lambda x: 1.5 * x, state.params))
  checkpoints = Checkpoints(run.checkpoints)
  checkpoints.save(1, state)
  checkpoints.close()
  return run


@pytest.fixture(scope="module", params=["resnet", "vit"])
def run(request, tmp_path_factory):
  """A run, and where it is exported to."""
  folder = tmp_path_factory.mktemp(request.param)
  change = {"model.image.name": request.param, "model.image.vit.depth": 1}
  if request.param == "resnet":  # maps that are twice as fine as the grid
    change |= {"alignment.spread_steps": 1, "model.image.spread_stage": 1}
  run = make_run(folder / "run", **change)
  return run, export.write(run, folder / "out")


def test_round_trip_keeps_the_bits(run):
  """The weights that were evaluated (the running mean) and all that is made of them."""
  before, after = load(run[0]), load(run[1])
  with pytest.raises(UserError, match="is an exported folder: give no step and no config"):
    load(run[1], step=1)
  with pytest.raises(WorkdirError, match="is an exported folder, which ground.*: name the run"):
    Workdir(run[1]).load_model_config()
  assert after.step == before.step == 1
  jax.tree.map(np.testing.assert_array_equal, after.variables, before.variables)
  np.testing.assert_array_equal(
    after.maps_on_grid(IMAGES, PHRASES), before.maps_on_grid(IMAGES, PHRASES)
  )
  texts = [example.sentences for example in EXAMPLES]
  np.testing.assert_array_equal(after.embed_texts(texts), before.embed_texts(texts))


def served_alone(folder, batch, tmp_path):
  """The answer of a server that is made as docs/weights.md says."""
  np.savez(tmp_path / "batch.npz", **batch)
  code = (
    "import sys, jax, numpy as np; from safetensors.numpy import load_file\n"
    "folder, batch = sys.argv[1], dict(np.load('batch.npz'))\n"
    "ground = jax.export.deserialize(bytearray(open(folder + '/grounding.jax', 'rb').read()))\n"
    "out = ground.call(load_file(folder + '/model.safetensors'), batch)\n"
    "assert 'plan_jax' not in sys.modules; np.savez('out.npz', **out)"
  )
  call = [sys.executable, "-c", code, str(folder)]
  done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=200)
  assert done.returncode == 0, done.stderr
  return np.load(tmp_path / "out.npz")


@pytest.mark.parametrize("count", [1, 3])
def test_function_equals_the_model(run, count, tmp_path):
  """For any number of pairs; a process without plan_jax gets the same from the files alone."""
  model, serve = load(run[0]), export.serving(run[1])
  about = json.loads((run[1] / "config.json").read_text())
  tokenizer, limits = tokens.Tokenizer(run[1]), about["run"]["evaluation"]
  lengths = {name: limits[name] for name in ("max_tokens", "max_words")}
  texts = [tokenizer.encode((phrase,), **lengths).arrays() for phrase in PHRASES[:count]]
  side = about["inputs"]["image"]["shape"][1]
  batch = {name: np.stack([text[name] for text in texts]) for name in texts[0]}
  batch["image"] = np.stack([images.fit(image, side) for image in IMAGES[:count]])[..., None]
  for name, x in about["inputs"].items():
    assert list(batch[name].shape[1:]) == x["shape"][1:] and batch[name].dtype == x["dtype"]
  served = serve(batch)
  if count == 1:
    alone = served_alone(run[1], batch, tmp_path)
    for name in served:
      np.testing.assert_array_equal(alone[name], served[name])
  want = model.maps_on_grid(IMAGES[:count], PHRASES[:count])
  np.testing.assert_allclose(served["map"], want, atol=1e-5)
  np.testing.assert_allclose(
    served["peak"], model.peaks(IMAGES[:count], PHRASES[:count]), atol=1e-5
  )
  assert served["map"].shape == want.shape
  rows, columns = want.shape[1:]
  assert f"maps of {rows} x {columns}" in (run[1] / "README.md").read_text()


def test_another_run_can_start_from_it(run):
  """Its encoders are weights like any others."""
  params = load(run[0]).variables["params"]
  parts = assemble(run[0].load_config(), tokens.Tokenizer(run[1]))
  encoder = parts.model.bind({"params": params})
  image = load_image(run[1], encoder.image_encoder.clone(parent=None))
  text = load_text(run[1], encoder.text_encoder.clone(parent=None))
  for loaded, name in ((image, "image_encoder"), (text, "text_encoder")):
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params[name])
    assert "log_scale" in loaded.provenance["left_aside"]
    assert not any(n.startswith(name) for n in loaded.provenance["left_aside"])


def test_the_calibration_of_its_step_goes_along(tmp_path):
  source = make_run(tmp_path / "run")
  measured = calibration.Calibration(1, [0.25] * 101, 0.1)
  calibration.write(source.calibration, measured)
  out = export.write(source, tmp_path / "out")
  assert load(out).calibration == load(source).calibration == measured
  for_each_damage(out / "calibration.json", lambda: load(out))
  calibration.write(source.calibration, calibration.Calibration(2, [0.25] * 101, 0.1))
  assert load(source).calibration is None


def test_model_card(run):
  card = (run[1] / "README.md").read_text()
  for part in (
    "phantom (synthetic",
    "fingerprint",
    "32 train, 8 validation, 8 test",
    "not evaluated",
    "no medical device",
    "text_encoder started at random",
    "step 1 of 1",
  ):
    assert part in card
  rows = [
    results.Row(
      "grounding", "grounding-v1", "phantom/test", "macro", "mIoU", results.RUN, 0.25, 0.2, 0.3, 40
    )
  ]
  results.write(run[0].evaluation, results.Evaluation(1, rows, {"phantom/test": "0"}))
  note = {"text_encoder": {"source": "BERT: x", "sha256": "ab"}}
  run[0].weights.write_text(digests.seal(note))
  config = run[0].load_config()
  config.model.text.weights = "x"
  card = model_card.text(run[0], config, 1, (2, 2))
  assert "grounding on phantom/test (grounding-v1)" in card and "0.250 [0.200, 0.300]" in card
  assert "text_encoder started from BERT: x, SHA-256 ab" in card
  assert "image_encoder started at random" in card
  results.write(run[0].evaluation, results.Evaluation(7, rows, {"phantom/test": "0"}))
  card = model_card.text(run[0], config, 1, (2, 2))
  assert "evaluated at step 7" in card and "0.250" not in card


def test_the_command(run, tmp_path, capsys):
  out = tmp_path / "out"
  arguments = [f"--workdir={run[0].path}", f"--out={out}"]
  command.main(arguments)
  assert capsys.readouterr().out == f"export: {out}\n"
  assert (out / "grounding.jax").read_bytes()
  with pytest.raises(SystemExit, match="error: --out=.*exists"):
    command.main(arguments)


def test_errors(run, tmp_path):
  with pytest.raises(UserError, match="exists: name a new folder"):
    export.write(run[0], run[1])
  with pytest.raises(UserError, match="no checkpoint of step 9"):
    export.write(run[0], tmp_path / "new", step=9)
  assert not (tmp_path / "new").exists()
  with pytest.raises(WorkdirError, match=r"holds no run \(no config.json\)"):
    load(tmp_path)
  with pytest.raises(DamagedError, match="SHA256SUMS is missing: the folder is not whole"):
    export.serving(tmp_path)
  about = json.loads((run[1] / "config.json").read_text())
  about["run"]["model"]["embed_dim"] = 4
  other = tmp_path / "other"
  shutil.copytree(run[1], other)
  (other / "config.json").write_text(json.dumps(about))
  with pytest.raises(DamagedError, match="config.json is not as it was written"):
    load(other)
  digests.write_sums(other)
  with pytest.raises(WeightsError, match=r"pixel_head\.bias is \(8,\), not \(4,\)"):
    load(other)


@pytest.mark.parametrize(
  ("section", "key", "message"),
  [
    ("alignment", "eta", "alignment.eta: is no key"),
    ("curriculum.words", "gamma", "words.gamma: is no key"),
    ("model.image", "film", "model.image.film: is no key"),
  ],
)
def test_a_run_or_export_of_another_version_is_one_line(run, tmp_path, section, key, message):
  for original, at in ((run[0].path, ()), (run[1], ("run",))):
    folder = tmp_path / f"of-{original.name}"
    shutil.copytree(original, folder)
    config = digests.read_sealed(folder / "config.json", "") if not at else None
    about = config or json.loads((folder / "config.json").read_text())
    place = about
    for name in (*at, *section.split(".")):
      place = place[name]
    place[key] = 1
    if config:
      (folder / "config.json").write_text(digests.seal(about))
    else:
      (folder / "config.json").write_text(json.dumps(about))
      digests.write_sums(folder)
    with pytest.raises(WorkdirError, match=f"of another version of plan_jax: .*{message}"):
      load(folder)


def test_a_run_that_is_older_than_keys_of_the_model_is_read(run, tmp_path):
  folder = shutil.copytree(run[0].path, tmp_path / "older")
  config = digests.read_sealed(folder / "config.json", "")
  for key in ("lora_rank", "lora_blocks", "spread_stage"):
    del config["model"]["image"][key]
  (folder / "config.json").write_text(digests.seal(config))
  assert load(folder).step == 1


@pytest.mark.parametrize("inner", ["checkpoints/1", "tokenizer", "records"])
def test_a_folder_within_a_run_is_none(run, inner):
  folder = run[0].path / inner
  assert folder.is_dir()
  with pytest.raises(WorkdirError, match=r"holds no run \(no config.json\)"):
    load(folder)


@pytest.mark.parametrize("folder", [None, 5])
def test_what_is_no_path(folder):
  for read in (export.serving, inspect.unwrap(load)):
    name = type(folder).__name__
    with pytest.raises(UserError, match=f"(folder|workdir) is of type {name}: give the path of"):
      read(folder)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"step": "1"}, "step is '1': give a whole number, or leave it out"),
    ({"step": 1.0}, "step is 1.0: give"),
    ({"step": True}, "step is True: give"),
    ({"config": {}}, "config is of type dict: change what .*load_config.* gives"),
  ],
)
def test_arguments_of_another_type(run, arguments, message):
  with pytest.raises(WorkdirError, match=message):
    inspect.unwrap(load)(run[0], **arguments)
  assert inspect.unwrap(load)(run[0], step=np.int64(1)).step == 1


def test_an_evaluation_on_other_data_is_no_model(tmp_path):
  (tmp_path / "config.json").write_text(digests.seal({"on": {"split": "test"}}))
  with pytest.raises(WorkdirError, match="on other data, and no model to load: name the run's own"):
    load(tmp_path)


NAMES = ("model.safetensors", "grounding.jax", "config.json", "tokenizer.json", digests.SUMS)


@pytest.mark.parametrize("name", [*NAMES, "tokenizer_config.json"])
@pytest.mark.parametrize("read", [load, export.serving, files.read])
def test_a_damaged_export_is_one_line(run, name, read):
  assert set(NAMES) <= {path.name for path in run[1].iterdir()}
  for_each_damage(run[1] / name, lambda: read(run[1]))


def test_damaged_weights_are_one_line_without_the_config_and_by_themselves(run, tmp_path):
  out = shutil.copytree(run[1], tmp_path / "out")
  weights = out / "model.safetensors"
  for_each_damage(weights, lambda: files.read(weights))
  (out / "config.json").unlink()
  for path in (out, weights):
    with pytest.raises(DamagedError, match=r"config\.json is missing"):
      files.read(path)


def test_the_card_may_be_edited(run, tmp_path):
  shutil.copytree(run[1], tmp_path / "out")
  (tmp_path / "out" / "README.md").write_text("My words.")
  assert load(tmp_path / "out").step == 1


def test_a_full_disk_leaves_nothing(run, tmp_path):
  with full_disk(3_000), pytest.raises(DiskError, match=f"{tmp_path}/new.*: File too large"):
    export.write(run[0], tmp_path / "new")
  assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_known_before_the_work(run, tmp_path, monkeypatch):
  monkeypatch.setattr(export, "load_run", lambda *_, **__: pytest.fail("this is work"))
  (tmp_path / "file").touch()
  with pytest.raises(DiskError, match="file: File exists; name another path"):
    export.write(run[0], tmp_path / "file" / "new")
