"""Configs: variants, the local likeness, and the rules that a config is checked by."""

import importlib

import pytest
from ml_collections import ConfigDict

from configs import baselines, chexpert, frozen, mimic, openi, phantom, variants
from configs.local import localised
from input_pipeline.errors import UserError
from plan_jax import config as config_lib
from plan_jax.models.two_towers import build
from tiny_runs import tiny


@pytest.mark.parametrize(
  ("variant", "options"),
  [
    ("", ("resnet50", "224")),
    ("512", ("resnet50", "512")),
    ("512,vit", ("vit", "512")),
  ],
)
def test_a_variant_names_an_option_of_each_group(variant, options):
  assert variants.parse("x.py", variant, ("resnet50", "vit"), ("224", "512")) == options


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: mimic.get_config("swin"), "no variant 'swin' of mimic.py; there are resnet50, vit"),
    (lambda: mimic.get_config("vit,resnet50"), "resnet50 and vit exclude each other"),
    (lambda: mimic.get_config("frozen,512"), "frozen and 512 exclude each other: images"),
    (lambda: mimic.get_config("224,frozen"), "frozen and 224 exclude each other"),
    (lambda: phantom.get_config("all"), "no variant 'all' of phantom.py; there are tasks"),
    (lambda: baselines.get_config(), "no variant '' of baselines.py; there are gloria, "),
    (lambda: baselines.get_config("mimic"), "no variant 'mimic' of baselines.py; there are "),
  ],
)
def test_unknown_variants_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_boxes_are_detected_at_the_size_of_the_variant():
  for variant, side in (("512", 512), ("vit", None)):
    tasks = mimic.get_config(variant).evaluation.transfer
    assert tasks.rsna_detection.flags.get("image_px") == side
    assert tasks.object_cxr_detection.flags.get("image_px") == side
    assert tasks.siim_segmentation.flags.image_px == (side or 224)


@pytest.mark.parametrize(
  "config",
  [
    *(mimic.get_config(v) for v in ("", "vit", "512", "vit,512", "resnet50,224")),
    chexpert.get_config(),
    chexpert.get_config("vit"),
    openi.get_config(),
  ],
)
def test_full_size_configs_are_possible(config):
  with pytest.raises(config_lib.ConfigError, match=r"config\.data\.source: is empty"):
    config_lib.check(config)
  config.data.source = "somewhere"
  config_lib.check(config)
  assert all(entry.source in ("", "somewhere") for entry in config.evaluation.sets.values())
  config.runlocal = True
  config_lib.check(localised(config))


@pytest.mark.parametrize("config", [frozen.get_config(), mimic.get_config("frozen")])
def test_frozen_configs_want_weights(config):
  config.data.source = "somewhere"
  with pytest.raises(config_lib.ConfigError, match=r"needs the encoder's model\.image\.weights"):
    config_lib.check(config)
  config.model.image.weights = "a folder"
  config_lib.check(config)
  config.model.image.name = "resnet"  # as the folder may tell
  config_lib.check_programs(config)


@pytest.mark.parametrize("variant", ["frozen", ""])
def test_the_main_job_takes_images_of_rad_dino_s_size(variant):
  config = mimic.get_config(variant)
  config.data.source, config.model.image.weights = "somewhere", "a folder"
  config.model.image_px, config.model.image.name = 518, "vit"
  config.model.image.vit.update(variant="dinov2", patch_px=14, grid=37)
  config_lib.check(config)


@pytest.mark.parametrize(
  "change",
  [
    {"model.text.last_layers": 4},
    {"model.image.name": "vit", "model.image.vit.layers": (8,)},
    {"model.image.name": "vit", "model.image.lora_rank": 4, "model.image.lora_blocks": 6},
  ],
)
def test_runlocal_makes_possible_configs_of_possible_ones(change):
  config = mimic.get_config()
  config.data.source = "somewhere"
  config.update_from_flattened_dict(change)
  config_lib.check(config)
  config.runlocal = True
  config_lib.check(localised(config, set(change) & {"model.image.name"}))


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_configs_of_baselines_are_possible(name):
  config = baselines.get_config(f"{name},phantom")
  config_lib.check_baseline(config)
  config.evaluation.batch_size = 0
  with pytest.raises(config_lib.ConfigError, match=r"config\.evaluation\.batch_size: is 0"):
    config_lib.check_baseline(config)


def test_only_runlocal_changes_a_config():
  config = phantom.get_config("tasks")
  assert localised(config) is config
  config.runlocal = True
  local = localised(config)
  assert (local.train.steps, local.model.image.vit.depth, config.train.steps) == (4, 2, 1440)
  assert local.evaluation.transfer.detection.flags.channels == 8
  assert local.evaluation.transfer.detection.fractions == (1.0,)


