#!/usr/bin/env bash
# check.sh [ROOT]: the house rules that grep can decide, over the tree at ROOT. Prints FILE:LINE: what is wrong, one a line;
# exit code 1 if there is any.
# check.sh --self-test: makes trees with one violation each and checks that it is reported.
set -euo pipefail
export LC_ALL=C

# Which rooms a room may include.
declare -A may_include=(
  [runtime]="runtime"
  [parallel]="runtime parallel"
  [model]="runtime parallel model"
  [data]="runtime data"
  [launch]="runtime parallel model data launch"
  [tests]="runtime parallel model data launch tests"
)
# Which folders of launch/ one of them may include, besides itself: what a command needs is below it.
declare -A may_include_in_launch=(
  [config]=""
  [run]="config"
  [analysis]="config run"
  [plan]="config run"
  [bench]="config run plan"
  [checkpoint_tool]="config run"
  [job_script]="config run"
  [commands]="config run analysis plan bench checkpoint_tool job_script"
)
max_lines=400

# files DIRECTORY PATTERN...: files below DIRECTORY whose names match, without what is built or made.
files() {
  local directory=$1 names=() pattern
  shift
  for pattern in "$@"; do names+=(-o -name "$pattern"); done
  [[ -d $directory ]] || return 0
  find "$directory" \( -name build -o -name corpus -path './corpus' -o -name runs -path './runs' -o -name .git \) -prune \
    -o -type f \( "${names[@]:1}" \) -print | sed 's|^\./||' | sort
}
sources() { files "$1" '*.cpp' '*.h' '*.cu' '*.cuh'; }

