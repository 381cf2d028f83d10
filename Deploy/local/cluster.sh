# Part of MemQ. SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# What up and down share: which processes there are, where each listens, which of them run.

# In the order they are started; metadata-2 only on etcd.
METADATA=(metadata-1)
NAMES=(metadata-1 replication-a replication-b replication-c uploader-1 uploader-2 scanner-1
  rebalancer-1 ingest-1 ingest-2)
# Each group ends before the next one is told to: nobody loses whom it needs for a clean end.
STOP_ORDER=("ingest-1 ingest-2 rebalancer-1 scanner-1" "uploader-1 uploader-2"
  "replication-a replication-b replication-c" "metadata-1 metadata-2")
PORT_DEFAULT=7460
# From SIGTERM to SIGKILL; the services themselves end within 10 s.
TERM_SECONDS=15
# Another up or down may be at work for so long.
LOCK_SECONDS=60

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
LOCAL=$ROOT/Deploy/local

absolute() { case $1 in /*) printf '%s\n' "$1" ;; *) printf '%s\n' "$PWD/${1#./}" ;; esac; }

kind() { echo "${1%-*}"; }

# The gRPC port of a process; admin pages are 1,000 above.
port() {
  local offset
  case $1 in
    ingest-1) offset=0 ;; ingest-2) offset=10 ;;
    metadata-1) offset=1 ;; metadata-2) offset=11 ;;
    replication-a) offset=2 ;; replication-b) offset=12 ;; replication-c) offset=22 ;;
    uploader-1) offset=3 ;; uploader-2) offset=13 ;;
    scanner-1) offset=4 ;;
    rebalancer-1) offset=5 ;;
  esac
  echo $((PORT + offset))
}

# ---- Which process is ours -------------------------------------------------------------------------------------------
# A number alone is nobody's name: numbers are used again, by anybody. So the start time and the boot stand beside it.

BOOT=unknown
{ read -r BOOT </proc/sys/kernel/random/boot_id; } 2>/dev/null

# Sets state and since (the start time) of a process that exists.
look_at() {
  local line fields
  { read -r line <"/proc/$1/stat"; } 2>/dev/null || return 1
  # The command's name in parentheses may hold anything; what follows the last one is regular.
  read -ra fields <<<"${line##*) }"
  state=${fields[0]} since=${fields[19]}
}

# record FILE PID: called by the process itself, before it becomes the service.
record() {
  local state since
  look_at "$2" && printf '%s %s %s\n' "$2" "$since" "$BOOT" >"$1.new" && mv "$1.new" "$1"
}

# Prints the pid of a recorded process if it lives and is ours.
pid_of() {
  local pid started boot state since command
  { read -r pid started boot <"$RUN/$1.pid"; } 2>/dev/null || return 1
  [[ $pid =~ ^[0-9]+$ && $boot == "$BOOT" ]] || return 1
  while look_at "$pid"; do
    # Z and X: it has ended, and only its parent does not know yet.
    [[ $since == "$started" && $state != [ZX] ]] || return 1
    { mapfile -d '' -t command <"/proc/$pid/cmdline"; } 2>/dev/null || return 1
    if ((${#command[@]})); then
      [[ "${command[*]}" == *"memq-${1%-*}"* ]] || return 1
      echo "$pid"
      return 0
    fi
    # In the middle of becoming the service it has no command for a moment.
    sleep 0.01
  done
  return 1
}

# ---- Stopping --------------------------------------------------------------------------------------------------------

# stop_names NAME...: SIGTERM, SIGKILL for who is still there, and waits for the end.
stop_names() {
  local name pid left end
  local -A pids=()
  for name in "$@"; do
    pid=$(pid_of "$name") || continue
    pids[$name]=$pid
    kill -TERM "$pid" 2>/dev/null || true
  done
  end=$((SECONDS + TERM_SECONDS))
  while :; do
    left=
    for name in "${!pids[@]}"; do
      pid_of "$name" >/dev/null && left+=" $name"
    done
    [[ -n $left ]] || break
    if ((SECONDS >= end)); then
      for name in $left; do
        say "$name (pid ${pids[$name]}) has not ended in $TERM_SECONDS s: killed"
        kill -KILL "${pids[$name]}" 2>/dev/null || true
      done
      # Nobody survives that; it may take a moment.
      end=$((SECONDS + TERM_SECONDS))
    fi
    sleep 0.05
  done
  for name in "$@"; do rm -f "$RUN/$name.pid"; done
}

# stop_in_order NAME...: those of them that run, each group after the other.
stop_in_order() {
  local group name chosen
  for group in "${STOP_ORDER[@]}"; do
    chosen=()
    for name in $group; do
      [[ " $* " == *" $name "* ]] && chosen+=("$name")
    done
    ((${#chosen[@]})) && stop_names "${chosen[@]}"
  done
  return 0
}

# ---- What up remembers -----------------------------------------------------------------------------------------------

# setting NAME: what the data folder was brought up with; empty: nothing.
setting() {
  local key value
  [[ -f $SETTINGS ]] || return 0
  while IFS='=' read -r key value; do
    [[ $key == "$1" ]] && printf '%s\n' "$value"
  done <"$SETTINGS"
  return 0
}

# on_etcd: a second metadata instance belongs to the cluster.
on_etcd() {
  METADATA=(metadata-1 metadata-2)
  NAMES=(metadata-1 metadata-2 "${NAMES[@]:1}")
}

# One up or down at a time on a data folder. Processes started meanwhile must not inherit descriptor 9.
lock() {
  exec 9>"$RUN/lock"
  flock -w "$LOCK_SECONDS" 9
}
