#!/usr/bin/env bash
# shell.sh: shellcheck over every script; exit code 77 where it is not installed. Its notes on style are not asked for.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
command -v shellcheck >/dev/null || { echo "shell.sh: shellcheck is not installed: nothing is looked at"; exit 77; }
mapfile -t files < <(find .ci/run launch slurm tests \( -name '*.sh' -o -name run \) -type f | sort)
shellcheck --severity=warning "${files[@]}"
