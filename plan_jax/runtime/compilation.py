"""The cache of compiled programs, which commands share."""

import os

import jax


def use_cache() -> None:
  """Keeps compiled programs in $JAX_COMPILATION_CACHE_DIR, by default ~/.cache/plan_jax."""
  cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "~/.cache/plan_jax/compiled")
  jax.config.update("jax_compilation_cache_dir", os.path.expanduser(cache))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
