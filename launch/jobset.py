"""python -m launch.jobset --name=plan --image=IMAGE --hosts=4 --gpus=8 --claim=shared ...

Starts a run on Kubernetes as a JobSet: one pod a host, all of them again after a preemption.
--dry-run prints the YAML instead. What follows `--` goes to plan_jax.main, e.g.
`-- --config.train.steps=5000`.
"""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import yaml

from input_pipeline.command_line import Parser, at_least, split_rest
from input_pipeline.errors import UserError
from plan_jax.runtime.logging import configure, log

_PORT = 8476  # of the coordinator; any that is free in its pod will do
_GKE_TPU = ("cloud.google.com/gke-tpu-accelerator", "cloud.google.com/gke-tpu-topology")

_COUNT, _POSITIVE = (at_least(least, most=999_999_999) for least in (0, 1))  # of Kubernetes


def main(argv: Sequence[str] | None = None) -> None:
  """Starts the JobSet; exit status 1 with one line for an error."""
  configure()
  own, rest = split_rest(argv)
  options = _parser().parse_args(own)
  try:
    content = jobset(options, rest)
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=False, width=1000)
    command = ["kubectl", "create", "--filename=-", *shlex.split(options.kubectl)]
    if options.dry_run:
      log.info(f"# {shlex.join(command)}\n{text.rstrip()}")
      return
    if not shutil.which("kubectl"):
      raise UserError("there is no kubectl here: install it, or take the YAML of --dry-run to it")
    if code := subprocess.run(command, input=text, text=True).returncode:
      raise UserError(f"{shlex.join(command)} failed with exit code {code}")
  except UserError as error:
    sys.exit(f"error: {error}")


def jobset(options: argparse.Namespace, flags: Sequence[str]) -> dict:
  """Fills in `jobset.yaml` by the command line and more flags of plan_jax.main, and returns it.

  Raises UserError where the options do not fit each other.
  """
  _check(options)
  content = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
  spec = content["spec"]
  job = spec["replicatedJobs"][0]["template"]["spec"]
  pod = job["template"]["spec"]
  wait, run = pod["initContainers"][0], pod["containers"][0]
  hosts = [f"{options.name}-workers-0-{i}.{options.name}" for i in range(options.hosts)]

  content["metadata"]["name"] = options.name
  spec["failurePolicy"]["maxRestarts"] = options.crashes
  job["completions"] = job["parallelism"] = options.hosts
  pod["terminationGracePeriodSeconds"] = options.grace_seconds
  pod["nodeSelector"] = dict(options.node_selector)
  pod["volumes"][0]["persistentVolumeClaim"]["claimName"] = options.claim
  wait["image"] = run["image"] = options.image
  wait["args"] = hosts
  run["volumeMounts"][0]["mountPath"] = options.mount
  arguments = [f"--config={options.config}", f"--workdir={options.workdir}", *flags]
  run["args"] = [_literal(word) for word in arguments]
  if options.tpus:
    # GKE tells every host of a slice its place. A slice is a node pool, and all must be of one.
    run["resources"]["limits"]["google.com/tpu"] = options.tpus
    node_pool = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    content["metadata"]["annotations"] |= node_pool
  else:
    run["resources"]["limits"]["nvidia.com/gpu"] = options.gpus
    run["args"] += [
      f"--coordinator_address={hosts[0]}:{_PORT}",
      f"--num_processes={options.hosts}",
      "--process_id=$(JOB_COMPLETION_INDEX)",
    ]
  # Named, so that JAX fails where the devices are missing, and does not train on the CPU instead.
  environment = {
    "JAX_PLATFORMS": "tpu,cpu" if options.tpus else "cuda,cpu",
    "JAX_COMPILATION_CACHE_DIR": f"{options.mount}/.compiled",
  } | dict(options.env)
  run["env"] = [{"name": key, "value": _literal(value)} for key, value in environment.items()]
  return content


def _literal(word: str) -> str:
  """Escapes a word for Kubernetes, which would replace a $(NAME)."""
  return word.replace("$", "$$")


def _check(options: argparse.Namespace) -> None:
  if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", options.name):
    raise UserError(f"--name={options.name}: must be a-z, 0-9 and -, at most 40, from a letter on")
  if bool(options.gpus) == bool(options.tpus):
    raise UserError("name the devices of a host: either --gpus=N or --tpus=N")
  missing = [key for key in _GKE_TPU if key not in dict(options.node_selector)]
  if options.tpus and missing:
    raise UserError(f"--tpus needs --node-selector={missing[0]}=..., see docs/launching.md")
  mount, workdir = PurePosixPath(options.mount), PurePosixPath(options.workdir)
  if not mount.is_absolute():
    raise UserError(f"--mount={options.mount}: must begin with /")
  if mount not in workdir.parents or ".." in workdir.parts:
    raise UserError(
      f"--workdir={options.workdir}: must lie in --mount={options.mount}, which all hosts see"
    )


def _parser() -> Parser:
  parser = Parser("python -m launch.jobset", __doc__)
  add = parser.add_argument
  add("--name", required=True, help="of the JobSet")
  add("--image", required=True, help="with plan_jax and jax[cuda13] or jax[tpu]")
  add("--config", required=True, help="the experiment, a path in the image")
  add("--workdir", required=True, help="folder of the run, in the shared volume")
  add("--claim", required=True, help="PersistentVolumeClaim, ReadWriteMany: the shared volume")
  add("--mount", default="/mnt/shared", help="where the hosts see it (default %(default)s)")
  add("--hosts", type=_POSITIVE, default=1, help="pods (default 1)")
  add("--gpus", type=_POSITIVE, help="NVIDIA GPUs of each host")
  add("--tpus", type=_POSITIVE, help="TPU chips of each host (GKE)")
  pairs = {"type": _pair, "action": "append", "default": []}
  label = "label that the nodes must have; may be repeated"
  add("--node-selector", **pairs, metavar="KEY=VALUE", help=label)
  add("--env", **pairs, metavar="NAME=VALUE", help="environment of the run; may be repeated")
  grace = "from SIGTERM to SIGKILL, to save a checkpoint (default %(default)s)"
  add("--grace-seconds", type=_POSITIVE, default=300, help=grace)
  add("--crashes", type=_COUNT, default=3, help="restarts after a crash (default %(default)s)")
  add("--kubectl", default="", help='options of kubectl: --kubectl="--namespace=team"')
  add("--dry-run", action="store_true", help="print the YAML, execute nothing")
  return parser


def _pair(text: str) -> tuple[str, str]:
  key, equals, value = text.partition("=")
  if not key or not equals:
    raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
  return key, value


if __name__ == "__main__":
  main()
