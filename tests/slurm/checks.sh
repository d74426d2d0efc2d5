#!/usr/bin/env bash
# checks.sh EMOX [CHECK...]: what jobs of `emox slurm` do under the Slurm that cluster.sh has brought up; all checks, or these.
# Each says what was seen and how long it took; the exit code is 1 when one of them failed.
set -uo pipefail
emox=$(realpath "$1") cluster=$(dirname "$(realpath "$0")")/cluster.sh
shift
all=(requeue early mismatch crash lease preempt array node)
work=$(mktemp -d /tmp/emox-checks.XXXXXX)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
# Open MPI cannot know under srun that ranks share cores: a barrier of 4 ranks on 2 cores takes 8 ms without this.
export OMP_NUM_THREADS=1 OMPI_MCA_mpi_yield_when_idle=1
failed=0 name=

corpus() {
  local file
  for file in GPL-2 GPL-3 LGPL-2.1 Apache-2.0; do
    sed 's/[\\"]//g; s/\t/ /g' "/usr/share/common-licenses/$file" | fold -w 700 | sed 's/.*/{"text":"&"}/'
  done >text.jsonl
  "$emox" corpus --text a=text.jsonl --output corpus >corpus.log 2>&1 || { cat corpus.log; exit 1; }
  cat >r.ini <<'R'
[run]
seed = 1
[model]
d_model = 32
layers = 2
heads = 2
vocab_size = 257
sequence_length = 64
[moe]
num_experts = 9
top_k = 3
shared_experts = 1
expert_ff = 16
pool = uniform
pool_min = 2
pool_max = 8
[train]
steps = 60
batch_sequences = 8
micro_batch_sequences = 8
learning_rate = 1e-3
warmup_steps = 1
[data]
source = a:1:corpus/a
[parallel]
expert_parallel = 4
dispatch = two_level
[checkpoint]
every_steps = 20
[eval]
final = false
R
  sed -e 's/^EMOX_PAUSE_S=.*/EMOX_PAUSE_S=2/' "$(dirname "$emox")/../share/emox/slurm/site.env" >site.env
}

fail() {
  echo "  FAILED ($name): $*"
  failed=1
}
expect() { # WHAT GOT WANTED (a pattern)
  # shellcheck disable=SC2053
  [[ $2 == $3 ]] || fail "$1 is '$2', not '$3'"
}
# submit RUN OPTIONS...: a job of 2 x 2 ranks on RUN; sets job.
submit() {
  local run=$1
  shift
  "$emox" slurm r.ini --nodes 2 --ranks-per-node 2 --time 10 --site site.env --output "$run.sh" --job-name="$run" \
    --run.dir="$run" "$@" || fail "emox slurm"
  job=$(sbatch --parsable "$run.sh")
}
field() { scontrol show job "$1" -o | grep -o "\b$2=[^ ]*" | head -1 | cut -d= -f2; }
state() { field "$1" JobState; }
within() { # SECONDS COMMAND...
  local end=$((SECONDS + $1))
  shift
  until "$@" 2>/dev/null; do
    ((SECONDS < end)) || return 1
    sleep 0.1
  done
}
steps() { [[ $(wc -l <"$1/metrics.jsonl") -ge $2 ]]; }
is() { [[ $(state "$1") == "$2" ]]; }
ended() { [[ $(state "$1") != @(PENDING|RUNNING|COMPLETING|CONFIGURING|SUSPENDED|REQUEUED) ]]; }
# A requeued job waits for two minutes, so that its nodes can be looked at.
go_on() {
  within 20 is "$1" PENDING || fail "job $1 is $(state "$1"), not waiting to be started again"
  sleep 2 # slurmd takes a start in the second of the requeue for the one that was ended
  within 20 runs_again "$1" || fail "job $1 is $(state "$1"), not running again"
}
runs_again() { # what is said while the job is still being cleaned up is forgotten
  is "$1" RUNNING && return
  scontrol update JobId="$1" StartTime=now
  sleep 0.3
  return 1
}
done_job() { # JOB STATE EXITCODE
  within "${4:-60}" ended "$1" || fail "job $1 is still $(state "$1") after ${4:-60} s"
  expect "state of job $1" "$(state "$1") $(field "$1" ExitCode)" "$2 $3"
}
# What a run has learned, without what a clock decides.
losses() { grep -oE '"(step|loss|grad_norm)": ?[^,}]*' "$1/metrics.jsonl"; }
equal_runs() {
  cmp -s <(losses "$1") <(losses "$2") || fail "the losses of $1 and $2 differ"
  "$emox" checkpoint diff "$1" "$2" >diff.log || fail "the tensors of $1 and $2 differ: $(tail -1 diff.log)"
}
logs() { sed 's/^/    /' "$@" | tail -n 40; }

