#!/usr/bin/env bash
# Everything that only a GPU can show, in one command, for a machine that has the CUDA Toolkit's libraries and a driver but
# none of emox's packages and no network.
#
#   tests/gpu.sh bundle [--build DIR] FILE.tar.zst   here: pack programs, tests, recipes, text and all libraries but glibc and CUDA
#   tests/gpu.sh run [RESULTS]                       there, in the unpacked folder: run all stages; results are files in RESULTS
#   tests/gpu.sh rehearse [--build DIR]              here, without a GPU: bundle, unpack into an empty root, start what starts
#
# --build: a build folder with the CUDA backend. Default: build/gpu, which `cmake --preset gpu` and `cmake --build --preset gpu`
# make. Stages run in the order correctness, bits, speed, each under its own limit; a stage that fails does not end the others.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() { sed -n '2,/^set /{/^# \{0,1\}/s///p}' "$here/gpu.sh"; }
fail() { echo "tests/gpu.sh: $*" >&2; exit 2; }

# ---- bundle ----

bundle() {
  local build=build/gpu file=
  while (($#)); do
    case $1 in
      --build) build=$2; shift 2 ;;
      *) file=$1; shift ;;
    esac
  done
  [[ -n $file ]] || fail "bundle: name the file, e.g. gpu.tar.zst"
  local program
  for program in launch/emox tests/emox_test_gpu tests/emox_test_gpu_golden; do
    [[ -x $build/$program ]] || fail "$build/$program is not there: cmake --preset gpu && cmake --build --preset gpu"
  done
  command -v zstd >/dev/null || fail "bundle: zstd is not installed"
  local stage
  stage=$(mktemp -d)
  local root=$stage/emox-gpu
  "$here/../launch/package.sh" --build "$build" --into "$root"
  mkdir -p "$root/tests"
  for program in emox_test_gpu emox_test_gpu_golden; do
    cp "$build/tests/$program" "$root/libexec/$program"
    strip --strip-debug "$root/libexec/$program"
    cp "$root/bin/emox" "$root/bin/$program"
  done
  # Real text, tokenized here; in pieces, of which some are held out.
  local label texts=()
  for label in GPL-2 GPL-3 MPL-2.0 GFDL-1.3; do
    [[ -f /usr/share/common-licenses/$label ]] || continue
    mkdir -p "$stage/text/$label"
    split -l 25 --additional-suffix=.txt "/usr/share/common-licenses/$label" "$stage/text/$label/part-"
    texts+=("$label=$stage/text/$label")
  done
  "$build/launch/emox" corpus --output "$root/share/text" --text "${texts[@]}" >/dev/null
  cp -r "$here/golden" "$root/tests/golden"
  cp "$here/gpu.sh" "$root/gpu.sh"
  date -u +"%Y-%m-%d" >"$root/made"
  tar -C "$stage" -c emox-gpu | zstd -q -9 -T0 -f -o "$file"
  rm -rf "$stage"
  echo "$file: $(($(stat -c %s "$file") / 1048576)) MiB"
}

# ---- environment of an unpacked bundle ----

use_bundle() {
  export PATH=$here/bin:$PATH OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  export EMOX_GOLDEN_DIR=$here/tests/golden EMOX_PROGRAM=$here/bin/emox EMOX_MPIRUN=$here/bin/mpirun
}

# ---- stages ----

declare -a table=()
# stage NAME SECONDS COMMAND...: its output goes to RESULTS/NAME.txt.
stage() {
  local name=$1 limit=$2 code=0 start=$SECONDS
  shift 2
  # Through this script once more: a limit can be set to a program only, and stages are functions of it.
  timeout -k 5 "$limit" bash "$here/gpu.sh" --stage "$results" "$@" >"$results/$name.txt" 2>&1 || code=$?
  local word="ok"
  ((code == 0)) || word="FAILED ($code)"
  ((code != 124 && code != 137)) || word="over $limit s"
  ((code != 77)) || word="left out: $(tail -n 1 "$results/$name.txt")"
  table+=("$(printf '%-24s %-16s %5s s   %s' "$name" "$word" $((SECONDS - start)) "$(tail -n 1 "$results/$name.txt" | cut -c1-90)")")
  echo "${table[-1]}"
}

# Tests by the names of their suites. Of the sanitizers' runs, which take many times as long, each kernel once.
whole_steps='*CudaTraining*:*CudaStep*:*CudaProgram*:DeviceProduct*-*OutOfMemory*'
one_rank='*DeviceTransports*nccl*'
shared_gpu='*DeviceTransports*staged*:*DeviceRanks*staged*:*CudaRanksProgram*'
own_gpus='*DeviceTransports*nccl*:*DeviceRanks*nccl*:*DeviceRanksWaits*'
ops="-${whole_steps/-/:}:$one_rank:$shared_gpu:$own_gpus"
memcheck_tests='*CudaBasic*/3:RouterTest.TopkOf*:RouterTest.Equal*:DispatchPlanTest.Contra*:GroupedOnDevice.Takes*'
memcheck_tests+=':AttentionTest.ADocument*:AttentionTest.NoTokens*:LmHeadOnDevice.TheLossAlone*:*CudaStep*/emo'
racecheck_tests='RouterTest.TopkOf*:RouterTest.PoolsOf*:DispatchPlanTest.RowsOfAny*:GroupedOnDevice.Takes*:AttentionTest.ADocument*'
racecheck_tests+=':AttentionTest.LargeScores*:LayersTest.*:LmHeadOnDevice.TheLossAlone*'

