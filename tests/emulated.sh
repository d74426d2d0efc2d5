#!/usr/bin/env bash
# The CUDA backend on the emulator, all of it: every test of label `emulated` in the release build, under AddressSanitizer and
# under ThreadSanitizer, the last with several seeds, which order threads, blocks and streams in other ways. CI runs a part.
#
#   tests/emulated.sh [--seeds N]     N: 3
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seeds=3
while (($#)); do
  case $1 in
    --seeds) seeds=$2; shift 2 ;;
    -h | --help) sed -n '2,/^set /{/^# \{0,1\}/s///p}' tests/emulated.sh; exit 0 ;;
    *) echo "tests/emulated.sh: unknown argument $1; there is only --seeds" >&2; exit 2 ;;
  esac
done

cores=$(nproc)
export CTEST_PARALLEL_LEVEL=${CTEST_PARALLEL_LEVEL:-$cores}
for preset in ci asan tsan; do
  echo "==> [$SECONDS s] $preset"
  cmake --preset "$preset" -B "build/$preset-emulated" -DEMOX_SANITIZE_ALL=ON
  cmake --build "build/$preset-emulated" -j "$cores" --target emox_test_cuda emox_test_cuda_golden emox_emulated
  export TSAN_OPTIONS="suppressions='$PWD/tests/house/tsan.supp':atexit_sleep_ms=50"
  for ((seed = 1; seed <= seeds; ++seed)); do
    [[ $preset == tsan || $seed -eq 1 ]] || continue
    EMOX_EMULATOR_SEED=$seed ctest --test-dir "build/$preset-emulated" --output-on-failure -L emulated
    [[ $preset != ci ]] || build/ci-emulated/tests/emox_test_cuda_golden --gtest_brief=1 --gtest_filter=*Trajectory*
  done
done
echo "==> [$SECONDS s] done"
