"""A head on an image encoder, and how both learn."""

from collections.abc import Callable, Sequence

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline import images
from input_pipeline.errors import UserError
from plan_jax.runtime.checkpoints import abstract_state
from plan_jax.runtime.mesh import batch_sharding, everywhere, quick_draws, spread

_WARMUP = 0.05


@flax.struct.dataclass
class LearnerState:
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


class Learner:
  """Encoder, head and optimizer, jitted on a mesh; it holds no weights but those to start from."""

  def __init__(
    self,
    encoder: nn.Module,
    weights: dict,
    head: nn.Module,
    settings: ConfigDict,
    mesh: Mesh,
    *,
    read: Callable[..., tuple],
    loss: Callable[[jax.Array, dict], tuple[jax.Array, dict]],
    tell: Callable[[jax.Array], tuple[jax.Array, ...]],
  ):
    """Args:
      encoder: a ResNet or a ViT.
      weights: of the encoder, "params" and "batch_stats", to start from.
      head: a module; head(read, train=...) -> raw [B, ...].
      settings: frozen (the encoder stays, its batch norm goes by running statistics), image_px,
        steps, batch_size, learning_rate, weight_decay, seed.
      mesh: of devices, which share each batch.
      read: (encoder, variables, image, train=...) -> what the head reads, and the running
        statistics after; see `encoder`.
      loss: (raw, batch) -> the loss and its parts, scalars.
      tell: raw -> arrays that lead with B: what is predicted of the images.

    Raises UserError where the batch does not divide.
    """
    if settings.batch_size % mesh.size:
      raise UserError(
        f"--batch_size={settings.batch_size} does not divide over {mesh.size} devices"
      )
    self.settings, self.mesh = settings, mesh
    self._encoder, self._weights, self._head = encoder, weights, head
    self._read, self._loss, self._tell = read, loss, tell
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

  def initial_state(self) -> LearnerState:
    """The state before the first step, on the mesh."""
    with quick_draws():
      return jax.jit(self._initial, out_shardings=everywhere(self.mesh))(self._weights)

  def predict(
    self, state: LearnerState, arrays: Sequence[np.ndarray]
  ) -> list[tuple[np.ndarray, ...]]:
    """What `tell` says of each of the arrays uint8 [H, W], letterboxed."""
    side, size = self.settings.image_px, self.settings.batch_size
    out = []
    for start in range(0, len(arrays), size):
      some = arrays[start : start + size]
      fitted = np.zeros((size, side, side, 1), np.float32)
      for i, image in enumerate(some):
        fitted[i, ..., 0] = images.fit(image, side)
      found = self._predict(state.params, state.batch_stats, spread(fitted, self.mesh))
      found = jax.tree.map(np.asarray, found)
      out += [tuple(each[i] for each in found) for i in range(len(some))]
    return out

  def _initial(self, weights: dict) -> LearnerState:
    side = self.settings.image_px
    image = jnp.zeros((1, side, side, 1), jnp.float32)
    read, _ = self._read(self._encoder, weights, image, train=False)
    head = self._head.init(jax.random.fold_in(jax.random.key(self.settings.seed), 1), read)
    params = {"encoder": weights["params"], "head": head["params"]}
    stats = {"encoder": weights.get("batch_stats", {}), "head": head.get("batch_stats", {})}
    params, stats = jax.tree.map(jnp.array, (params, stats))
    return LearnerState(jnp.zeros((), jnp.int32), params, stats, self._optimizer.init(params))

  def _say(self, params, batch_stats, image, train: bool) -> tuple[jax.Array, dict]:
    """The head's raw output, and the running statistics after; a frozen encoder is not trained."""
    learns = train and not self.settings.frozen
    variables = {"params": params["encoder"], "batch_stats": batch_stats["encoder"]}
    read, encoder_stats = self._read(self._encoder, variables, image, train=learns)
    if not learns:
      read = jax.lax.stop_gradient(read)
    variables = {"params": params["head"], "batch_stats": batch_stats["head"]}
    raw, mutated = self._head.apply(variables, read, train=train, mutable=["batch_stats"])
    return raw, {"encoder": encoder_stats, "head": mutated.get("batch_stats", {})}

  def _update(self, state: LearnerState, batch: dict) -> tuple[LearnerState, dict]:
    def loss(params):
      raw, batch_stats = self._say(params, state.batch_stats, batch["image"], True)
      total, parts = self._loss(raw, batch)
      return total, (parts, batch_stats)

    (total, (parts, stats)), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, opt_state = self._optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return LearnerState(state.step + 1, params, stats, opt_state), parts | {"loss": total}

  def _predictions(self, params, batch_stats, image):
    return self._tell(self._say(params, batch_stats, image, False)[0])
