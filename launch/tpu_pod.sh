#!/usr/bin/env bash
# launch/tpu_pod.sh: a run on all hosts of a Cloud TPU pod, started again after a preemption.
#
#   launch/tpu_pod.sh --name=plan --zone=us-east5-b --setup='sudo mount 10.0.0.2:/share /mnt' \
#     --create='--accelerator-type=v6e-16 --version=v2-alpha-tpuv6e --spot' \
#     --config=configs/folder.py --workdir=/mnt/runs/a -- --config.train.steps=5000
#
#   --name=NAME        the TPU
#   --zone=ZONE        its zone
#   --project=PROJECT  its project (that of gcloud's configuration)
#   --create=OPTIONS   make the TPU where there is none, and anew after a preemption, with these
#                      options of `gcloud compute tpus tpu-vm create`, without quotes in them
#   --env=NAME=VALUE   environment of the run; may be repeated
#   --setup=COMMAND    done on every host before each start, e.g. mounts the shared folder; shell
#   --config=FILE      the experiment; this working tree is copied to the hosts, as it is now
#   --workdir=DIR      folder of the run, the same on every host; logs go beside it, to DIR.logs/
#   --crashes=N        restarts after a crash or a lost host (3)
#   --dry-run          print the commands, execute nothing
#   -- FLAG ...        more flags of plan_jax.main
#
# Runs until the run is done: start it where it can stay (tmux, a small VM). Exit code 75 of the hosts
# starts all of them again; a signal to this script stops them with a checkpoint.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

name='' zone='' project='' create='' setup=: environment=(JAX_PLATFORMS="tpu,cpu")
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --create=*) create=${1#*=} ;;
    --env=?*=*) environment+=("${1#*=}") ;;
    --setup=*) setup=${1#*=} ;;
    --) shift && break ;;
    *) shared_flag "$1" ;;
  esac
  shift
done
[[ $name ]] || fail "--name is missing: the TPU"
[[ $zone ]] || fail "--zone is missing, e.g. --zone=us-east5-b"
check_run shared
[[ $config == configs/* && -f $root/${config%%:*} ]] ||
  fail "--config=$config: must be a file in configs/, which is copied to the hosts"
need gcloud "install the Google Cloud CLI, then gcloud auth login"
read -ra options <<<"$create"

tpu() { # tpu ACTION ARGUMENT ...
  run gcloud compute tpus tpu-vm "$@" --zone="$zone" ${project:+--project="$project"}
}

on_all() {
  tpu ssh "$name" --worker=all --command="$1"
}

state() {
  gcloud compute tpus tpu-vm describe "$name" --zone="$zone" ${project:+--project="$project"} \
    --format='value(state)' 2>/dev/null || true
}

make_tpu() {
  local now
  if [[ $dry_run ]]; then
    tpu create "$name" "${options[@]}"
    return
  fi
  while now=$(state) && [[ $now != READY ]]; do
    case $now in
      PREEMPTED | TERMINATED) tpu delete "$name" --quiet || return ;; # it cannot start any more
      '')
        tpu create "$name" "${options[@]}" && return
        ((attempt > 1)) || return # at first a mistake is likelier than a lack of TPUs
        ;;
    esac
    echo "launch: waiting for $name to be ready" >&2
    sleep 60
  done
}

start_all() {
  local code=0
  [[ ! $create ]] || make_tpu || exit 1
  tpu scp "$sent" "$name:plan_jax.tar.gz" --worker=all || exit 255
  on_all "$unpack && $(quoted bash -c "$setup") && bash plan_jax/launch/tpu_worker.sh setup" || exit 255
  on_all "$start" || code=$?
  # Hosts that are taken away are no crash.
  if ((code >= 128)) && [[ $(state) != READY ]]; then code=75; fi
  exit "$code"
}

stop() {
  on_all "bash plan_jax/launch/tpu_worker.sh stop" || kill -TERM -- "-$child"
}

unpack='rm -rf plan_jax/{plan_jax,input_pipeline,configs,launch} && mkdir -p plan_jax'
unpack+=' && tar -xzf plan_jax.tar.gz -C plan_jax'
start="bash plan_jax/launch/tpu_worker.sh start $(quoted "$workdir.logs" env "${environment[@]}" \
  .venv/bin/python -m plan_jax.main --distributed --config="$config" --workdir="$workdir" "$@")"

sent=$HOME/.cache/plan_jax/$name.tar.gz # once: what a restart runs is what was started
run mkdir -p "$(dirname "$sent")"
run tar -czf "$sent" --exclude=__pycache__ -C "$root" \
  plan_jax input_pipeline configs launch requirements.txt pyproject.toml setup.py README.md
keep_running start_all
