import atexit
import os
import shutil
import signal
import tempfile

import jax
import jaxtyping
from absl import flags

from plan_jax.runtime import logging

# Types and shapes of arguments are checked while tests run.
jaxtyping.install_import_hook(
  ("plan_jax.alignment", "plan_jax.inference", "plan_jax.metrics", "plan_jax.models"),
  "typechecker.check",
)
# Many devices, which only CPUs can pretend to be; `make test-gpu` compares a GPU with them.
jax.config.update("jax_platforms", "cuda,cpu" if os.environ.get("TEST_GPU") else "cpu")
jax.config.update("jax_num_cpu_devices", 8)
logging.configure()
flags.FLAGS.mark_as_parsed()  # Grain reads a flag in its workers
# Ignored in a shell's background or under nohup, and then by the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Tests compile the same small programs again and again, here and in processes they start. The
# workers of pytest-xdist share what the process that started them has set.
if "PYTEST_XDIST_WORKER" not in os.environ:
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="plan_jax-compiled-")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
  # Nor do such small programs gain from being optimised: a step compiles in half the time.
  quick = "--xla_backend_optimization_level=0"
  if jax.__version_info__ < (0, 11):  # whose XLA still knows the flag
    quick += " --xla_cpu_use_fusion_emitters=false"
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick}"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
