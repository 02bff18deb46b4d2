"""The sections of a config about data."""

from dataclasses import dataclass
from typing import Annotated, Any

from input_pipeline.example import SPLITS
from input_pipeline.readers.by_name import READERS, default_options
from input_pipeline.section import Count, PositiveInt, Section, Share, one_of


@dataclass(frozen=True, kw_only=True)
class DataSourceConfig(Section):
  """A data set: its reader, its raw folder, its records and the stored features of its images."""

  dataset: Annotated[str, one_of(*READERS)]
  source: str
  records: str
  features: str
  selection: str
  selection_seed: int
  options: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DataConfig(DataSourceConfig):
  """The data of a run, and how they are converted and loaded."""

  stored_px: PositiveInt
  max_decoded_px: PositiveInt
  limit: int
  max_skipped_fraction: Share
  store_features: bool
  augment: bool
  flip_fraction: Share
  workers: Count
  threads: PositiveInt


@dataclass(frozen=True, kw_only=True)
class EvaluationSetConfig(DataSourceConfig):
  """A further data set to evaluate on."""

  split: Annotated[str, one_of(*SPLITS)]

  def __post_init__(self):
    """Checks that the options are those of the reader."""
    super().__post_init__()
    known = default_options(self.dataset)
    self.require(
      "options",
      set(self.options) <= set(known),
      f"its keys must be options of the reader: {', '.join(known) or 'it has none'}",
    )
