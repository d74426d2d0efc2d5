#!/usr/bin/env bash
# From a bare Debian 12 to a trained EMO model: installs packages, builds, makes the corpus, trains launch/recipes/quickstart.ini
# and evaluates it. Safe to repeat: what is done is kept, a stopped run goes on.
#
#   launch/quickstart.sh [--section.key=value]...     keys of the recipe, e.g. --train.steps=200 --run.name=short
#
# Ctrl-C while training saves and stops; the same command resumes. EMOX_RANKS (2) is the number of ranks, OMP_NUM_THREADS (1)
# the threads of each. Relative paths in keys count from the project's directory.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1-} in
  -h | --help) sed -n '2,/^set /{/^# \{0,1\}/s///p}' launch/quickstart.sh; exit 0 ;;
esac

emox=$PWD/build/release/launch/emox
recipe=launch/recipes/quickstart.ini
ranks=${EMOX_RANKS:-2}
stages=5
stage=0
stage_start=0

stage_done() { if ((stage > 0)); then echo "==> stage $stage took $((SECONDS - stage_start)) s"; fi; }
next_stage() {
  stage_done
  stage=$((stage + 1))
  stage_start=$SECONDS
  echo "==> [$SECONDS s] $stage/$stages $1"
}

# What mpirun needs to be told on a laptop, in a container and as root.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_hwloc_base_binding_policy=none
if ((EUID == 0)); then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
# Without ssh mpirun refuses to start, although one machine needs none.
if ! command -v ssh rsh >/dev/null; then export OMPI_MCA_plm=isolated; fi
# Containers may forbid reading another process's memory.
if [[ -e /.dockerenv || -e /run/.containerenv ]]; then export OMPI_MCA_btl_vader_single_copy_mechanism=none; fi

# run_stoppable COMMAND...: mpirun answers Ctrl-C by ending the ranks within a second, too soon for a save, but hands SIGUSR1
# on to them, which asks emox to save. So mpirun gets a session of its own, out of the terminal's reach. A second Ctrl-C
# ends the job without saving. Sets `stops` (requests to stop) and `code` (exit code).
stops=0
code=0
job=
request_stop() {
  stops=$((stops + 1))
  if ((stops == 1)); then
    echo "==> stopping: the step ends and is saved; once more to stop without saving"
  elif ((stops == 2)); then
    echo "==> ending the job without saving"
  fi
}
# Ends the ranks and leaves mpirun to notice: when it ends them itself while they end by themselves, it may crash.
end_ranks() {
  local ranks=()
  read -r -d '' -a ranks < <(cat "/proc/$job/task/"*/children 2>/dev/null) || true
  kill -KILL "${ranks[@]:-$job}" 2>/dev/null || true
}
run_stoppable() {
  local answered=0 ended
  trap request_stop INT TERM HUP
  setsid "$@" &
  job=$!
  # `wait` returns early, with a code above 128, when a signal has come.
  while :; do
    if ((stops > answered)); then
      answered=$stops
      if ((stops == 1)); then kill -USR1 "$job" 2>/dev/null || true; else end_ranks; fi
    fi
    ended=0
    wait "$job" || ended=$?
    if ((ended != 127)); then code=$ended; fi  # 127: its code was read just before a signal came
    if ((stops == answered)); then break; fi
  done
  trap - INT TERM HUP
}

next_stage "packages"
launch/packages.sh

next_stage "build (release)"
cmake --preset release
cmake --build --preset release --target emox

next_stage "corpus"
# Package lists older than the archive make a download fail once.
"$emox" corpus || { launch/packages.sh --update && "$emox" corpus; }

# The recipe shares the experts out over 2 ranks; another number shares them over all.
run_dir=$("$emox" train "$recipe" "$@" --print-config | sed -n '/^\[run\]/,/^\[model\]/s/^dir *= *//p')
next_stage "training $recipe on $ranks ranks, into $run_dir"
run_stoppable mpirun -n "$ranks" "$emox" train "$recipe" "$@"
if ((stops > 0)); then
  stage_done
  if ((code == 0)); then
    echo "==> stopped and saved; the same command goes on from there"
    exit 0
  fi
  echo "==> stopped before a save; the same command goes on from the last checkpoint in $run_dir, if there is one"
  exit "$code"
fi
if ((code != 0)); then
  echo "==> training failed (exit code $code)" >&2
  exit "$code"
fi

next_stage "evaluation of the newest checkpoint on held-out documents"
mpirun -n "$ranks" "$emox" eval "$run_dir"
stage_done
echo "==> done in $SECONDS s; again at any time: $emox eval $run_dir"
