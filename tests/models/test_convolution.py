import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from plan_jax.models.layers.batch_norm import BatchNorm, batch_normalize
from plan_jax.models.layers.convolution import Conv, Conv1x1, convolve
from plan_jax.models.layers.dense import dot_general
from plan_jax.runtime.mesh import batch_sharding, make_mesh

KEY = jax.random.key(0)


def gradients(layer, variables, x, weight, **call):
  """Returns gradients of a weighted sum of the output, for the parameters and the input."""

  def loss(params, x):
    out = layer.apply({**variables, "params": params}, x, **call)
    out = out[0] if isinstance(out, tuple) else out
    return (out.astype(jnp.float32) * weight).sum()

  return jax.jit(jax.grad(loss, argnums=(0, 1)))(variables["params"], x)


def test_conv1x1_is_a_convolution():
  x = jax.random.normal(KEY, (2, 7, 6, 5))
  layer = Conv1x1(4, stride=2)
  params = layer.init(KEY, x)
  kernel = params["params"]["kernel"][None, None]
  want = jax.lax.conv_general_dilated(
    x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  np.testing.assert_allclose(layer.apply(params, x), want, atol=1e-5)


@pytest.mark.parametrize("channels", [3, 8])
@pytest.mark.parametrize("case", [(3, 1, 1), (3, 2, 1), (3, 1, 2), (3, 2, 4), (7, 2, 1), (1, 1, 1)])
@pytest.mark.parametrize("shape", [(9, 8), (1, 2)])
def test_a_convolution_and_its_gradients_equal_flax(channels, case, shape):
  size, stride, dilation = case
  x = jax.random.normal(KEY, (3, *shape, channels))
  margin = dilation * (size // 2)
  ours = Conv(6, size, stride, dilation)
  theirs = nn.Conv(
    6,
    (size, size),
    (stride, stride),
    padding=[(margin, margin)] * 2,
    use_bias=False,
    kernel_dilation=(dilation, dilation),
  )
  variables = ours.init(KEY, x)
  assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, theirs.init(KEY, x))
  out = theirs.apply(variables, x)
  np.testing.assert_allclose(ours.apply(variables, x), out, atol=1e-5)
  weight = jax.random.normal(jax.random.key(1), out.shape)
  got, want = (gradients(layer, variables, x, weight) for layer in (ours, theirs))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), got, want)


@pytest.mark.parametrize("shape", [(3, 17, 20), (2, 16, 16)])
def test_a_wide_convolution_and_its_gradients_by_tiles(shape):
  x = jax.random.normal(KEY, (*shape, 64))
  kernel = jax.random.normal(jax.random.key(1), (3, 3, 64, 72))

  def plain(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  def ours(x, kernel):
    return convolve(x, kernel, 1, 1)

  def gradients(function):
    return jax.jit(jax.grad(lambda *args: jnp.sin(function(*args)).sum(), (0, 1)))(x, kernel)

  assert jax.jit(ours).lower(x, kernel).as_text().count("dot_general") == 16
  (images,) = jax.export.symbolic_shape("b")
  unknown = jax.ShapeDtypeStruct((images, *x.shape[1:]), x.dtype)
  exported = jax.export.export(jax.jit(ours))(unknown, kernel)
  np.testing.assert_allclose(exported.call(x, kernel), ours(x, kernel), rtol=1e-5, atol=1e-4)
  got, want = ours(x, kernel), plain(x, kernel)
  np.testing.assert_allclose(got, want, atol=2e-5 * float(jnp.abs(want).max()))
  for a, b in zip(gradients(ours), gradients(plain), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("layer", [Conv1x1(4, 2), Conv(4, 3, 2), BatchNorm(True)])
def test_gradients_of_a_batch_on_many_devices_are_those_of_one(layer):
  x = jax.random.normal(KEY, (16, 6, 5, 8))
  variables = layer.init(KEY, x)
  shape = layer.apply(variables, x, mutable=["batch_stats"])[0].shape
  weight = jax.random.normal(jax.random.key(1), shape)
  many = batch_sharding(make_mesh(-1, 1))
  got, want = (
    gradients(layer, variables, jax.device_put(x, where), weight, mutable=["batch_stats"])
    for where in (many, jax.devices()[0])
  )
  assert len(jax.device_put(x, many).sharding.device_set) == 8
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), got, want)


