import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import oracle
from plan_jax.alignment import curriculum, pairwise, regions
from plan_jax.alignment.methods.base import Alignment, EmbeddedBatch
from plan_jax.alignment.methods.plan import PlanScore
from plan_jax.alignment.objective import objective
from plan_jax.alignment.refinement import Rounds
from plan_jax.alignment.similarity import EVIDENCE, l2_normalize, pool_words, product

ONE_ROUND = Rounds((0.3,), (0.4,), 0.5, "threshold")
BETA = 4.0


def make(images=3, pixels=36, reports=4, words=5, size=6, seed=0):
  rng = np.random.default_rng(seed)

  significance = rng.uniform(0.1, 1, (reports, words))
  significance[0, -2:] = 0  # padding
  significance[-1] = 0  # an empty report
  shapes = (images, pixels, size), (reports, words, size)
  return *(oracle.l2_normalize(rng.normal(size=shape)) for shape in shapes), significance


def rounds(sparsifier, count):
  return Rounds((0.4, 0.25, 0.2)[:count], (0.3, 0.5, 0.8)[:count], 0.4, sparsifier)


def plan_scores(pixels, words, significance, settings):
  score = PlanScore(settings, BETA, False)
  return score.logits(score.prepare(pixels), words, significance, 1.0)[0]


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


@pytest.mark.parametrize("evidence", EVIDENCE)
def test_evidence_equals_the_oracle(evidence):
  settings = dataclasses.replace(rounds("threshold", 2), evidence=evidence)
  with jax.enable_x64():
    got = plan_scores(*(jnp.asarray(x) for x in make()), settings)
    np.testing.assert_allclose(got, oracle.scores(*make(), settings, BETA), rtol=1e-9, atol=1e-9)


def test_a_box_spans_the_foreground():
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
      return jnp.sin(plan_scores(*map(jnp.asarray, (pixels, words, r)), settings)).sum()

    check_grads(
      f, (pixels, words, jnp.zeros_like(significance)), order=1, modes=["rev"], eps=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("formula", ["jwd,ipd->jwip", "jwip,ipq->jwiq", "ipd,iqd->ipq"])
def test_products_and_their_gradients(formula):
  sizes = dict(zip("ijwpqd", (2, 3, 4, 5, 5, 7), strict=True))
  rng = np.random.default_rng(0)
  x, y = (rng.normal(size=[sizes[c] for c in part]) for part in formula.split("->")[0].split(","))
  with jax.enable_x64():
    a, b = jnp.asarray(x), jnp.asarray(y)
    np.testing.assert_allclose(
      product(formula, "float32", a, b), np.einsum(formula, x, y), rtol=1e-12
    )

    def f(a, b):
      return jnp.sin(product(formula, "float32", jnp.asarray(a), jnp.asarray(b)))

    check_grads(f, (a, b), 1, ["rev"], rtol=1e-5)
  a, b = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)

  def total(a, b, dtype):
    return jnp.square(product(formula, dtype, a, b)).sum()

  for got, want in zip(
    jax.grad(total, (0, 1))(a, b, "bfloat16"), jax.grad(total, (0, 1))(a, b, "float32"), strict=True
  ):
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=0.02 * np.abs(want).max())


def test_padding_changes_nothing():
  pixels, words, significance = make()
  more = np.concatenate([words, np.ones_like(words)], 1)
  none = np.concatenate([significance, np.zeros_like(significance)], 1)
  short = plan_scores(*map(jnp.float32, (pixels, words, significance)), ONE_ROUND)
  long = plan_scores(*map(jnp.float32, (pixels, more, none)), ONE_ROUND)
  np.testing.assert_allclose(short, long, atol=1e-6)


def test_a_report_scores_no_higher_for_being_longer():
  e = jnp.array([0.2, 0.6])
  r = jnp.array([0.5, 0.9])
  once = pool_words(e, r, 5.0)
  thrice = pool_words(jnp.tile(e, 3), jnp.tile(r, 3), 5.0)
  np.testing.assert_allclose(once, thrice, rtol=1e-6)
  assert 0.2 < once < 0.6


def test_empty_report_scores_zero_with_finite_gradient():
  pixels, words, significance = (jnp.asarray(x, jnp.float32) for x in make())

  def f(r):
    return plan_scores(pixels, words, r, ONE_ROUND).sum()

  assert (np.asarray(plan_scores(pixels, words, significance, ONE_ROUND))[:, :, -1] == 0).all()
  assert np.isfinite(jax.grad(f)(significance)).all()


def oracle_evidence(pixels, words, settings):
  """[K, I, J, W]."""
  rounds = [[[oracle.evidence(v, t, settings) for t in report] for report in words] for v in pixels]
  evidence = [[[[e for _, e in word] for word in report] for report in image] for image in rounds]
  return np.moveaxis(np.array(evidence), -1, 0)


STAGES = {
  "late": dict(
    start_fraction=0.5,
    local_weight=(1.0, 2.0),
    tau=(0.3, 0.2),
    gamma=(0.0, 0.5),
    term_filter=True,
  ),
  "early": dict(start_fraction=0.0),
}


