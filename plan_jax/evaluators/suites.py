"""Suites: the data sets, protocols and prompts that one project reports together, by name.

A suite is data alone: `plan_jax.suite` runs it. Protocols are those of the evaluators' modules.

- "radzero": what RadZero's evaluation code measures (deepnoid-ai/RadZero, exp/cxr_pt/inference):
  macro AUC of the prompt "There is ..." (Open-I by CARZero's 18 findings, CheXpert by its five on
  images of all views), pointing on ChestX-Det10 (the mean of ten findings and, as CoNNS has it,
  that of all examples) and on the phrases of MS-CXR with one box, AUC and Dice on SIIM and RSNA.
  Two of its lists are not here: of PadChest all images are scored that a physician labelled, and of
  MS-CXR the phrases of one box in its own test split, where RadZero has 167.
- "aep": KAF's benchmark (tahsirmunna/kaf-ground): all phrases of MS-CXR, and those of eight
  findings in PadChest-GR's test split, with its sharpening apart.
"""

from dataclasses import dataclass, field
from typing import Any

ON_SCORED = "highest on the scored images"
EACH_MAP = ".1 to .5 of each map"


@dataclass(frozen=True)
class Shown:
  """A row of the evaluation that the suite's table shows."""

  task: str
  protocol: str  # without what follows ", "
  group: str
  metric: str
  threshold: str = "none"  # where it comes from


@dataclass(frozen=True)
class SuiteSet:
  """A data set of a suite, and how it is scored."""

  dataset: str  # its reader; docs/data/DATASET.md says how to get it
  evaluators: dict[str, tuple[str, ...]]  # name -> protocols
  shown: tuple[Shown, ...]
  prompts: tuple[str, ...] = ()  # the set of prompts
  selection: str = ""
  options: dict[str, Any] = field(default_factory=dict)  # of the reader
  findings: tuple[str, ...] = ()  # those that are scored; all where empty


def _areas(dataset: str, prompts: str = "radzero", **more: Any) -> SuiteSet:
  """Makes a set of which the macro AUC is shown."""
  shown = Shown(f"zero-shot-{prompts}", "zero-shot-v1", "macro", "AUC")
  evaluators = {"zero_shot": ("zero-shot-v1",)} | more.pop("evaluators", {})
  shown = (shown, *more.pop("shown", ()))
  return SuiteSet(dataset, evaluators, shown, (prompts,), **more)


def _dice(dataset: str, prompts: str, selection: str) -> SuiteSet:
  """Makes a set of which macro AUC, Dice and specificity are shown."""
  protocol = "compat-radzero-segmentation-v1"
  shown = tuple(
    Shown("segmentation", protocol, "macro", metric, ON_SCORED)
    for metric in ("Dice", "specificity")
  )
  evaluators = {"segmentation_compat": (protocol,)}
  return _areas(dataset, prompts, selection=selection, evaluators=evaluators, shown=shown)


def _maps(dataset: str, **more: Any) -> SuiteSet:
  """Makes a set of KAF's grounding; the sharpened map has rows of its own."""
  names = ("compat-aep-v2", "compat-aep-sharpened-v1")
  thresholds = {"mIoU": EACH_MAP, "mean Dice": EACH_MAP, "P@1": "none", "signed CNR": "none"}
  shown = tuple(
    Shown("grounding", name, "macro", metric, threshold)
    for name in names
    for metric, threshold in thresholds.items()
  )
  return SuiteSet(dataset, {"grounding_compat": names}, shown, **more)


_POINTING = ("compat-radzero-v2", "compat-any-box-v1")
_FINDINGS = ("compat-radzero-findings-v1", "compat-conns-findings-v1")
_CHEXPERT = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
_PADCHEST_GR = (
  *("alveolar pattern", "aortic elongation", "atelectasis", "cardiomegaly"),
  *("interstitial pattern", "nodule", "pleural effusion", "pleural thickening"),
)

# Suite -> folder of the raw data or records below --sets -> its set.
SUITES: dict[str, dict[str, SuiteSet]] = {
  "radzero": {
    "openi": _areas("openi", selection="all_test", options={"labels": "carzero"}),
    "nih14": _areas("nih14", selection="own_test"),
    "padchest": _areas("padchest", selection="all_test"),
    "chestx_det10": _areas(
      "chestx_det10",
      "radzero_chestx_det10",
      selection="own_test",
      evaluators={"grounding_compat": _FINDINGS},
      shown=(
        Shown("grounding", _FINDINGS[0], "macro", "pointing any box"),
        Shown("grounding", _FINDINGS[1], "all", "pointing any box"),
      ),
    ),
    "chexpert": _areas(
      "chexpert", selection="own_test", options={"views": "all"}, findings=_CHEXPERT
    ),
    "ms_cxr": SuiteSet(
      "ms_cxr",
      {"grounding_compat": _POINTING},
      (
        Shown("grounding", _POINTING[0], "all", "pointing first box"),
        Shown("grounding", _POINTING[1], "all", "pointing any box"),
      ),
      selection="own_test",
      options={"boxes": "single"},
    ),
    "siim": _dice("siim", "radzero", "siim_images"),
    "rsna": _dice("rsna", "radzero_rsna", "rsna_detection"),
  },
  "aep": {
    "ms_cxr": _maps("ms_cxr", selection="all_test"),
    "padchest_gr": _maps("padchest_gr", selection="own_test", findings=_PADCHEST_GR),
  },
}
