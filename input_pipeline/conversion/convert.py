"""Converts a raw data set into a folder of records: parallel, resumable, the same bytes every time.

  python -m input_pipeline.conversion.convert --dataset=folder --source=/data/images --out=/data/images_records

A conversion that was stopped, by Ctrl-C or a kill, goes on with the same command: finished shards
stay. Images that cannot be read are left out and listed in `skipped.jsonl` of the output folder.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tqdm

from input_pipeline import records
from input_pipeline.conversion import selections
from input_pipeline.conversion import workers as workers_lib
from input_pipeline.errors import UserError
from input_pipeline.example import SPLITS, Example, UnreadableError
from input_pipeline.files import replace_text
from input_pipeline.readers import by_name as readers
from input_pipeline.readers.by_name import READERS
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.raw.stored_images import FORMATS, store_image
from input_pipeline.readers.source import Item, Source, check_patients

_RECORDS_VERSION = 2  # raise it when records.features or store_image changes what is written
_ARGUMENTS, _SKIPPED, _SELECTION = "convert.json", "skipped.jsonl", "selection.json"


class ConvertError(UserError):
  """A conversion cannot start or go on; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Shard:
  """One shard to be: small enough to send to a worker.

  Attributes:
    path: of the finished file.
    split: of its images.
    items: its images.
    source: hash of the items.
  """

  path: Path
  split: str
  items: tuple[Item, ...]
  source: str

  def index(self) -> dict[str, Any] | None:
    """The index of the finished shard; None where it is still to be written."""
    if not self.path.exists():
      return None
    index = records.read_index(self.path)
    whole = index["source"] == self.source and index["offsets"][-1] == self.path.stat().st_size
    return index if whole else None


@dataclasses.dataclass(frozen=True)
class Job:
  """Writes shards; picklable, one for all workers.

  Attributes:
    read: of the source.
    image_px, image_format: as in `convert`.
  """

  read: Callable[[Item], Example]
  image_px: int
  image_format: str

  def __call__(self, shard: Shard) -> tuple[Shard, list[dict[str, str]]]:
    """Writes a shard, unless it is finished. Returns it and what it lacks, as in its index.

    Raises SourceError where the source contradicts itself.
    """
    index = shard.index()
    if index is not None:
      return shard, index["skipped"]
    skipped = []
    with records.ShardWriter(shard.path, shard.source) as writer:
      for item in shard.items:
        try:
          writer.write(store_image(self.read(item), self.image_px, self.image_format))
        except UnreadableError as error:
          writer.skip(item.key, str(error))
          skipped.append({"path": item.key, "reason": str(error)})
        except ValueError as error:
          raise SourceError(f"{item.key}: {error}") from error
    return shard, skipped


# Calls the job with every shard, and gives back what it returns, in any order.
Runner = Callable[[Job, list[Shard]], Iterator[tuple[Shard, list[dict[str, str]]]]]


