"""Logistic regression of many findings at once, with labels that may be unknown."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit


@dataclass(frozen=True)
class Logistic:
  """A fitted regression of K findings on D features.

  Attributes:
    mean, deviation: float64 [D], that standardise the features.
    weights: float64 [D, K].
    bias: float64 [K].
  """

  mean: np.ndarray
  deviation: np.ndarray
  weights: np.ndarray
  bias: np.ndarray

  def scores(self, features: np.ndarray) -> np.ndarray:
    """Predicts the probability of each finding from features [N, D]: float64 [N, K]."""
    return expit((features - self.mean) / self.deviation @ self.weights + self.bias)


def fit(features: np.ndarray, labels: np.ndarray, penalties: Sequence[float]) -> list[Logistic]:
  """Fits a regression for each penalty, each started where the one before ended.

  Minimises, for every finding by itself, the mean cross entropy over its known labels plus
  penalty / 2 times the squared weights (not the bias) of standardised features; by L-BFGS. A
  feature that is the same everywhere gets no weight.

  Args:
    features: float [N, D].
    labels: [N, K]: 1 or 0; anything else is unknown.
    penalties: each above 0.

  Raises ValueError where a feature is not finite, a finding is not both 1 and 0, or shapes differ.
  """
  features, labels = np.asarray(features, np.float64), np.asarray(labels)
  if features.ndim != 2 or labels.ndim != 2 or len(features) != len(labels):
    raise ValueError(f"features {features.shape} and labels {labels.shape} do not fit")
  if not np.isfinite(features).all():
    raise ValueError("a feature is not finite")
  present, known = labels == 1, (labels == 1) | (labels == 0)
  if not (present.any(0) & (known & ~present).any(0)).all():
    raise ValueError("a finding is not both present and absent")
  mean, deviation = features.mean(0), features.std(0)
  # A feature that is constant but for rounding gets no weight.
  deviation = np.where(deviation > 1e-6 * np.maximum(1, np.abs(mean)), deviation, np.inf)
  x = (features - mean) / deviation
  share = known / known.sum(0)
  shape = (x.shape[1], labels.shape[1])

  def loss(flat: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
    weights, bias = flat[: -shape[1]].reshape(shape), flat[-shape[1] :]
    z = x @ weights + bias
    value = (share * (np.logaddexp(0, z) - present * z)).sum() + penalty / 2 * (weights**2).sum()
    slope = share * (expit(z) - present)
    return value, np.concatenate([(x.T @ slope + penalty * weights).ravel(), slope.sum(0)])

  flat, out = np.zeros((shape[0] + 1) * shape[1]), []
  for penalty in penalties:
    options = {"maxiter": 1000, "maxfun": 5000}
    flat = minimize(loss, flat, (penalty,), "L-BFGS-B", jac=True, options=options, tol=1e-9).x
    out.append(Logistic(mean, deviation, flat[: -shape[1]].reshape(shape), flat[-shape[1] :]))
  return out
