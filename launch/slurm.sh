#!/usr/bin/env bash
# launch/slurm.sh: submits one run over several nodes to Slurm; preempted, it is requeued.
#
#   launch/slurm.sh --nodes=4 --gpus=8 --config=configs/folder.py --workdir=/shared/runs/a \
#     --sbatch='--partition=gpu --time=24:00:00' -- --config.train.steps=5000
#
#   --config=FILE      the experiment; submit from a folder that the nodes see too
#   --workdir=DIR      folder of the run, the same on every node; logs go beside it, to DIR.logs/
#   --nodes=N          nodes (1)
#   --gpus=N           GPUs of each node, 0 for a run on CPU (8)
#   --cpus=N           CPUs of each process (what the site gives)
#   --python=PYTHON    interpreter on the nodes (python)
#   --sbatch=OPTIONS   more options of sbatch, as on its command line, without quotes in them
#   --save-seconds=N   before the time limit, to save a checkpoint and be requeued (300)
#   --crashes=N        restarts after a crash, in the same allocation (3)
#   --dry-run          print the commands, execute nothing
#   -- FLAG ...        more flags of plan_jax.main
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

nodes=1 gpus=8 cpus='' python=python sbatch='' save_seconds=300
while (($#)); do
  case $1 in
    --nodes=*) nodes=${1#*=} && number --nodes "$nodes" 1 ;;
    --gpus=*) gpus=${1#*=} && number --gpus "$gpus" 0 ;;
    --cpus=*) cpus=${1#*=} && number --cpus "$cpus" 1 ;;
    --python=*) python=${1#*=} ;;
    --sbatch=*) sbatch=${1#*=} ;;
    --save-seconds=*) save_seconds=${1#*=} && number --save-seconds "$save_seconds" 1 ;;
    --) shift && break ;;
    *) shared_flag "$1" ;;
  esac
  shift
done
check_run shared
need sbatch "run this on a login node of the Slurm cluster"

# A process for each GPU: under Slurm JAX gives every process the one device of its SLURM_LOCALID. It
# must therefore see all GPUs of its node, so none is bound to a task. And it must be started by
# srun, whose variables tell JAX the coordinator, the number of processes, and which one it is.
logs=$workdir.logs
job=(--job-name="$(basename "$workdir")" --nodes="$nodes" --requeue --open-mode=append
  --signal="TERM@$save_seconds" --output="$logs/slurm-%j.log")
# One failed task does not take the others along, and the last may go on alone: JAX ends the others
# of a dead process, and an evaluation may outlast them. Both are sites' defaults somewhere.
step=(srun --kill-on-bad-exit=0 --wait=0 --open-mode=append --output="$logs/slurm-%j-%t.log")
platforms=cpu
if ((gpus)); then
  job+=(--ntasks-per-node="$gpus" --gpus-per-node="$gpus")
  step+=(--gpu-bind=none)
  platforms=cuda,cpu
else
  job+=(--ntasks-per-node=1)
fi
if [[ $cpus ]]; then
  job+=(--cpus-per-task="$cpus")
  step+=(--cpus-per-task="$cpus") # srun does not take it from sbatch since Slurm 22.05
fi
read -ra more <<<"$sbatch"

run mkdir -p "$logs" # Slurm does not
run sbatch "${job[@]}" ${more[@]+"${more[@]}"} "$root/launch/slurm_job.sh" "$crashes" \
  "${step[@]}" env JAX_PLATFORMS="$platforms" \
  "$python" -m plan_jax.main --distributed --config="$config" --workdir="$workdir" "$@"