def convert(
  dataset: str,
  out: str | os.PathLike,
  *,
  source: str = "",
  image_px: int = 512,
  image_format: str = "keep",
  shard_size: int = 256,
  limit: int | None = None,
  selection: str = "",
  selection_seed: int = 0,
  workers: int | None = None,
  max_skipped_fraction: float = 0.01,
  retry_skipped: bool = False,
  progress: bool = True,
  runner: Runner | None = None,
  **reader_options: Any,
) -> dict[str, Any]:
  """Converts a data set, or goes on with a conversion that was stopped.

  Args:
    dataset: a key of READERS.
    out: folder to write: new, empty, or begun by this function with the same arguments.
    source: folder of the raw data.
    image_px: bound of the stored images' short side; larger ones are reduced.
    image_format: "keep" stores JPEG as JPEG and all else as PNG; "jpeg" and "png" store that alone.
      An 8-bit grey image within the bound that has its format already keeps its bytes.
    shard_size: images a shard.
    limit: takes only the first so many images of every split.
    selection: a name of selections.SELECTIONS, or a JSON file of one; "" takes all images.
    selection_seed: of a selection by name.
    workers: processes; 0 and 1 stay in this one, None is one a core. Changes no byte.
    max_skipped_fraction: share of images that may be unreadable.
    retry_skipped: writes shards again that left images out, after the files were repaired.
    progress: shows a bar on stderr.
    runner: what calls the job, in place of `workers` processes of this host; wherever that is, it
      sees `out` and `source` under the same paths. Changes no byte.
    **reader_options: keyword arguments of the reader's open_source.

  Returns:
    A summary: "out", "images" (split -> records), "skipped", "notes", "fingerprint", "seconds",
    "images_per_second" (now), and "already": the folder was complete before.

  Raises:
    ConvertError: wrong arguments, other arguments than the folder was begun with, a patient in two
      splits, too many unreadable images.
    SourceError: the source is missing or contradicts itself.
    SelectionError: the selection cannot be read, or does not fit the source.
    WorkerError: a worker process died; finished shards are kept.
  """
  start, out = time.monotonic(), Path(out)
  arguments = _arguments(
    dataset, source, reader_options,
    image_px=image_px, image_format=image_format, shard_size=shard_size, limit=limit,
    selection=selection, selection_seed=selection_seed,
  )  # fmt: skip
  if not 0 <= max_skipped_fraction <= 1:
    raise ConvertError(f"max_skipped_fraction is {max_skipped_fraction}; it must be 0 to 1")
  _compare(out, arguments)
  if records.is_complete(out) and not retry_skipped:
    skipped = (out / _SKIPPED).read_text(encoding="utf-8").splitlines()
    return _summary(out, start, len(skipped), converted=0, notes=(), already=True)

  opened, chosen = _open(dataset, source, reader_options, selection, selection_seed)
  shards = _plan(opened, out, shard_size, limit)
  out.mkdir(parents=True, exist_ok=True)
  with _lock(out):
    (out / "dataset_info.json").unlink(missing_ok=True)  # incomplete from here on
    replace_text(out / _ARGUMENTS, json.dumps(arguments, indent=1, sort_keys=True) + "\n")
    if chosen:
      replace_text(out / _SELECTION, chosen.to_json())
    _tidy(out, shards)
    if runner is None:
      count = os.cpu_count() or 1 if workers is None else workers
      runner = functools.partial(workers_lib.in_processes, workers=count)
    job = Job(opened.read, image_px, image_format)
    left_out = [{"path": path, "reason": reason} for path, reason in opened.left_out]
    total = len(left_out) + sum(len(shard.items) for shard in shards)
    bound = _Bound(out, total, max_skipped_fraction)
    converted = _run(shards, job, runner, bound, left_out, retry_skipped, progress)
    skipped = _finish(out, opened.name, shards, left_out)
  return _summary(out, start, skipped, converted=converted, notes=opened.notes, already=False)


def _open(
  dataset: str, source: str, options: dict[str, Any], selection: str, seed: int
) -> tuple[Source, selections.Selection | None]:
  """The data set, cut to the selection where there is one; no patient sits in two splits."""
  opened, chosen = readers.open_reader(dataset, source, options), None
  if selection:
    chosen = selections.make(selection, opened.items, seed)
    items = selections.select(opened.items, chosen)
    note = (
      f"selection {chosen.name}: {len(items)} of {len(opened.items)} images, hash {chosen.hash}"
    )
    opened = dataclasses.replace(opened, items=items, notes=(*opened.notes, note))
  check_patients(opened.items)
  return opened, chosen


def _arguments(dataset: str, source: str, given: dict[str, Any], **more: Any) -> dict[str, Any]:
  """Everything that decides the bytes written, checked; reader options with their defaults."""
  if dataset not in READERS:
    raise ConvertError(f"there is no data set {dataset!r}; known are {', '.join(READERS)}")
  if more["image_format"] not in FORMATS:
    raise ConvertError(f"image_format is {more['image_format']!r}, not one of {', '.join(FORMATS)}")
  for name in ("image_px", "shard_size", "limit"):
    if more[name] is not None and more[name] < 1:
      raise ConvertError(f"{name} is {more[name]}; it must be 1 or more")
  known = readers.default_options(dataset)
  unknown = [name for name in given if name not in known]
  if unknown:
    options = ", ".join(known) or "none"
    raise ConvertError(f"{', '.join(unknown)}: no option of reader {dataset!r}; it has {options}")
  if more["selection"].endswith(".json"):  # what it holds decides, not where it lies
    more["selection"] = f"hash {selections.load(more['selection']).hash}"
  source = os.path.abspath(source) if source else ""
  options = {name: given.get(name, default) for name, default in known.items()}
  return {"version": _RECORDS_VERSION, "dataset": dataset, "source": source} | more | options