def test_overrides_win_over_runlocal():
  config = mimic.get_config()
  config.update(runlocal=True)
  config.train.steps = 20
  config.data.selection = "mine"
  config.evaluation.transfer.rsna_detection.fractions = (0.5, 1.0)
  overrides = {"train.steps", "data.selection", "evaluation.transfer.rsna_detection.fractions"}
  local = localised(config, overrides)
  assert (local.train.steps, local.data.selection, local.train.batch_size) == (20, "mine", 8)
  assert local.evaluation.transfer.rsna_detection.fractions == (0.5, 1.0)
  assert local.evaluation.transfer.siim_segmentation.fractions == (1.0,)


def test_an_encoder_with_weights_keeps_its_size():
  config = mimic.get_config()
  config.runlocal = True
  config.model.text.weights = "bert"
  local = localised(config)
  assert (local.model.text.embed_dim, local.model.image.width) == (768, 0.25)


def test_unknown_keys_of_a_config_file_are_named():
  config = phantom.get_config()
  config.train.stepz = 3
  with pytest.raises(config_lib.ConfigError, match=r"config\.train\.stepz: is no key; there are"):
    config_lib.check(config)
  config = phantom.get_config()
  del config.train.steps
  with pytest.raises(config_lib.ConfigError, match=r"config\.train\.steps: is missing"):
    config_lib.check(config)


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("model.image.depth", 19, r"config\.model\.image\.depth: is 19; must be one of 18, 34, 50"),
    ("model.image.name", "swin", r"config\.model\.image\.name: .*resnet, vit"),
    ("model.image.mean", (0.5, 0.5), r"config\.model\.image\.mean.*1 or 3 values"),
    ("model.image.std", (0.2, 0.2, 0.2), r"config\.model\.image\.std.*1 positive values"),
    ("model.image.vit.num_heads", 5, r"config\.model\.image\.vit\.embed_dim.*multiple of 5 heads"),
    (
      "model.image.vit.layers",
      (1, 9),
      r"image\.vit\.layers: is \(1, 9\); must be numbers of blocks",
    ),
    ("model.image.vit.layers", (1, 1), r"image\.vit\.layers.*each block once"),
    ("model.text.last_layers", 2, r"config\.model\.text\.last_layers.*1 layers"),
    ("train.freeze", ("tower",), r"train\.freeze: 'tower' is in no parameter's path"),
    ("train.freeze", ("(",), r"train\.freeze: '\(' is no regular expression"),
    ("train.freeze", ("^", "image"), r"train\.freeze: leaves nothing to learn"),
    ("train.layer_decay", 1.2, r"train\.layer_decay.*\(0, 1\]"),
    ("train.text_rate", 0.0, r"train\.text_rate.*positive"),
    ("model.image_px", 66, r"config\.model\.image_px.*multiple of 8"),
    ("model.text.num_heads", 3, r"config\.model\.text\.embed_dim.*multiple of 3 heads"),
    ("model.image.output_stride", 16, r"output_stride.*reach a stride of 8 only"),
    ("model.image.spread_stage", 3, r"spread_stage: is 3; there are 2 stages"),
    ("train.batch_size", 1, r"config\.train\.batch_size.*at least two pairs"),
    ("model.text.num_heads", 0, r"config\.model\.text\.num_heads.*positive"),
    ("checkpoint.best_metric", "loss", r"best_metric.*validation/grounding/mIoU"),
    ("model.scale_init", 200.0, r"config\.model\.scale_init.*1 to 100"),
    ("data.threads", 0, r"config\.data\.threads.*positive"),
    ("evaluation.split", "tset", r"config\.evaluation\.split.*validation, test"),
    ("train.steps", 0, r"config\.train\.steps.*positive"),
    ("alignment.method", "magic", r"alignment\.method: is 'magic'; must be one of plan, none"),
    ("alignment.beta", float("inf"), r"alignment\.beta.*finite"),
    ("train.learning_rate", float("inf"), r"train\.learning_rate.*finite"),
    ("train.text_rate", float("inf"), r"train\.text_rate.*finite"),
    ("text.max_tokens", 2, r"text\.max_tokens.*room"),
    ("alignment.word_weight", -1.0, r"alignment\.word_weight.*negative"),
    ("text.terms", "nowhere.txt", r"config\.text\.terms: nowhere\.txt: .* cannot be read"),
    ("alignment.smooth_share", 1.5, r"config\.alignment\.smooth_share.*\[0, 1\]"),
    ("evaluation.max_tokens", 4000, r"max_position.*4000"),
    ("checkpoint.evaluate", "best", r"checkpoint\.evaluate: is 'best'; needs a best_metric"),
    ("curriculum.words.tau", 0.0, r"config\.curriculum\.words\.tau: is 0\.0; must be positive"),
  ],
)
def test_impossible_configs_are_named(key, value, message):
  config = tiny()
  config.unlock()
  config.update_from_flattened_dict({key: value})
  with pytest.raises(UserError, match=message):
    config_lib.check(config)


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("curriculum", {"a": 3}, r"curriculum\.a: is 3; must hold keys"),
    ("model", 3, r"model: is 3; must hold keys"),
    ("model.image.vit", None, r"model\.image\.vit: is None; must hold keys"),
    ("train.freeze", (3,), r"train\.freeze: is \(3,\); must be of type tuple\[str, "),
    ("mesh.data", "all", r"mesh: is \{'data': 'all', .*; must be of type dict\[str, int\]"),
    ("evaluation.prompts", (3,), r"evaluation\.prompts: is \(3,\); must be of type tuple\[str, "),
    ("evaluation.sets", "x", r"evaluation\.sets: is 'x'; must hold keys"),
    ("evaluation.sets", {"x": 3}, r"evaluation\.sets\.x: is 3; must hold keys"),
    (
      "evaluation.evaluators.terms.protocols",
      True,
      r"evaluation\.evaluators\.terms\.protocols: is True; must be of type tuple\[str, ",
    ),
    ("evaluation.transfer", {"x": 3}, r"evaluation\.transfer\.x: is 3; must hold keys"),
    ("evaluation.transfer", {"x": {}}, r"evaluation\.transfer\.x\.task: is missing"),
  ],
)
def test_values_of_other_types_are_named(key, value, message):
  config = section = tiny().to_dict()
  *path, last = key.split(".")
  for part in path:
    section = section[part]
  section[last] = value
  with pytest.raises(config_lib.ConfigError, match=f"^config\\.{message}"):
    config_lib.check(ConfigDict(config))


