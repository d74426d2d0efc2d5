#!/usr/bin/env bash
# long.sh EMOX [SCRATCH]: the checks that take too long or need too much for ctest; minutes on two cores.
# 1. A disk that is really full (a small tmpfs; needs root), in the middle of a save.
# 2. 400 steps of `tiny` on the quickstart corpus on 1, 2, 3 and 4 ranks: the first 50 losses agree (design 4.6), the last
#    50 agree on average (once a token has picked another expert at a near tie, runs drift apart), repeated runs are identical.
# 3. Ten signals at random moments of one run: its history is that of a run never stopped.
set -u
emox=$(realpath "$1") scratch=${2:-$(mktemp -d /tmp/emox-long-XXXXXX)}
cd "$(dirname "$0")/../.." || exit 1
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1 \
  OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_plm=isolated
failures=0
check() { if eval "$2"; then echo "ok      $1"; else echo "FAILED  $1"; failures=$((failures + 1)); fi; }
train() { # NAME RANKS OVERRIDES...
  local name=$1 ranks=$2
  shift 2
  mpirun -n "$ranks" "$emox" train launch/recipes/tiny.ini --run.dir="$scratch/$name" --eval.final=false "$@" >"$scratch/$name.log" 2>&1
}
# Metrics without what a clock decides.
history() { sed -E 's/"(tokens_per_s|step_s|gemm_floor_fraction)": [^,]*, //g; s/, "phase_s".*//' "$scratch/$1/metrics.jsonl"; }
losses() { grep -o '"loss": [^,]*' "$scratch/$1/metrics.jsonl"; }
deviation() { # largest relative difference of the losses of two runs, first $3 steps
  paste <(losses "$1") <(losses "$2") | head -n "$3" |
    awk '{ d = ($2 - $4) / $4; if (d < 0) d = -d; if (d > m) m = d } END { print m + 0 }'
}
drift() { # relative difference of the mean of the last 50 losses
  paste <(losses "$1") <(losses "$2") | tail -n 50 | awk '{ a += $2; b += $4 } END { d = (a - b) / b; print d < 0 ? -d : d }'
}

if mkdir -p "$scratch/disk" && mount -t tmpfs -o size=16m tmpfs "$scratch/disk" 2>/dev/null; then
  train disk/run 2 --run.stop_after_step=10 --checkpoint.every_steps=10
  check "the first checkpoint fits" '[[ -f $scratch/disk/run/checkpoints/step-00000010/manifest.json ]]'
  free=$(df --output=avail -k "$scratch/disk" | tail -1)
  head -c $(((free - 1000) * 1024)) /dev/zero >"$scratch/disk/ballast"
  train disk/run 2 --run.stop_after_step=20 --checkpoint.every_steps=10
  code=$?
  cp "$scratch/disk/run.log" "$scratch/full.log" 2>/dev/null
  check "a full disk: exit 1 (got $code)" '[[ $code == 1 ]]'
  check "a full disk is named" 'grep -q "No space left on device" "$scratch/full.log"'
  check "nothing half-written stays" '[[ $(ls "$scratch/disk/run/checkpoints") == step-00000010 ]]'
  rm "$scratch/disk/ballast"
  train disk/run 2 --run.stop_after_step=20 --checkpoint.every_steps=10
  check "with room again it goes on" '[[ $? == 0 && -f $scratch/disk/run/checkpoints/step-00000020/manifest.json ]]'
  umount "$scratch/disk"
else
  echo "skipped a really full disk: no permission to mount a tmpfs"
fi

[[ -d corpus/quickstart ]] || { echo "no corpus/quickstart: run \`emox corpus\` for the rest"; exit $((failures > 0)); }
for ranks in 1 2 3 4; do train "r$ranks" $ranks --train.steps=400; done
train again 4 --train.steps=400
for ranks in 2 3 4; do
  d=$(deviation "r$ranks" r1 50) all=$(deviation "r$ranks" r1 400) last=$(drift "r$ranks" r1)
  check "50 steps on $ranks ranks and on 1 differ by $d (400 steps: $all)" 'awk "BEGIN { exit !($d <= 1e-4) }"'
  check "the mean of the last 50 losses differs by $last" 'awk "BEGIN { exit !($last <= 0.01) }"'
done
check "4 ranks twice: the same history" '[[ $(wc -l <"$scratch/r4/metrics.jsonl") == 400 && $(history r4) == "$(history again)" ]]'

for i in 1 2 3 4 5 6 7 8 9 10; do
  mpirun -n 2 "$emox" train launch/recipes/tiny.ini --run.dir="$scratch/signals" --eval.final=false --train.steps=400 \
    >"$scratch/signals-$i.log" 2>&1 &
  job=$!
  before=$(wc -l 2>/dev/null <"$scratch/signals/metrics.jsonl" || echo 0)
  for _ in $(seq 600); do
    now=$(wc -l 2>/dev/null <"$scratch/signals/metrics.jsonl" || echo 0)
    ((now >= before + 1 + RANDOM % 20)) && break
    sleep 0.05
  done
  kill -USR1 "$job"
  wait $job || { echo "FAILED  signal $i: exit code $?"; failures=$((failures + 1)); }
done
train signals 2 --train.steps=400
check "ten signals: the history of a run never stopped" '[[ $(history signals) == "$(history r2)" ]]'
echo "$failures failures; logs in $scratch"
exit $((failures > 0))
