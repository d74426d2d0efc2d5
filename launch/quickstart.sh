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

# run_stoppable COMMAND...: a signal saves. What reaches mpirun itself does only if a step and its save fit into these seconds:
# SIGTERM comes to the ranks so much later, SIGKILL after as long again. A failing job takes twice as long to end.
export OMPI_MCA_odls_base_sigkill_timeout=${OMPI_MCA_odls_base_sigkill_timeout:-5}
. launch/stoppable.sh

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
