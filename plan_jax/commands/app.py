"""The command plan-jax app: a run in a browser, see docs/app.md.

plan-jax app --workdir=runs/phantom
"""

import argparse
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from input_pipeline.command_line import Parser
from input_pipeline.errors import UserError
from plan_jax.runtime.logging import configure, log


def main(arguments: Sequence[str]) -> None:
  """Serves the app until it is stopped; an error is one line, with exit status 1."""
  options = _parse(arguments)
  configure()
  try:
    _serve(options)
  except UserError as error:
    sys.exit(f"error: {error}")
  except KeyboardInterrupt:  # also while the models load
    log.info("the app is closed")


def _serve(options: argparse.Namespace) -> None:
  try:
    import uvicorn

    from plan_jax.app import server
    from plan_jax.app.answers import Answers
    from plan_jax.app.guard import Hosts
    from plan_jax.app.images import Images, samples
    from plan_jax.inference.load import load
  except ModuleNotFoundError as error:
    if error.name not in ("starlette", "uvicorn"):
      raise
    raise UserError(
      f"{error.name} is not installed: pip install 'plan_jax[app]' brings what the app needs"
    ) from None
  count = len(options.workdir)
  if count > 2 or len({Path(workdir).resolve() for workdir in options.workdir}) < count:
    raise UserError("--workdir: give one folder, or two that differ, for models side by side")
  hosts = Hosts(options.host)
  # It listens before the work: where it fails, that is in vain.
  with _listen(options.host, options.port) as listener:
    models = {name: load(path) for name, path in _named(options.workdir).items()}
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
    uvicorn.Server(config).run(sockets=[listener])


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
  parser = Parser("plan-jax app", __doc__)
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
  if not 0 <= port < 2**16:
    raise UserError(f"--port={port} is no port: name one from 1 to 65535, or 0 for a free one")
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  try:
    return socket.create_server((host, port), family=family)
  except OSError as error:
    raise UserError(
      f"--host={host} --port={port}: {error}; name another --port, or an address of this machine"
    ) from error
