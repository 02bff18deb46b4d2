"""plan-jax sweep --config=configs/ablation.py --out=runs/ablation --mode=run --parallel=2.

Runs the study that a config file describes: see `study.load`. What follows `--` goes to every run,
e.g. `-- --config.train.steps=20`. What is complete is not run again; the rest goes on.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from input_pipeline.command_line import Parser, at_least, split_rest
from input_pipeline.disk import disk_errors
from input_pipeline.errors import UserError
from input_pipeline.files import replace_text
from input_pipeline.locks import lock
from launch import collect, study
from launch.study import Run
from plan_jax.runtime.logging import configure, duration, log

_GRACE = 10.0  # seconds from terminate to kill
_POLL = 0.1


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line: exit status 1 with one line for an error, or where a run failed."""
  configure()
  own, rest = split_rest(argv)
  options = _parser().parse_args(own)
  out = Path(options.out)
  try:
    columns = collect.columns(options.metrics)
    runs = study.load(options.config, options.out, rest)
    collect.check_reference(runs, options.against)
    collect.check_set(runs, options.set)
    if options.mode == "print":
      print_commands(runs)
    elif options.mode == "slurm":
      submit(runs, out, options.parallel, options.sbatch)
    elif options.mode == "collect":
      log.info(collect.write_tables(runs, out, columns, options.against, options.set))
    else:
      with lock(out):  # a second start would take the logs of the runs
        failed = run_all(runs, options.parallel)
        if len(failed) < len(runs):
          log.info("\n" + collect.write_tables(runs, out, columns, options.against, options.set))
      if failed:
        sys.exit(f"error: {len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")
  except UserError as error:
    sys.exit(f"error: {error}")
  except KeyboardInterrupt:
    sys.exit("stopped; the same command goes on from here")


def print_commands(runs: Sequence[Run]) -> None:
  """Prints one line of shell a run."""
  complete = [run.complete() for run in runs]
  for run, done in zip(runs, complete, strict=True):
    log.info(shlex.join(run.command("python")) + "  # complete" * done)
  log.info(f"# {sum(complete)} of {len(runs)} runs are complete")


@disk_errors()
def run_all(runs: Sequence[Run], parallel: int) -> list[str]:
  """Runs what is not complete, `parallel` at a time, in their order.

  Returns:
    The names of those that failed; the others went on.

  Raises:
    KeyboardInterrupt: SIGINT or SIGTERM came; the processes of the runs were ended first.
    UserError: the records cannot be made, or the disk is full.
  """
  waiting = [run for run in runs if not run.complete()]
  log.info(
    f"{len(runs)} runs: {len(runs) - len(waiting)} complete, {len(waiting)} to run,"
    f" {parallel} at a time"
  )
  make_records(waiting)
  make_features(waiting)
  start, total, failed = time.monotonic(), len(waiting), []
  running: list[tuple[Run, subprocess.Popen, float]] = []
  before = signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    while waiting or running:
      while waiting and len(running) < parallel:
        run = waiting.pop(0)
        log.info(f"{time.strftime('%H:%M:%S')}  start  {run.name}  (log: {run.log})")
        running.append((run, _start(run), time.monotonic()))
      time.sleep(_POLL)
      for run, process, began in [entry for entry in running if entry[1].poll() is not None]:
        running.remove((run, process, began))
        problem = _problem(run, process.returncode)
        failed += [run.name] if problem else []
        left = len(waiting) + len(running)
        eta = (time.monotonic() - start) / (total - left) * left
        log.info(
          f"{time.strftime('%H:%M:%S')}  {'FAILED' if problem else 'done  '} {run.name} after"
          f" {duration(time.monotonic() - began)}{problem}  ({total - left - len(failed)} done,"
          f" {len(failed)} failed, {left} left, ETA {duration(eta)})"
        )
  finally:
    _end([process for _, process, _ in running])
    signal.signal(signal.SIGTERM, before)
  return failed


def make_records(runs: Sequence[Run]) -> None:
  """Makes the records that runs share, each once; runs side by side cannot. Raises UserError."""
  # Here: workers of the conversion import this file.
  from plan_jax.evaluators.datasets import make_attached, make_records

  own, sets = {}, {}
  for run in runs:
    own.setdefault(run.config.data.to_json(), run.config.data)
    folders = tuple(chosen.records for chosen in study.attached(run.config).values())
    sets.setdefault(folders, run)
  for data in own.values():
    make_records(data, Path(data.records), data)
  for run in sets.values():
    make_attached(run.config, run.workdir)