def test_the_weight_gradient_in_half_precision_is_near_that_in_single():
  x = jax.random.normal(KEY, (8, 32, 32, 8)).astype(jnp.bfloat16)
  ours, exact = Conv(8, dtype=jnp.bfloat16), Conv(8)
  variables = ours.init(KEY, x)
  got = gradients(ours, variables, x, 1.0)[0]["kernel"]
  want = gradients(exact, variables, x, 1.0)[0]["kernel"]
  np.testing.assert_allclose(got, want, rtol=1e-2, atol=0.5)


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_batch_norm_equals_flax(offset, dtype):
  x = (offset + 2 * jax.random.normal(KEY, (4, 5, 6, 7))).astype(dtype)
  ours = BatchNorm(train=True, dtype=dtype)
  theirs = nn.BatchNorm(use_running_average=False, momentum=0.9, dtype=dtype)
  variables = ours.init(KEY, x)
  assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, theirs.init(KEY, x))
  variables["params"]["scale"] = jnp.linspace(-1, 2, 7)
  call = {"mutable": ["batch_stats"]}
  (got, stats), (want, expected) = (m.apply(variables, x, **call) for m in (ours, theirs))
  close = dict(rtol=1e-2, atol=1e-2) if dtype == jnp.bfloat16 else dict(rtol=1e-3, atol=1e-4)
  assert got.dtype == dtype
  np.testing.assert_allclose(got.astype(jnp.float32), want.astype(jnp.float32), **close)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), stats, expected)
  weight = jax.random.normal(jax.random.key(1), x.shape)
  got, want = (gradients(m, variables, x, weight, **call) for m in (ours, theirs))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    # Of what x is rounded to, flax sums once more rounded values.
    atol = 2e-2 * float(jnp.abs(b).max()) if dtype == jnp.bfloat16 else 1e-3
    np.testing.assert_allclose(a, b, rtol=2e-2, atol=atol)


def test_gradients_flow_through_batch_statistics():
  """Compares a loss of mean and variance, which flax keeps to itself, with the traced formula."""
  x = jax.random.normal(KEY, (4, 5, 3))
  scale, bias = jnp.array([1.0, -2, 0.5]), jnp.arange(3.0)

  def traced(x, scale, bias):
    mean, var = x.mean((0, 1)), x.var((0, 1))
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias, mean, var

  def loss(function):
    def run(*args):
      out, mean, var = function(*args)
      return (jnp.sin(out) * x).sum() + (mean**3).sum() + jnp.log(var).sum()

    return jax.grad(run, argnums=(0, 1, 2))(x, scale, bias)

  for a, b in zip(loss(batch_normalize), loss(traced), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_batch_norm_goes_by_its_running_statistics():
  x = 3 + jax.random.normal(KEY, (4, 5, 6, 7))
  still = BatchNorm(train=False)
  variables = still.init(KEY, x)
  variables["batch_stats"] = {"mean": jnp.full(7, 3.0), "var": jnp.full(7, 4.0)}
  want = nn.BatchNorm(use_running_average=True).apply(variables, x)
  np.testing.assert_allclose(still.apply(variables, x), want, atol=1e-5)
  frozen = BatchNorm(train=True, freeze=(".*",))
  got, stats = frozen.apply(variables, x, mutable=["batch_stats"])
  np.testing.assert_allclose(got, want, atol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, stats["batch_stats"], variables["batch_stats"])


def test_a_constant_channel_has_finite_gradients():
  x = jnp.full((4, 5, 6, 2), 7.0)
  layer = BatchNorm(train=True)
  variables = layer.init(KEY, x)
  result = gradients(layer, variables, x, jnp.ones(x.shape), mutable=["batch_stats"])
  assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(result))


@pytest.mark.parametrize("shape", [(4, 5, 6), (3, 6), (6,)])
def test_a_dense_layer_and_its_gradients_are_the_same_by_our_product(shape):
  x = jax.random.normal(KEY, shape)
  ours, theirs = nn.Dense(7, dot_general=dot_general), nn.Dense(7)
  variables = ours.init(KEY, x)
  weight = jax.random.normal(jax.random.key(1), (*shape[:-1], 7))
  got, want = (gradients(layer, variables, x, weight) for layer in (ours, theirs))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


def test_our_product_is_for_dense_layers_alone():
  with pytest.raises(NotImplementedError, match=r"only for nn\.Dense"):
    dot_general(jnp.ones((2, 3)), jnp.ones((2, 3)), (((0,), (0,)), ((), ())))
