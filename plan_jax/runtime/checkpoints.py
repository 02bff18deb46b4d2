"""Checkpoints of a run; the only file that knows Orbax.

A checkpoint has a SHA256SUMS of its files (input_pipeline/digests.py), written before it takes its
name; nothing of a checkpoint is used before it is compared with them.
"""

import contextlib
import logging
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from input_pipeline import digests
from input_pipeline.disk import DiskError, disk_errors
from input_pipeline.errors import UserError, one_line
from plan_jax.runtime import processes
from plan_jax.runtime.logging import log

logging.getLogger("absl").setLevel(logging.WARNING)
# Of each write that fails asyncio tells when its task is collected, at any time after that.
logging.getLogger("asyncio").addFilter(lambda record: "OCDBT" not in record.getMessage())
_TIMES = "_CHECKPOINT_METADATA"
_LATE = (_TIMES, "commit_success.txt")  # Orbax changes them as it gives the checkpoint its name

_failed: list[contextlib.ExitStack] = []  # of `_quiet`: their writes end, and tell, at any time


class CheckpointError(UserError):
  """There is no checkpoint, or not the one that was asked for; the message says what to do."""


class _Manager(ocp.CheckpointManager):
  """Manager of Orbax that has no metrics of the steps `unscored`."""

  def __init__(self, folder: Path, unscored: set[int], options: ocp.CheckpointManagerOptions):
    self._unscored = unscored
    super().__init__(folder, options=options)

  def metrics(self, step: int):
    return None if step in self._unscored else super().metrics(step)