def _compare(out: Path, arguments: dict[str, Any]) -> None:
  """Raises ConvertError unless `out` is free or was begun with these arguments."""
  if out.exists() and not out.is_dir():
    raise ConvertError(f"{out} is a file; --out names a folder")
  try:
    before = json.loads((out / _ARGUMENTS).read_text(encoding="utf-8"))
  except FileNotFoundError:
    if out.exists() and any(out.iterdir()):
      raise ConvertError(f"{out} holds other files; name a new or empty folder") from None
    return
  for name in sorted(before.keys() | arguments.keys()):
    if before.get(name) != arguments.get(name):
      raise ConvertError(
        f"{out} was begun with {name}={before.get(name)!r}, not {arguments.get(name)!r};"
        " give the same arguments to go on, or name a new folder"
      )


def _plan(source: Source, out: Path, shard_size: int, limit: int | None) -> list[Shard]:
  """Cuts the items of every split into shards, in the reader's order."""
  shards = []
  for split in SPLITS:
    items = [item for item in source.items if item.split == split][:limit]
    chunks = [tuple(items[i : i + shard_size]) for i in range(0, len(items), shard_size)]
    for i, chunk in enumerate(chunks):
      digest = hashlib.blake2b(repr(chunk).encode(), digest_size=16).hexdigest()
      path = out / records.shard_name(source.name, split, i, len(chunks))
      shards.append(Shard(path, split, chunk, digest))
  if not shards:
    raise ConvertError("there is no image to convert")
  return shards


@contextlib.contextmanager
def _lock(out: Path) -> Iterator[None]:
  """Keeps a second conversion out of the folder; the system lets go when this process dies."""
  descriptor = os.open(out, os.O_RDONLY)
  try:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ConvertError(f"another conversion is writing into {out}; wait for its end") from None
    except OSError:
      pass  # some network file systems lock no folders
    yield
  finally:
    os.close(descriptor)


def _tidy(out: Path, shards: list[Shard]) -> None:
  """Removes what a killed run left half-written, and shards of a source that has changed since."""
  wanted = {path for s in shards for path in (s.path, records.index_path(s.path))}
  for path in list(out.iterdir()):
    if path.name.startswith((".metadata-", ".plan-")):
      shutil.rmtree(path)
    elif ".tmp-" in path.name or (".tfrecord-" in path.name and path not in wanted):
      path.unlink()


@dataclasses.dataclass(frozen=True)
class _Bound:
  """How much may be left out."""

  out: Path
  total: int
  fraction: float

  def check(self, skipped: list[dict[str, str]]) -> None:
    """Raises ConvertError, and lists what was skipped so far, where it is too much."""
    if len(skipped) <= self.fraction * self.total:
      return
    replace_text(self.out / _SKIPPED, _list(skipped))
    raise ConvertError(
      f"{len(skipped)} of {self.total} images cannot be read so far, more than"
      f" max_skipped_fraction={self.fraction:g} allows:\n{_list(skipped[:3])}"
      f"All are in {self.out / _SKIPPED}."
      " Repair them and run again (the converter: with --retry_skipped), or raise the bound"
    )


def _run(
  shards: list[Shard],
  job: Job,
  runner: Runner,
  bound: _Bound,
  left_out: list[dict[str, str]],
  retry: bool,
  show: bool,
) -> int:
  """Writes the shards that are missing. Returns the number of images converted now."""
  pending, skipped = [], list(left_out)
  for shard in shards:
    index = shard.index()
    if index is not None and retry and index["skipped"]:
      shard.path.unlink()
      index = None
    if index is None:
      pending.append(shard)
    else:
      skipped += index["skipped"]
  total = sum(len(shard.items) for shard in shards)
  todo = sum(len(shard.items) for shard in pending)
  bar = tqdm.tqdm(
    total=total, initial=total - todo, unit="image", desc="convert", disable=not show,
    mininterval=0.5 if sys.stderr.isatty() else 30, dynamic_ncols=True,
  )  # fmt: skip
  with bar, contextlib.closing(runner(job, pending)) as results:
    bound.check(skipped)
    for shard, unreadable in results:
      skipped += unreadable
      bar.update(len(shard.items))
      bound.check(skipped)
  return todo


