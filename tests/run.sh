#!/usr/bin/env bash
# Installs what is missing, builds with warnings as errors, and runs every test; the exit code says whether all passed.
#
#   tests/run.sh [--quick]
#
# First the sanitizer sets: AddressSanitizer and UndefinedBehaviorSanitizer over what handles memory and files,
# ThreadSanitizer over ranks as threads. Then the whole suite, built as users build it; its summary is the last output. Each set is
# built beside the tests of the one before.
# --quick: only the whole suite. A set that fails ends the script. CTEST_PARALLEL_LEVEL and CMAKE_BUILD_PARALLEL_LEVEL
# (both: number of cores) say how much runs at a time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

quick=false
for argument in "$@"; do
  case $argument in
    --quick) quick=true ;;
    -h | --help) sed -n '2,/^set /{/^# \{0,1\}/s///p}' tests/run.sh; exit 0 ;;
    *) echo "tests/run.sh: unknown argument $argument; there is only --quick" >&2; exit 2 ;;
  esac
done

stage() { echo "==> [$SECONDS s] $*"; }
cores=$(nproc)
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$cores}
export CTEST_PARALLEL_LEVEL=${CTEST_PARALLEL_LEVEL:-$cores}
configure=()
if command -v ccache >/dev/null; then configure+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi

# build PRESET TARGET...: no TARGET: all of them.
build() {
  local preset=$1
  shift
  cmake --preset "$preset" "${configure[@]}"
  cmake --build --preset "$preset" ${1+--target "$@"}
}

# Many tests wait more than they compute, so the next set is built meanwhile, with what they leave of the processor.
beside=
build_beside() {
  stage "build for $1, beside the tests"
  set -m  # a process group of its own, so that it can be ended whole
  (build "$@" >"build/$1.log" 2>&1) &
  beside=$!
  set +m
  renice -n 19 -p "$beside" >/dev/null
}
built() {
  local result=0
  wait "$beside" || result=$?
  beside=
  cat "build/$1.log"
  return "$result"
}
trap '[[ -z $beside ]] || kill -- "-$beside" 2>/dev/null' EXIT

# sanitizer_tests PRESET LABELS EXCLUDED: runs the tests of what is built. The longest ones, which repeat in fifty steps or eight
# meshes what others do in a few, are left to the whole suite, and so are those that measure the memory of the process.
sanitizer_tests() {
  stage "tests under $1"
  ctest --preset "$1" -L "$2" -E "^house\.|FiftyStepsAgree|ManyStepsAgree|AChainOfMeshes|TheSameMeshGoesOn|MemoryPlan|$3"
}

stage "packages"
launch/packages.sh --tests
if $quick; then
  stage "build (release, warnings are errors)"
  build ci
else
  # Left to the whole suite: the same code with other numbers (models, meshes, scopes).
  same='TrainMesh\.OneStepIsTheSame/(standard|two|no_)|TheSameMeshGivesTheSameBits|ClosedForms/4|FreeTokensTraining\.None'
  same+='|TrainRanks\.OneStepIsTheSame/(bias|fixed|half|label|normal|standard|uneven)|TrainAgain\.TheSame'
  same+='|TrainCut\.(The|Micro|Unequal|Without)'
  stage "build for asan"
  build asan emox_test_runtime emox_test_model emox_test_data emox_test_parallel emox_test_faults emox_test_cuda
  build_beside tsan emox_test_parallel emox_test_faults emox_test_cuda
  # A failing disk fails in the same ways with another error, or again and again.
  disk='FailingDisk\.(NoSpaceOnce|AnErrorOnce|NoSpaceFromThenOn|AShortWrite$)'
  large='CheckpointCost|CheckpointScale|TrainResume\.(Stopped|Another)'
  sanitizer_tests asan '^(unit|ranks|emulated)$' "$large|$disk|$same"
  built tsan
  build_beside ci  # release, warnings are errors
  # A second's wait at the end of each of hundreds of programs adds up; 50 ms are left for races there.
  export TSAN_OPTIONS="suppressions='$PWD/tests/house/tsan.supp':atexit_sleep_ms=50"
  # What one thread does is not compiled (tests/CMakeLists.txt). A save in the background that fails has all threads there
  # are (TrainSaving), and training on nodes all stages of a sum (TrainAgain).
  one_thread='FailingDisk|FailingReplacement|TrainResume\.(Stopped|Another|TheSel)'
  one_thread+='|ThreadWorld\.(AddsUpNodesFirst|SixtyFour)|FreeTokensTraining\.EveryMesh'
  # Each kernel once: ThreadSanitizer takes twenty times as long over blocks of many threads (tests/emulated.sh runs all).
  many='GroupedOnDevice\.(Nt|Nn|Tn)|RouterTest\.(TopkBackward|ManyTokens|ScoresAndPools)|DispatchPlanTest\.(ManyRows|Plans)'
  many+='|AttentionTest\.(Documents|HeadsOfEvery)|DeviceTransports\.EveryCall'
  sanitizer_tests tsan '^(ranks|emulated)$' "$one_thread|$same|$many"
  built ci
fi
stage "all tests"
ctest --preset ci
