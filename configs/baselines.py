r"""Another project's whole model, by its own checkpoint, under our protocols (docs/baselines.md).

  python -m plan_jax.main --mode=evaluate --config=configs/baselines.py:gloria \
    --config.baseline.weights=gloria_resnet50.ckpt \
    --config.baseline.tokenizer=/models/Bio_ClinicalBERT \
    --config.data.dataset=folder --config.data.source=FOLDER --workdir=runs/gloria

Variants: those of BASELINES; with ",mimic" or ",phantom" the data are those of configs/mimic.py or
configs/phantom.py. `--config.data.records=runs/a/records` evaluates on the very records of a run,
so that `plan_jax.compare` can compare the two.
"""

from ml_collections import ConfigDict

from configs import base, mimic, phantom, variants

BASELINES = (
  *("gloria", "mgca_resnet", "mgca_vit", "biovil", "biovil_t", "afloc"),
  *("clip", "chexzero", "biomedclip", "siglip", "medsiglip"),
  *("radzero", "carzero", "conns"),
)
# The project's own prompts, beside ours.
_PROMPTS = {"chexzero": "chexzero"} | dict.fromkeys(("radzero", "carzero", "conns"), "carzero")
_DATA = {"": base.get_config, "mimic": mimic.get_config, "phantom": phantom.get_config}
_SECTIONS = ("seed", "data", "evaluation", "mesh")  # of base.py: nothing is trained
_TRAINING_KEYS = ("every_steps", "during_images", "max_tokens", "max_words", "transfer")


def get_config(variant: str = "") -> ConfigDict:
  """The configuration of a variant: a baseline's name, or that, "," and the data."""
  name, data = variants.parse("baselines.py", variant, BASELINES, tuple(_DATA), required=1)
  run = _DATA[data]()
  config = ConfigDict({key: run[key] for key in _SECTIONS})
  config.text = ConfigDict(dict(terms=run.text.terms))
  config.evaluation.compatibility = True
  if name in _PROMPTS:
    config.evaluation.prompts = ("ours", _PROMPTS[name])
  if data != "mimic":
    mimic.attach(config)
    for entry in config.evaluation.sets.values():
      entry.source = ""  # each waits for its own
  for key in _TRAINING_KEYS:
    del config.evaluation[key]
  config.baseline = ConfigDict(
    dict(
      name=name,
      weights="",  # the baseline's checkpoint; of BioViL, that of the images
      text="",  # BioViL's text encoder: a local Hugging Face folder
      tokenizer="",  # a local Hugging Face folder; empty: that of `text`, or of `weights`
    )
  )
  return config
