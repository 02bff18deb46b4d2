"""RadGraph's annotations of the phantom's reports."""

import re

from input_pipeline.phantom import reports as phantom_reports
from input_pipeline.text import reports


def tokens(report: str) -> list[str]:
  """Cuts a report as RadGraph's text has it: punctuation apart, but hyphens and decimals whole."""
  apart = re.sub(r"(?<=\d)([.,])(?=\d)|([.,:;/!?()]|'s\b|___)", _apart, report)
  return apart.split()


def entry(image) -> dict:
  """Marks the entities in all sections of an image's report; "end_ix" is inclusive."""
  text = tokens(image.report)
  lower = [token.lower() for token in text]
  marked, at = [], 0
  for sentence in image.truth.sentences:
    words = tokens(sentence)
    at = _find(lower, [word.lower() for word in words], at)
    if at < 0:
      break  # an empty report
    labels = _labels(sentence, words)
    i = 0
    while i < len(words):
      end = i + 1
      while end < len(words) and labels[i] and labels[end] == labels[i] == "OBS-DP" and end < i + 2:
        end += 1  # now and then, an entity of two tokens
      if labels[i]:
        marked.append((labels[i], at + i, at + end - 1))
      i = end
    at += len(words)
  marked += [("OBS-U", i, i) for i, word in enumerate(lower) if word == "pneumonia"]
  entities = {
    str(number): {
      "tokens": " ".join(text[start : end + 1]),
      "label": label,
      "start_ix": start,
      "end_ix": end,
      "relations": [["located_at", "1"]] if number == 2 else [],
    }
    for number, (label, start, end) in enumerate(sorted(marked, key=lambda e: e[1]), 1)
  }
  return {"text": " ".join(text), "entities": entities, "data_source": None, "data_split": ""}


def _labels(sentence: str, words: list[str]) -> list[str]:
  """Labels each token, "" for none."""
  kinds = phantom_reports.word_kinds(sentence)
  kind_of = {}
  for (start, end), kind in zip(reports.words(sentence), kinds, strict=True):
    kind_of.setdefault(sentence[start:end].lower(), kind)
  out = []
  denied = sentence.lower().startswith(("no ", "there is no "))
  for word in words:
    kind = kind_of.get(word.lower(), "other")
    if denied:
      out.append("OBS-DA" if word.lower() in ("pneumothorax", "effusion", "edema") else "")
    else:
      out.append({"finding": "OBS-DP", "attribute": "ANAT-DP"}.get(kind, ""))
  return out


def _find(text: list[str], words: list[str], start: int) -> int:
  for at in range(start, len(text) - len(words) + 1):
    if text[at : at + len(words)] == words:
      return at
  return -1


def _apart(match: re.Match) -> str:
  return match.group(1) or f" {match.group(2)} "
