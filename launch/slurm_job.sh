#!/usr/bin/env bash
# slurm_job.sh CRASHES COMMAND ...: runs the command in a Slurm job, which it requeues when the
# command ends with 75 (start me again); after a crash (128 and more) it starts it again here,
# CRASHES times at most. Submitted by slurm.sh and sweep.py; Slurm copies it, so it stands alone.
set -euo pipefail
left=$1
shift

# A job that is cancelled or at its end is no longer running: nothing follows then.
running() {
  # The number of an array's task may be that of the whole array.
  job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
  job=${job:-$SLURM_JOB_ID}
  [[ $(squeue --noheader --jobs="$job" --format=%T) == RUNNING ]]
}

# Slurm itself signals the processes of the command; this shell has only to outlive them.
trap : TERM

while :; do
  code=0
  "$@" || code=$?
  if ((code == 75)) && running; then
    echo "launch: exit code 75, requeueing job $job" >&2
    scontrol requeue "$job"
    exit "$code"
  elif ((code >= 128 && left > 0)) && running; then
    left=$((left - 1))
    echo "launch: crashed with exit code $code, starting again ($left more times)" >&2
  else
    exit "$code"
  fi
done