@pytest.mark.parametrize(
  ("name", "rank", "blocks", "message"),
  [
    ("resnet", 4, 2, r"lora_rank: is 4; must be 0: a resnet has no attention \(name='vit' has\)"),
    ("resnet", 0, 2, r"lora_blocks: is 2; must be 0: a resnet"),
    ("vit", 4, 0, r"lora_rank: is 4; needs lora_blocks above 0 too"),
    ("vit", 0, 2, r"lora_blocks: is 2; needs lora_rank above 0 too"),
    ("vit", 4, 6, r"lora_blocks: is 6; 5 blocks are run \(vit\.layers, else vit\.depth\)"),
    ("vit", -1, 2, r"lora_rank: is -1; must not be negative"),
    ("vit", 4, 5, None),
  ],
)
def test_low_rank_updates_that_cannot_be(name, rank, blocks, message):
  config = tiny(**{"model.image.name": name, "model.image.vit.layers": (3, 5)})
  config.model.image.update(lora_rank=rank, lora_blocks=blocks)
  if message is None:
    config_lib.check(config)
  else:
    with pytest.raises(config_lib.ConfigError, match=rf"^config\.model\.image\.{message}"):
      config_lib.check(config)


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_a_config_without_low_rank_updates_still_builds(name):
  config = tiny(**{"model.image.name": name})
  older = config.to_dict()
  for key in ("lora_rank", "lora_blocks"):
    del older["model"]["image"][key]
  assert build(ConfigDict(older).model, 50) == build(config.model, 50)


def test_batch_that_does_not_divide_over_the_devices():
  with pytest.raises(UserError, match=r"train\.batch_size: is 12; .* the 8 devices"):
    config_lib.check_devices(tiny(**{"train.batch_size": 12}))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"train.micro_batches": 2},
      r"train\.micro_batches: is 2; must divide the 1 pairs of a device",
    ),
    (
      {"alignment.implementation": "chunked"},
      r"alignment\.implementation: .* not on 8; use \"ring\"",
    ),
    (
      {"train.batch_size": 800, "alignment.tile_images": 100, "alignment.tile_reports": 100},
      r"config\.alignment\.tile_mib: comes to 32; a tile of 100 images x 100 reports",
    ),
  ],
)
def test_what_the_devices_cannot_do_is_named(change, message):
  with pytest.raises(UserError, match=message):
    config_lib.check_devices(tiny(**change))


@pytest.mark.parametrize("name", ["phantom", "folder", "base", "ablation"])
def test_shipped_configs_are_possible(name):
  config = importlib.import_module(f"configs.{name}").get_config()
  if config.data.dataset == "folder":
    with pytest.raises(config_lib.ConfigError, match=r"config\.data\.source: is empty"):
      config_lib.check(config)
    config.data.source = "images"
  config_lib.check(config)
