#!/usr/bin/env bash
# slurm_job.sh CRASHES COMMAND ...: runs the command in a Slurm job, which it requeues when the
# command ends with 75 (start me again); after a crash (128 and more) it starts it again here,
# CRASHES times at most. Submitted by slurm.sh and sweep.py; Slurm copies it, so it stands alone.
set -euo pipefail
left=$1
shift

# Slurm itself signals the processes of the command; this shell has only to outlive them.
trap : TERM

while :; do
  code=0
  "$@" || code=$?
  # A job that is cancelled or at its end is no longer running: nothing follows then.
  state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) || state=''
  if [[ $state == RUNNING ]] && ((code == 75)); then
    echo "launch: exit code 75, requeueing job $SLURM_JOB_ID" >&2
    scontrol requeue "$SLURM_JOB_ID"
    exit "$code"
  elif [[ $state == RUNNING ]] && ((code >= 128 && left > 0)); then
    left=$((left - 1))
    echo "launch: crashed with exit code $code, starting again ($left more times)" >&2
  else
    exit "$code"
  fi
done