check_requeue() { # the signal, a restart, the same numbers
  submit reference --train.steps=400
  reference=$job
  done_job "$reference" COMPLETED 0:0 120
  submit stopped --train.steps=400
  within 60 steps stopped 30 || fail "no steps"
  scancel -s USR1 --batch "$job"
  go_on "$job"
  done_job "$job" COMPLETED 0:0 120
  expect "restarts" "$(field "$job" Restarts)" 1
  grep -q 'resumed stopped from step' "stopped-$job.log" || fail "it did not go on"
  equal_runs reference stopped
  "$emox" status stopped | grep -q 'finished .*400/400' || fail "$("$emox" status stopped)"
  grep -q '"node2"' stopped/run.json || fail "run.json does not name node2"
}

check_early() { # the signal at any moment of the start
  local delay begin
  for delay in 0.02 0.1 0.3 0.7 2; do
    submit "early-$delay" --train.steps=1000000 --checkpoint.every_steps=0
    within 20 pgrep -f "srun --mpi=pmix .*--run.dir=early-$delay " >/dev/null || fail "no srun"
    sleep "$delay"
    begin=$SECONDS
    scancel -s USR1 --batch "$job"
    within 30 is "$job" PENDING || fail "after $delay s the job is $(state "$job")"
    echo "  signal $delay s after srun's start: requeued within $((SECONDS - begin)) s, saved $(basename "$(readlink "early-$delay/checkpoints/latest" || echo nothing)")"
    scancel "$job"
  done
}
check_mismatch() { # MPI and the launcher do not agree
  local how text
  for how in --mpi=none --mpi=pmi2; do
    text=$(srun -N2 --ntasks-per-node=2 $how "$emox" train r.ini --run.dir=mismatch 2>&1)
    expect "exit code with $how" "$?" 2
    text=$(grep -v '^srun: \|^slurmstepd: ' <<<"$text")
    [[ $text == *"srun started 4 ranks"*"srun --mpi=pmix"* ]] || fail "$how: $text"
    (($(wc -l <<<"$text") <= 5)) || fail "$how: $text"
  done
  text=$(PMI_SIZE=4 PMI_RANK=0 "$emox" train r.ini --run.dir=mismatch 2>&1)
  expect "exit code with PMI_SIZE" "$?" 2
  [[ ! -e mismatch ]] || fail "the run directory was made"
  printf '#!/bin/bash\n"%s" train r.ini --run.dir=alone --parallel.expert_parallel=1 --run.stop_after_step=2\n' "$emox" >alone.sh
  job=$(sbatch --parsable --nodes=2 --ntasks-per-node=2 --output=alone.log alone.sh)
  done_job "$job" COMPLETED 0:0
  grep -q 'this Slurm job has 4 tasks' alone.log || fail "no warning: $(cat alone.log)"
}

check_crash() { # a crash at every start
  submit crash --run.stop_after_step=5
  done_job "$job" COMPLETED 0:0
  rm crash/metrics.jsonl && mkdir crash/metrics.jsonl
  job=$(sbatch --parsable crash.sh)
  done_job "$job" FAILED 1:0
  expect "starts" "$(grep -c '^=== .*ended with' "crash-$job.log")" 2
  grep -q 'metrics.jsonl' "crash-$job.log" || fail "the reason is not in the log"
  grep -q 'failed 2 times without a new checkpoint' "crash-$job.log" || fail "$(cat "crash-$job.log")"
  ! grep -q MPI_ABORT "crash-$job.log" || fail "MPI_ABORT has its say"
  expect "status" "$("$emox" status crash --json | grep -o '"state":"[a-z]*"')" '"state":"failed"'
}

