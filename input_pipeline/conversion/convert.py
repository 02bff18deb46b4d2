"""Conversion of a raw data set into a folder of records: parallel, resumable, deterministic.

A conversion that was stopped goes on with the same arguments: finished shards stay. Images that
cannot be read are left out and listed in `skipped.jsonl` of the output folder.
"""

import contextlib
import dataclasses
import functools
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from input_pipeline import records
from input_pipeline.conversion import selections
from input_pipeline.conversion.job import Job, Runner, Shard, plan
from input_pipeline.conversion.settings import ConvertError, Settings, require_type
from input_pipeline.conversion.skipped import Skipped, list_of, read_skipped, write_skipped
from input_pipeline.conversion.workers import in_processes, progress_bar
from input_pipeline.disk import disk_errors
from input_pipeline.files import replace_text
from input_pipeline.locks import lock
from input_pipeline.readers import by_name as readers
from input_pipeline.readers.source import Source, check_patients
from input_pipeline.shards import index_path, read_index
from input_pipeline.terminal import escape

SELECTION = "selection.json"


@disk_errors()
def convert(
  dataset: str,
  out: str | os.PathLike,
  *,
  workers: int | None = None,
  max_skipped_fraction: float = 0.01,
  retry_skipped: bool = False,
  progress: bool = True,
  runner: Runner | None = None,
  **options: Any,
) -> dict[str, Any]:
  """Converts a data set, or goes on with a conversion that was stopped.

    convert("folder", "data/records", source="data/raw", image_px=512)

  Args:
    dataset: a key of READERS.
    out: folder to write: new, empty, or begun by this function with the same arguments.
    workers: processes; 0 and 1 stay in this one, None is one a core. Changes no byte.
    max_skipped_fraction: share of images that may be unreadable.
    retry_skipped: writes shards again that left images out, after the files were repaired, or
      with a higher max_decoded_px, which alone may then differ.
    progress: shows a bar on stderr.
    runner: calls the job, in place of `workers` processes of this host; wherever that is, it sees
      `out` and `source` under the same paths. Changes no byte.
    **options: fields of `Settings` (source, image_px, max_decoded_px, selection, ...), and the
      reader's options.

  Returns:
    A summary: "out", "images" (split -> records), "skipped", "notes", "fingerprint", "seconds",
    "images_per_second" (now), and "already": the folder was complete before.

  Raises:
    ConvertError: wrong arguments, other arguments than the folder was begun with, a patient in two
      splits, too many unreadable images.
    SourceError: the source is missing or contradicts itself.
    SelectionError: the selection cannot be read, or does not fit the source.
    WorkerError: a worker process died; finished shards are kept.
    LockedError: another conversion writes into `out`.
    DamagedError: the settings or the list of a complete folder are not as they were written.
    DiskError: the disk is full, or `out` cannot be written; finished shards are kept.
  """
  start = time.monotonic()
  require_type("out", out, str | os.PathLike)
  require_type("workers", workers, int | None)
  require_type("max_skipped_fraction", max_skipped_fraction, int | float)
  out, settings = Path(out), Settings.from_options(dataset, **options)
  if workers is not None and workers < 0:
    raise ConvertError(f"workers is {workers}; it must be 0 or more")
  if not 0 <= max_skipped_fraction <= 1:
    raise ConvertError(f"max_skipped_fraction is {max_skipped_fraction}; it must be 0 to 1")
  settings.compare(out, retry_skipped=retry_skipped)
  if records.is_complete(out) and not retry_skipped:
    return _summary(out, start, len(read_skipped(out)), already=True)

  with lock(out):
    # Again: another process may have begun it meanwhile.
    settings.compare(out, retry_skipped=retry_skipped)
    source, selection = _open(settings)
    shards = plan(source, out, settings.shard_size, settings.limit)
    (out / "dataset_info.json").unlink(missing_ok=True)  # incomplete from here on
    settings.write(out)
    if selection:
      replace_text(out / SELECTION, selection.to_json())
    _tidy(out, shards)
    runner = runner or functools.partial(in_processes, workers=workers)
    left_out = [{"path": path, "reason": reason} for path, reason in source.left_out]
    total = _images(shards)
    skips = _Skips(out, len(left_out) + total, max_skipped_fraction, list(left_out))
    pending = _pending(shards, skips, retry_skipped)
    job = Job(source.read, settings.image_px, settings.image_format, settings.max_decoded_px)
    bar = progress_bar("convert", total, initial=total - _images(pending), show=progress)
    with bar, contextlib.closing(runner(job, pending)) as results:
      for shard, unreadable in results:
        bar.update(len(shard.items))
        skips.add(unreadable)
    skipped = _finish(out, source.name, shards, left_out)
  return _summary(out, start, skipped, converted=_images(pending), notes=source.notes)


