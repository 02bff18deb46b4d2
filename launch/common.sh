# shellcheck shell=bash
# What the shell launchers share; sourced by them, with `set -euo pipefail`.

config='' workdir='' dry_run='' crashes=3
# Each launcher opens with its manual in comments; --help prints it.
manual=${BASH_SOURCE[1]}

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# quoted WORD ...: one line of shell that says these words.
quoted() {
  local word line=''
  for word in "$@"; do
    [[ $word =~ ^[a-zA-Z0-9_@%+=:,./-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

# run COMMAND ...: executes it, or prints it where nothing shall be executed.
run() {
  if [[ $dry_run ]]; then quoted "$@"; else "$@"; fi
}

# need TOOL REMEDY
need() {
  [[ $dry_run ]] || command -v "$1" >/dev/null || fail "there is no $1 here: $2"
}

# number FLAG VALUE LEAST
number() {
  if [[ ! $2 =~ ^(0|[1-9][0-9]{0,8})$ ]] || (($2 < $3)); then
    fail "$1=$2: must be a whole number, $3 or more"
  fi
}

# shared_flag FLAG: takes a flag that every launcher has.
shared_flag() {
  case $1 in
    --config=*) config=${1#*=} ;;
    --workdir=*) workdir=${1#*=} ;;
    --crashes=*) crashes=${1#*=} && number --crashes "$crashes" 0 ;;
    --dry-run) dry_run=1 ;;
    --help | -h) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$manual" && exit ;;
    *) fail "unknown argument '$1': see --help; flags of plan_jax.main go after --" ;;
  esac
}

# check_run SHARED: whether config and workdir can be; with SHARED the workdir is that of many hosts.
check_run() {
  [[ $config ]] || fail "--config is missing, e.g. --config=configs/folder.py"
  [[ -f ${config%%:*} ]] || fail "--config=$config: there is no such file"
  [[ $workdir ]] || fail "--workdir is missing: the folder of the run"
  [[ $workdir != *://* ]] || fail "--workdir=$workdir: must be a folder (buckets cannot be one)"
  [[ ! $1 || $workdir == /* ]] ||
    fail "--workdir=$workdir: must begin with / and be the same folder on every host, e.g. on NFS"
}

# stop: how a signal reaches the run; a launcher may have its own.
stop() {
  kill -TERM "$child" 2>/dev/null || true
}

_ask() {
  if [[ $child && ! $asked ]]; then
    asked=1
    stop
  fi
}

# keep_running COMMAND ...: starts it again for as long as it ends with 75 (start me again), and
# after a crash (128 and more: killed, or its host lost) $crashes times at most. A signal is passed
# on by `stop`, waits for the end, and no next start follows. Ends the shell with the last code.
keep_running() {
  local code interrupted left=$crashes
  child='' asked='' stopped='' attempt=0
  if [[ $dry_run ]]; then
    if declare -F "$1" >/dev/null; then ("$@"); else quoted "$@"; fi
    echo "# again while it exits with 75; after a crash (128 and more) $crashes times at most"
    return
  fi
  trap 'interrupted=1 stopped=1; _ask' TERM INT HUP
  while :; do
    child='' attempt=$((attempt + 1))
    set -m # a process group of its own, so that Ctrl-C reaches it through `stop` alone
    "$@" </dev/null &
    child=$!
    set +m
    [[ ! $stopped ]] || _ask
    interrupted=1
    while [[ $interrupted ]]; do # a signal ends `wait` early
      interrupted=''
      code=0
      wait "$child" || code=$?
    done
    [[ ! $stopped ]] || exit "$code"
    if ((code >= 128 && left > 0)); then
      left=$((left - 1))
      echo "launch: crashed with exit code $code, starting again ($left more times)" >&2
    elif ((code == 75)); then
      echo "launch: exit code 75, starting again" >&2
    else
      exit "$code"
    fi
  done
}
