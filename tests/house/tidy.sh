#!/usr/bin/env bash
# clang-tidy 14 with the checks of .clang-tidy; exit code 1 when it finds something, 77 where it is not installed.
#
#   tests/house/tidy.sh [--all | FILE...]
#
# Without arguments: what the last commits and the working tree changed, and a share of the rest that moves on with every
# commit, together at most 24 source files: a minute or two on 2 cores. A header is looked at through the source file of its
# name, or one that includes it. --all: every file of every room (half an hour). Needs a configured build: cmake --preset ci.
# TIDY_BUILD: its directory, when not the first there is of build/{ci,release,dev}. TIDY_JOBS: how many run at a time (number
# of cores).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
root=$PWD

most=24        # source files without --all
commits=10     # of which the changes count
rooms='runtime|parallel|model|data|launch|tests'
together=24    # files of one library are read as one: most of the time goes into the headers, which are then read once

say() { echo "tidy.sh: $*"; }
case ${1-} in
  -h | --help) sed -n '2,/^set /{/^# \{0,1\}/s///p}' tests/house/tidy.sh; exit 0 ;;
  --all) all=true; shift ;;
  -*) say "unknown argument $1; there is --all" >&2; exit 2 ;;
  *) all=false ;;
esac
tidy=$(command -v clang-tidy-14) || { say "clang-tidy-14 is not installed: nothing is looked at"; exit 77; }
build=${TIDY_BUILD-}
for directory in build/{ci,release,dev}; do
  if [[ -z $build && -f $directory/compile_commands.json ]]; then build=$directory; fi
done
if [[ ! -f $build/compile_commands.json ]]; then
  say "there is no ${build:-build/ci}/compile_commands.json: cmake --preset ci makes it" >&2
  exit 2
fi

