#!/usr/bin/env bash
# tpu_worker.sh setup|start|stop, on a host of a TPU pod: what tpu_pod.sh has every host do.
#
#   setup                        installs plan_jax beside this script, with Python 3.12 if need be
#   start LOGS COMMAND ARG ...   runs the command; its output goes to LOGS/HOST.log as well
#   stop                         SIGTERM to the command
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mark=${TMPDIR:-/tmp}/plan_jax # one run at a time

fail() {
  echo "error: $1" >&2
  exit "${2:-1}"
}

case $1 in
  setup)
    # uv brings a Python where the TPU's image has none of 3.11 to 3.13.
    uv=$HOME/.local/bin/uv
    [[ -x $uv ]] || PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
    [[ -x .venv/bin/python ]] || "$uv" venv --quiet --python=3.12 .venv
    "$uv" pip install --quiet --python=.venv/bin/python --editable . 'jax[tpu]'
    ;;
  start)
    logs=$2
    shift 2
    [[ -d ${logs%/*} ]] || fail "$HOSTNAME has no folder ${logs%/*}: mount it (--setup), or make it"
    mkdir -p "$logs"
    # After a lost connection gcloud sends the command again, while the first is still at work.
    exec 9>"$mark.lock"
    flock --wait 120 9 || fail "$HOSTNAME still runs what was started before" 254
    # tee goes on writing when the connection is lost; without it the run would die of its output.
    # The code is the run's, whether or not all of its log could be written.
    code=0
    { echo "$BASHPID" >"$mark.pid" && exec "$@"; } 2>&1 |
      tee --append --output-error=warn-nopipe "$logs/$HOSTNAME.log" || code=${PIPESTATUS[0]}
    rm -f "$mark.pid"
    exit "$code"
    ;;
  stop) kill -TERM "$(<"$mark.pid")" ;;
  *) fail "$1: must be setup, start or stop" ;;
esac
