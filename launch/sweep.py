"""python -m launch.sweep --config=configs/ablation.py --out=runs/ablation --mode=run --parallel=2.

Runs the study that a config file describes: see `study.load`. What follows `--` goes to every run,
e.g. `-- --config.train.steps=20`. What is complete is not run again; the rest goes on.
"""

import argparse
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

from input_pipeline.errors import UserError
from input_pipeline.files import replace_text
from launch import child, collect, study
from launch.study import Run
from plan_jax.runtime.logging import configure, duration, log

_GRACE = 10.0  # seconds from terminate to kill
_POLL = 0.1


def main(argv: Sequence[str] | None = None) -> None:
  """The command line: exit status 1 with one line for an error, or where a run failed."""
  configure()
  argv = list(sys.argv[1:] if argv is None else argv)
  cut = argv.index("--") if "--" in argv else len(argv)
  options = _parser().parse_args(argv[:cut])
  try:
    columns = collect.columns(options.metrics)
    runs = study.load(options.config, options.out, argv[cut + 1 :])
    collect.check_reference(runs, options.against)
    if options.mode == "print":
      print_commands(runs)
    elif options.mode == "slurm":
      submit(runs, Path(options.out), options.parallel, options.sbatch)
    elif options.mode == "collect":
      log.info(collect.write_tables(runs, Path(options.out), columns, options.against))
    else:
      failed = run_all(runs, options.parallel)
      if len(failed) < len(runs):
        log.info("\n" + collect.write_tables(runs, Path(options.out), columns, options.against))
      if failed:
        sys.exit(f"error: {len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")
  except UserError as error:
    sys.exit(f"error: {error}")
  except KeyboardInterrupt:
    sys.exit("stopped; the same command goes on from here")


def print_commands(runs: Sequence[Run]) -> None:
  """One line of shell a run."""
  complete = [run.complete() for run in runs]
  for run, done in zip(runs, complete, strict=True):
    log.info(shlex.join(run.command("python")) + "  # complete" * done)
  log.info(f"# {sum(complete)} of {len(runs)} runs are complete")


def run_all(runs: Sequence[Run], parallel: int) -> list[str]:
  """Runs what is not complete, `parallel` at a time on equal shares of the cores, in their order.

  Returns:
    The names of those that failed; the others went on.

  Raises:
    KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP came; the children were ended first.
    UserError: the records cannot be made; nothing was run.
  """
  waiting = [run for run in runs if not run.complete()]
  cores = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else range(os.cpu_count() or 1)
  log.info(
    f"{len(runs)} runs: {len(runs) - len(waiting)} complete, {len(waiting)} to run,"
    f" {parallel} at a time on {len(cores)} cores"
  )
  make_records(waiting)
  # A flag, not an exception, which could come between the start of a child and its being noted.
  stop, before = [], {}
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
      before[number] = signal.signal(number, lambda number, _: stop.append(number))
  start, total, done, failed = time.monotonic(), len(waiting), 0, []
  running: dict[int, tuple[Run, subprocess.Popen, float]] = {}  # by slot
  try:
    while (waiting or running) and not stop:
      for slot in range(parallel):
        if slot in running and running[slot][1].poll() is not None:
          run, process, began = running.pop(slot)
          wrong = _wrong(run, process.returncode)
          done, failed = (done, [*failed, run.name]) if wrong else (done + 1, failed)
          left = total - done - len(failed)
          eta = (time.monotonic() - start) / (total - left) * left
          _tell(
            f"{'FAILED' if wrong else 'done  '} {run.name} after"
            f" {duration(time.monotonic() - began)}{wrong}"
            f"  ({done} done, {len(failed)} failed, {left} left, ETA {duration(eta)})"
          )
        if slot not in running and waiting:
          run = waiting.pop(0)
          _tell(f"start  {run.name}  (log: {run.log})")
          process = _start(run, cores[slot % len(cores) :: parallel])
          running[slot] = (run, process, time.monotonic())
      time.sleep(_POLL)
  finally:
    _end([process for _, process, _ in running.values()])
    for number, handler in before.items():
      signal.signal(number, handler)
  if stop:
    raise KeyboardInterrupt
  return failed


