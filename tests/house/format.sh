#!/usr/bin/env bash
# format.sh CLANG_FORMAT ROOT [--fix]: the C++ files that are not as .clang-format wants them; with --fix, formats them.
set -euo pipefail
cd "$2"
mapfile -t files < <(find runtime parallel model data launch tests \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) | sort)
if [[ ${3-} == --fix ]]; then exec "$1" -i "${files[@]}"; fi
failed=0
for file in "${files[@]}"; do
  "$1" --dry-run -Werror "$file" 2>/dev/null || { echo "$file is not formatted"; failed=$((failed + 1)); }
done
if ((failed > 0)); then
  echo "$failed files; tests/house/format.sh $1 . --fix formats them"
  exit 1
fi
