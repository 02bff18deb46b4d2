import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from plan_jax.transfer import logistic


def drawn(n=80, d=5, k=3, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(n, d)) * rng.uniform(0.1, 20, d) + rng.normal(size=d)
  z = (x - x.mean(0)) / x.std(0) @ rng.normal(size=(d, k))
  return x, (z + rng.normal(size=(n, k)) > 0).astype(int)


@pytest.mark.parametrize("penalty", [1.0, 0.01])
def test_equals_scikit_learn_finding_by_finding(penalty):
  x, y = drawn()
  y[::7, 1] = -1
  model = logistic.fit(x, y, (10.0, penalty))[1]
  standard = (x - x.mean(0)) / x.std(0)
  for k in range(3):
    known = y[:, k] >= 0
    # Its C weighs the sum of losses against half the squared weights.
    other = LogisticRegression(C=1 / (penalty * known.sum()), tol=1e-9, max_iter=5000)
    other.fit(standard[known], y[known, k])
    np.testing.assert_allclose(model.weights[:, k], other.coef_[0], atol=2e-3)
    np.testing.assert_allclose(
      model.scores(x)[:, k], other.predict_proba(standard)[:, 1], atol=1e-3
    )


def test_unknown_labels_change_nothing_but_the_features_scale():
  x, y = drawn()
  y[:40, 0] = -1
  before = logistic.fit(x, y, (0.1,))[0]
  y[:40, 0] = 7  # nothing known either
  np.testing.assert_array_equal(logistic.fit(x, y, (0.1,))[0].weights, before.weights)


def test_a_constant_feature_gets_no_weight():
  x, y = drawn()
  x[:, 2] = 0.1
  model = logistic.fit(x, y, (0.1,))[0]
  assert (model.weights[2] == 0).all() and np.isfinite(model.scores(x)).all()
  fewer = np.delete(x, 2, 1)
  expected = logistic.fit(fewer, y, (0.1,))[0].scores(fewer)
  np.testing.assert_allclose(model.scores(x), expected, atol=1e-4)


def test_what_cannot_be_fitted():
  x, y = drawn()
  with pytest.raises(ValueError, match="not both"):
    logistic.fit(x, np.ones_like(y), (1.0,))
  with pytest.raises(ValueError, match="not finite"):
    logistic.fit(np.where(x > 0, x, np.nan), y, (1.0,))
  with pytest.raises(ValueError, match="do not fit"):
    logistic.fit(x[1:], y, (1.0,))