def make_features(runs: Sequence[Run]) -> None:
  """Stores the features that runs share, each once; runs side by side cannot. Raises UserError."""
  first: dict[tuple[str, ...], Run] = {}
  # Of runs with a folder of their own choice, one that needs mirror images too.
  for run in sorted(runs, key=lambda run: not run.config.data.flip_fraction):
    if run.config.data.store_features:
      sets = study.attached(run.config).values()
      first.setdefault((run.config.data.features, *(chosen.features for chosen in sets)), run)
  for run in first.values():
    if subprocess.run([*run.command(), "--mode=features"], stdin=subprocess.DEVNULL).returncode:
      raise UserError(f"{run.config.data.features}: the features of {run.name} cannot be stored")


def submit(runs: Sequence[Run], out: Path, parallel: int, more: str) -> None:
  """Writes an array job over the runs that are not complete; submits it where there is a sbatch.

  Records and stored features are made before, here. `more` are options of sbatch. Raises UserError
  where they cannot be made, or sbatch fails.
  """
  waiting = [run for run in runs if not run.complete()]
  if not waiting:
    log.info(f"all {len(runs)} runs are complete: nothing to submit")
    return
  make_records(waiting)
  make_features(waiting)
  commands, script = (out / "commands.txt").absolute(), out / "sweep.sbatch"
  replace_text(commands, "".join(shlex.join(run.command()) + "\n" for run in waiting))
  job = shlex.quote(str(Path(__file__).with_name("slurm_job.sh")))  # requeues what is preempted
  lines = [
    "#!/bin/bash",
    f'#SBATCH --job-name="{out.absolute().name}"',
    f"#SBATCH --array=0-{len(waiting) - 1}%{parallel}",
    "#SBATCH --requeue",
    "#SBATCH --open-mode=append",
    f'#SBATCH --output="{commands.with_name("slurm-%A_%a.log")}"',
    *([f"#SBATCH {more}"] if more else []),
    f"cd {shlex.quote(os.getcwd())} || exit 1",
    f'command=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {shlex.quote(str(commands))})',
    f'eval "exec bash {job} 0 $command"',
  ]
  replace_text(script, "\n".join(lines) + "\n")
  log.info(f"{script}: {len(waiting)} of {len(runs)} runs, {parallel} at a time")
  if not shutil.which("sbatch"):
    log.info(f"there is no sbatch here; where there is: sbatch {shlex.quote(str(script))}")
    return
  sent = subprocess.run(["sbatch", str(script)], capture_output=True, text=True)
  if sent.returncode:
    raise UserError(f"sbatch {script}: {' '.join(sent.stderr.split()) or 'failed without a word'}")
  log.info(sent.stdout.strip())
  log.info(f"submit again only when its jobs have ended: they read {commands}")


def _start(run: Run) -> subprocess.Popen:
  run.log.parent.mkdir(parents=True, exist_ok=True)
  with run.log.open("wb") as file:
    return subprocess.Popen(
      run.command(), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
    )


def _end(processes: Sequence[subprocess.Popen]) -> None:
  for process in processes:
    process.terminate()
  deadline = time.monotonic() + _GRACE
  for process in processes:
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(max(0.0, deadline - time.monotonic()))
    process.kill()
    process.wait()


def _problem(run: Run, status: int) -> str:
  """Returns "" for a run that is complete now, else the end of its log."""
  try:
    if status == 0 and run.complete():
      return ""
    lines = [line for line in run.log.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1].strip() if lines else "its log is empty"
  except UserError as error:
    last = str(error)
  return f", exit status {status}: {last}"


def _parser() -> Parser:
  parser = Parser("plan-jax sweep", __doc__)
  add = parser.add_argument
  mode = "print commands, run here, submit, or gather the tables (default print)"
  against = "row that the others are compared with, as in the table (default %(default)s)"
  add("--config", required=True, help="config file with get_config() and sweep()")
  add("--out", required=True, help="folder of the study; each run gets a folder in it")
  add("--mode", default="print", choices=["print", "run", "slurm", "collect"], help=mode)
  add("--parallel", type=at_least(1), default=1, help="runs at a time (default 1)")
  add("--metrics", default="", help="more columns: task/group/metric,task/group/metric")
  add("--against", default=collect.REFERENCE, help=against)
  add("--set", default="", help="gather the results on this evaluation set, by its name")
  add("--sbatch", default="", help='options of sbatch: --sbatch="--gres=gpu:1 --time=4:00:00"')
  return parser


if __name__ == "__main__":
  main()