# A filter that selects nothing would pass.
selected() {
  local count
  count=$(emox_test_gpu --gtest_list_tests --gtest_filter="$1" | grep -c '^  ') || true
  ((count > 0)) || { echo "no test is called $1"; return 1; }
  echo "$count tests"
}
test_gpu() { selected "$1" && emox_test_gpu --gtest_brief=1 --gtest_filter="$1"; }
sanitize() {
  selected "$2" || return
  command -v compute-sanitizer >/dev/null || { echo "no compute-sanitizer here"; return 77; }
  compute-sanitizer --tool "$1" --error-exitcode 9 emox_test_gpu --gtest_brief=1 --gtest_filter="$2"
}

sources() { for f in "$here"/share/text/*/; do printf -- '--data.source=%s:1:%s ' "$(basename "$f")" "${f%/}"; done; }

# train NAME STEPS DEVICE PRECISION: the run is RESULTS/runs/NAME, the losses of its steps RESULTS/NAME.losses.
train() {
  rm -rf "$results/runs/$1" "$results/$1.losses"  # never what an earlier call left
  # shellcheck disable=SC2046  # one word a source
  emox train "$here/share/emox/recipes/tiny.ini" --run.dir="$results/runs/$1" --train.steps="$2" --run.device="$3" \
    --train.precision="$4" --train.warmup_steps=1 --checkpoint.every_steps=0 --eval.final=false $(sources)
  sed -n 's/.*"loss":\([^,]*\),.*/\1/p' "$results/runs/$1/metrics.jsonl" >"$results/$1.losses"
}

# near_the_cpu STEPS DEVICE PRECISION: so many steps stay within 1 % of the CPU's in f32, each step.
near_the_cpu() {
  train cpu "$1" cpu f32
  train other "$1" "$2" "$3"
  paste "$results"/{cpu,other}.losses | awk -v steps="$1" -v device="$2" '
    { d = ($2 - $1) / $1; if (d < 0) d = -d; if (d > worst) worst = d; last = $1 " on cpu, " $2 " on " device }
    END { printf "after %d steps %s; largest difference of a step %.3f %%\n", NR, last, 100 * worst; exit !(NR == steps && worst < 0.01) }'
}

# same_bits_twice STEPS DEVICE PRECISION
same_bits_twice() {
  train once "$@"
  train twice "$@"
  (($(grep -c . "$results/once.losses") == $1)) || { echo "$1 steps left other than $1 losses"; return 1; }
  cmp "$results"/{once,twice}.losses
  echo "$1 steps twice: the same losses, digit by digit"
}

# with_gpus NEEDED THERE COMMAND...
with_gpus() {
  local needed=$1 there=$2
  shift 2
  ((there >= needed)) || { echo "$there GPU(s) here, $needed are needed"; return 77; }
  "$@"
}

# Two ranks on one GPU over NCCL, which is told that they are on two hosts. Not supported by NCCL: it may fail.
two_on_one_gpu() {
  # shellcheck disable=SC2016  # the ranks' own numbers
  timeout -k 5 50 mpirun -n 2 --oversubscribe --bind-to none bash -c \
    'CUDA_VISIBLE_DEVICES=0 NCCL_HOSTID=host$OMPI_COMM_WORLD_RANK exec emox doctor --json' || { echo "NCCL does not do that here"; return 77; }
}

# Two ranks, a run that goes on with one.
ranks_of_the_bundle() {
  rm -rf "$results/runs/ranks"
  local arguments
  arguments=("$here/share/emox/recipes/tiny.ini" --run.dir="$results/runs/ranks" --train.steps=6 --train.warmup_steps=1
    --train.threads=1 --eval.final=false --run.device=cpu)
  # shellcheck disable=SC2046  # one word a source
  mpirun -n 2 --oversubscribe --bind-to none emox train "${arguments[@]}" --run.stop_after_step=3 $(sources)
  # shellcheck disable=SC2046
  emox train "${arguments[@]}" $(sources)
  (($(grep -c . "$results/runs/ranks/metrics.jsonl") == 6)) || { echo "6 steps left another number of lines"; return 1; }
  echo "3 steps on 2 ranks, 3 more on one"
}

