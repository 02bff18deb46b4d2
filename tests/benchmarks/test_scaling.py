"""Model of docs/scaling.md against XLA's counts."""

from dataclasses import replace

import pytest

from benchmarks import scaling
from plan_jax.runtime import hlo


@pytest.fixture(scope="module")
def rows():
  return scaling.check()


def test_the_ring_sends_what_the_model_says_and_gathers_nothing(rows):
  for row in rows:
    assert row["sent_xla"] == row["sent"]
    assert row["gathers"] == 0


def test_products_are_most_of_what_xla_counts(rows):
  for row in rows:
    assert row["flops_xla"] == pytest.approx(row["flops"], rel=0.05)


def test_memory_is_bounded_and_flat_in_the_number_of_devices(rows):
  assert all(row["held_xla"] <= row["held"] for row in rows)
  assert len({row["held_xla"] for row in rows}) == 1


def test_from_the_least_batch_on_sending_takes_less_time_than_the_products():
  shape = scaling.Shape(64, 128, words=64, pixels=196, channels=512, feature_bytes=2)
  for chip in scaling.CHIPS:
    least = scaling.predict(shape, chip, 1.0).least_batch
    enough, short = (
      scaling.predict(replace(shape, batch=batch), chip, 1.0) for batch in (least, least - 1)
    )
    assert enough.sending <= enough.products and short.sending > short.products


def test_a_loop_counts_as_often_as_it_runs():
  text = """
%body (x: f32[4]) -> f32[4] {
  %send = f32[2,4]{1,0} collective-permute(%x), channel_id=1
}
ENTRY %main (x: f32[4]) -> f32[4] {
  %loop = f32[4] while(%x), body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %home = bf16[4]{0} collective-permute(%x), channel_id=2
}
"""
  assert scaling.sent_bytes(hlo.read(text)) == 3 * 2 * 4 * 4 + 4 * 2