check_lease() { # a killed job's directory, from the other node
  local pid begin=$SECONDS
  srun -N1 -w node1 "$emox" train r.ini --run.dir=lease --parallel.expert_parallel=1 --train.steps=1000000 >first.log 2>&1 &
  pid=$!
  within 30 steps lease 10 || fail "no steps: $(cat first.log)"
  pkill_rank lease
  wait $pid
  begin=$SECONDS
  "$emox" slurm r.ini --nodes 1 --time 10 --site site.env --output lease.sh --job-name=lease --run.dir=lease \
    --parallel.expert_parallel=1 --train.steps=1000000 --run.stop_after_step=40 --checkpoint.every_steps=0
  job=$(sbatch --parsable -w node2 lease.sh)
  done_job "$job" COMPLETED 0:0 120
  grep -q 'Waiting for it' "lease-$job.log" || fail "it did not wait: $(cat "lease-$job.log")"
  echo "  done $((SECONDS - begin)) s after the first was killed"
  ((SECONDS - begin <= 90)) || fail "it took $((SECONDS - begin)) s"
}
# The processes of this check that train into RUN, and nobody else's: by what they were started with, in this pid namespace.
pkill_rank() {
  local proc
  for proc in /proc/[0-9]*; do
    if [[ $(readlink "$proc/exe") == "$emox" ]] && tr '\0' ' ' <"$proc/cmdline" | grep -q -- "--run.dir=$1 "; then
      kill -KILL "${proc#/proc/}"
    fi
  done
}

check_preempt() { # by a job of a higher partition
  local begin urgent
  [[ -d reference ]] || { submit reference --train.steps=400; done_job "$job" COMPLETED 0:0 120; }
  submit preempted --train.steps=400
  within 60 steps preempted 30 || fail "no steps"
  begin=$SECONDS
  urgent=$(sbatch --parsable --partition=high --nodes=2 --ntasks-per-node=2 --output=urgent.log --wrap='sleep 1')
  within 20 ended_or_running "$urgent" || fail "the urgent job is $(state "$urgent")"
  echo "  nodes free after $((SECONDS - begin)) s"
  ((SECONDS - begin <= 10)) || fail "it took $((SECONDS - begin)) s"
  within 30 ended "$urgent"
  go_on "$job"
  done_job "$job" COMPLETED 0:0 120
  expect "restarts" "$(field "$job" Restarts)" 1
  equal_runs reference preempted
  # As most sites have it: SIGTERM, and to the ranks alone.
  sed -i '/preempt_send_user_signal/d' "$SLURM_CONF"
  scontrol reconfigure
  submit terminated --train.steps=1000000
  within 60 steps terminated 30 || fail "no steps"
  urgent=$(sbatch --parsable --partition=high --nodes=2 --ntasks-per-node=2 --output=urgent.log --wrap='sleep 1')
  within 30 ended "$urgent" || fail "the urgent job is $(state "$urgent")"
  grep -q 'stopped by SIGTERM after step' "terminated-$job.log" || fail "$(tail -3 "terminated-$job.log")"
  go_on "$job"
  within 30 grep -q 'resumed terminated' "terminated-$job.log" || fail "it did not go on"
  scancel "$job"
  done_job "$job" CANCELLED '*'
  expect "status" "$("$emox" status terminated --json | grep -oE '"(state|signal)":"[A-Z1a-z]*"' | tr '\n' ' ')" \
    '"state":"stopped" "signal":"SIGTERM" '
}
ended_or_running() { is "$1" RUNNING || ended "$1"; }

