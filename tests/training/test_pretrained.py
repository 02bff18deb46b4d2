import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs.local import localised
from foreign_weights import changed, small_bert
from input_pipeline.errors import UserError
from input_pipeline.text import tokenizer
from plan_jax import config as config_lib
from plan_jax import experiment
from plan_jax.inference.load import load
from plan_jax.models.weights import files
from plan_jax.models.weights.files import WeightsError
from plan_jax.runtime.checkpoints import Checkpoints
from plan_jax.runtime.workdir import Workdir, WorkdirError
from plan_jax.training import pretrained
from plan_jax.training.assembly import assemble
from plan_jax.training.pretrained import load_encoders, tokenizer_folder
from tiny_runs import tiny


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
  assert "\n" not in error.value.args[0]


def test_the_vocabulary_comes_with_the_weights(tmp_path):
  config = tiny()
  assert tokenizer_folder(config) == "" and load_encoders(config.model) == {}
  config.model.text.weights = str(tmp_path / "bert")
  small_bert(tmp_path / "bert")
  with pytest.raises(WeightsError, match=r"without a vocabulary.*config\.text\.tokenizer"):
    tokenizer_folder(config)
  config.model.text.weights = "sentence-transformers/all-MiniLM-L6-v2"
  with pytest.raises(WeightsError, match=r"text\.weights: sent.* is not there, and nothing is d"):
    tokenizer_folder(config)
  config.model.text.weights = str(tmp_path / "bert")
  (tmp_path / "bert" / "vocab.txt").write_text("[PAD]")
  assert tokenizer_folder(config) == str(tmp_path / "bert")
  config.text.tokenizer = str(tmp_path)
  assert tokenizer_folder(config) == str(tmp_path)


HUGGING_FACE = {
  "hidden_size": 16,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "intermediate_size": 16,
  "max_position_embeddings": 128,
}
SIZES = {"embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 16, "max_position": 128}


@pytest.mark.parametrize("settings", [HUGGING_FACE, {"run": {"model": {"text": SIZES}}}])
def test_sizes_are_those_of_the_folder(tmp_path, caplog, settings):
  """Of a Hugging Face folder, and of plan_jax.export; the config need not repeat them."""
  folder, run = tmp_path / "bert", Workdir(tmp_path / "run")
  small_bert(folder)
  (folder / "config.json").write_text(json.dumps(settings))
  given = tiny(**{"model.text.weights": str(folder), "model.text.depth": 9})
  given.model.text.update(embed_dim=24, num_heads=3, mlp_dim=40)
  config = pretrained.with_settings(given, run)
  with caplog.at_level("INFO", "plan_jax"):
    pretrained.log_settings(given, given)
    assert not caplog.text
    pretrained.log_settings(given, config)
  assert {name: config.model.text[name] for name in SIZES} == SIZES and given.model.text.depth == 9
  for change in ("text.embed_dim=16 (was 24)", "text.depth=1 (was 9)"):
    assert change in caplog.text
  assert load_encoders(config.model).keys() == {"text_encoder"}
  # A run that goes on keeps them without the folder; another folder is another run.
  run.claim(config)
  (run.checkpoints / "1").mkdir(parents=True)
  shutil.rmtree(folder)
  assert pretrained.with_settings(given, run).to_dict() == config.to_dict()
  given.model.text.weights = str(tmp_path / "other")
  assert pretrained.with_settings(given, run) is given
  assert pretrained.with_settings(tiny(), run) == tiny()


DINOV2 = {"model_type": "dinov2", "hidden_size": 24, "num_hidden_layers": 2, "patch_size": 14}
DINOV2 |= {"num_attention_heads": 3, "mlp_ratio": 2, "image_size": 56}
PIXELS = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.3, 0.2, 0.1], "size": {"height": 56}}


@pytest.fixture
def dinov2(tmp_path):
  """A run that starts from a folder of a DINOv2, and its workdir."""
  folder = tmp_path / "dinov2"
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(DINOV2))
  (folder / "preprocessor_config.json").write_text(json.dumps(PIXELS))
  return tiny(**{"model.image.weights": str(folder)}), Workdir(tmp_path / "run")


def test_the_folder_is_enough_for_an_image_encoder(dinov2):
  given, run = dinov2
  config = pretrained.with_settings(given, run)
  image = config.model.image
  assert (image.name, image.mean, image.std) == ("vit", (0.1, 0.2, 0.3), (0.3, 0.2, 0.1))
  sizes = dict(embed_dim=24, depth=2, num_heads=3, mlp_dim=48, patch_px=14, grid=4)
  more = dict(variant="dinov2", registers=0, gated=False, layers=())
  more |= dict(dark_below_fraction=0.0)
  assert image.vit.to_dict() == sizes | more and config.model.image_px == 56
  config_lib.check(config)
  # The same in JSON, without the folder; keys that the command line changes are not kept.
  run.claim(config)
  (run.checkpoints / "1").mkdir(parents=True)
  shutil.rmtree(given.model.image.weights)
  assert pretrained.with_settings(given, run).to_dict() == config.to_dict()
  given.model.image.vit.depth = 5
  changed = pretrained.with_settings(given, run, ["model.image.vit.depth"])
  with pytest.raises(WorkdirError, match=r"model\.image\.vit\.depth: 2 there, 5 now"):
    run.claim(changed)