class Checkpoints:
  """Numbered checkpoints in one folder: saved in the background, seen only when whole.

  Kept are the last `keep_last` and, where `best_metric` is named, the one with the highest value of
  that metric among those saved with it.
  """

  def __init__(
    self, folder: Path, *, keep_last: int = 2, best_metric: str = "", create: bool = True
  ):
    """Opens `folder`; with `create` it is made, else it must be there to be read.

    Raises DamagedError where the metrics or the times of a checkpoint cannot be read, or the
    metrics are not as they were written.
    """
    if not create and not Path(folder).is_dir():
      raise CheckpointError(f"no checkpoint: {folder} does not exist; train first (--mode=train)")

    def score(metrics: dict) -> float:
      value = metrics.get(best_metric)
      return value if value is not None and math.isfinite(value) else -math.inf

    policies = [keep.LatestN(keep_last)]
    if best_metric:
      policies.append(keep.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False))
    self._best_metric = best_metric
    self._folder = Path(folder).absolute()
    self._quiet = contextlib.ExitStack()
    paths = [path for path in self._folder.glob("[0-9]*") if path.name.isdigit()]
    unscored = {int(path.name) for path in paths if not self._has_metrics(path)}
    if create and processes.is_primary():  # who only reads does not know whether they are in work
      self._remove_unfinished()
    self._manager = _Manager(
      self._folder,
      unscored,
      ocp.CheckpointManagerOptions(
        preservation_policy=keep.AnyPreservationPolicy(policies),
        create=create,
        best_fn=score if best_metric else None,
        async_options=ocp.options.AsyncOptions(post_finalization_callback=self._write_sums),
      ),
    )

  def latest(self) -> int | None:
    """Gives the step of the newest whole checkpoint, None without any."""
    return self._manager.latest_step()

  def best(self) -> int | None:
    """Gives the step of the checkpoint with the highest `best_metric`, None without any."""
    return self._manager.best_step() if self._best_metric else None

  def to_evaluate(self, which: str) -> int | None:
    """Gives the step of the "last" or the "best" checkpoint, None without any.

    Raises CheckpointError where the best is asked for and none was scored.
    """
    if which == "last":
      return self.latest()
    best = self.best()
    if best is None and self.latest() is not None:
      raise CheckpointError(
        f"no checkpoint in {self._folder} was scored by {self._best_metric!r}: use"
        " --config.checkpoint.evaluate=last"
      )
    return best

  def save(self, step: int, state, metrics: dict[str, float] | None = None) -> None:
    """Starts saving; the state may be changed at once. A step that is there already is left.

    Raises DiskError, here or in `wait` or `close`.
    """
    if step in self._manager.all_steps():
      return
    if metrics is not None and self._best_metric not in metrics:
      metrics = None
    # Forced: that it saves is decided already, and to ask would disturb runtime/preemption.py.
    with self._saving():
      self._quiet.close()
      self._quiet.enter_context(_quiet())
      self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics, force=True)

  def restore(self, abstract, step: int | None = None):
    """Restores the state of `step` (the newest by default), laid out as `abstract_state` is.

    All processes call it together; the first compares the files with their digests.

    Raises CheckpointError where there is none, its arrays differ from `abstract`, or its "step" is
    another, and DamagedError where a file is missing or not as it was written.
    """
    steps = sorted(self._manager.all_steps())
    step = self.latest() if step is None else step
    if step is None or step not in steps:
      raise CheckpointError(
        f"no checkpoint {'' if step is None else f'of step {step} '}in {self._folder}"
        f" (there: {steps or 'none'}): train first (--mode=train), or name another --workdir"
      )
    processes.on_primary(lambda: self._check(self._folder / str(step)))
    try:
      state = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
    except (ValueError, KeyError) as error:
      raise CheckpointError(
        f"checkpoint {step} in {self._folder} does not fit the model of this config:"
        f" {one_line(error)}"
      ) from error
    if (own := int(getattr(state, "step", step))) != step:
      raise CheckpointError(
        f"checkpoint {step} in {self._folder} holds the state of step {own}, under another name:"
        " delete it"
      )
    return state

  def _write_sums(self) -> None:
    # Called by Orbax in the first process: the files of all are whole, under a temporary name.
    for path in self._folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
      digests.write_sums(path, without=_LATE)

  def _has_metrics(self, path: Path) -> bool:
    """Checks what is read of a checkpoint before it is restored."""
    try:
      _ = ocp.path.step.Metadata(int(path.name), epath.Path(path)).commit_timestamp
    except Exception as error:  # Orbax raises many kinds
      raise digests.DamagedError(
        f"{path / _TIMES} is damaged ({error}); delete it: the checkpoint is whole without it"
      ) from error
    try:
      self._check(path, below="metrics/")
    except digests.MissingError as error:  # a kill may have stopped its deletion
      log.warning(f"checkpoint {path.name} is not whole, its metrics do not count: {error}")
      return False
    return True

  def _check(self, path: Path, *, below: str = "") -> None:
    remedy = f"give back {path.name} of {self._folder} from a copy, or delete it: the others stay"
    digests.check_sums(path, remedy, below=below)

  def _remove_unfinished(self) -> None:
    for path in self._folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
      shutil.rmtree(path, ignore_errors=True)

  @contextlib.contextmanager
  def _saving(self) -> Iterator[None]:
    """Removes what is left of a save, this one or one before, for which the disk was too full."""
    try:
      with disk_errors(self._folder):
        yield
    except DiskError:
      self._remove_unfinished()
      _failed.append(self._quiet.pop_all())
      raise

  def wait(self) -> None:
    """Waits until every save is on disk. Raises DiskError."""
    with self._saving():
      self._manager.wait_until_finished()
    self._quiet.close()

  def close(self) -> None:
    """Waits for saves and frees the folder. Raises DiskError."""
    with self._saving():
      self._manager.close()
    self._quiet.close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps back what each thread of Orbax tells of a save that fails: it is raised, once."""

  def unraisable(error) -> None:
    if str(error.exc_value) != "Event loop is closed":
      show(error)

  def is_other(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "/orbax/" in record.pathname)

  show, sys.unraisablehook = sys.unraisablehook, unraisable
  logging.getLogger("absl").addFilter(is_other)
  try:
    yield
  finally:
    logging.getLogger("absl").removeFilter(is_other)
    if sys.unraisablehook is unraisable:
      sys.unraisablehook = show


def abstract_state(shapes, shardings):
  """Gives the shapes with these shardings, for `restore`."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    shapes,
    shardings,
  )
