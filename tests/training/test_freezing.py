import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from plan_jax.models import freezing
from plan_jax.runtime.checkpoints import Checkpoints
from plan_jax.training.assembly import assemble
from plan_jax.training.step import dropout_key, make_step
from tiny_runs import tiny

VOCABULARY = type("Tokenizer", (), {"vocabulary_size": 50})
BATCH = 8


def batch():
  rng = np.random.default_rng(0)
  place = np.tile(np.arange(32, dtype=np.int32), (BATCH, 1))
  word = np.minimum(place, 15)
  some = rng.random((BATCH, 16)) < 0.3
  return {
    "image": rng.random((BATCH, 64, 64, 1), np.float32),
    "tokens": rng.integers(0, 50, place.shape, np.int32),
    "word_index": word,
    "sentence_index": np.zeros_like(place),
    "position": place,
    "word_mask": np.ones((BATCH, 16), bool),
    "term": some,
    "half": some.astype(np.int32),
    "report_key": np.arange(1, BATCH + 1, dtype=np.int32),
    "study_key": np.arange(1, BATCH + 1, dtype=np.int32),
    "dropped_sentences": np.zeros(BATCH, np.int32),
  }


def trained(steps=2, **change):
  """(state before, state after, the last metrics) of some steps without warm-up."""
  config = tiny(
    **{
      "train.warmup_fraction": 0.0,
      "train.learning_rate": 1e-2,
      "train.steps": 10,
      "model.text.dropout": 0.0,
    }
    | change
  )
  parts = assemble(config, VOCABULARY)
  state = before = jax.device_get(parts.initial_state())
  step = make_step(
    parts.model,
    parts.optimizer,
    parts.schedule,
    parts.stages[0],
    parts.alignment,
    parts.train,
  )
  step = jax.jit(step)
  with jax.set_mesh(parts.mesh):
    for _ in range(steps):
      state, metrics = step(state, batch(), dropout_key(0))
  return before, jax.device_get(state), metrics


def moved(before, after, part="params"):
  """path -> the largest change."""
  before, after = (flatten_dict(getattr(s, part), sep="/") for s in (before, after))
  return {path: np.abs(after[path] - before[path]).max() for path in before}


def test_what_is_frozen_stays_and_the_rest_learns():
  """To the bit, without moments; batch norm that is frozen keeps its statistics, others do not."""
  patterns = ("^text_encoder/", r"image_encoder/(stem|stage1)", "word_head/bias")
  before, after, metrics = trained(**{"train.freeze": patterns})
  frozen = freezing.labels(before.params, patterns)
  for path, change in moved(before, after).items():
    if flatten_dict(frozen, sep="/")[path] == "frozen":
      assert change == 0, path
    elif "image_encoder" in path and path.endswith("kernel"):
      assert change > 1e-4, path
  for path, change in moved(before, after, "batch_stats").items():
    assert (change == 0) == ("stem" in path or "stage1" in path), path
  moments = {x.shape for x in jax.tree.leaves(after.opt_state)}
  assert (50, 16) not in moments  # of the token embedding
  assert before.params["text_encoder"]["token_embedding"]["embedding"].shape == (50, 16)
  assert np.isfinite(metrics["loss"])


def test_a_frozen_norm_goes_by_its_running_statistics():
  """An image's features do not depend on the others of the batch, in training too."""
  parts = assemble(tiny(**{"train.freeze": ("image_encoder",)}), VOCABULARY)
  state = parts.initial_state()
  variables = {"params": state.params, "batch_stats": state.batch_stats}
  image = batch()["image"]
  apply = lambda x, train: parts.model.apply(  # noqa: E731
    variables, x, train=train, method="embed_images", mutable=["batch_stats"]
  )
  (seen, kept), (alone, _) = apply(image, True), apply(image[:1], True)
  np.testing.assert_allclose(seen.pixels[:1], alone.pixels, atol=1e-5)
  np.testing.assert_allclose(seen.pixels, apply(image, False)[0].pixels, atol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, kept["batch_stats"], state.batch_stats)
  free = assemble(tiny(), VOCABULARY).model.apply(
    variables, image, train=True, method="embed_images", mutable=["batch_stats"]
  )[0]
  assert np.abs(free.pixels - seen.pixels).max() > 1e-3


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_freezing_costs_no_backward_pass(micro_batches):
  """The encoders' kernels take part in no product with a gradient."""

  def flops(freeze):
    config = tiny(**{"train.freeze": freeze, "train.micro_batches": micro_batches})
    parts = assemble(config, VOCABULARY)
    step = make_step(
      parts.model,
      parts.optimizer,
      parts.schedule,
      parts.stages[0],
      parts.alignment,
      parts.train,
    )
    shapes = jax.eval_shape(parts.initial_state)
    with jax.set_mesh(parts.mesh):
      text = str(jax.make_jaxpr(step)(shapes, batch(), dropout_key(0)))
    return text.count("conv_general_dilated")

  assert flops(("image_encoder",)) < 0.6 * flops(())


