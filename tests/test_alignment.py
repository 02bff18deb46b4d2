import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import oracle
from plan_jax.alignment import contrast, curriculum, pairwise, regions, scores
from plan_jax.alignment.methods import Alignment, Embedded
from plan_jax.alignment.objective import objective

ONE = scores.Rounds((0.3,), (0.4,), 0.5, "threshold")
BETA = 4.0


def make(images=3, pixels=36, reports=4, words=5, size=6, seed=0):
  rng = np.random.default_rng(seed)

  def unit(*shape):
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)

  significance = rng.uniform(0.1, 1, (reports, words))
  significance[0, -2:] = 0  # padding
  significance[-1] = 0  # an empty report
  return unit(images, pixels, size), unit(reports, words, size), significance


def rounds(sparsifier, count):
  return scores.Rounds((0.4, 0.25, 0.2)[:count], (0.3, 0.5, 0.8)[:count], 0.4, sparsifier)


def plan_scores(pixels, words, significance, settings):
  return scores.pool_words(scores.evidence(pixels, words, settings), significance, BETA)


@pytest.mark.parametrize("sparsifier", list(regions.SPARSIFIERS))
@pytest.mark.parametrize("count", [1, 2, 3])
def test_scores_equal_the_oracle(sparsifier, count):
  settings = rounds(sparsifier, count)
  with jax.enable_x64():
    got = plan_scores(*(jnp.asarray(x) for x in make()), settings)
    np.testing.assert_allclose(got, oracle.scores(*make(), settings, BETA), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sparsifier", list(regions.SPARSIFIERS))
def test_regions_are_distributions_and_equal_the_oracle(sparsifier):
  s = np.random.default_rng(1).normal(size=(20, 49)) * 0.5
  with jax.enable_x64():
    got = np.asarray(regions.SPARSIFIERS[sparsifier](jnp.asarray(s), 0.3, 0.7))
  assert (got >= 0).all()
  np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-12)
  for row, similarity in zip(got, s, strict=True):
    np.testing.assert_allclose(row, oracle.REGIONS[sparsifier](similarity, 0.3, 0.7), atol=1e-9)


@pytest.mark.parametrize("evidence", scores.EVIDENCE)
def test_evidence_equals_the_oracle(evidence):
  settings = dataclasses.replace(rounds("threshold", 2), evidence=evidence)
  with jax.enable_x64():
    got = plan_scores(*(jnp.asarray(x) for x in make()), settings)
    np.testing.assert_allclose(got, oracle.scores(*make(), settings, BETA), rtol=1e-9, atol=1e-9)


def test_a_box_spans_the_lit_pixels():
  s = np.full((6, 6), -1.0)
  s[1, 2] = s[3, 4] = 1.0
  s[5, 5] = 0.6  # less than half the weight of the highest at this temperature
  box = np.asarray(regions.box(jnp.asarray(s.ravel()), 0.5, 0.0)).reshape(6, 6)
  want = np.zeros((6, 6))
  want[1:4, 2:5] = 1 / 9
  np.testing.assert_allclose(box, want)
  with pytest.raises(ValueError, match="square grid"):
    regions.box(jnp.zeros(12), 0.5, 0.0)


@pytest.mark.parametrize("sparsifier", list(regions.SPARSIFIERS))
def test_equal_similarities_give_equal_weights_and_finite_gradients(sparsifier):
  s = jnp.full((2, 9), 0.3)

  def squared(s):
    return jnp.square(regions.SPARSIFIERS[sparsifier](s, 0.2, 1.5)).sum()

  np.testing.assert_allclose(regions.SPARSIFIERS[sparsifier](s, 0.2, 1.5), 1 / 9, rtol=1e-6)
  assert np.isfinite(jax.grad(squared)(s)).all()


def test_threshold_suppresses_pixels_below_the_uniform_share():
  a = regions.threshold(jnp.array([1.0, 0.1, -1.0, -1.0]), 0.5, 1.0)
  assert a.tolist() == [1, 0, 0, 0]
  assert (np.asarray(regions.threshold(jnp.array([1.0, 0.9, -1.0, -1.0]), 0.5, 0.0)) > 0).all()