def make_records(runs: Sequence[Run]) -> None:
  """Makes what records the runs share, each once; runs side by side cannot. Raises UserError."""
  # Here: workers of the conversion import this file.
  from plan_jax.evaluators.datasets import is_given, make_records

  wanted = {}
  for config in (run.config for run in runs):
    attached = [s for s in config.evaluation.sets.values() if is_given(s) and s.records]
    for chosen in (config.data, *attached):
      wanted[chosen.to_json()] = chosen, config.data
  for chosen, limits in wanted.values():
    make_records(chosen, Path(chosen.records), limits)


def submit(runs: Sequence[Run], out: Path, parallel: int, more: str) -> None:
  """Writes an array job over the runs that are not complete; submits it where there is a sbatch.

  Args:
    runs: of the study.
    out: folder of the study.
    parallel: how many jobs at a time.
    more: options of sbatch, as on its command line.

  Raises:
    UserError: the records cannot be made, or sbatch fails.
  """
  waiting = [run for run in runs if not run.complete()]
  if not waiting:
    log.info(f"all {len(runs)} runs are complete: nothing to submit")
    return
  make_records(waiting)
  commands, script = (out / "commands.txt").absolute(), out / "sweep.sbatch"
  replace_text(commands, "".join(shlex.join(run.command()) + "\n" for run in waiting))
  head = [
    f'--job-name="{out.absolute().name}"',
    f"--array=0-{len(waiting) - 1}%{parallel}",
    "--requeue",
    "--open-mode=append",
    f'--output="{commands.with_name("slurm-%A_%a.log")}"',
    *([more] if more else []),
  ]
  lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in head)]
  job = shlex.quote(str(Path(__file__).with_name("slurm_job.sh")))  # requeues what is preempted
  lines += [
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


def _start(run: Run, cores: Sequence[int]) -> subprocess.Popen:
  run.log.parent.mkdir(parents=True, exist_ok=True)
  pinned = [sys.executable, child.__file__, ",".join(map(str, cores)), str(os.getpid())]
  with run.log.open("wb") as log:
    return subprocess.Popen(
      [*pinned, *run.command()],
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      # A group of its own: ended with all its processes, and by the sweep alone.
      start_new_session=True,
    )


def _end(processes: Sequence[subprocess.Popen]) -> None:
  for process in processes:
    _signal(process, signal.SIGTERM)
  deadline = time.monotonic() + _GRACE
  for process in processes:
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(max(0.0, deadline - time.monotonic()))
    _signal(process, signal.SIGKILL)  # also what its group still holds
    process.wait()


def _signal(process: subprocess.Popen, number: int) -> None:
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process.pid, number)


def _wrong(run: Run, status: int) -> str:
  """Empty for a run that is complete now; else the last words of its log."""
  try:
    if status == 0 and run.complete():
      return ""
    words = [line for line in run.log.read_text(errors="replace").splitlines() if line.strip()]
    last = words[-1].strip() if words else "its log is empty"
  except UserError as error:
    last = str(error)
  return f", exit status {status}: {last}"


def _tell(text: str) -> None:
  log.info(f"{time.strftime('%H:%M:%S')}  {text}")


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m launch.sweep",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add("--config", required=True, help="config file with get_config() and sweep()")
  add("--out", required=True, help="folder of the study; each run gets a folder in it")
  add("--mode", default="print", choices=["print", "run", "slurm", "collect"],
      help="print commands, run here, submit, or gather the tables (default print)")  # fmt: skip
  add("--parallel", type=_positive, default=1, help="runs at a time (default 1)")
  add("--metrics", default="", help="more columns: task/group/metric,task/group/metric")
  add("--against", default=collect.REFERENCE,
      help="row the others are compared with, as in the table (default %(default)s)")  # fmt: skip
  add("--sbatch", default="", help='options of sbatch: --sbatch="--gres=gpu:1 --time=4:00:00"')
  return parser


def _positive(text: str) -> int:
  if not text.isdigit() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"{text!r} is not 1 or more")
  return int(text)


if __name__ == "__main__":
  main()