def test_stages_follow_training():
  ordered = curriculum.stages(STAGES)
  names = [curriculum.stage_at(ordered, step, 10).name for step in range(10)]
  assert names == ["early"] * 5 + ["late"] * 5


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"tau": (0.3,)}, r"late\.local_weight: .*; local_weight, tau and gamma"),
    ({"tau": (0.3, 0.0)}, r"late\.tau: is \(0\.3, 0\.0\); must be positive"),
    ({"gamma": (-1.0, 0.0)}, r"late\.gamma: .* must not be negative"),
    ({"start_fraction": 1.0}, r"late\.start_fraction"),
    ({"start_fraction": 0.0}, "begin at the same"),
    ({"cut_below": 1.0}, r"late\.cut_below"),
    ({"local_weigth": (1.0,)}, r"late\.local_weigth: is no key; there are name, start_fraction"),
    ({"global_weight": -1.0}, r"late\.global_weight: is -1.0; must not be negative"),
    ({"name": "later"}, r"late\.name: is the key"),
    ({"global_weight": 0.0, "local_weight": (0.0, 0.0)}, "every loss weight is zero"),
  ],
)
def test_impossible_stages(change, message):
  with pytest.raises(ValueError, match=message):
    curriculum.stages(STAGES | {"late": STAGES["late"] | change})


def test_no_first_stage():
  with pytest.raises(ValueError, match="start_fraction 0"):
    curriculum.stages({"late": STAGES["late"]})


def test_word_weights():
  significance = jnp.array([[0.9, 0.5, 0.1, 0.8]])
  mask = jnp.array([[True, True, True, False]])
  plain = curriculum.Stage("a", 0.0)
  assert curriculum.word_weights(plain, significance, mask).tolist() == [[1, 1, 1, 0]]
  cut = curriculum.Stage("b", 0.0, term_filter=True, cut_below=0.5)
  np.testing.assert_allclose(curriculum.word_weights(cut, significance, mask), [[0.9, 0.5, 0, 0]])


@pytest.mark.parametrize("mask_positives", [True, False])
@pytest.mark.parametrize("implementation", pairwise.IMPLEMENTATIONS)
def test_objective_equals_the_oracle(implementation, mask_positives):
  pixels, words, significance = make(images=4, reports=4)
  rng = np.random.default_rng(3)
  image, report = rng.normal(size=(4, 6)), rng.normal(size=(4, 6))
  keys, examples = np.array([1, 2, 1, 0]), np.arange(4)
  mask = significance > 0
  term = mask & (rng.random(mask.shape) < 0.5)
  stage = curriculum.Stage("s", 0.0, 0.7, (0.5, 2.0), (0.4, 0.2), (0.0, 0.6), True, 0.0)
  batch = EmbeddedBatch(
    # Of any norm: the method normalises.
    *(jnp.asarray(x, jnp.float32) for x in (3 * pixels, image, 0.5 * words, report)),
    mask=jnp.asarray(mask),
    term=jnp.asarray(term),
    half=jnp.zeros(mask.shape, jnp.int32),
    significance=jnp.asarray(significance, jnp.float32),
    attention=jnp.zeros(mask.shape),
    report_key=jnp.asarray(keys),
    study_key=jnp.asarray(examples),
    global_scale=jnp.float32(3.0),
    local_scale=jnp.float32(9.0),
  )
  alignment = Alignment(
    method="plan",
    mask_positives=mask_positives,
    sparsifier="threshold",
    evidence="soft_maximum",
    eta=0.3,
    beta=BETA,
    word_weight=2.5,
    term_weight=0.3,
    side_weight=0.0,
    spread_steps=0,
    spread_tau=0.2,
    spread_radius_fraction=0.0625,
    dtype="float32",
    implementation=implementation,
    tile_images=3,
    tile_reports=2,
    tile_mib=1,
  )
  loss, parts = objective(batch, stage, alignment)
  positives = np.eye(4, dtype=bool)
  if mask_positives:
    positives |= (keys[:, None] == keys) & (keys != 0)[:, None]
  valid = mask.any(1)
  settings = Rounds(stage.tau, stage.gamma, 0.3, "threshold")
  z = oracle.scores(pixels, words, significance, settings, BETA)
  want = 0.7 * oracle.info_nce(3 * image @ report.T, positives, valid)
  for k, weight in enumerate(stage.local_weight):
    want += weight * oracle.info_nce(9 * z[k], positives, valid)
    single = 9 * oracle_evidence(pixels, words, settings)[k]
    want += weight * 2.5 * oracle.word_info_nce(single, positives, valid, significance)
  likelihood = np.where(term, significance, 1 - significance)
  want -= 0.3 * np.log(likelihood[mask]).mean()
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  assert parts["loss"] == loss


def test_l2_normalize_has_a_finite_gradient_at_zero():
  assert np.isfinite(jax.grad(lambda x: l2_normalize(x).sum())(jnp.zeros(3))).all()
