"""A glossary: the words of the field on a page, each linked to its definition."""

import re

from markupsafe import Markup, escape

from input_pipeline.terminal import escape_lines

DEFINITIONS = {
  "95 % interval": "Range in which the value stays when other patients are drawn: the middle 95 %"
  " of bootstrap draws of patients. It holds for this model and these data.",
  "absolute CNR": "Size of the signed CNR: a map that is dark in the true region scores as well.",
  "accuracy": "Share of the answers that are right.",
  "AUC": "Probability that an example with the finding scores higher than one without: .5 is"
  " chance, 1 is perfect.",
  "average precision": "Mean precision over all thresholds; its chance is the share of positives.",
  "box accuracy": "Share of the phrases for which the box round the largest part of the map above"
  " half of its maximum has an IoU of .5 or more with a true box.",
  "centre": "Chance baseline: a spot in the middle of every image.",
  "chance baseline": "Answer that is given without looking at the image. A model that is no better"
  " has learned nothing of use for this metric.",
  "constant": "Chance baseline: the same answer for all images.",
  "F1": "Harmonic mean of precision and sensitivity, at the threshold.",
  "gallery": "Number of candidates among which an image or a report is sought.",
  "grounding": "Showing where in an image a phrase is true.",
  "IoU": "Intersection over union of the map, cut at a threshold (IoU@.3: at .3 of its maximum),"
  " and the true region: 0 is apart, 1 is equal.",
  "macro": "Plain mean over the findings: a rare one counts as much as a frequent one.",
  "map": "Where a phrase is shown: the regions of its words together, or in a baseline its own"
  " similarity to every place, scaled to a maximum of 1. It has a maximum also where the finding is"
  " absent: see presence.",
  "mass inside": "Share of a map's sum that lies in the true region.",
  "MCC": "Matthews correlation coefficient, at the threshold: 0 is chance, 1 is perfect.",
  "mean box": "Chance baseline: the mean of all true regions of the training images.",
  "mean box per finding": "Chance baseline: the mean of the training images' true regions of the"
  " phrase's finding. It knows anatomy, not the image.",
  "mean box per place": "Chance baseline: the mean of the training images' true regions of all"
  " phrases that name the same sides and lung fields; where there are none, that of the finding.",
  "mean Dice": "Mean Dice coefficient of map and true region over thresholds of .1 to .5.",
  "mean peak": "Mean of the maximum of a finding's map before scaling. Its scale is the model's.",
  "median rank": "Place of the right candidate for the median query; 1 is best.",
  "mIoU": "Mean of IoU@.1 to IoU@.5.",
  "moves": "Share of the phrases whose map goes to the other half of the image when left and right"
  " are exchanged in the phrase.",
  "n": "Number of examples (phrases, images, pairs of image and finding) behind a value.",
  "on the named side": "Share of the phrases with more of the map's sum on the side they name.",
  "P@K": "Share of the query's finding among the first K candidates.",
  "phrase": "Words to be found in an image, such as “small left effusion”.",
  "pointing": "Share of the phrases for which the map's maximum lies in the true region.",
  "presence": "Whether the map of a finding peaks higher in images that have it than in others.",
  "R@K": "Share of the queries for which a right candidate is among the first K.",
  "radiologist": "One of those who read the images beside the ones whose majority is the truth; no"
  " chance baseline, and no verdict compares with them.",
  "random": "Chance baseline: noise.",
  "reranked": "Of the nearest candidates, ordered anew by global and local similarity together.",
  "retrieval": "Finding the report of an image among many, and the image of a report.",
  "sensitivity": "Share of the images with a finding that are taken to have it.",
  "signed CNR": "Contrast-to-noise ratio: mean of the map inside of the true region less the mean"
  " outside, over the square root of the sum of both variances. 0 is no contrast.",
  "significance": "How much a word says about the image, from 0 to 1, as the model has learned it:"
  " “effusion” much, “of” little.",
  "soft region": "Weights that a word has on the places of an image, learned from pairs of images"
  " and reports, without a label of a region.",
  "specificity": "Share of the images without a finding that are taken not to have it.",
  "term list": "Baseline of terms: a list of diagnostic terms as a significance of 0 or 1.",
  "terms": "Whether the significance tells words for findings from all others.",
  "true side brighter": "Share of the phrases that peak higher than with left and right exchanged.",
  "zero-shot": "Classification by the similarity of an image to sentences; no label is trained on.",
}
_LINK = Markup('<a class="term" href="#{}">{}</a>')
_AT_K = {"P@": "P@K", "R@": "R@K"}
_WORDS = re.compile(
  r"(?<![\w@.])(?:(?P<at>[PR]@)\d+|(?P<name>"
  + "|".join(re.escape(name) for name in sorted(DEFINITIONS, key=len, reverse=True))
  + r")s?(?![\w]))",
  re.IGNORECASE,
)
_NAMES = {name.lower(): name for name in DEFINITIONS}


class Glossary:
  """The words that a page has linked so far.

  Example:
    glossary = Glossary()
    glossary.link("macro mIoU")  # <a href="#term-macro">macro</a> <a href="#term-miou">mIoU</a>
    glossary.link("macro")  # macro: it is linked where it first stands
    glossary.entries()  # [("term-macro", "macro", "Plain mean ..."), ...]
  """

  def __init__(self):
    self._names: set[str] = set()

  def link(self, text: str) -> Markup:
    """Escapes a text for HTML, and links the words of `DEFINITIONS` that it has first."""
    parts, end = [], 0
    for match in _WORDS.finditer(text):
      name = _AT_K[match["at"].upper()] if match["at"] else _NAMES[match["name"].lower()]
      if name not in self._names:
        self._names.add(name)
        parts += [_plain(text[end : match.start()]), _LINK.format(_anchor(name), match[0])]
        end = match.end()
    return Markup("").join([*parts, _plain(text[end:])])

  def entries(self) -> list[tuple[str, str, str]]:
    """Returns (anchor, name, definition) of the linked words, by name."""
    names = sorted(self._names, key=str.lower)
    return [(_anchor(name), name, DEFINITIONS[name]) for name in names]


def _anchor(name: str) -> str:
  return "term-" + re.sub(r"\W+", "-", name.lower())


def _plain(text: str) -> Markup:
  return escape(escape_lines(text))
