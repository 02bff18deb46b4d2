import pytest

from plan_jax.runtime import topology


@pytest.mark.parametrize("name", ["v5e", "", "v9:2x2", "4x4", "h100:8"])
def test_a_topology_that_is_none_is_named(name):
  with pytest.raises(topology.TopologyError, match=r"^--topology=") as caught:
    topology.devices(name)
  assert "\n" not in str(caught.value)


def test_without_libtpu_the_remedy_is_told(monkeypatch):
  monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
  monkeypatch.setattr(topology.importlib.util, "find_spec", lambda _: None)
  with pytest.raises(topology.TopologyError, match=r"pip install 'plan_jax\[compile\]'"):
    topology.devices("v5e:2x2")


def test_chips_are_the_maker_s():
  """Clocks come out as they are known: 1.5 GHz and 1.75."""
  assert [round(topology.CHIPS[name].clock / 1e9, 2) for name in ("v5e", "v5p")] == [1.5, 1.75]
  for chip in topology.CHIPS.values():
    assert chip.source.startswith("docs.cloud.google.com/tpu/")