run_stages() {
  results=${1:-results}
  mkdir -p "$results"
  results=$(cd "$results" && pwd)
  use_bundle
  stage doctor 60 emox doctor
  stage doctor_json 60 emox doctor --json
  stage tests_golden 240 emox_test_gpu_golden --gtest_brief=1
  stage tests_ops 300 test_gpu "$ops"
  stage tests_training 240 test_gpu "$whole_steps"
  stage memcheck 200 sanitize memcheck "$memcheck_tests"
  stage racecheck 200 sanitize racecheck "$racecheck_tests"
  stage near_the_cpu 180 near_the_cpu 200 cuda bf16
  stage same_bits_twice 90 same_bits_twice 20 cuda bf16
  stage nccl_one_rank 120 test_gpu "$one_rank"
  stage ranks_share_a_gpu 300 test_gpu "$shared_gpu"
  local gpus
  gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c . || true)
  stage own_gpus 300 with_gpus 2 "$gpus" test_gpu "$own_gpus"
  stage links 90 with_gpus 2 "$gpus" mpirun -n "$gpus" --bind-to none emox doctor --json
  stage nccl_hostid 60 two_on_one_gpu
  stage bench_ops 120 emox bench ops --run.device=cuda
  stage bench_step_small 90 emox bench step --preset=small --run.device=cuda
  stage bench_step_block 240 emox bench step --preset=emo-1b14b-block --run.device=cuda
  {
    echo "emox on $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null || echo 'no GPU'), $(date -u +%F)"
    printf '%s\n' "${table[@]}"
  } | tee "$results/table.txt"
  all_ok
}
all_ok() { ! printf '%s\n' "${table[@]}" | grep -qE ' (FAILED|over) '; }

# What of it can run here, through the same stages: all but the device.
run_without_device() {
  results=/tmp/results
  mkdir -p "$results"
  use_bundle
  stage doctor 60 emox doctor
  local filter
  for filter in "$ops" "$whole_steps" "$memcheck_tests" "$racecheck_tests" "$one_rank" "$shared_gpu" "$own_gpus"; do stage selected 60 selected "$filter"; done
  stage near_the_cpu 100 near_the_cpu 5 cpu f32
  stage same_bits_twice 100 same_bits_twice 5 cpu f32
  stage ranks_of_the_bundle 100 ranks_of_the_bundle
  all_ok || { cat "$results"/*.txt; return 1; }
  stage fails 60 near_the_cpu 2 cuda bf16
  ! all_ok || { echo "a stage without a device passed"; return 1; }
  grep 'run.device = cuda' "$results/fails.txt"
  echo "rehearsed: the bundle runs on the CPU in an empty root, and says that there is no device"
}

# ---- rehearsal without a GPU ----

# An empty root with glibc and a shell: nothing of what is installed here can be used by accident.
rehearse() {
  local build=build/gpu
  [[ ${1-} != --build ]] || build=$2
  [[ -x $build/tests/emox_test_gpu ]] || { echo "$build has no CUDA backend (no nvcc, or EMOX_CUDA=OFF): left out"; exit 77; }
  ((EUID == 0)) || { echo "a root of its own needs root: left out"; exit 77; }
  local root
  root=$(mktemp -d)
  trap 'rm -rf "$root"' RETURN
  bundle --build "$build" "$root/bundle.tar.zst"
  # What users get is a part of it.
  "$here/../launch/package.sh" --build "$build" "$root/emox.tar.zst"
  (($(stat -c %s "$root/emox.tar.zst") <= 60 * 1048576)) || fail "the package is larger than 60 MiB"
  mkdir -p "$root"/{usr/bin,usr/lib/x86_64-linux-gnu,lib64,tmp,dev,proc,cuda/lib64}
  ln -s usr/bin "$root/bin"
  ln -s usr/lib "$root/lib"
  ln -s bash "$root/usr/bin/sh"
  local program library
  for program in bash env rm timeout cut tail dirname basename mkdir date sed awk mawk paste cmp sleep cat tee grep; do
    local path
    path=$(command -v "$program" || true)
    [[ -n $path ]] || continue
    cp -L "$path" "$root/usr/bin/$program"
    while read -r library; do cp -Ln "$library" "$root/usr/lib/x86_64-linux-gnu"; done < <(
      ldd "$path" 2>/dev/null | awk '$3 ~ /^\// { print $3 }')
  done
  for library in libc libm libdl libpthread librt libresolv libnss_files; do
    cp -L "/lib/x86_64-linux-gnu/$library".so.* "$root/usr/lib/x86_64-linux-gnu" 2>/dev/null || true
  done
  cp -L /lib64/ld-linux-x86-64.so.2 "$root/lib64"
  # CUDA's libraries are on such a machine; its driver is not here.
  for library in $(ldd "$build/launch/emox" | awk '$3 ~ /libcu(dart|blas|blasLt)\.so/ { print $3 }'); do
    cp -L "$library" "$root/cuda/lib64"
  done
  for program in null zero urandom; do cp -a "/dev/$program" "$root/dev" 2>/dev/null || true; done
  tar -C "$root" -x --zstd -f "$root/bundle.tar.zst"
  chroot "$root" /usr/bin/env -i HOME=/tmp CUDA_HOME=/cuda PATH=/usr/bin bash /emox-gpu/gpu.sh --without-device
}

case ${1-} in
  bundle) shift; bundle "$@" ;;
  run) shift; run_stages "$@" ;;
  rehearse) shift; rehearse "$@" ;;
  --without-device) run_without_device ;;
  --stage) results=$2; shift 2; use_bundle; "$@" ;;
  -h | --help) usage ;;
  *) usage >&2; exit 2 ;;
esac