check_array() { # five points, one of them wrong, the last one stopped
  local i
  for i in 0 1 2 3 4; do
    echo "r.ini --run.dir=point-$i --parallel.expert_parallel=1 --train.steps=$((i == 4 ? 100000 : 30))$([[ $i == 2 ]] && echo ' --train.stepz=1')"
  done >points.txt
  "$emox" slurm --array points.txt --nodes 1 --time 10 --site site.env --output points.sh 2>points.err
  grep -q 'element 2 of --array will fail.*stepz' points.err || fail "$(cat points.err)"
  job=$(sbatch --parsable points.sh)
  within 60 steps point-4 10 || fail "no steps"
  scancel -s USR1 --batch "${job}_4"
  within 20 pending_again "$job" || fail "$(squeue -r -j "$job")"
  # The others are not started again with it.
  expect "starts of the array" "$(cat points-"${job}"_*.log | grep -c '^=== .* job .*, restart')" 5
  for i in 0 1 3; do
    expect "status of point $i" "$("$emox" status "point-$i" --json | grep -o '"state":"[a-z]*"')" '"state":"finished"'
    expect "starts of point $i" "$(grep -c '"started"' "point-$i/run.json")" 1
  done
  expect "the bad one" "$(field "${job}_2" JobState) $(field "${job}_2" ExitCode)" 'FAILED 2:0'
  grep -q 'unknown key train.stepz' "points-${job}_2.log" || fail "$(cat "points-${job}_2.log")"
  touch point-4/STOP
  scancel "${job}_4"
}
pending_again() { squeue -h -r -j "$1" -t PENDING -o %i | grep -q "${1}_4"; }

check_node() { # a node and all that runs there is gone, and comes back
  local begin pid lost from
  submit node --train.steps=1000000 --parallel.watchdog_s=4 --checkpoint.every_steps=10
  within 60 steps node 30 || fail "no steps"
  begin=$SECONDS
  pid=$(<"$CLUSTER_NODES/node2.pid")
  nsenter --target "$pid" --net ip link set eth0 down
  kill_node "$pid"
  within 30 grep -q 'watchdog: ' "node-$job.log" || fail "the watchdog said nothing"
  echo "  named by the watchdog after $((SECONDS - begin)) s: $(grep -m1 -o 'rank [0-9] does not answer' "node-$job.log")"
  expect "the job when the watchdog had said it" "$(state "$job")" 'RUNNING'
  lost=$(wc -l <node/metrics.jsonl)
  within 60 is "$job" PENDING || fail "Slurm has not noticed: $(state "$job")"
  echo "  noticed by Slurm after $((SECONDS - begin)) s"
  sleep 5 # a node is not back in the second in which its loss is noticed: Slurm would mix up both lives of the job
  "$cluster" --node 2
  within 30 nodes_idle || fail "the nodes are not back: $(sinfo -h -p main -N)"
  sleep 5
  within 20 runs_again "$job" || fail "job $job is $(state "$job"), not running again"
  within 40 grep -q 'resumed node from step' "node-$job.log" || fail "it did not go on"
  from=$(grep -o 'resumed node from step [0-9]*' "node-$job.log" | grep -o '[0-9]*$')
  echo "  went on from step $from of $lost after $((SECONDS - begin)) s"
  ((from >= lost - 10)) || fail "$((lost - from)) steps are lost, with a checkpoint every 10"
  touch node/STOP
  done_job "$job" COMPLETED 0:0
}
nodes_idle() { [[ $(sinfo -h -p main -N -t idle -o %N | wc -l) == 2 ]]; }
# Everything in the node's namespace of host names but the one process that keeps its network.
kill_node() {
  local uts proc
  uts=$(readlink "/proc/$1/ns/uts")
  for proc in /proc/[0-9]*; do
    [[ $(readlink "$proc/ns/uts" 2>/dev/null) == "$uts" ]] && kill -KILL "${proc#/proc/}"
  done
}

# A check times what two schedulers do on a machine that may have other work: one that fails is tried once more, from new, and
# both are told.
corpus
result=0
for check in "${@:-${all[@]}}"; do
  for try in first again; do
    echo "$check:${try/first/}"
    name=$check begin=$SECONDS failed=0
    "check_$check"
    echo "  $check took $((SECONDS - begin)) s"
    ((failed)) || break
    for log in *-*.log; do echo "  $log"; logs "$log"; done
    [[ $try == first ]] || break
    scancel --quiet --user=root
    within 60 nodes_idle || { "$cluster" --node 2 && within 60 nodes_idle; } || true
    mkdir "again-$check"
    cp -r corpus r.ini site.env "again-$check"
    cd "again-$check" || exit 1
  done
  cd "$work" || exit 1
  ((failed == 0)) || result=1
done
exit $result