# How each file is compiled. Of the compiler's flags, clang gets those that say what the code means.
declare -A flags_of=() header_of=()
words=()
while IFS= read -r command && IFS= read -r file; do
  eval "words=($command)"
  flags=
  header=
  for ((i = 0; i < ${#words[@]}; i++)); do
    case ${words[i]} in
      -D* | -I* | -std=* | -march=*) flags+=" ${words[i]@Q}" ;;
      -isystem) flags+=" -isystem ${words[++i]@Q}" ;;
      -include) header=${words[++i]} ;;
    esac
  done
  flags_of[${file#"$root/"}]=$flags
  header_of[${file#"$root/"}]=$header
done < <(sed -nE 's/^ *"(command|file)": "(.*)",?$/\2/p' "$build/compile_commands.json" | sed 's/\\\(.\)/\1/g')

# Not the emulator of CUDA, whose names, parameters and casts are CUDA's and the machine's.
sources() { printf '%s\n' "${!flags_of[@]}" | grep -E "^($rooms)/" | grep -v '/cuda_emulator/' | LC_ALL=C sort; }
mapfile -t every < <(sources)

# source_of FILE: what to read so that FILE is read; nothing if there is none.
source_of() {
  local as_source=${1%.*}.cpp
  if [[ -n ${flags_of[$1]-} ]]; then
    echo "$1"
  elif [[ $1 == *.h && -n ${flags_of[$as_source]-} ]]; then
    echo "$as_source"
  elif [[ $1 == *.h ]]; then
    { grep -lF "#include \"$1\"" "${every[@]}" || true; } | head -n 1
  fi
}

chosen=()
declare -A is_chosen=()
choose() {
  local source
  source=$(source_of "$1")
  if [[ -z $source || -n ${is_chosen[$source]-} ]]; then return; fi
  is_chosen[$source]=1
  chosen+=("$source")
}
if $all; then
  chosen=("${every[@]}")
elif (($# > 0)); then
  for file in "$@"; do
    file=${file#"$root/"}
    choose "${file#./}"
  done
  if ((${#chosen[@]} == 0)); then
    say "no source file of the project among: $*" >&2
    exit 2
  fi
else
  # Newest first. A clone without that history gives nothing here, and the share decides alone.
  changed() {
    git ls-files --modified --others --exclude-standard
    git log -n "$commits" --first-parent --format= --name-only
  }
  number=$(git rev-list --count --first-parent HEAD 2>/dev/null || echo 0)
  while read -r file; do
    if ((${#chosen[@]} < most * 2 / 3)); then choose "$file"; fi
  done < <(changed 2>/dev/null | grep -E "^($rooms)/.*\.(cpp|h)$" | grep -v '/cuda_emulator/' | awk '!seen[$0]++')
  for ((i = 0; i < ${#every[@]} && ${#chosen[@]} < most; i++)); do
    choose "${every[(number * (most / 3) + i) % ${#every[@]}]}"
  done
fi

# Files with the same flags, some at a time: UNIT.flags, UNIT.header, UNIT.files.
work=$(mktemp -d "$build/tidy-XXXXXX")
trap 'rm -rf "$work"' EXIT
units=()
declare -A open_unit=() held=()
for file in "${chosen[@]}"; do
  key="${flags_of[$file]} ${header_of[$file]}"
  if [[ -z ${open_unit[$key]-} || ${held[$key]} -ge $together ]]; then
    open_unit[$key]=$work/unit-${#units[@]}
    units+=("${open_unit[$key]}")
    held[$key]=0
    printf '%s' "${flags_of[$file]}" >"${open_unit[$key]}.flags"
    printf '%s\n' tests/fuzz/source_location.h ${header_of[$file]:+"${header_of[$file]}"} >"${open_unit[$key]}.header"
  fi
  echo "$file" >>"${open_unit[$key]}.files"
  held[$key]=$((held[$key] + 1))
done
say "${#chosen[@]} of ${#every[@]} source files"

# look UNIT: prints what is found. Files that are no program together, because they use the same names, are read in two halves.
look() {
  local flags files half checks
  eval "flags=($(<"$1.flags"))"
  flags+=("-I$root")  # for the header above, also where a file includes nothing of the project
  mapfile -t files <"$1.files"
  cat "$1.header" "$1.files" | sed 's|.*|#include "&"|' >"$1.cpp"
  # Included sources are how it is done; tests/faults/ names the parameters of the C library's functions its own way.
  checks=-bugprone-suspicious-include
  if grep -q '^tests/faults/' "$1.files"; then checks+=,-readability-inconsistent-declaration-parameter-name; fi
  if ! "$tidy" --quiet --config-file="$root/.clang-tidy" --checks="$checks" \
    --header-filter="^$root/($rooms)/" "$1.cpp" -- "${flags[@]}" >"$1.found" 2>"$1.errors"; then
    if ((${#files[@]} > 1)) && grep -q '\[clang-diagnostic-error' "$1.found"; then
      half=$((${#files[@]} / 2))
      printf '%s\n' "${files[@]:0:half}" >"$1a.files"
      printf '%s\n' "${files[@]:half}" >"$1b.files"
      for half in a b; do
        cp "$1.flags" "$1$half.flags"
        cp "$1.header" "$1$half.header"
        look "$1$half"
      done
      return
    fi
    if [[ -s $1.found ]]; then sed "s|$root/||g" "$1.found"; else cat "$1.errors"; fi
    touch "$work/failed"
  fi
}
export -f look
export tidy root work rooms
# A header's finding comes once for each unit that reads it: said once.
declare -A said=()
show=true
while IFS= read -r line; do
  if [[ $line == *": error: "* ]]; then
    if [[ -z ${said[$line]-} ]]; then show=true; else show=false; fi
    said[$line]=1
  fi
  if $show; then printf '%s\n' "$line"; fi
done < <(printf '%s\0' "${units[@]}" | xargs -0 -P "${TIDY_JOBS:-$(nproc)}" -I{} bash -c 'look {}')
if [[ -f $work/failed ]]; then
  say "this is what .clang-tidy asks for; a check that is wrong is switched off there, with the reason"
  exit 1
fi
