"""A detector: image encoder and YOLO head; its training, and what it predicts."""

import contextlib
import math
import time
from collections.abc import Iterable, Sequence
from functools import partial

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline import images, loader
from input_pipeline.errors import UserError
from input_pipeline.study import Study
from plan_jax import preemption, reporting
from plan_jax.checkpoint import Checkpoints, abstract_state
from plan_jax.detection import boxes, yolo
from plan_jax.detection.films import Encode, Training, in_batches
from plan_jax.evaluators import detection, results
from plan_jax.evaluators.detection import Film
from plan_jax.mesh import batch_sharding, everywhere, spread, to_global
from plan_jax.reporting import Progress, Scalars, duration, say
from plan_jax.workdir import Workdir

FOLLOWED = "mAP .4-.75"
BEST = results.scalar_name(detection.TASK, FOLLOWED)
_LEAST = 0.001  # score of a prediction
_CANDIDATES = 400  # that suppression looks at, the highest of a film
_OVERLAP = 0.5  # IoU above which it suppresses
_WARMUP = 0.05
_LOG_EVERY = 50


@flax.struct.dataclass
class DetectorState:
  """Everything a checkpoint holds.

  Attributes:
    step: int32 scalar, steps done.
    params: {"encoder", "head"} float32.
    batch_stats: {"encoder", "head"}, running statistics of batch norm.
    opt_state: of the optimizer.
  """

  step: jax.Array
  params: dict
  batch_stats: dict
  opt_state: optax.OptState


