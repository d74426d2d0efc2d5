#!/usr/bin/env bash
# expect_failure.sh SECONDS TEXT COMMAND...: the command must end by itself within SECONDS, fail (with EXPECTED_CODE, if
# that is set), and print TEXT, a pattern that may span lines.
seconds=$1 text=$2
shift 2
SECONDS=0
output=$(timeout --kill-after=5 "$seconds" "$@" 2>&1)
code=$?
printf '%s\n[exit code %d after %d s]\n' "$output" "$code" "$SECONDS"
(( SECONDS < seconds )) || { echo "FAILED: still running after $seconds s"; exit 1; }
[[ $code -ne 0 ]] || { echo "FAILED: it ended with success"; exit 1; }
[[ $code -eq ${EXPECTED_CODE:-$code} ]] || { echo "FAILED: not exit code $EXPECTED_CODE"; exit 1; }
grep -qzE -- "$text" <<<"$output" || { echo "FAILED: nothing matches: $text"; exit 1; }