@pytest.mark.parametrize("spread", [1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 0.0])
def test_threshold_is_continuous_where_pixels_become_alike(spread):
  """At gamma 1 almost nothing passes then: neither a jump of the weights nor a huge gradient."""
  s = 0.3 + spread * jnp.array([0.0, 1.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0])
  weight = regions.threshold(s, 0.2, 1.0)
  assert weight.sum() == pytest.approx(1, abs=1e-6)
  if spread <= 1e-4:
    np.testing.assert_allclose(weight, 1 / 9, atol=0.02)
  jacobian = jax.jacrev(lambda x: regions.threshold(x, 0.2, 1.0))(s)
  assert np.abs(jacobian).max() < 1 / (0.2 * 0.01)


@pytest.mark.parametrize("sparsifier", ["softmax", "threshold", "entmax15"])
@pytest.mark.parametrize("count", [1, 3])
def test_score_gradients(sparsifier, count):
  settings = rounds(sparsifier, count)
  with jax.enable_x64():
    pixels, words, significance = (jnp.asarray(x) for x in make())
    significance = jnp.where(significance > 0, significance, 0)

    def f(pixels, words, shift):
      r = jnp.where(significance > 0, significance * jnp.exp(shift), 0)
      return jnp.sin(plan_scores(pixels, words, r, settings)).sum()

    check_grads(
      f, (pixels, words, jnp.zeros_like(significance)), order=1, modes=["rev"], eps=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("tiles", [(1, 1), (2, 3), (8, 8)])
def test_chunked_equals_full_with_gradients(tiles):
  inputs = tuple(jnp.asarray(x, jnp.float32) for x in make(images=5, reports=7))
  settings = rounds("threshold", 2)

  def score(*args):
    return plan_scores(*args, settings)

  def total(evaluate, *args):
    z = evaluate(score, *args)
    return jnp.square(z - 0.3).sum(), z

  def chunked(*args):
    return pairwise.chunked(*args, tile_images=tiles[0], tile_reports=tiles[1])

  results = []
  for evaluate in (pairwise.full, chunked):
    gradient = jax.jit(jax.grad(lambda *x, e=evaluate: total(e, *x), (0, 1, 2), has_aux=True))
    results.append(gradient(*inputs))
  (want, z), (got, y) = results
  np.testing.assert_allclose(y, z, atol=1e-6)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_padding_changes_nothing():
  pixels, words, significance = make()
  more = np.concatenate([words, np.ones_like(words)], 1)
  none = np.concatenate([significance, np.zeros_like(significance)], 1)
  args = (jnp.float32, ONE)
  short = plan_scores(*(jnp.asarray(x, args[0]) for x in (pixels, words, significance)), ONE)
  long = plan_scores(*(jnp.asarray(x, args[0]) for x in (pixels, more, none)), ONE)
  np.testing.assert_allclose(short, long, atol=1e-6)


def test_a_report_scores_no_higher_for_being_longer():
  e = jnp.array([0.2, 0.6])
  r = jnp.array([0.5, 0.9])
  once = scores.pool_words(e, r, 5.0)
  thrice = scores.pool_words(jnp.tile(e, 3), jnp.tile(r, 3), 5.0)
  np.testing.assert_allclose(once, thrice, rtol=1e-6)
  assert 0.2 < once < 0.6


def test_empty_report_scores_zero_with_finite_gradient():
  pixels, words, significance = (jnp.asarray(x, jnp.float32) for x in make())

  def f(r):
    return plan_scores(pixels, words, r, ONE).sum()

  assert (np.asarray(plan_scores(pixels, words, significance, ONE))[:, :, -1] == 0).all()
  assert np.isfinite(jax.grad(f)(significance)).all()


def contrast_case(seed=0, size=6):
  rng = np.random.default_rng(seed)
  keys = np.array([1, 2, 1, 3, 0, 0])
  studies = np.array([1, 2, 3, 2, 5, 6])
  return rng.normal(size=(size, size)) * 3, keys, studies, keys > 0


def test_positives_mask():
  _, keys, studies, _ = contrast_case()
  got = np.asarray(contrast.same_text(jnp.asarray(keys), jnp.asarray(studies)))
  want = np.array(
    [
      [(keys[i] == keys[j] and keys[i] != 0) or studies[i] == studies[j] for j in range(6)]
      for i in range(6)
    ]
  )
  assert (got == want).all()
  assert got[0, 2] and got[1, 3] and not got[4, 5]


def test_info_nce_equals_the_oracle():
  logits, keys, studies, valid = contrast_case()
  positives = contrast.same_text(jnp.asarray(keys), jnp.asarray(studies))
  with jax.enable_x64():
    logits_, valid_ = jnp.asarray(logits), jnp.asarray(valid)
    loss, accuracy = contrast.info_nce(logits_, positives, valid_)
    np.testing.assert_allclose(
      loss, oracle.info_nce(logits, np.asarray(positives), valid), rtol=1e-9
    )
  assert 0 <= float(accuracy) <= 1


def test_info_nce_ignores_the_scores_of_positives_and_of_empty_reports():
  logits, keys, studies, valid = contrast_case()
  positives = contrast.same_text(jnp.asarray(keys), jnp.asarray(studies))

  def f(logits):
    return contrast.info_nce(logits, positives, jnp.asarray(valid))[0]

  gradient = np.asarray(jax.grad(f)(jnp.asarray(logits, jnp.float32)))
  assert gradient[0, 2] == gradient[2, 0] == gradient[1, 3] == 0
  assert (gradient[4:] == 0).all() and (gradient[:, 4:] == 0).all()
  assert (np.diagonal(gradient)[:4] < 0).all()


def test_info_nce_without_any_report_is_zero():
  nothing = jnp.zeros(3, bool)

  def f(x):
    return contrast.info_nce(x, jnp.eye(3, dtype=bool), nothing)[0]

  assert f(jnp.ones((3, 3))) == 0
  assert (np.asarray(jax.grad(f)(jnp.ones((3, 3)))) == 0).all()


def oracle_evidence(pixels, words, settings):
  """[K, I, J, W]."""
  found = [[[oracle.evidence(v, t, settings) for t in report] for report in words] for v in pixels]
  return np.array([[[[word[k][1] for word in j] for j in i] for i in found]
                   for k in range(len(settings.tau))])  # fmt: skip


def test_word_info_nce_equals_the_oracle():
  _, keys, studies, valid = contrast_case()
  rng = np.random.default_rng(4)
  logits, weight = rng.normal(size=(6, 6, 3)) * 2, rng.uniform(size=(6, 3))
  weight[0, 1:] = 0
  positives = contrast.same_text(jnp.asarray(keys), jnp.asarray(studies))
  with jax.enable_x64():
    arrays = (jnp.asarray(x) for x in (logits, np.asarray(positives), valid, weight))
    got = contrast.word_info_nce(*arrays)
  want = oracle.word_info_nce(logits, np.asarray(positives), valid, weight)
  np.testing.assert_allclose(got, want, rtol=1e-9)


def test_word_info_nce_without_any_word_is_zero():
  def f(x):
    eye = jnp.eye(3, dtype=bool)
    return contrast.word_info_nce(x, eye, jnp.ones(3, bool), jnp.zeros((3, 2)))

  assert f(jnp.ones((3, 3, 2))) == 0
  assert (np.asarray(jax.grad(f)(jnp.ones((3, 3, 2)))) == 0).all()


STAGES = {
  "late": dict(start_fraction=0.5, local_weight=(1.0, 2.0), tau=(0.3, 0.2), gamma=(0.0, 0.5),
               term_filter=True),
  "early": dict(start_fraction=0.0),
}  # fmt: skip


def test_stages_follow_training():
  found = curriculum.stages(STAGES)
  assert [curriculum.stage_at(found, step, 10).name for step in range(10)] == ["early"] * 5 + [
    "late"
  ] * 5


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"tau": (0.3,)}, "late: local_weight, tau and gamma"),
    ({"tau": (0.3, 0.0)}, r"late\.tau: must be positive"),
    ({"gamma": (-1.0, 0.0)}, r"late\.gamma: must not be negative"),
    ({"start_fraction": 1.0}, r"late\.start_fraction"),
    ({"start_fraction": 0.0}, "begin at the same"),
    ({"cut_below": 1.0}, r"late\.cut_below"),
    ({"global_weight": -1.0}, r"late: loss weights must not be negative"),
    ({"global_weight": 0.0, "local_weight": (0.0, 0.0)}, "every loss weight is zero"),
  ],
)
def test_impossible_stages(change, message):
  with pytest.raises(ValueError, match=message):
    curriculum.stages(STAGES | {"late": STAGES["late"] | change})