def _finish(out: Path, name: str, shards: list[Shard], left_out: list[dict[str, str]]) -> int:
  """Writes skipped.jsonl, then the metadata. Returns the number of images skipped."""
  skipped, images, paths = list(left_out), {}, {}
  for shard in shards:
    index = records.read_index(shard.path)
    skipped += index["skipped"]
    images[shard.split] = images.get(shard.split, 0) + len(index["text"])
    paths.setdefault(shard.split, []).append(shard.path)
  for split, count in images.items():
    if not count:
      raise ConvertError(f"no image of split {split!r} can be read:\n{_list(skipped[:3])}")
  replace_text(out / _SKIPPED, _list(skipped))
  records.write_metadata(out, name, paths)
  return len(skipped)


def _list(skipped: list[dict[str, str]]) -> str:
  return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in skipped)


def _summary(
  out: Path, start: float, skipped: int, *, converted: int, notes: tuple[str, ...], already: bool
) -> dict[str, Any]:
  seconds = time.monotonic() - start
  return {
    "out": str(out),
    "images": records.splits(out),
    "skipped": skipped,
    "notes": list(notes),
    "fingerprint": records.fingerprint(out),
    "seconds": seconds,
    "images_per_second": converted / seconds,
    "already": already,
  }


def command_line(prog: str, description: str) -> argparse.ArgumentParser:
  """The arguments of `convert` as flags, but for where it runs."""
  parser = argparse.ArgumentParser(
    prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--dataset", required=True, choices=READERS, help="which reader reads the source")
  add("--source", default="", help="folder of the raw data (the phantom needs none)")
  add("--out", required=True, help="folder to write; a stopped conversion goes on in it")
  add("--image_px", type=int, default=512, help="bound of the short side (default %(default)s)")
  add("--image_format", choices=FORMATS, default="keep",
      help="keep: JPEG stays JPEG, all else becomes PNG (default %(default)s)")  # fmt: skip
  add("--shard_size", type=int, default=256, help="images a shard (default %(default)s)")
  add("--limit", type=int, help="only the first so many images of every split")
  add("--selection", default="", help="images chosen by name, or by a .json file of a selection")
  add("--selection_seed", type=int, default=0, help="of a selection by name (default 0)")
  add("--max_skipped_fraction", type=float, default=0.01,
      help="share of images that may be unreadable (default %(default)s)")  # fmt: skip
  add("--retry_skipped", action="store_true", help="read again what was skipped, after repairs")
  readers.add_options(parser)
  return parser


def run(**arguments: Any) -> None:
  """`convert` for a command line: prints the summary, or one error and exit status 1."""
  try:
    summary = convert(**arguments)
  except UserError as error:
    raise SystemExit(f"error: {error}") from None
  except KeyboardInterrupt:
    raise SystemExit("stopped; the same command goes on from here") from None
  print(describe(summary))


def describe(summary: dict[str, Any]) -> str:
  """The summary of `convert` in a few lines."""
  images = ", ".join(f"{split} {count}" for split, count in summary["images"].items())
  speed = f"{summary['seconds']:.1f} s, {summary['images_per_second']:.0f} images/s"
  return "\n".join(
    [f"note: {note}" for note in summary["notes"]]
    + [
      f"{summary['out']}: {images} (fingerprint {summary['fingerprint']})",
      f"skipped {summary['skipped']} images, listed in {Path(summary['out']) / _SKIPPED}",
      "the folder was complete already: nothing to do" if summary["already"] else speed,
    ]
  )


def main() -> None:
  """The command line."""
  parser = command_line("python -m input_pipeline.conversion.convert", __doc__)
  parser.add_argument("--workers", type=int, help="processes (default: one a core)")
  run(**vars(parser.parse_args()))


if __name__ == "__main__":
  main()
