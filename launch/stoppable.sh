#!/usr/bin/env bash
# Starts a job under mpirun so that a signal saves: Open MPI answers SIGTERM, SIGINT and SIGHUP by killing the ranks within two
# seconds, but hands SIGUSR1 on to them, which asks emox to end the step and save.
#
#   launch/stoppable.sh mpirun -n 2 emox train RECIPE.ini
#
# The first Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2 stops and saves, the next one ends the job without saving. The job goes on,
# unseen, when nobody reads its output any more (a closed pipe ends mpirun itself otherwise). The exit code is the command's.
# Sourced, it only defines run_stoppable, which does this and sets `stops` (requests to stop) and `code` (exit code).

stops=0
code=0
job=
say() { echo "==> $*" 2>/dev/null || true; }
request_stop() {
  stops=$((stops + 1))
  if ((stops == 1)); then
    say "stopping: the step ends and is saved; once more to stop without saving"
  elif ((stops == 2)); then
    say "ending the job without saving"
  fi
}
# Ends the ranks and leaves mpirun to notice: when it ends them itself while they end by themselves, it may crash.
end_ranks() {
  local ranks=()
  read -r -d '' -a ranks < <(cat "/proc/$job/task/"*/children 2>/dev/null) || true
  kill -KILL "${ranks[@]:-$job}" 2>/dev/null || true
}
# Passes the output on, and when that fails swallows it.
pass_on() {
  trap '' INT TERM HUP USR1 USR2 PIPE
  cat 2>/dev/null || cat >/dev/null
}
run_stoppable() {
  local answered=0 ended output reader
  trap request_stop INT TERM HUP USR1 USR2
  trap '' PIPE
  # A session of its own, out of the terminal's reach. The job itself must not ignore what this shell ignores.
  exec {output}> >(pass_on)
  reader=$!
  (
    trap - PIPE
    exec setsid "$@"
  ) >&"$output" 2>&1 {output}>&- &
  job=$!
  exec {output}>&-
  # `wait` returns early, with a code above 128, when a signal has come.
  while :; do
    if ((stops > answered)); then
      answered=$stops
      if ((stops == 1)); then kill -USR1 "$job" 2>/dev/null || true; else end_ranks; fi
    fi
    ended=0
    wait "$job" || ended=$?
    if ((ended != 127)); then code=$ended; fi # 127: its code was read just before a signal came
    if ((stops == answered)); then break; fi
  done
  wait "$reader" 2>/dev/null || true # its last lines
  trap - INT TERM HUP USR1 USR2
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  set -uo pipefail
  case ${1-} in
    '' | -h | --help) sed -n '2,/^$/{/^# \{0,1\}/s///p}' "$0"; exit 0 ;;
  esac
  run_stoppable "$@"
  exit "$code"
fi
