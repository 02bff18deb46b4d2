"""Checkpoints of a run; the only file that knows Orbax."""

import logging
import math
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from input_pipeline.errors import UserError

logging.getLogger("absl").setLevel(logging.WARNING)


class CheckpointError(UserError):
  """There is no checkpoint, or not the one that was asked for; the message says what to do."""


class Checkpoints:
  """Numbered checkpoints in one folder: saved in the background, seen only when whole.

  Kept are the last `keep_last` and, where `best_metric` is named, the one with the highest value of
  that metric among those saved with it.
  """

  def __init__(
    self, folder: Path, *, keep_last: int = 2, best_metric: str = "", create: bool = True
  ):
    """Opens `folder`; with `create` it is made, else it must be there to be read."""
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
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=keep.AnyPreservationPolicy(policies),
        create=create,
        best_fn=score if best_metric else None,
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
    """Starts saving; the state may be changed at once. A step that is there already is left."""
    if step in self._manager.all_steps():
      return
    if metrics is not None and self._best_metric not in metrics:
      metrics = None
    # Forced: that it saves is decided already, and to ask would disturb runtime/preemption.py.
    self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics, force=True)

  def restore(self, abstract, step: int | None = None):
    """Restores the state of `step` (the newest by default), laid out as `abstract_state` is.

    Raises CheckpointError where there is none, or its arrays differ from `abstract`.
    """
    steps = sorted(self._manager.all_steps())
    step = self.latest() if step is None else step
    if step is None or step not in steps:
      raise CheckpointError(
        f"no checkpoint {'' if step is None else f'of step {step} '}in {self._folder}"
        f" (there: {steps or 'none'}): train first (--mode=train), or name another --workdir"
      )
    try:
      return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
    except (ValueError, KeyError) as error:
      raise CheckpointError(
        f"checkpoint {step} in {self._folder} does not fit the model of this config: {error}"
      ) from error

  def wait(self) -> None:
    """Waits until every save is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for saves and frees the folder."""
    self._manager.close()


def abstract_state(shapes, shardings):
  """Gives the shapes with these shardings, for `restore`."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    shapes,
    shardings,
  )