def _open(settings: Settings) -> tuple[Source, selections.Selection | None]:
  """Opens the data set, cut to the selection if one is named; no patient sits in two splits."""
  source = readers.open_reader(settings.dataset, settings.source, settings.reader_options)
  selection = None
  if settings.selection:
    selection = selections.make(settings.selection, source.items, settings.selection_seed)
    chosen = selections.cut(source, selection)
    counts = f"{len(chosen.items)} of {len(source.items)} images"
    note = f"selection {selection.name}: {counts}, hash {selection.hash}"
    source = dataclasses.replace(chosen, notes=(*chosen.notes, note))
  check_patients(source.items)
  return source, selection


def _tidy(out: Path, shards: Sequence[Shard]) -> None:
  """Removes folders that a killed run left, and shards of a source that has changed since."""
  wanted = {path for shard in shards for path in (shard.path, index_path(shard.path))}
  for path in list(out.iterdir()):
    if path.name.startswith((".metadata-", ".plan-")):
      shutil.rmtree(path)
    elif ".tfrecord-" in path.name and path not in wanted:
      path.unlink()


@dataclasses.dataclass
class _Skips:
  """Items left out so far, of `total`, of which no more than `fraction` may be."""

  out: Path
  total: int
  fraction: float
  entries: Skipped

  def add(self, entries: Skipped) -> None:
    """Raises ConvertError, and lists the items skipped so far, where they are too many."""
    self.entries += entries
    count = len(self.entries)
    if count <= self.fraction * self.total:
      return
    write_skipped(self.out, self.entries)
    raise ConvertError(
      f"{count} of {self.total} images cannot be read so far, more than"
      f" max_skipped_fraction={self.fraction:g} allows: {_examples(self.entries)}."
      f" All are in {list_of(self.out)}."
      " Repair them and run again (the converter: with --retry_skipped), or raise the bound"
    )


def _pending(shards: Sequence[Shard], skips: _Skips, retry: bool) -> list[Shard]:
  """Returns the shards to write: those that are missing and, to `retry`, those with skips."""
  pending, skipped = [], []
  for shard in shards:
    index = shard.index()
    if index is not None and retry and index["skipped"]:
      shard.path.unlink()
      index = None
    if index is None:
      pending.append(shard)
    else:
      skipped += index["skipped"]
  skips.add(skipped)
  return pending


def _images(shards: Sequence[Shard]) -> int:
  return sum(len(shard.items) for shard in shards)


def _finish(out: Path, name: str, shards: Sequence[Shard], left_out: Skipped) -> int:
  """Writes skipped.jsonl, then the metadata. Returns the number of images skipped."""
  skipped, images, paths = list(left_out), {}, {}
  for shard in shards:
    index = read_index(shard.path)
    skipped += index["skipped"]
    images[shard.split] = images.get(shard.split, 0) + len(index["text"])
    paths.setdefault(shard.split, []).append(shard.path)
  for split, count in images.items():
    if not count:
      raise ConvertError(f"no image of split {split!r} can be read: {_examples(skipped)}")
  write_skipped(out, skipped)
  records.write_metadata(out, name, paths)
  return len(skipped)


def _examples(skipped: Skipped) -> str:
  return "; ".join(f"{entry['path']}: {entry['reason']}" for entry in skipped[:3])


def _summary(
  out: Path, start: float, skipped: int, *, converted: int = 0, notes=(), already: bool = False
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


def describe(summary: dict[str, Any]) -> str:
  """Formats the summary of `convert` in a few lines."""
  images = ", ".join(f"{split} {count}" for split, count in summary["images"].items())
  speed = f"{summary['seconds']:.1f} s, {summary['images_per_second']:.0f} images/s"
  lines = [
    *(f"note: {note}" for note in summary["notes"]),
    f"{summary['out']}: {images} (fingerprint {summary['fingerprint']})",
    f"skipped {summary['skipped']} images, listed in {list_of(Path(summary['out']))}",
    "the folder was complete already: nothing to do" if summary["already"] else speed,
  ]
  return "\n".join(map(escape, lines))