def test_the_command_line_may_choose_the_side_and_nothing_else(dinov2):
  config, run = dinov2
  config.model.image_px = 112
  config.model.image.mean = (0.5,)
  config.model.image.vit.update(depth=12, embed_dim=24)
  given = ["model.image_px", "model.image.vit.embed_dim", "train.steps"]
  assert pretrained.with_settings(config, run, given).model.image_px == 112
  given += ["model.image.mean", "model.image.vit.depth"]
  folder = config.model.image.weights
  with pytest.raises(WeightsError) as error:
    pretrained.with_settings(config, run, given)
  for part in (f"image.mean=(0.5,), (0.1, 0.2, 0.3) in {folder}", f"depth=12, 2 in {folder}"):
    assert part in str(error.value)
  assert "image_px" not in str(error.value) and "embed_dim" not in str(error.value)


def test_changed_settings_stand_before_no_error_of_another_key(dinov2, capsys):
  config, run = dinov2
  config.train.batch_size = 0
  with pytest.raises(UserError, match="batch_size"):
    experiment.run(config, run, "train")
  assert "as its weights have it" not in capsys.readouterr().out


def test_runlocal_keeps_its_images_small(dinov2):
  config, run = dinov2
  config.runlocal = True
  local = pretrained.with_settings(localised(config), run)
  assert local.model.image_px == 224 and local.model.image.vit.depth == 2
  config_lib.check(local)


@pytest.mark.parametrize("content", ["{", "[1]", "\xff", "[" * 100_000])
def test_a_broken_config_of_weights(tmp_path, content):
  small_bert(tmp_path / "bert")
  (tmp_path / "bert" / "config.json").write_text(content, "latin1")
  config = tiny(**{"model.text.weights": str(tmp_path / "bert")})
  message = r"bert/config\.json (is no JSON|holds a list)"
  with pytest.raises(WeightsError, match=message):
    pretrained.with_settings(config, Workdir(tmp_path / "run"))
  with pytest.raises(WeightsError, match=rf"config\.model\.text\.weights: .*{message}"):
    load_encoders(config.model)


def test_a_tokenizer_that_is_not_there_is_refused_before_any_work(tmp_path):
  run = Workdir(tmp_path / "run")
  message = r"config\.text\.tokenizer: there is no folder /nowhere, and nothing is downloaded"
  with pytest.raises(tokenizer.TokenizerError, match=message):
    experiment.run(tiny(**{"text.tokenizer": "/nowhere"}), run, "train")
  assert not run.path.exists()


@pytest.mark.parametrize(
  ("key", "message"),
  [
    ("text.tokenizer", r"config\.text\.tokenizer: .*tokenizer\.json is no whole tokenizer"),
    ("model.text.weights", r"config\.model\.text\.weights: .*tokenizer\.json is no whole"),
  ],
)
def test_a_tokenizer_that_cannot_be_read_is_refused_before_any_work(tmp_path, key, message):
  (tmp_path / "tokenizer.json").write_text("{}")
  run = Workdir(tmp_path / "run")
  with pytest.raises(tokenizer.TokenizerError, match=message):
    experiment.run(tiny(**{key: str(tmp_path)}), run, "train")
  assert not run.path.exists()


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
      "train.learning_rate": 1e-8,
      "checkpoint.every_steps": 1,
    }
  )
  run = Workdir(tmp_path / "run")
  with pytest.raises(WeightsError, match=r"config\.model\.text\.depth=1"):
    file = folder / "model.safetensors"
    other = {"text.tokenizer": str(folder), "model.text.depth": 2}
    other = tiny(**{"model.text.weights": str(file)} | other)
    experiment.run(other, run, "train")
  assert not run.records.exists()  # refused before any work
  experiment.run(config, run, "train")
  note = json.loads(run.weights.read_text())
  assert list(note) == ["text_encoder", "digest"] and note["text_encoder"]["source"] == "BERT: bert"
  assert note["text_encoder"]["sha256"] == files.read(folder).sha256
  words = tensors["embeddings.word_embeddings.weight"]
  (folder / "model.safetensors").unlink()
  model = load(run.path)
  learned = model.variables["params"]["text_encoder"]["token_embedding"]["embedding"]
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
