"""Reports of mirror images: "left" and "right" change places, so that the sides stay true.

A side is that of the image as it is seen: in a mirror image the left ventricle lies on the right,
and is called so. A report whose sides cannot all be told is not for mirroring: one that names
dextrocardia or situs inversus; a part that has its side in its name (lingula, azygos, a middle lobe
without a side); an abbreviation of a side that is not of the table; "left" as a verb.
"""

import re
from collections.abc import Sequence

_ABBREVIATIONS = ("UL", "LL", "UQ", "LQ", "IJ")  # after an R or L: lobes, quadrants, the jugular
_OPPOSITE = {"left": "right", "levo": "dextro"}
_OPPOSITE |= {f"l{name.lower()}": f"r{name.lower()}" for name in _ABBREVIATIONS}
_OPPOSITE |= {theirs: ours for ours, theirs in _OPPOSITE.items()}
_SIDE = re.compile(
  r"\b(?:mid)?(left|right)(?=(?:wards?|most|s)?\b)"  # "upright" is none
  r"|\b(levo|dextro)(?=\b|curv|scolio|conv|posi|rota)"
  rf"|\b([RL](?:{'|'.join(_ABBREVIATIONS)}))\b",
  re.IGNORECASE,
)
_UNTOLD = re.compile(
  r"\bdextrocardia|\bsitus\b|\blingula|\bazygo|\bleft (?:in place|in situ|with|at|by|for)\b"
  r"|(?<!right )(?<!left )\bmiddle lobe",
  re.IGNORECASE,
)
_BOTH = re.compile(r"\bbi(?:lateral|bas[ai]|apical)|\bboth\b", re.IGNORECASE)
_UNKNOWN = re.compile(rf"\b[RL](?!(?:{'|'.join(_ABBREVIATIONS)})\b)[A-Z]{{0,2}}\b")


def swapped(text: str) -> str:
  """Exchanges left and right in a text; twice gives the text itself.

  swapped("Small left effusion, RLL nodule.")  # "Small right effusion, LLL nodule."
  """
  return _SIDE.sub(_opposite, text)


def sides(text: str) -> set[str]:
  """Collects the sides that a text names, "left" and "right"; "both", "bilateral" name either.

  sides("Small left effusion, RLL nodule.")  # {"left", "right"}
  sides("Dextroscoliosis.")  # set(): the spine lies on no side
  """
  if _BOTH.search(text):
    return {"left", "right"}
  named = [(match[1] or (match[3] or "")[:1]).lower() for match in _SIDE.finditer(text)]
  return {"left" if side.startswith("l") else "right" for side in named if side}


def can_be_swapped(sentences: Sequence[str]) -> bool:
  """Tells whether all sides in the sentences of a report can be told, see the module."""
  text = " ".join(sentences)
  # What is all in capitals tells no abbreviation.
  unknown = _UNKNOWN.search(text) and not text.isupper()
  return not (unknown or _UNTOLD.search(text))


def _opposite(match: re.Match) -> str:
  side = next(filter(None, match.groups()))
  other = _OPPOSITE[side.lower()]
  if side.isupper():
    other = other.upper()
  elif side[0].isupper():
    other = other.capitalize()
  return match[0][: -len(side)] + other