def test_no_first_stage():
  with pytest.raises(ValueError, match="start_fraction 0"):
    curriculum.stages({"late": STAGES["late"]})


def test_say():
  significance = jnp.array([[0.9, 0.5, 0.1, 0.8]])
  mask = jnp.array([[True, True, True, False]])
  plain = curriculum.Stage("a", 0.0)
  assert curriculum.say(plain, significance, mask).tolist() == [[1, 1, 1, 0]]
  cut = curriculum.Stage("b", 0.0, term_filter=True, cut_below=0.5)
  np.testing.assert_allclose(curriculum.say(cut, significance, mask), [[0.9, 0.5, 0, 0]])


@pytest.mark.parametrize("mask_positives", [True, False])
@pytest.mark.parametrize("evaluation", ["full", "chunked"])
def test_objective_equals_the_oracle(evaluation, mask_positives):
  pixels, words, significance = make(images=4, reports=4)
  rng = np.random.default_rng(3)
  film, report = rng.normal(size=(4, 6)), rng.normal(size=(4, 6))
  keys, studies = np.array([1, 2, 1, 0]), np.arange(4)
  mask = significance > 0
  term = mask & (rng.random(mask.shape) < 0.5)
  stage = curriculum.Stage("s", 0.0, 0.7, (0.5, 2.0), (0.4, 0.2), (0.0, 0.6), True, 0.0)
  embedded = Embedded(
    # Of any norm: the method sees to it.
    *(jnp.asarray(x, jnp.float32) for x in (3 * pixels, film, 0.5 * words, report)),
    mask=jnp.asarray(mask), term=jnp.asarray(term),
    significance=jnp.asarray(significance, jnp.float32), attention=jnp.zeros(mask.shape),
    report_key=jnp.asarray(keys), study_key=jnp.asarray(studies),
    global_scale=jnp.float32(3.0), local_scale=jnp.float32(9.0),
  )  # fmt: skip
  alignment = Alignment(
    method="plan", mask_positives=mask_positives, sparsifier="threshold", evidence="soft_maximum",
    eta=0.3, beta=BETA, word_weight=2.5, term_weight=0.3, evaluation=evaluation,
    tile_images=3, tile_reports=2,
  )  # fmt: skip
  loss, parts = objective(embedded, stage, alignment)
  positives = np.eye(4, dtype=bool)
  if mask_positives:
    positives |= (keys[:, None] == keys) & (keys != 0)[:, None]
  valid = mask.any(1)
  settings = scores.Rounds(stage.tau, stage.gamma, 0.3, "threshold")
  z = oracle.scores(pixels, words, significance, settings, BETA)
  want = 0.7 * oracle.info_nce(3 * film @ report.T, positives, valid)
  for k, weight in enumerate(stage.local_weight):
    want += weight * oracle.info_nce(9 * z[k], positives, valid)
    single = 9 * oracle_evidence(pixels, words, settings)[k]
    want += weight * 2.5 * oracle.word_info_nce(single, positives, valid, significance)
  says = np.where(term, significance, 1 - significance)
  want -= 0.3 * np.log(says[mask]).mean()
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  assert parts["loss"] == loss
