#!/usr/bin/env bash
# format.sh [--fix]: the C++ files that are not as .clang-format wants them; with --fix, formats them. Exit code 77 where
# Debian 12's clang-format is not installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
format=$(command -v clang-format-14) || { echo "format.sh: clang-format-14 is not installed: nothing is looked at"; exit 77; }
mapfile -t files < <(find runtime parallel model data launch tests \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) | sort)
if [[ ${1-} == --fix ]]; then exec "$format" -i "${files[@]}"; fi
failed=0
for file in "${files[@]}"; do
  "$format" --dry-run -Werror "$file" 2>/dev/null || { echo "$file is not formatted"; failed=$((failed + 1)); }
done
if ((failed > 0)); then
  echo "$failed files; tests/house/format.sh --fix formats them"
  exit 1
fi
