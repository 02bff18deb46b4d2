"""Packages of a wheel: in it configs/ and launch/ lie inside of plan_jax, not beside it."""

import sys

from setuptools import find_packages, setup

# An editable installation is the repository itself, where they stay at the top.
names = () if "editable_wheel" in sys.argv else ("configs", "launch")
bundled = {f"plan_jax.bundled.{name}": name for name in names}
setup(
  packages=[*find_packages(include=["plan_jax*", "input_pipeline*"]), *bundled],
  package_dir=bundled,
)