def test_rates_of_encoders_and_layers():
  params = {
    "image_encoder": {
      "stem": {"kernel": 0},
      "stem_norm": {"scale": 0},
      "stage1_block1": {"conv1": {"kernel": 0}},
      "stage3_block2": {"conv1": {"kernel": 0}},
      "projector_in": {"kernel": 0},
    },
    "text_encoder": {
      "token_embedding": {"embedding": 0},
      "type_embedding": 0,
      "layer1": {"query": {"bias": 0}},
      "layer12": {"query": {"bias": 0}},
    },
    "pixel_head": {"kernel": 0},
  }
  train = tiny().train
  train.update(image_rate=0.5, text_rate=2.0, layer_decay=0.5)
  found = flatten_dict(freezing.rates(params, train), sep="/")
  assert found == {
    "image_encoder/stem/kernel": 0.5 * 0.5**4,
    "image_encoder/stem_norm/scale": 0.5 * 0.5**4,
    "image_encoder/stage1_block1/conv1/kernel": 0.5 * 0.5**3,
    "image_encoder/stage3_block2/conv1/kernel": 0.5 * 0.5,
    "image_encoder/projector_in/kernel": 0.5,
    "text_encoder/token_embedding/embedding": 2 * 0.5**13,
    "text_encoder/type_embedding": 2 * 0.5**13,
    "text_encoder/layer1/query/bias": 2 * 0.5**12,
    "text_encoder/layer12/query/bias": 1.0,
    "pixel_head/kernel": 1.0,
  }


@pytest.mark.parametrize(
  ("image", "variant", "text"),
  [
    ("resnet", "vit", "bert"),
    ("vit", "vit", "bert"),
    ("vit", "clip", "mpnet"),
    ("vit", "dinov2_registers", "mpnet"),
  ],
)
def test_every_parameter_of_both_encoders_has_its_place(image, variant, text):
  """What comes first has the lowest rate of its encoder, what comes last the encoder's own."""
  config = tiny(**{"model.image.name": image, "model.text.name": text, "train.layer_decay": 0.5})
  config.model.image.vit.update(variant=variant, registers=2 * (variant == "dinov2_registers"))
  params = jax.eval_shape(assemble(config, VOCABULARY).initial_state).params
  found = freezing.rates(params, config.train)
  for encoder, last in (("image_encoder", ("norm",)), ("text_encoder", ())):
    rates = {name: max(jax.tree.leaves(tree)) for name, tree in found[encoder].items()}
    lowest = {name for name, rate in rates.items() if rate == min(rates.values())}
    assert lowest == {name for name in rates if not any(c.isdigit() for c in name)} - set(last)


def test_rates_scale_the_updates():
  """The first update of Adam is the rate for every number that has a gradient."""
  _, plain, _ = trained(steps=1, **{"train.weight_decay": 0.0})
  before, scaled, _ = trained(
    steps=1, **{"train.weight_decay": 0.0, "train.image_rate": 0.1, "train.layer_decay": 0.5}
  )
  ratio = {
    path: change / moved(before, plain)[path]
    for path, change in moved(before, scaled).items()
    if moved(before, plain)[path] > 0
  }
  for path, want in (
    ("image_encoder/stem/kernel", 0.1 * 0.5**3),
    ("image_encoder/stage2_block1/shortcut/kernel", 0.1 * 0.5),
    ("text_encoder/token_embedding/embedding", 0.5**2),
    ("pixel_head/kernel", 1.0),
  ):
    np.testing.assert_allclose(ratio[path], want, rtol=1e-3, err_msg=path)


def test_a_state_with_frozen_parts_can_be_saved(tmp_path):
  config = tiny(**{"train.freeze": ("text_encoder",), "train.image_rate": 0.5})
  parts = assemble(config, VOCABULARY)
  state = parts.initial_state()
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(0, state)
  checkpoints.wait()
  there = checkpoints.restore(parts.abstract_state)
  checkpoints.close()
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(there), jax.device_get(state))
  assert jax.tree.structure(there) == jax.tree.structure(state)
  assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(there.params))