# report WHAT PATTERN FILES...: every line that matches is a violation.
report() {
  local what=$1 pattern=$2
  shift 2
  if (($# == 0)); then return; fi
  { grep -nHE -- "$pattern" "$@" || true; } | sed -E "s|^([^:]*:[0-9]+):.*|\1: $what|"
}

check_directions() {
  local room list allowed
  for room in "${!may_include[@]}"; do
    mapfile -t list < <(sources "$room")
    if ((${#list[@]} == 0)); then continue; fi
    allowed=${may_include[$room]// /|}
    { grep -nHE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' "${list[@]}" || true; } |
      { grep -vE "include[[:space:]]*\"($allowed)/[^.]" || true; } |
      sed -E "s/^([^:]*:[0-9]+):.*include *(\"[^\"]*\").*/\1: $room may not include \2 (may: ${may_include[$room]}; from the project's root)/"
  done
}

check_directions_in_launch() {
  local folder list allowed
  for folder in "${!may_include_in_launch[@]}"; do
    mapfile -t list < <(sources "launch/$folder")
    if ((${#list[@]} == 0)); then continue; fi
    allowed="$folder ${may_include_in_launch[$folder]}"
    allowed=${allowed% }
    { grep -nHE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"launch/' "${list[@]}" || true; } |
      { grep -vE "include[[:space:]]*\"launch/(${allowed// /|})/" || true; } |
      sed -E "s#^([^:]*:[0-9]+):.*include *(\"[^\"]*\").*#\1: launch/$folder may not include \2#"
  done
}

# only_in WHAT HEADERS ALLOWED: system headers that belong to some folders only; both are patterns.
only_in() {
  local list
  mapfile -t list < <(for room in "${!may_include[@]}"; do sources "$room"; done | { grep -vE "$3" || true; })
  report "$1" "^[[:space:]]*#[[:space:]]*include[[:space:]]*[<\"]($2)" "${list[@]}"
}

check_tensor_memory() {
  local list
  mapfile -t list < <({ sources model; sources parallel; } | { grep -vE '^parallel/(comm|checkpoint)/' || true; })
  report "only ops, parallel/comm and parallel/checkpoint touch tensor memory" '(\.|->)(template )?data<' "${list[@]}"
}

# What begins with std:: may be a floating-point number.
check_casts() {
  local list
  mapfile -t list < <(for room in "${!may_include[@]}"; do sources "$room"; done | { grep -v '^runtime/core/idx\.h$' || true; })
  report "an integer is idx(...) where unsigned sizes are wanted" 'static_cast<std::size_t>\(([^s]|s[^t]|st[^d]|std[^:])' "${list[@]}"
}

check_sizes() {
  local room file lines
  for room in "${!may_include[@]}"; do
    while read -r file; do
      lines=$(wc -l <"$file")
      if ((lines > max_lines)); then echo "$file:$lines: more than $max_lines lines"; fi
    done < <(sources "$room")
  done
}

check_words() {
  local list
  mapfile -t list < <(files . '*')
  # The character classes keep this file from reporting itself.
  report "unfinished: do it or open an issue" '\b(TO[D]O|FIX[M]E)\b' "${list[@]}"
  report "a path of somebody's machine" '(^|[^A-Za-z0-9_.~/-])/(work|home|root|srv|Users)/' "${list[@]}"
}

# Files that a README names exist: below its folder, or from the root. A name without a folder may lie deeper.
check_named_files() {
  local readme line name folder all file found
  mapfile -t all < <(files . '*')
  while read -r readme; do
    folder=$(dirname "$readme")/
    folder=${folder#./}
    while IFS=: read -r line name; do
      name=${name//\`/}
      found=false
      for file in "${all[@]}"; do
        # shellcheck disable=SC2053  # a name may be a pattern
        if [[ $file == $name || ($file == "$folder"* && /$file == */$name) ]]; then found=true && break; fi
      done
      $found || echo "$readme:$line: there is no $name"
    done < <(grep -noE '`[A-Za-z0-9_./*-]+\.(h|cpp|sh|md|\*)`' "$readme" || true)
    # Pictures and links to files.
    while IFS=: read -r line name; do
      name=${name#*[\"(]}
      name=${name%[\")]}
      [[ $name == *://* || -f $folder$name ]] || echo "$readme:$line: there is no $name"
    done < <(grep -noE 'src="[^"]+"|\]\([^)# ]+\)' "$readme" || true)
  done < <(files . README.md)
}

check_tree() {
  cd "$1"
  check_named_files
  check_directions
  check_directions_in_launch
  # And the test that counts the messages below it.
  only_in "<mpi.h> belongs in parallel/comm" 'mpi\.h' '^(parallel/comm/[^/]*$|tests/parallel/mpi_messages\.cpp$)'
  only_in "<nccl.h> belongs in parallel/comm/nccl" 'nccl\.h' '^(parallel/comm/nccl/|tests/support/cuda_emulator/|tests/cuda/emulator_nccl)'
  only_in "<hdf5.h> belongs in parallel/checkpoint" '(hdf5|H5[A-Za-z0-9_]*)\.h' '^parallel/checkpoint/'
  only_in "CUDA headers belong in a cuda/ folder" '(cuda|cublas|cudnn|cub/|nvtx|cooperative_groups|mma\.h)' '/cuda(_emulator)?/'
  check_tensor_memory
  check_casts
  check_sizes
  check_words
}

# expect TEXT FILE CONTENT: a tree that holds this one file beside good ones must be reported with exactly one line.
expect() {
  local tree out
  tree=$(mktemp -d -p "$scratch")
  mkdir -p "$tree/model" "$tree/build" "$tree/$(dirname "$2")"
  printf '#include "runtime/core/tensor.h"\n#include <vector>\n' >"$tree/model/good.cpp"
  printf '#include "launch/nowhere.h"\n' >"$tree/build/made.cpp"
  out=$(check_tree "$tree")
  if [[ -n $out ]]; then echo "FAILED: a clean tree gives: $out"; failed=1; fi
  printf '%b' "$3" >"$tree/$2"
  out=$(check_tree "$tree")
  if [[ $(wc -l <<<"$out") != 1 || $out != "$2:"*"$1"* ]]; then
    echo "FAILED: $2 should give one line with '$1', but gives: ${out:-nothing}"
    failed=1
  fi
}
# accept FILE CONTENT: must not be reported.
accept() {
  local tree out
  tree=$(mktemp -d -p "$scratch")
  mkdir -p "$tree/$(dirname "$1")"
  printf '%b' "$2" >"$tree/$1"
  out=$(check_tree "$tree")
  if [[ -n $out ]]; then echo "FAILED: $1 should be accepted, but gives: $out"; failed=1; fi
}

self_test() {
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  failed=0
  local room_below word="TO" path="/ho"
  for room_below in 'runtime parallel' 'runtime model' 'runtime data' 'runtime launch' 'parallel model' 'parallel data' \
    'parallel launch' 'model data' 'model launch' 'data parallel' 'data model' 'data launch' 'launch tests' 'runtime tests'; do
    # shellcheck disable=SC2086  # two words
    set -- $room_below
    expect "$1 may not include" "$1/x/y.h" "#pragma once\n  #  include \"$2/x/y.h\"\n"
  done
  for room_below in 'config run' 'run analysis' 'run bench' 'analysis plan' 'checkpoint_tool commands' 'plan bench'; do
    # shellcheck disable=SC2086  # two words
    set -- $room_below
    expect "launch/$1 may not include" "launch/$1/x/y.h" "#include \"launch/$2/x.h\"\n"
  done
  accept launch/commands/x.cpp '#include "launch/bench/x.h"\n#include "launch/commands/y.h"\n#include "model/x.h"\n'
  expect "from the project's root" model/moe/x.cpp '#include "router.h"\n'
  expect "from the project's root" model/moe/x.cpp '#include "../launch/x.h"\n'
  expect "belongs in parallel/comm" tests/parallel/x.cpp '#include <mpi.h>\n'
  expect "belongs in parallel/comm/nccl" parallel/comm/x.h '#include <nccl.h>\n'
  expect "belongs in parallel/checkpoint" parallel/comm/x.cpp '#include <hdf5.h>\n'
  expect "cuda/ folder" runtime/core/x.cpp '#include <cuda_runtime.h>\n'
  expect "cuda/ folder" runtime/cpu/x.cu '#include <cublasLt.h>\n'
  expect "tensor memory" model/moe/x.cpp 'float* p = view.data<float>();\n'
  expect "tensor memory" parallel/expert/x.cpp 'auto p = t->data<T>();\n'
  expect "idx(...)" data/x.cpp 'return v[static_cast<std::size_t>(step)];\n'
  expect "more than $max_lines lines" data/x.cpp "$(printf '//\\n%.0s' $(seq $((max_lines + 1))))"
  expect "unfinished" launch/x.cpp "// ${word}DO: later\n"
  expect "unfinished" notes.md "FIX""ME\n"
  expect "somebody's machine" launch/x.sh "cd ${path}me/me/emox\n"
  expect "there is no moe/gone.h" model/README.md 'See `good.cpp`, `good.*` and `model/good.cpp`\nand `moe/gone.h`.\n'
  expect "there is no gone.svg" model/README.md '![x](good.cpp)\n<img src="gone.svg" width="1">\n[y](https://x.org/z)\n'
  expect "there is no moe/gone.svg" model/README.md '[y](#part) ![x](moe/gone.svg)\n'
  accept model/README.md 'See `README.md` and `std::x.y`.\n'
  accept parallel/comm/mpi.cpp '#include <mpi.h>\n#include "parallel/comm/mpi_support.h"\n'
  accept tests/parallel/mpi_messages.cpp '#include <mpi.h>\n'
  accept parallel/comm/nccl/x.h '#include <nccl.h>\n'
  accept parallel/checkpoint/x.cpp '#include <hdf5.h>\nauto p = t.data<float>();\n'
  accept runtime/cuda/x.cu '#include <cuda_runtime.h>\n#include <cublasLt.h>\n'
  accept runtime/cpu/x.cpp 'const float* p = x.data<float>();\n'
  accept model/moe/x.cpp '// <mpi.h> is for parallel/comm\nauto p = ids.data();\n'
  accept data/x.cpp 'const auto n = static_cast<std::size_t>(std::ceil(x));\n'
  accept launch/x.cpp "$(printf '//\\n%.0s' $(seq $max_lines))"
  accept README.md "see ro""ot/ and https://example.org${path}me/page\n"
  if ((failed == 0)); then echo "every violation is reported"; fi
  return "$failed"
}

if [[ ${1-} == --self-test ]]; then
  self_test
else
  found=$(check_tree "${1:-$(dirname "${BASH_SOURCE[0]}")/../..}")
  if [[ -n $found ]]; then
    printf '%s\n' "$found"
    exit 1
  fi
fi
