"""The study: PLAN against its baselines and without its parts, on small synthetic images.

python -m launch.sweep --config=configs/ablation.py --out=runs/ablation --mode=run --parallel=2
"""

from ml_collections import ConfigDict

from configs import phantom


def small() -> ConfigDict:
  """The phantom at 96 px, a run of a few minutes on one core."""
  config = phantom.get_config()
  config.data.options.size_px = 96
  config.model.image_px = 96
  config.model.image.width = 0.375
  config.train.steps = 1000
  config.data.threads = 1
  config.checkpoint.every_steps = 0
  config.evaluation.update(every_steps=0, report_images=4)
  return config


def get_config() -> ConfigDict:
  """Adds a first stage of the global contrast alone, which the study has shown to be of no use."""
  config = small()
  words = config.curriculum.words
  config.curriculum.whole = ConfigDict(words.to_dict() | dict(local_weight=0.0, term_filter=False))
  words.start_fraction = 0.02
  return config


# Soft regions as the contrast alone makes them: neither diffusion nor sides.
PLAIN = {"alignment.smooth_steps": 0, "alignment.spread_steps": 0, "alignment.side_weight": 0.0}
BASELINES = [{"alignment.method": name} for name in ("none", "gloria", "sparc", "mgca")]
METHODS = [{}, PLAIN, *BASELINES]


def sweep() -> list[dict[str, object]]:
  """Every method on five seeds; PLAN without each of its parts, and harder images, on three."""
  every_stage = ("words", "refine")
  no_suppression = {"curriculum.refine.gamma": 0.0}
  no_filter = {"alignment.term_weight": 0.0}
  no_filter |= {f"curriculum.{s}.term_filter": False for s in every_stage}
  parts = [
    {"alignment.smooth_steps": 0},
    {"alignment.spread_steps": 0},
    {"alignment.smooth_steps": 0, "alignment.spread_steps": 0},
    {"alignment.side_weight": 0.0},
    {"alignment.swap_weight": 1.0},
    {"alignment.swap_weight": 1.0, "alignment.move_weight": 0.2},
    no_suppression,
    {"alignment.word_weight": 0.0},
    {"alignment.term_weight": 0.0},  # the significance learns untaught
    no_filter,
    {"curriculum.words.start_fraction": 0.001, "curriculum.refine.start_fraction": 0.002},  # all is
    {"alignment.mask_positives": False},
    {"model.image.output_stride": 16},
    {"model.image.output_stride": 4},
  ]
  harder = [
    {"data.options.small_only": True},
    {"data.options.wrong_sentence_fraction": 0.3},
    {"data.options.wrong_sentence_fraction": 0.6},
    {"data.options.swapped_side_fraction": 0.2},
  ]
  # The default: words from the first step.
  methods = [*METHODS, {"curriculum.words.start_fraction": 0.001}]
  runs = [method | {"seed": seed} for seed in range(5) for method in methods]
  runs += [part | {"seed": seed} for seed in range(3) for part in parts]
  plain = [no_suppression, no_filter]
  runs += [
    data | method | {"seed": s}
    for s in range(3)
    for data in harder
    for method in (*METHODS, *plain)
  ]
  return runs
