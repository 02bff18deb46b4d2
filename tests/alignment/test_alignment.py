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
from plan_jax.alignment.similarity import l2_normalize, pool_words, product

TAU = 0.3
BETA = 4.0


def make(images=3, pixels=36, reports=4, words=5, size=6, seed=0):
  rng = np.random.default_rng(seed)

  significance = rng.uniform(0.1, 1, (reports, words))
  significance[0, -2:] = 0  # padding
  significance[-1] = 0  # an empty report
  shapes = (images, pixels, size), (reports, words, size)
  return *(oracle.l2_normalize(rng.normal(size=shape)) for shape in shapes), significance


def plan_scores(pixels, words, significance, tau=TAU):
  return PlanScore(tau, BETA, False).logits(pixels, words, significance, 1.0)[0]


@pytest.mark.parametrize("tau", [TAU, 0.05])
def test_scores_equal_the_oracle(tau):
  with jax.enable_x64():
    got = plan_scores(*(jnp.asarray(x) for x in make()), tau)
    np.testing.assert_allclose(got, oracle.scores(*make(), tau, BETA), rtol=1e-9, atol=1e-9)


def test_regions_are_distributions_and_equal_the_oracle():
  s = np.random.default_rng(1).normal(size=(20, 49)) * 0.5
  with jax.enable_x64():
    got = np.asarray(regions.soft_region(jnp.asarray(s), TAU))
  assert (got >= 0).all()
  np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-12)
  for row, similarity in zip(got, s, strict=True):
    np.testing.assert_allclose(row, oracle.soft_region(similarity, TAU), atol=1e-9)


@pytest.mark.parametrize(("tau", "spread"), [(0.01, 1.0), (0.2, 1.0), (0.2, 1e-3), (0.2, 0.0)])
def test_evidence_and_its_gradient_equal_the_oracle(tau, spread):
  """Among them words that fit all pixels alike."""
  s = np.clip(np.random.default_rng(1).normal(size=(20, 49)) * 0.5, -1, 1) * spread
  with jax.enable_x64():
    got, pull = jax.vjp(lambda s: regions.soft_evidence(s, tau), jnp.asarray(s))
    weight = jnp.linspace(-1, 2, 20)
    want, pull_want = jax.vjp(lambda s: (regions.soft_region(s, tau) * s).sum(-1), jnp.asarray(s))
    np.testing.assert_allclose(got, [oracle.soft_region(row, tau) @ row for row in s])
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(pull(weight)[0], pull_want(weight)[0], rtol=1e-9, atol=1e-12)


def test_evidence_is_finite_where_all_similarities_are_low():
  s = jnp.full((1, 9), -1.0).at[0, 0].set(-0.99)
  value, gradient = jax.value_and_grad(lambda s: regions.soft_evidence(s, 0.005).sum())(s)
  assert value == pytest.approx(oracle.soft_region(np.asarray(s[0]), 0.005) @ np.asarray(s[0]))
  assert np.isfinite(gradient).all()


def test_equal_similarities_give_equal_weights_and_finite_gradients():
  s = jnp.full((2, 9), 0.3)

  def squared(s):
    return jnp.square(regions.soft_region(s, 0.2)).sum()

  np.testing.assert_allclose(regions.soft_region(s, 0.2), 1 / 9, rtol=1e-6)
  assert np.isfinite(jax.grad(squared)(s)).all()


def test_score_gradients():
  with jax.enable_x64():
    pixels, words, significance = (jnp.asarray(x) for x in make())
    significance = jnp.where(significance > 0, significance, 0)

    def f(pixels, words, shift):
      r = jnp.where(significance > 0, significance * jnp.exp(shift), 0)
      return jnp.sin(plan_scores(*map(jnp.asarray, (pixels, words, r)))).sum()

    check_grads(
      f, (pixels, words, jnp.zeros_like(significance)), order=1, modes=["rev"], eps=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("formula", ["jwd,ipd->jwip", "jwip,ipd->jwid"])
def test_products_and_their_gradients(formula):
  sizes = dict(zip("ijwpd", (2, 3, 4, 5, 7), strict=True))
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
  short = plan_scores(*map(jnp.float32, (pixels, words, significance)))
  long = plan_scores(*map(jnp.float32, (pixels, more, none)))
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
    return plan_scores(pixels, words, r).sum()

  assert (np.asarray(plan_scores(pixels, words, significance))[:, -1] == 0).all()
  assert np.isfinite(jax.grad(f)(significance)).all()


def oracle_evidence(pixels, words, tau):
  """[I, J, W]."""
  return np.array(
    [[[oracle.evidence(v, t, tau) for t in report] for report in words] for v in pixels]
  )


STAGES = {
  "late": dict(
    start_fraction=0.5,
    local_weight=2.0,
    tau=0.3,
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
    ({"tau": 0.0}, r"late\.tau: is 0\.0; must be positive"),
    ({"start_fraction": 1.0}, r"late\.start_fraction"),
    ({"start_fraction": 0.0}, "begin at the same"),
    ({"local_weigth": 1.0}, r"late\.local_weigth: is no key; there are name, start_fraction"),
    ({"global_weight": -1.0}, r"late\.global_weight: is -1.0; must not be negative"),
    ({"name": "later"}, r"late\.name: is the key"),
    ({"global_weight": 0.0, "local_weight": 0.0}, "every loss weight is zero"),
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
  filtered = curriculum.Stage("b", 0.0, term_filter=True)
  np.testing.assert_allclose(
    curriculum.word_weights(filtered, significance, mask), [[0.9, 0.5, 0.1, 0]]
  )


@pytest.mark.parametrize("mask_positives", [True, False])
@pytest.mark.parametrize("implementation", pairwise.IMPLEMENTATIONS)
def test_objective_equals_the_oracle(implementation, mask_positives):
  pixels, words, significance = make(images=4, reports=4)
  rng = np.random.default_rng(3)
  image, report = rng.normal(size=(4, 6)), rng.normal(size=(4, 6))
  keys, examples = np.array([1, 2, 1, 0]), np.arange(4)
  mask = significance > 0
  term = mask & (rng.random(mask.shape) < 0.5)
  stage = curriculum.Stage("s", 0.0, 0.7, 2.0, 0.2, True)
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
  z = oracle.scores(pixels, words, significance, stage.tau, BETA)
  single = 9 * oracle_evidence(pixels, words, stage.tau)
  want = 0.7 * oracle.info_nce(3 * image @ report.T, positives, valid)
  want += 2.0 * oracle.info_nce(9 * z, positives, valid)
  want += 2.0 * 2.5 * oracle.word_info_nce(single, positives, valid, significance)
  likelihood = np.where(term, significance, 1 - significance)
  want -= 0.3 * np.log(likelihood[mask]).mean()
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  assert parts["loss"] == loss


def test_l2_normalize_has_a_finite_gradient_at_zero():
  assert np.isfinite(jax.grad(lambda x: l2_normalize(x).sum())(jnp.zeros(3))).all()
