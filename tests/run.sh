#!/usr/bin/env bash
# Installs what is missing, builds with warnings as errors, and runs every test; the exit code says whether all passed.
#
#   tests/run.sh [--quick]
#
# First the sanitizer sets: AddressSanitizer and UndefinedBehaviorSanitizer over what handles memory and files,
# ThreadSanitizer over ranks as threads. Then the whole suite, built as users build it; its summary is the last output.
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

# sanitizer_set PRESET LABELS EXCLUDED TARGET...: builds these test executables and runs their tests. The longest ones, which
# repeat in fifty steps or eight meshes what others do in a few, are left to the whole suite, and so are those that measure the
# memory of the process.
sanitizer_set() {
  local preset=$1 labels=$2 excluded=$3
  shift 3
  stage "build for $preset"
  cmake --preset "$preset" "${configure[@]}"
  cmake --build --preset "$preset" --target "$@"
  stage "tests under $preset"
  ctest --preset "$preset" -L "$labels" -E "^house\.|FiftyStepsAgree|ManyStepsAgree|AChainOfMeshes|TheSameMeshGoesOn|$excluded"
}

stage "packages"
launch/packages.sh --tests
if ! $quick; then
  sanitizer_set asan '^(unit|ranks)$' CheckpointCost emox_test_runtime emox_test_model emox_test_data \
    emox_test_parallel emox_test_faults
  export TSAN_OPTIONS="suppressions='$PWD/tests/house/tsan.supp'"
  # Not what repeats one thread's work thousands of times. Failing disks: a save in the background has all threads there are.
  one_thread='CheckpointCost|WarmStart|DamageTable\.EveryByte|ManifestFuzz|CheckpointScale'
  one_thread+='|FailingDisk\.(Sees|Every|NoSpace(Once|From)|AnError|AShort|Read|Repl)'
  sanitizer_set tsan '^ranks$' "$one_thread" emox_test_parallel emox_test_faults
fi
stage "build (release, warnings are errors)"
cmake --preset ci "${configure[@]}"
cmake --build --preset ci
stage "all tests"
ctest --preset ci
