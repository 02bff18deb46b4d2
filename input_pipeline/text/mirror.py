"""Reports of mirror images: "left" and "right" change places, so that the sides stay true.

A side is that of the image as it is seen: in a mirror image the left ventricle lies on the right,
and is called so. Organs and vessels without a side (stomach, aortic knob, SVC) say none and stay.
A report whose sides cannot all be told is not for mirroring. The tables err towards that: it costs
one mirror image, and a wrong side would be a false report.
"""

import re
from collections.abc import Sequence

_PLAIN, _SPINAL = ("left", "right"), ("levo", "dextro")
# After an L or R: lobes, quadrants, the jugular vein.
_SHORT = [(f"l{name}", f"r{name}") for name in ("ul", "ll", "uq", "lq", "ij")]
_SPINE = r"\W?(?:curv|scolio|conv|posi|rota)"  # after levo or dextro

# A word of up to three letters that begins with R or L is taken for a side unless it is one of
# these; so is a longer one that begins like no other word. RML, Rt, r/l, LV; LBBB, RIMA.
_NO_SIDES = (
  "lab|lap|lat|law|lax|lay|led|leg|let|lid|lie|lip|lit|lob|log|lot|low"
  "|ran|rat|raw|ray|re|red|ref|rib|rim|rod|row|rub|run"
)
_NO_WORDS = "[b-df-gj-np-tv-xz][a-z]+|ima|ica|ijv|usb|[iu]pv"
_MISSPELT = "rih|rig(?!id)|leff|letf"

# Beside "left" and "right" as a verb, an adverb, a direction: "has left the room", "left alone",
# "right at the carina", "left-to-right shunt"; at the end of a clause: "two clips left".
# "The left with an effusion" is a side, and so is "on left".
_BEFORE = "has|have|had|having|been|being|patient|he|she|who|all"
_AFTER = (
  "a|above|after|against|alone|along|ama|an|as|at|away|before|behind|below|beside|by|for|from|here"
  "|in|inside|intact|into|near|next|now|of|off|on|open|out|over|the|then|there|through|to|un(?!i)[a-z]+"
  "|up|where|with|within|without"
)
_CORRECT = r"right[\s-]+(?:angle|place|position|way)"

# Parts of one side only; how the organs lie; parts that are told where a side stands before them.
_ONE_SIDED = "lingul|azyg|scimitar|intermedius|intermediate bronch|apico-?posterior"
_SITUS = r"\bsitus\b|heterotax|isomeri|kartagener|transposition|\btga\b|clockwise|mirror"
_NEEDS_SIDE = r"(?:mid(?:dle)?|minor|horizontal)(?:\W+\w+){0,2}\W+(?:lob|fissur)"


def _forms(words: Sequence[str]) -> list[str]:
  return [form(word) for form in (str.lower, str.capitalize, str.upper) for word in words]


_OPPOSITE = {
  ours: theirs
  for pair in (_PLAIN, _SPINAL, *_SHORT)
  for side in (pair, pair[::-1])
  for ours, theirs in zip(_forms(side), _forms(side[::-1]), strict=True)
}
_SIDE = re.compile(
  rf"(?:\b|(?<=\b(?i:mid)))(?:{'|'.join(_forms(_PLAIN))})(?=(?i:wards?|most)?\b)"
  rf"|\b(?:{'|'.join(_forms(_SPINAL))})(?=(?i:{_SPINE}))"
  rf"|\b(?:{'|'.join(_forms(sum(_SHORT, ())))})\b"
)
_UNTOLD = re.compile(
  rf"\b(?:{_BEFORE})\s+(?:left|right)\b"
  rf"|(?<!the\s)(?<!than\s)\b(?:left|right)[\s-]+(?:{_AFTER})\b"
  r"|(?<!the\s)(?<!than\s)(?<!on\s)(?<!to\s)\bleft\s*(?:[^\w\s-]|$)"
  rf"|\b{_CORRECT}|{_ONE_SIDED}|{_SITUS}|(?<!left[\s-])(?<!right[\s-])\b{_NEEDS_SIDE}",
  re.IGNORECASE,
)
# In what is left of a text without its known sides. "Upright", "bright" and "cleft" have none.
_UNKNOWN = re.compile(
  r"(?<!c)left|(?<!up)(?<!\bb)right|la?evo|dextr|sinistr"
  rf"|\b(?:{_MISSPELT})|\b(?!(?:{_NO_SIDES})\b)[rl](?:[a-z]{{0,2}}|{_NO_WORDS})\b",
  re.IGNORECASE,
)
_DIRECTION = re.compile(
  "shift|deviat|displac|convex|rotat|curv|toward|wards|pull|push|drawn|retract|herniat|mass effect"
  r"|enlarg\w*\s+to\s+the",
  re.IGNORECASE,
)
_BOTH = re.compile(r"\bbi(?:lateral|bas[ai]|apical)|\bboth\b", re.IGNORECASE)


def swapped(text: str) -> str:
  """Exchanges left and right in a text; twice gives the text itself.

  swapped("Small left effusion, RLL nodule.")  # "Small right effusion, LLL nodule."
  """
  return _SIDE.sub(lambda side: _OPPOSITE[side[0]], text)


def sides(text: str) -> set[str]:
  """Collects the sides that a text names, "left" and "right"; "both", "bilateral" name either.

  sides("Small left effusion, RLL nodule.")  # {"left", "right"}
  sides("Dextroscoliosis.")  # set(): the spine lies on no side
  """
  if _BOTH.search(text):
    return {"left", "right"}
  named = {match[0].lower() for match in _SIDE.finditer(text)} - set(_SPINAL)
  return {"left" if side.startswith("l") else "right" for side in named}


def half(text: str) -> int:
  """Returns the half of a frontal image that a text names: 1 its right, the patient's left; -1.

  0 where the text names none, both, one that cannot be told, or a direction.

  half("Small left effusion.")  # 1
  half("The heart is shifted to the left.")  # 0
  """
  named = sides(text)
  if len(named) != 1 or _DIRECTION.search(text) or not can_be_swapped([text]):
    return 0
  return 1 if "left" in named else -1


def can_be_swapped(sentences: Sequence[str]) -> bool:
  """Tells whether all sides in the sentences of a report can be told, see the module."""
  text = " ".join(sentences)
  return not (_UNTOLD.search(text) or _UNKNOWN.search(_SIDE.sub(" ", text)))
