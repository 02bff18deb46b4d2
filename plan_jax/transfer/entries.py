"""Entries of `config.evaluation.transfer`, checked without loading the tasks themselves."""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from input_pipeline.section import Rule, Section, SectionError, one_of
from plan_jax.models.config import ModelConfig
from plan_jax.transfer.settings import SETTINGS, Settings

# Fields that are no flags of an entry: they follow from the run, or from the entry itself.
_RESERVED = {"workdir", "records", "out", "encoder", "step", "fraction"}


_SHARES = Rule(
  lambda shares: all(0 < share <= 1 for share in shares), "must be shares above 0, and 1 at most"
)


@dataclass(frozen=True, kw_only=True)
class Entry(Section):
  """A task to be learned on the run's encoder, and on others to compare it with.

  Attributes:
    task: a name of `SETTINGS`.
    of: the evaluation set to learn from and to score on; "" for the run's own data.
    fractions: shares of the training patients, each learned by itself.
    encoders: "run" first; see `Settings.ENCODERS`.
    flags: further settings of the task.
  """

  task: Annotated[str, one_of(*SETTINGS)]
  of: str
  fractions: Annotated[tuple[float, ...], _SHARES]
  encoders: tuple[str, ...]
  flags: dict[str, Any]

  def settings(self, encoder: str, fraction: float, **places) -> Settings:
    """Returns the settings for one encoder and one share. Raises UserError, naming the flag."""
    return SETTINGS[self.task](encoder=encoder, fraction=fraction, **places, **self.flags)


def flags_of(task: str) -> set[str]:
  """Returns the names of the settings that an entry of this task may set."""
  return {field.name for field in dataclasses.fields(SETTINGS[task])} - _RESERVED


def entries(config: ConfigDict) -> dict[str, Entry]:
  """Returns the entries of a run's config by name; other projects' models have none.

  Raises UserError at the first impossible one: the key without its leading "config.", the value,
  and the rule.
  """
  common = {"resamples": config.evaluation.resamples, "seed": config.seed}
  out = {}
  for name, raw in config.evaluation.to_dict().get("transfer", {}).items():
    key = f"evaluation.transfer.{name}"
    try:
      entry = Entry.read_at(key, raw)
    except SectionError as error:
      raise UserError(str(error)) from None
    sets = ("", *config.evaluation.sets)
    _require(entry.of in sets, f"{key}.of", entry.of, _choice(sets))
    allowed = flags_of(entry.task)
    rule = f"its keys must be flags of --task={entry.task}: {', '.join(sorted(allowed))}"
    _require(set(entry.flags) <= allowed, f"{key}.flags", entry.flags, rule)
    out[name] = dataclasses.replace(entry, flags=common | entry.flags)
    _check(config, key, out[name])
  return out


def _check(config: ConfigDict, key: str, entry: Entry) -> None:
  known = SETTINGS[entry.task].ENCODERS
  fits = entry.encoders[:1] == ("run",) and set(entry.encoders) <= set(known)
  rule = f"must begin with 'run'; there are {', '.join(known)}"
  _require(fits, f"{key}.encoders", entry.encoders, rule)
  scored = f"evaluation.sets.{entry.of}.split" if entry.of else "evaluation.split"
  split = config.evaluation.sets[entry.of].split if entry.of else config.evaluation.split
  rule = f"config.{key} is scored on the test split"
  _require(split == "test" or not entry.fractions, scored, split, rule)
  nowhere = Path()
  for encoder in entry.encoders:
    try:
      settings = entry.settings(encoder, 1.0, records=nowhere, out=nowhere, workdir=nowhere)
    except UserError as error:
      raise UserError(f"{key}.flags: {error}") from error
    model = ModelConfig.read(config.model.to_dict())
    stride = math.lcm(settings.STRIDE, model.image.stride)
    side = settings.image_px or model.image_px
    _require(side % stride == 0, f"{key}.flags.image_px", side, f"must be a multiple of {stride}")


def _choice(names: Iterable[str]) -> str:
  return f"must be one of {', '.join(names)}"


def _require(fits: bool, key: str, value, rule: str) -> None:
  if not fits:
    raise UserError(f"{key}: is {value!r}; {rule}")
