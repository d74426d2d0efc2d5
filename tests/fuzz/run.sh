#!/usr/bin/env bash
# run.sh [RUNS] [LIBFUZZER-OPTION...]: searches for manifests that do anything but load or be refused, with libFuzzer,
# AddressSanitizer and UndefinedBehaviorSanitizer; 1000000 inputs unless RUNS says otherwise. Prints libFuzzer's summary;
# an input that crashes, hangs or takes much memory is left in build/fuzz/ and makes the exit code 1. What was interesting
# stays in build/fuzz/corpus and is built on by the next run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
runs=${1:-1000000}
shift || true

compiler=
for name in clang++-14 clang++; do
  if [[ -z $compiler ]] && command -v "$name" >/dev/null; then compiler=$name; fi
done
if [[ -z $compiler ]]; then
  echo "run.sh: needs clang with libFuzzer, on Debian: apt-get install clang" >&2
  exit 2
fi

mkdir -p build/fuzz/objects build/fuzz/corpus
read -ra compile <<<"$compiler -std=c++20 -O2 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined \
  -fno-sanitize-recover=all -fsanitize-coverage=inline-8bit-counters,pc-table -DOMPI_SKIP_MPICXX -I. -include tests/fuzz/source_location.h \
  $(pkg-config --cflags hdf5-openmpi ompi-c libxxhash fmt gtest)"
read -ra link <<<"$compiler -fsanitize=fuzzer,address,undefined"
read -ra libraries <<<"$(pkg-config --libs hdf5-openmpi ompi-c libxxhash fmt gtest) -pthread"
if command -v ccache >/dev/null; then compile=(ccache "${compile[@]}"); fi

sources=(parallel/checkpoint/*.cpp parallel/comm/*.cpp runtime/core/*.cpp runtime/telemetry/*.cpp runtime/rng/*.cpp
  runtime/{ops,cpu}/basic.cpp
  tests/support/checkpoints.cpp tests/support/ranks.cpp tests/support/support.cpp tests/fuzz/*.cpp)
objects=()
for source in "${sources[@]}"; do objects+=("build/fuzz/objects/${source//\//-}.o"); done
echo "building ${#sources[@]} files with $compiler"
for i in "${!sources[@]}"; do printf '%s\0%s\0' "${objects[i]}" "${sources[i]}"; done |
  xargs -0 -n 2 -P "${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}" "${compile[@]}" -c -o
"${link[@]}" -o build/fuzz/manifest_fuzz "${objects[@]}" "${libraries[@]}"

# 256 bytes reach every edit: deep nesting and long texts are made by single bytes. The limits of memory are for the
# process and for one allocation. The rest is speed: comparisons within JSON teach the fuzzer nothing, short stacks will do.
export UBSAN_OPTIONS=print_stacktrace=1 ASAN_OPTIONS=malloc_context_size=4:quarantine_size_mb=32
build/fuzz/manifest_fuzz -runs="$runs" -max_len=256 -timeout=10 -rss_limit_mb=1024 -malloc_limit_mb=64 -entropic=0 \
  -artifact_prefix=build/fuzz/ -print_final_stats=1 "$@" build/fuzz/corpus
