"""Formulas of the alignment in float64 NumPy: loops, region embeddings formed, nothing clever."""

import numpy as np


def soft_region(s, tau):
  a = np.exp((s - s.max()) / tau)
  return a / a.sum()


def minmax_region(s):
  if s.max() == s.min():
    return np.full(len(s), 1 / len(s))
  a = (s - s.min()) / (s.max() - s.min())
  a = np.where(a >= 1 / len(s), a, 0)
  return a / a.sum()


def evidence(pixels, word, tau):
  """Computes the evidence of one word [D] in one image [P, D]."""
  s = pixels @ word
  return float(soft_region(s, tau) @ s)


def scores(pixels, words, significance, tau, beta):
  """Computes [I, J] from [I, P, D], [J, W, D] and [J, W]."""
  out = np.zeros((len(pixels), len(words)))
  for i, image in enumerate(pixels):
    for j, report in enumerate(words):
      weighted = [w for w in range(len(report)) if significance[j, w] > 0]
      if not weighted:
        continue
      r = significance[j, weighted]
      e = np.array([evidence(image, report[w], tau) for w in weighted])
      out[i, j] = np.log((r * np.exp(beta * e)).sum() / r.sum()) / beta
  return out


def info_nce(logits, positives, valid):
  """Sums row by row and column by column, without masks of infinity."""
  loss, rows = 0.0, [i for i in range(len(logits)) if valid[i]]
  for i in rows:
    for values in (logits[i], logits[:, i]):
      others = [j for j in rows if j != i and not positives[i, j]]
      candidates = np.array([values[i]] + [values[j] for j in others])
      loss -= values[i] - np.log(np.exp(candidates).sum())
  return loss / len(rows) / 2 if rows else 0.0


def word_info_nce(logits, positives, valid, weight):
  """Contrasts, word by word, its own image with the others."""
  loss = total = 0.0
  rows = [i for i in range(len(valid)) if valid[i]]
  for j in rows:
    for w in range(weight.shape[1]):
      others = [i for i in rows if i != j and not positives[i, j]]
      candidates = np.array([logits[i, j, w] for i in [j, *others]])
      loss -= weight[j, w] * (candidates[0] - np.log(np.exp(candidates).sum()))
      total += weight[j, w]
  return loss / total if total else 0.0


def gloria_scores(pixels, words, mask):
  """Computes GLoRIA's scores as published: [I, P, D], [J, W, D], [J, W] -> [I, J]."""
  out = np.zeros((len(pixels), len(words)))
  for i, v in enumerate(pixels):
    for j, report in enumerate(words):
      t = report[mask[j]]
      if not len(t):
        continue
      s = v @ t.T  # [P, W]
      p = np.exp(s) / np.exp(s).sum(1, keepdims=True)
      a = np.exp(4 * p) / np.exp(4 * p).sum(0, keepdims=True)
      c = a.T @ v
      cosine = (c * t).sum(1) / np.linalg.norm(c, axis=1) / np.linalg.norm(t, axis=1)
      out[i, j] = 10 * np.log(np.exp(5 * cosine).sum())
  return out


def l2_normalize(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _within(c, t, weight, scale):
  """Contrasts words with regions of one report, both ways, halved."""
  s = scale * c @ t.T
  rows = np.log(np.exp(s).sum(1)) - np.diagonal(s)
  columns = np.log(np.exp(s).sum(0)) - np.diagonal(s)
  return (weight * (rows + columns)).sum() / 2


def sparc_loss(pixels, words, mask, scale):
  """Computes SPARC's fine-grained loss (Bica et al. 2024), report by report."""
  losses = []
  for v, report, m in zip(pixels, words, mask, strict=True):
    if m.any():
      t = report[m]
      a = np.stack([minmax_region(row) for row in t @ v.T])
      losses.append(_within(l2_normalize(a @ v), l2_normalize(t), 1 / len(t), scale))
  return np.mean(losses)


def mgca_loss(pixels, words, mask, attention):
  """Computes the word side of MGCA's token alignment (Wang et al. 2022), report by report."""
  losses = []
  for v, report, m, w in zip(pixels, words, mask, attention, strict=True):
    if m.any():
      v, t, w = l2_normalize(v), l2_normalize(report[m]), w[m]
      w = np.clip(w, *np.quantile(w, [0.1, 0.9]))
      a = np.stack([soft_region(row, 0.1) for row in t @ v.T])
      losses.append(_within(l2_normalize(a @ v), t, w / w.sum(), 1 / 0.1))
  return np.mean(losses)
