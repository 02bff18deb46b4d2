"""Settings of a conversion: everything that decides the bytes it writes."""

import dataclasses
import os
import types
from pathlib import Path
from typing import Any

from input_pipeline import digests
from input_pipeline.conversion import selections
from input_pipeline.errors import UserError
from input_pipeline.files import replace_text
from input_pipeline.locks import is_vacant
from input_pipeline.readers import by_name as readers
from input_pipeline.readers.raw.stored_images import FORMATS, MAX_DECODED_PX

_RECORDS_VERSION = 2  # raise it when serialization.features or store_image changes what is written
_FILE = "convert.json"
_REMEDY = "give it back from a copy, or name a new folder"


class ConvertError(UserError):
  """A conversion cannot start or go on; the message says why and what to do."""


def require_type(name: str, value: Any, kind: type | types.UnionType) -> None:
  """Raises ConvertError, naming the argument, unless its value is of a type; a bool is no int."""
  if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
    needed = getattr(kind, "__name__", kind)
    raise ConvertError(f"{name} is {value!r} of type {type(value).__name__}; it must be {needed}")


def read(out: Path) -> dict[str, Any]:
  """Reads the `Settings.content` that a folder of records was converted with.

  Raises ConvertError where it has none, and DamagedError where they are not as they were written.
  """
  if not (out / _FILE).exists():
    raise ConvertError(
      f"{out} has no {_FILE}, so nobody knows how it was converted: convert it anew"
    )
  return digests.read_sealed(out / _FILE, _REMEDY)


@dataclasses.dataclass(frozen=True)
class Settings:
  """Everything that decides the bytes of a conversion.

  Attributes:
    dataset: a key of READERS.
    source: folder of the raw data.
    image_px: bound of the stored images' short side; larger ones are reduced.
    image_format: "keep" stores JPEG as JPEG and all else as PNG; "jpeg" and "png" store that alone.
      An 8-bit grey image within the bound that has its format already keeps its bytes.
    max_decoded_px: images of more pixels are left out, before they are decoded.
    shard_size: images a shard.
    limit: takes only the first so many images of every split.
    selection: a name of selections.SELECTIONS, or a JSON file of one; "" takes all images.
    selection_seed: of a selection by name.
    reader_options: keyword arguments of the reader's open_source.
  """

  dataset: str
  source: str | os.PathLike = ""
  image_px: int = 512
  image_format: str = "keep"
  max_decoded_px: int = MAX_DECODED_PX
  shard_size: int = 256
  limit: int | None = None
  selection: str = ""
  selection_seed: int = 0
  reader_options: dict[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    """Raises ConvertError, naming the argument that is of another type or out of its range."""
    for field in dataclasses.fields(self)[:-1]:
      require_type(field.name, getattr(self, field.name), field.type)
    if self.dataset not in readers.READERS:
      known = ", ".join(readers.READERS)
      raise ConvertError(f"there is no data set {self.dataset!r}; known are {known}")
    if self.image_format not in FORMATS:
      known = ", ".join(FORMATS)
      raise ConvertError(f"image_format is {self.image_format!r}, not one of {known}")
    for name in ("image_px", "max_decoded_px", "shard_size", "limit"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ConvertError(f"{name} is {value}; it must be 1 or more")
    known = readers.default_options(self.dataset)
    if unknown := [name for name in self.reader_options if name not in known]:
      listed = ", ".join(known) or "none"
      names = ", ".join(unknown)
      raise ConvertError(f"{names}: no option of reader {self.dataset!r}; it has {listed}")
    for name, value in self.reader_options.items():
      kind = type(known[name])
      require_type(name, value, int | float if kind is float else kind)

  @classmethod
  def from_options(cls, dataset: str, **options: Any) -> "Settings":
    """Makes settings of options by name; those that are no field go to the reader."""
    fields = {field.name for field in dataclasses.fields(cls)} - {"dataset", "reader_options"}
    own = {name: value for name, value in options.items() if name in fields}
    reader_options = {name: value for name, value in options.items() if name not in fields}
    return cls(dataset, **own, reader_options=reader_options)

  def content(self) -> dict[str, Any]:
    """Returns the settings as they are stored, reader options with their defaults.

    Raises SelectionError where the selection is a file that cannot be read.
    """
    content = dataclasses.asdict(self)
    given = content.pop("reader_options")
    if self.selection.endswith(".json"):  # what the file holds decides, not where it lies
      content["selection"] = f"hash {selections.load(self.selection).hash}"
    content["source"] = os.path.abspath(self.source) if self.source else ""
    options = {
      name: given.get(name, default)
      for name, default in readers.default_options(self.dataset).items()
    }
    return {"version": _RECORDS_VERSION} | content | options

  def write(self, out: Path) -> None:
    """Writes the settings into the folder of a conversion."""
    replace_text(out / _FILE, digests.seal(self.content(), indent=1))

  def compare(self, out: Path, *, retry_skipped: bool = False) -> None:
    """Raises ConvertError unless `out` is free or was begun with the same settings.

    To retry what was skipped, max_decoded_px may be higher: nothing written hangs on the lower one.

    Raises DamagedError where its settings are not as they were written.
    """
    if out.exists() and not out.is_dir():
      raise ConvertError(f"{out} is a file; --out names a folder")
    content = self.content()
    if not (out / _FILE).exists():
      if not is_vacant(out):
        raise ConvertError(f"{out} holds other files; name a new or empty folder")
      return
    before = read(out)
    for name in sorted(before.keys() | content.keys()):
      old, new = before.get(name), content.get(name)
      is_raised = name == "max_decoded_px" and old is not None and old < new
      if old != new and not (is_raised and retry_skipped):
        hint = " (the converter takes a higher bound with --retry_skipped)" if is_raised else ""
        raise ConvertError(
          f"{out} was begun with {name}={old!r}, not {new!r};"
          f" give the same arguments to go on, or name a new folder{hint}"
        )
