#!/usr/bin/env bash
# launch/gpu_host.sh: a run on all NVIDIA GPUs of this host, started again after a preemption.
#
#   launch/gpu_host.sh --config=configs/folder.py --workdir=runs/a -- --config.train.steps=5000
#
#   --config=FILE    the experiment
#   --workdir=DIR    folder of the run
#   --venv=DIR       virtual environment, made and filled where JAX sees no GPU in it (.venv)
#   --python=PYTHON  interpreter to make it with, 3.11 to 3.13 (python3)
#   --cuda=12|13     CUDA of JAX's wheels (13 where the driver is 580 or newer, else 12)
#   --crashes=N      restarts after a crash (3)
#   --dry-run        print the commands, execute nothing
#   -- FLAG ...      more flags of plan_jax.main
#
# Exit code 75 starts the run again; a signal to this script stops it with a checkpoint.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

venv=.venv python=python3 cuda=''
while (($#)); do
  case $1 in
    --venv=*) venv=${1#*=} ;;
    --python=*) python=${1#*=} ;;
    --cuda=1[23]) cuda=${1#*=} ;;
    --cuda=*) fail "$1: must be 12 or 13" ;;
    --) shift && break ;;
    *) shared_flag "$1" ;;
  esac
  shift
done
check_run ''
need nvidia-smi "install NVIDIA's driver, 525 or newer"
need "$python" "install Python 3.11 to 3.13, or name one by --python=PYTHON"

if [[ ! $cuda && ! $dry_run ]]; then
  driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader) || fail "no GPU: $driver"
  ((${driver%%.*} >= 580)) || cuda=12
fi
cuda=${cuda:-13}

# Named, so that JAX fails where there is no GPU, and does not train on the CPU instead.
gpu_python=(env "JAX_PLATFORMS=cuda,cpu" "$venv/bin/python")
check=("${gpu_python[@]}" -c
  'import jax, plan_jax; print("JAX", jax.__version__, "sees", *jax.devices())')
if [[ $dry_run ]] || ! "${check[@]}" 2>/dev/null; then
  run "$python" -m venv "$venv"
  run "$venv/bin/python" -m pip install --quiet --editable "$root" "jax[cuda$cuda]"
  run "${check[@]}" || fail "JAX sees no GPU from $venv: does nvidia-smi, and is --cuda=$cuda right?"
fi
keep_running "${gpu_python[@]}" -m plan_jax.main \
  --config="$config" --workdir="$workdir" "$@"
