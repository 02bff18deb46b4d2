"""Packages of a wheel: in it configs/ and launch/ lie inside of plan_jax, not beside it."""

from setuptools import find_packages, setup

bundled = {f"plan_jax.bundled.{name}": name for name in ("configs", "launch")}
setup(
  packages=[*find_packages(include=["plan_jax*", "input_pipeline*"]), *bundled],
  package_dir=bundled,
)
