"""The study: PLAN against its baselines and without its parts, on small synthetic images.

python -m launch.sweep --config=configs/ablation.py --out=runs/ablation --mode=run --parallel=2
"""

from ml_collections import ConfigDict

from configs import phantom


def get_config() -> ConfigDict:
  """The phantom at 96 px, a run of a few minutes on one core."""
  config = phantom.get_config()
  config.data.options.size_px = 96
  config.model.image_px = 96
  config.model.image.width = 0.375
  config.alignment.smooth_share = 0.5  # a finding is a pixel or two
  config.train.steps = 1000
  config.data.threads = 1
  config.checkpoint.every_steps = 0
  config.evaluation.update(every_steps=0, report_images=4, rerank_top=0)
  kept = ("grounding", "side", "retrieval", "presence", "terms")
  all_evaluators = config.evaluation.evaluators
  config.evaluation.evaluators = ConfigDict({name: all_evaluators[name] for name in kept})
  return config


# Soft regions alone: without what spreads them, tells sides or shortens sentences.
PLAIN = {
  "alignment.smooth_steps": 0,
  "alignment.spread_steps": 0,
  "alignment.side_weight": 0.0,
  "text.concise_fraction": 0.0,
}
BASELINES = [{"alignment.method": name} for name in ("none", "gloria", "sparc", "mgca")]


def sweep() -> list[dict[str, object]]:
  """Every method on five seeds; PLAN without each of its parts, and worse reports, on three."""
  parts = [
    {"alignment.smooth_steps": 0},
    {"alignment.smooth_share": 1.0},
    {"alignment.side_weight": 0.0},
    {"text.concise_fraction": 0.0},
    {"alignment.spread_steps": 0},
    {"alignment.swap_weight": 1.0, "alignment.move_weight": 0.2},
    {"alignment.term_weight": 0.0, "curriculum.words.term_filter": False},
    {"alignment.word_weight": 0.0},
    {"alignment.term_weight": 0.0},  # the significance learns untaught
    {"alignment.mask_positives": False},
  ]
  worse = [
    {"data.options.wrong_sentence_fraction": 0.6},
    {"data.options.swapped_side_fraction": 0.2},
    {"data.options.wrong_sentence_fraction": 0.3},
  ]
  runs = [method | {"seed": seed} for seed in range(5) for method in ({}, PLAIN)]
  runs += [part | {"seed": seed} for seed in range(3) for part in parts]
  runs += [
    data | method | {"seed": seed} for data in worse for seed in range(3) for method in ({}, PLAIN)
  ]
  return runs + [method | {"seed": seed} for seed in range(5) for method in BASELINES]
