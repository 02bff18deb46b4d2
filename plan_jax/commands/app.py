"""`plan-jax app`: runs in the browser."""

import argparse
import socket
from collections.abc import Sequence
from pathlib import Path

import plan_jax
from input_pipeline.errors import UserError
from plan_jax.runtime.logging import log


def main(arguments: Sequence[str]) -> None:
  """Serves the app until it is stopped. Raises UserError."""
  options = _parse(arguments)
  try:
    import uvicorn

    from plan_jax.app import server
    from plan_jax.app.answers import Answers
    from plan_jax.app.guard import Hosts
    from plan_jax.app.images import Images, samples
  except ModuleNotFoundError as error:
    if error.name not in ("starlette", "uvicorn"):
      raise
    raise UserError(
      f"{error.name} is not installed: pip install 'plan_jax[app]' brings what the app needs"
    ) from None
  hosts = Hosts(options.host)
  listener = _listen(options.host, options.port)  # before the work: where it fails, it is in vain
  models = {name: plan_jax.load(path) for name, path in _named(options.workdir).items()}
  answers = Answers(models, Images(samples(options.workdir[0])))
  log.info("compiling, so that the first map comes at once ...")
  answers.warm_up()
  if not hosts.is_loopback:
    log.warning(
      f"--host={options.host} lets everybody who reaches this machine use the app and see its"
      " images: there is no password and no encryption"
    )
  host = f"[{options.host}]" if ":" in options.host else options.host
  log.info(f"ready: http://{host}:{listener.getsockname()[1]}  (Ctrl-C ends it)")
  app = server.application(answers, hosts)
  config = uvicorn.Config(app, log_level="warning", access_log=False)
  try:
    uvicorn.Server(config).run(sockets=[listener])
  except KeyboardInterrupt:
    log.info("the app is closed")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog="plan-jax app", description=__doc__)
  add = parser.add_argument
  add(
    "--workdir",
    required=True,
    action="append",
    help="folder of a run, or an exported one; give it twice for two models side by side",
  )
  add(
    "--host",
    default="127.0.0.1",
    help="address to listen on; by default only this machine can connect",
  )
  add("--port", type=int, default=8765, help="0 takes a free one; by default %(default)s")
  return parser.parse_args(arguments)


def _named(workdirs: Sequence[str]) -> dict[str, str]:
  """Names the models by their folders, or by their paths where two folders are called alike."""
  names = [Path(workdir).resolve().name for workdir in workdirs]
  if len(set(names)) < len(names):
    names = list(workdirs)
  return dict(zip(names, workdirs, strict=True))


def _listen(host: str, port: int) -> socket.socket:
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  try:
    return socket.create_server((host, port), family=family)
  except (OSError, OverflowError) as error:
    raise UserError(
      f"--host={host} --port={port}: {error}; name another --port, or an address of this machine"
    ) from error
