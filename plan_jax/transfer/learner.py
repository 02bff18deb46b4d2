"""A head on an image encoder, and how both learn."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from input_pipeline.errors import UserError
from plan_jax.runtime.checkpoints import abstract_state
from plan_jax.runtime.mesh import batch_sharding, everywhere, quick_draws
from plan_jax.training.config import OptimizerConfig
from plan_jax.training.optimizer import make_optimizer
from plan_jax.training.state import TrainState
from plan_jax.transfer.encoder import letterboxed
from plan_jax.transfer.job import Job


class Learner:
  """Encoder, head and optimizer, jitted on a mesh; it holds no weights but those to start from.

  Parameters and running statistics of a state are {"encoder", "head"}.
  """

  def __init__(
    self,
    job: Job,
    head: nn.Module,
    *,
    read: Callable[..., tuple],
    loss: Callable[[jax.Array, dict], tuple[jax.Array, dict]],
    decode: Callable[[jax.Array], tuple[jax.Array, ...]],
  ):
    """Joins the encoder of a job and a head.

    Args:
      job: its encoder is what to start from; where its settings are `frozen`, the encoder stays
        and its batch norm goes by running statistics.
      head: a module; head(features, train=...) -> raw [B, ...].
      read: (encoder, variables, image, train=...) -> the features that the head reads, and the
        running statistics after; see `encoder`.
      loss: (raw, batch) -> the loss and its parts, scalars.
      decode: raw -> predictions of the images, arrays that lead with B.

    Raises UserError where the batch does not divide.
    """
    settings, mesh = job.settings, job.mesh
    if settings.batch_size % mesh.size:
      raise UserError(
        f"--batch_size={settings.batch_size} does not divide over {mesh.size} devices"
      )
    self.settings, self.mesh = settings, mesh
    self._encoder, self._weights, self._head = job.encoder.module, job.encoder.weights, head
    self._read, self._loss, self._decode = read, loss, decode
    self._optimizer, _ = make_optimizer(
      OptimizerConfig(
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        freeze=("^encoder/",) if settings.frozen else (),
      ),
      settings.steps,
      decay_vectors=True,
    )
    replicated, split = everywhere(mesh), batch_sharding(mesh)
    shapes = jax.eval_shape(self._initial, self._weights)
    self.abstract_state = abstract_state(shapes, jax.tree.map(lambda _: replicated, shapes))
    self.update = jax.jit(
      self._update,
      in_shardings=(replicated, split),
      out_shardings=(replicated, replicated),
      donate_argnums=0,
    )
    self._predict = jax.jit(self._predictions, out_shardings=replicated)

  def initial_state(self) -> TrainState:
    """Makes the state before the first step, on the mesh."""
    with quick_draws():
      return jax.jit(self._initial, out_shardings=everywhere(self.mesh))(self._weights)

  def predict(self, state: TrainState, arrays: Sequence[np.ndarray]) -> list[tuple]:
    """Predicts, as `decode` has it, for each of the arrays uint8 [H, W], letterboxed."""
    predict = partial(self._predict, state.params, state.batch_stats)
    side, size = self.settings.image_px, self.settings.batch_size
    batches = letterboxed(predict, arrays, side, size, self.mesh)
    return [prediction for batch in batches for prediction in zip(*batch, strict=True)]

  def _initial(self, weights: dict) -> TrainState:
    side = self.settings.image_px
    image = jnp.zeros((1, side, side, 1), jnp.float32)
    features, _ = self._read(self._encoder, weights, image, train=False)
    key = jax.random.fold_in(jax.random.key(self.settings.seed), 1)
    head = self._head.init(key, features)
    params = {"encoder": weights["params"], "head": head["params"]}
    stats = {"encoder": weights.get("batch_stats", {}), "head": head.get("batch_stats", {})}
    return TrainState.create(*jax.tree.map(jnp.array, (params, stats)), self._optimizer)

  def _apply(self, params, batch_stats, image, train: bool) -> tuple[jax.Array, dict]:
    """Gives the head's raw output, and the statistics after; a frozen encoder is not trained."""
    learns = train and not self.settings.frozen
    variables = {"params": params["encoder"], "batch_stats": batch_stats["encoder"]}
    features, encoder_stats = self._read(self._encoder, variables, image, train=learns)
    if not learns:
      features = jax.lax.stop_gradient(features)
    variables = {"params": params["head"], "batch_stats": batch_stats["head"]}
    raw, mutated = self._head.apply(variables, features, train=train, mutable=["batch_stats"])
    return raw, {"encoder": encoder_stats, "head": mutated.get("batch_stats", {})}

  def _update(self, state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    def loss(params):
      raw, batch_stats = self._apply(params, state.batch_stats, batch["image"], True)
      total, parts = self._loss(raw, batch)
      return total, (parts, batch_stats)

    (total, (parts, stats)), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, opt_state = self._optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, stats, opt_state), parts | {"loss": total}

  def _predictions(self, params, batch_stats, image):
    return self._decode(self._apply(params, batch_stats, image, False)[0])
