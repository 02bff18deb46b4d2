import jax
import jax.numpy as jnp
import pytest

from plan_jax.runtime import hlo

# Shortened from a program that libtpu made: a loop of 16 visits, whose reports travel.
TEXT = """HloModule jit_step, is_scheduled=true

%fused (a: bf16[16,128], b: bf16[64,128]) -> bf16[16,64] {
  %a = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %product = bf16[16,64]{1,0:T(8,128)} convolution(%a, %b), dim_labels=bf_oi->bf
}

%body (p: (s32[], bf16[16,128])) -> (s32[], bf16[16,128]) {
  %p = (s32[]{:T(128)}, bf16[16,128]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %x = bf16[16,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %send = (bf16[16,128]{1,0:T(8,128)(2,1)}, bf16[16,128]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}, \
u32[]{:S(2)}) collective-permute-start(%x), channel_id=1, metadata={op_name="jit(step)/ppermute"}
  %sent = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} collective-permute-done(%send)
  %fusion = bf16[16,64]{1,0:T(8,128)} fusion(%sent, %y), kind=kOutput, calls=%fused, \
backend_config={"window_config":{"estimated_cycles":"2084","x":"1"}}
  ROOT %out = (s32[]{:T(128)}, bf16[16,128]{1,0:T(8,128)(2,1)}) tuple(%i, %sent)
}

%condition (p: (s32[], bf16[16,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(16)
  %p = (s32[]{:T(128)}, bf16[16,128]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (x: bf16[16,128]) -> f32[8] {
  %x = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  %loop = (s32[]{:T(128)}, bf16[16,128]{1,0}) while(%start), condition=%condition, body=%body
  %sum = (f32[8]{0}, pred[3]{0}) all-reduce(%u, %v), to_apply=%add, \
metadata={op_name="jit(step)/sum"}
  ROOT %all = f32[8]{0} all-gather(%w), dimensions={0}
}
"""


def test_collectives_are_counted_as_often_as_their_loop_runs():
  does = hlo.read(TEXT)
  assert does.collectives == (
    hlo.Collective("collective-permute", "bf16[16,128]", 4096, 16, "jit(step)/ppermute"),
    hlo.Collective("all-reduce", "f32[8], pred[3]", 35, 1, "jit(step)/sum"),
    hlo.Collective("all-gather", "f32[8]", 32, 1, ""),
  )
  assert does.product_flops == 16 * 2 * 16 * 64 * 128
  assert does.cycles == 16 * 2084


def test_a_collective_that_several_fusions_carry_is_one():
  named = 'all-gather(%w), channel_id=27, frontend_attributes={chain_id="0"}, dimensions={0}'
  line = f"  %part = f32[8]{{0}} {named}\n"
  does = hlo.read(TEXT.replace("  ROOT %all =", f"{line * 3}  ROOT %all ="))
  assert [each.kind for each in does.collectives].count("all-gather") == 2


def test_a_loop_of_unknown_length_counts_once():
  does = hlo.read(TEXT.replace("direction=LT", "direction=NE"))
  assert [each.runs for each in does.collectives] == [1, 1, 1]


@pytest.mark.parametrize(
  ("shape", "count"),
  [("bf16[8,128]{1,0:T(8,128)}", 2048), ("(f32[2], s8[3], pred[])", 12), ("f8e4m3fn[4]", 4)],
)
def test_bytes_of_a_shape(shape, count):
  assert hlo.array_bytes(shape) == count


@pytest.mark.parametrize("stride", [1, 2])
def test_products_are_those_that_xla_counts(stride):
  """A convolution, its gradients, and a product in a loop, by XLA's own count of each."""
  image, kernel = jnp.zeros((2, 9, 9, 3)), jnp.zeros((3, 3, 3, 4))

  def convolve(x, k):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, k, (stride,) * 2, "SAME", dimension_numbers=numbers)

  def gradients(x, k, g):
    return jax.vjp(convolve, x, k)[1](g)

  for function, inputs in (
    (convolve, (image, kernel)),
    (gradients, (image, kernel, convolve(image, kernel))),
  ):
    compiled = jax.jit(function).lower(*inputs).compile()
    assert hlo.read(compiled.as_text()).product_flops == compiled.cost_analysis()["flops"]
  matrix = jnp.zeros((16, 16))
  looped = jax.jit(lambda x: jax.lax.scan(lambda y, _: (y @ x, None), x, length=5)[0])
  assert hlo.read(looped.lower(matrix).compile().as_text()).product_flops == 5 * 2 * 16**3
