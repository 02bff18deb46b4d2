import pytest

from plan_jax.runtime import mesh


@pytest.mark.parametrize(
  ("axes", "message"),
  [((-1, 3), "fsdp: is 3; must divide the 8 devices"), ((3, 2), "data: is 3; times fsdp, 2")],
)
def test_devices_that_do_not_divide(axes, message):
  with pytest.raises(mesh.MeshError, match=message):
    mesh.make_mesh(*axes)
