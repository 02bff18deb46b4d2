"""The alignment's formulas in float64 NumPy: loops, region embeddings formed, nothing clever."""

import numpy as np


def softmax_region(s, tau, gamma):
  a = np.exp((s - s.max()) / tau)
  return a / a.sum()


def threshold_region(s, tau, gamma):
  a = softmax_region(s, tau, gamma)
  kept = np.maximum(a - gamma / len(s), 0)
  return kept / kept.sum() if kept.sum() > 0 else a


def minmax_region(s, tau, gamma):
  if s.max() == s.min():
    return np.full(len(s), 1 / len(s))
  a = (s - s.min()) / (s.max() - s.min())
  a = np.where(a >= 1 / len(s), a, 0)
  return a / a.sum()


def entmax15_region(s, tau, gamma):
  """By bisection on the threshold, not by sorting."""
  x = s / tau / 2
  low, high = x.max() - 1, x.max()
  for _ in range(100):
    middle = (low + high) / 2
    if (np.maximum(x - middle, 0) ** 2).sum() > 1:
      low = middle
    else:
      high = middle
  a = np.maximum(x - low, 0) ** 2
  return a / a.sum()


REGIONS = {
  "softmax": softmax_region,
  "threshold": threshold_region,
  "minmax": minmax_region,
  "entmax15": entmax15_region,
}


def evidence(pixels, word, rounds):
  """One image [P, D] and one word [D] -> (weights, evidence) of each round."""
  query, found = word, []
  for tau, gamma in zip(rounds.tau, rounds.gamma, strict=True):
    s = pixels @ query
    a = REGIONS[rounds.sparsifier](s, tau, gamma)
    found.append((a, float(a @ s)))
    region = a @ pixels
    region = region / np.linalg.norm(region)
    query = (1 - rounds.eta) * word + rounds.eta * region
    query = query / np.linalg.norm(query)
  return found


def scores(pixels, words, significance, rounds):
  """[I, P, D], [J, W, D], [J, W] -> [K, I, J]."""
  out = np.zeros((len(rounds.tau), len(pixels), len(words)))
  for i, image in enumerate(pixels):
    for j, report in enumerate(words):
      named = [w for w in range(len(report)) if significance[j, w] > 0]
      if not named:
        continue
      r = significance[j, named]
      found = [evidence(image, report[w], rounds) for w in named]
      for k in range(len(rounds.tau)):
        e = np.array([f[k][1] for f in found])
        out[k, i, j] = np.log((r * np.exp(rounds.beta * e)).sum() / r.sum()) / rounds.beta
  return out


def info_nce(logits, positives, valid):
  """Row and column by row and column, no masks of infinity."""
  loss, rows = 0.0, [i for i in range(len(logits)) if valid[i]]
  for i in rows:
    for values in (logits[i], logits[:, i]):
      others = [j for j in rows if j != i and not positives[i, j]]
      candidates = np.array([values[i]] + [values[j] for j in others])
      loss -= values[i] - np.log(np.exp(candidates).sum())
  return loss / len(rows) / 2 if rows else 0.0
