#!/usr/bin/env bash
# expect_failure.sh SECONDS TEXT COMMAND...: the command must end by itself within SECONDS, fail, and print TEXT.
seconds=$1 text=$2
shift 2
SECONDS=0
output=$(timeout --kill-after=5 "$seconds" "$@" 2>&1)
code=$?
printf '%s\n[exit code %d]\n' "$output" "$code"
(( SECONDS < seconds )) || { echo "FAILED: still running after $seconds s"; exit 1; }
[[ $code -ne 0 ]] || { echo "FAILED: it ended with success"; exit 1; }
grep -qE -- "$text" <<<"$output" || { echo "FAILED: no line matches: $text"; exit 1; }