class Detector:
  """Encoder, head and optimizer, jitted on a mesh; it holds no weights."""

  def __init__(
    self,
    encoder: nn.Module,
    weights: dict,
    settings: ConfigDict,
    anchors: np.ndarray,
    findings: Sequence[str],
    mesh: Mesh,
  ):
    """Args:
      encoder: a ResNet or a ViT.
      weights: of the encoder, "params" and "batch_stats", to start from.
      settings: frozen, image_px, channels, steps, batch_size, learning_rate, weight_decay, seed.
      anchors: [9, 2], pixels of the square.
      findings: names.
      mesh: of devices, which share each batch.

    Raises UserError where the square or the batch does not divide.
    """
    if settings.image_px % yolo.STRIDES[-1]:
      raise UserError(
        f"--image_px={settings.image_px} is no multiple of {yolo.STRIDES[-1]}, the coarse stride"
      )
    if settings.batch_size % mesh.size:
      raise UserError(
        f"--batch_size={settings.batch_size} does not divide over {mesh.size} devices"
      )
    self.findings, self.settings, self.mesh = tuple(findings), settings, mesh
    self._encoder, self._weights = encoder, weights
    self._head = yolo.Head(len(findings), settings.channels)
    self._slots = yolo.make_slots(settings.image_px, anchors)
    warmup = min(round(_WARMUP * settings.steps), settings.steps - 1)
    schedule = optax.warmup_cosine_decay_schedule(
      0.0 if warmup else settings.learning_rate, settings.learning_rate, warmup, settings.steps
    )
    optimizer = optax.adamw(schedule, weight_decay=settings.weight_decay)
    if settings.frozen:
      optimizer = optax.partition(
        {"learned": optimizer, "frozen": optax.set_to_zero()},
        {"encoder": "frozen", "head": "learned"},
      )
    self._optimizer = optimizer
    whole, parted = everywhere(mesh), batch_sharding(mesh)
    shapes = jax.eval_shape(self._initial, weights)
    self.abstract_state = abstract_state(lambda: shapes, jax.tree.map(lambda _: whole, shapes))
    self.update = jax.jit(
      self._update, in_shardings=(whole, parted), out_shardings=(whole, whole), donate_argnums=0
    )
    self._predict = jax.jit(self._predictions, out_shardings=whole)

  def initial_state(self) -> DetectorState:
    """The state before the first step, on the mesh."""
    return jax.jit(self._initial, out_shardings=everywhere(self.mesh))(self._weights)

  def predict(
    self, state: DetectorState, films: Sequence[np.ndarray]
  ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of films uint8 [H, W]: boxes [D, 4] in film pixels, scores [D], findings' places [D].

    The score is objectness times that of the finding; after suppression the 100 highest are kept.
    """
    side, size = self.settings.image_px, self.settings.batch_size
    out = []
    for start in range(0, len(films), size):
      some = films[start : start + size]
      fitted = np.zeros((size, side, side, 1), np.float32)
      for i, film in enumerate(some):
        fitted[i, ..., 0] = images.fit(film, side)
      found = self._predict(state.params, state.batch_stats, spread(fitted, self.mesh))
      for film, corners, scores, labels in zip(some, *map(np.asarray, found), strict=False):
        kept = scores > 0
        out.append((boxes.to_film(corners[kept], *film.shape, side), scores[kept], labels[kept]))
    return out

  def films(self, state: DetectorState, studies: Iterable[Study]) -> list[Film]:
    """True and predicted boxes of the studies."""
    out = []
    for some in in_batches(studies, self.settings.batch_size):
      found = self.predict(state, [images.decode(study.image) for study in some])
      for study, predicted in zip(some, found, strict=True):
        truth = boxes.of_study(study, self.findings)
        shape = study.height, study.width
        out.append(Film(study.image_id, study.patient_id, *shape, *truth, *predicted))
    return out

  def _initial(self, weights: dict) -> DetectorState:
    side = self.settings.image_px
    image = jnp.zeros((1, side, side, 1), jnp.float32)
    levels, _ = yolo.pyramid(self._encoder, weights, image, train=False)
    head = self._head.init(jax.random.fold_in(jax.random.key(self.settings.seed), 1), levels)
    params = {"encoder": weights["params"], "head": head["params"]}
    stats = {"encoder": weights.get("batch_stats", {}), "head": head["batch_stats"]}
    params, stats = jax.tree.map(jnp.array, (params, stats))
    return DetectorState(jnp.zeros((), jnp.int32), params, stats, self._optimizer.init(params))

  def _say(self, params, batch_stats, image, train: bool) -> tuple[jax.Array, dict]:
    """What the slots say, and the running statistics after; a frozen encoder is in no training."""
    learns = train and not self.settings.frozen
    levels, encoder_stats = yolo.pyramid(
      self._encoder,
      {"params": params["encoder"], "batch_stats": batch_stats["encoder"]},
      image,
      train=learns,
    )
    if not learns:
      levels = jax.lax.stop_gradient(levels)
    variables = {"params": params["head"], "batch_stats": batch_stats["head"]}
    raw, mutated = self._head.apply(variables, levels, train=train, mutable=["batch_stats"])
    return raw, {"encoder": encoder_stats, "head": mutated["batch_stats"]}

  def _update(self, state: DetectorState, batch: dict) -> tuple[DetectorState, dict]:
    def loss(params):
      raw, batch_stats = self._say(params, state.batch_stats, batch["image"], True)
      one = partial(yolo.loss, slots=self._slots)
      total, parts = jax.vmap(one)(raw, batch["boxes"], batch["labels"], batch["mask"])
      return total.mean(), (jax.tree.map(jnp.mean, parts), batch_stats)

    (total, (parts, stats)), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, opt_state = self._optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return DetectorState(state.step + 1, params, stats, opt_state), parts | {"loss": total}

  def _predictions(self, params, batch_stats, image):
    raw, _ = self._say(params, batch_stats, image, False)

    def one(raw):
      scores = jax.nn.sigmoid(raw[:, 4:5]) * jax.nn.sigmoid(raw[:, 5:])
      scores = jnp.where(scores >= _LEAST, scores, 0).ravel()
      scores, place = jax.lax.top_k(scores, min(_CANDIDATES, scores.size))
      slot, label = place // len(self.findings), place % len(self.findings)
      corners = yolo.decode(raw, self._slots)[slot]
      stays = boxes.suppress(corners, scores, label, _OVERLAP)
      scores, best = jax.lax.top_k(
        jnp.where(stays, scores, 0), min(detection.MOST, scores.size)
      )  # fmt: skip
      return corners[best], scores, label[best]

    return jax.vmap(one)(raw)


def train(
  detector: Detector, workdir: Workdir, source: Training, validation: Sequence[Study] | None
) -> DetectorState:
  """Trains to settings.steps, from the newest checkpoint if there is one; returns the best state.

  Every settings.validate_every_steps it measures the mAP .4-.75 of the validation films and saves.
  It stops early after settings.patience measurements without a better one. The best is that of the
  highest mAP; without validation films it is the last.

  Args:
    detector: to be trained.
    workdir: claimed.
    source: of the training films.
    validation: films, or None.

  Raises UserError where the loss is no number any more.
  """
  settings = detector.settings
  checkpoints = Checkpoints(workdir.checkpoints, keep_last=1, best_metric=BEST)
  try:
    done = checkpoints.latest()
    if done is None:
      state, done = detector.initial_state(), 0
    else:
      state = checkpoints.restore(detector.abstract_state)
      say(f"resumed from step {done}")
    history = [
      point for point in reporting.curves(workdir.metrics).get(BEST, ()) if point[0] <= done
    ]
    if done < settings.steps and not _settled(history, settings.patience):
      _loop(detector, state, done, history, checkpoints, workdir, source, validation)
    else:
      say(f"training is complete: {done} steps in {workdir.path}")
    # Without validation films nothing was scored.
    step = checkpoints.best() if validation else None
    state = checkpoints.restore(detector.abstract_state, step)
  finally:
    checkpoints.close()
  say(f"the detector of step {int(state.step)} is evaluated")
  return state


def measure(detector: Detector, state: DetectorState, studies: Iterable[Study]) -> float:
  """Macro mAP .4-.75, without intervals; NaN where no film has a box."""
  films = detector.films(state, studies)
  figures = detection.figures(films, len(detector.findings), np.ones((1, len(films))))[0]
  figures = figures[:, detection.METRICS.index(FOLLOWED)]
  known = figures[~np.isnan(figures)]
  return float(known.mean()) if len(known) else math.nan


def _loop(detector, state, done, history, checkpoints, workdir, source, validation) -> None:
  settings = detector.settings
  encode = Encode(detector.findings, settings.image_px, source.most)
  batches = loader.batches(
    source, encode, batch_size=settings.batch_size, seed=settings.seed, start_step=done
  )
  progress = Progress(
    "step", settings.steps, start=done, unit="films", per_step=settings.batch_size
  )
  began, stop = time.monotonic(), False
  with (
    contextlib.closing(batches),
    Scalars(workdir.path, from_step=done) as scalars,
    preemption.Notice() as notice,
  ):
    pending = []
    for now in range(done + 1, settings.steps + 1):
      state, metrics = detector.update(state, to_global(next(batches), detector.mesh))
      pending.append(metrics)
      last = now == settings.steps
      stop = notice.came(now - done) and not last
      measures = now % settings.validate_every_steps == 0 or last
      if now % _LOG_EVERY == 0 or measures or stop:
        values = _mean(pending, now)
        pending.clear()
        scalars.write(now, {f"train/{name}": value for name, value in values.items()})
        say(progress.line(now, f"loss {values['loss']:.3f}"))
      figures = None
      if measures and validation:
        value = measure(detector, state, (validation[i] for i in range(len(validation))))
        figures = {BEST: value}
        history.append((now, value))
        scalars.write(now, figures)
        say(f"  validation {FOLLOWED} {value:.3f}")
        progress.skip()
      if measures or stop:
        checkpoints.save(now, state, figures)
      if stop or _settled(history, settings.patience):
        break
    checkpoints.wait()
  if stop:
    say(f"preempted: step {now} is saved")
    raise preemption.Preempted
  if now < settings.steps:
    say(f"no better mAP for {settings.patience} measurements: stopped at step {now}")
  say(f"trained steps {done + 1} to {now} in {duration(time.monotonic() - began)}")


def _settled(history: list[tuple[int, float]], patience: int) -> bool:
  """Whether the last `patience` measurements were no better than one before them."""
  values = [value for _, value in history]
  return bool(values) and len(values) - 1 - int(np.argmax(values)) >= patience


def _mean(pending: list[dict], step: int) -> dict[str, float]:
  host = jax.device_get(pending)
  values = {name: float(np.mean([metrics[name] for metrics in host])) for name in host[0]}
  if not math.isfinite(values["loss"]):
    raise UserError(
      f"the loss is not finite at or before step {step}: lower --learning_rate, in a new --out"
    )
  return values
