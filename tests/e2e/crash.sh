#!/usr/bin/env bash
# crash.sh [BUILD] [KILLS]: kills a run with sharded experts 200 times, starts it again each time, and compares how it ends
# with a run that was left alone; prints where each kill fell and from where the run went on. BUILD: build/ci.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
EMOX_CRASH_KILLS=${2:-200} exec "${1:-build/ci}/tests/emox_test_e2e" --gtest_filter='Crash.*'
