#!/usr/bin/env bash
# script.sh EMOX: what the job scripts of `emox slurm` do about everything that can happen to a job, without Slurm: the script
# is a real one, what it calls (srun, scontrol, sbatch, and emox inside the job) writes down its call and does as a case says.
set -euo pipefail
emox=$(realpath "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir bin
failed=0

# The ranks, one process. `plan` has a line for each start, "CODE [CHECKPOINT]" or "wait CODE CHECKPOINT": until a signal.
cat >bin/srun <<'S'
#!/bin/bash
echo "srun $*" >>calls
while [[ $1 == -* ]]; do shift; done
exec "$@"
S
cat >bin/emox-in-job <<'S'
#!/bin/bash
case "$1 $*" in
  *--print-config) [[ ! -e bad ]] || { echo "emox: unknown key" >&2; exit 2; }; printf '[run]\nname = x\ndir = run\n\n[model]\n'; exit ;;
  status*) echo "{\"runs\":[{\"run\":\"run\",\"state\":\"$(cut -d' ' -f1 state)\",\"signal\":\"$(cut -d' ' -f2 state)\"}]}"; exit ;;
esac
n=$(($(grep -c ^start calls) + 1))
echo start >>calls
read -r what code checkpoint < <(sed -n "${n}p" plan)
# As one process: srun's signal is for the rank.
[[ $what != wait ]] || exec python3 -c '
import os, signal, sys
s = {signal.SIGUSR1, signal.SIGUSR2}
signal.pthread_sigmask(signal.SIG_BLOCK, s)  # ignored so far
print("ready", file=open("calls", "a"))
signal.sigwait(s)
if sys.argv[1] == "hang":
    signal.sigwait({signal.SIGALRM})
if sys.argv[2:]:
    os.makedirs("run/checkpoints/" + sys.argv[2])
sys.exit(int(sys.argv[1]))' "$code" ${checkpoint:+"$checkpoint"}
checkpoint=$code code=$what
if [[ -n $checkpoint ]]; then mkdir -p run/checkpoints; mkdir "run/checkpoints/$checkpoint"; fi
exit "$code"
S
cat >bin/scontrol <<'S'
#!/bin/bash
[[ $1 != show ]] || { cat shown 2>/dev/null; exit; }
echo "scontrol $*" >>calls
[[ ! -e refused ]]
S
printf '#!/bin/bash\necho "sbatch $*" >>calls\n' >bin/sbatch
chmod +x bin/*
export PATH=$PWD/bin:$PATH EMOX=$PWD/bin/emox-in-job
mkdir corpus
head -c 20000 /usr/share/common-licenses/GPL-3 >text.txt
cat >r.ini <<'R'
[model]
d_model = 16
layers = 1
heads = 2
vocab_size = 257
sequence_length = 16
[moe]
num_experts = 4
top_k = 2
expert_ff = 8
[train]
steps = 4
batch_sequences = 4
[data]
source = a:1:corpus/a
R
sed -e 's/^EMOX_PAUSE_S=.*/EMOX_PAUSE_S=0/' "$(dirname "$emox")/../share/emox/slurm/site.env" >site.env

# fresh [ENVIRONMENT...]: a new job.
fresh() {
  rm -rf run calls plan bad shown refused
  touch calls
  echo "finished" >state
  env=(SLURM_JOB_ID=26 SLURM_JOB_NODELIST='node[1-2]' "$@")
}
make() { "$emox" slurm r.ini --nodes 2 --time 10 --site site.env --output job.sh; }
# job CODE [SIGNAL]: runs the script, sends a signal once the ranks are there.
job() {
  local code=0 pid
  env "${env[@]}" bash job.sh >log 2>&1 &
  pid=$!
  if [[ -n ${2-} ]]; then
    for _ in $(seq 100); do grep -q ^ready calls && break; sleep 0.05; done
    kill -s "$2" $pid
  fi
  wait $pid || code=$?
  check "exit code $code, not $1" "$code" == "$1"
}
check() { # WHAT A == B
  # shellcheck disable=SC2053
  if ! [[ $2 == $4 ]]; then
    echo "FAILED ($name): $1"
    sed 's/^/    /' log calls
    failed=1
  fi
}
calls() { grep -c "^$1" calls || true; }
said() { check "no '$1' in the log" "$(grep -c "$1" log || true)" == '[1-9]*'; }
case_() { name=$1; }

make
case_ "a run that is done"
fresh
echo 0 >plan
job 0
check "one start, no requeue" "$(calls start) $(calls scontrol)" == "1 0"

case_ "a mistake in the recipe"
fresh
touch bad
job 2
check "no start" "$(calls srun)" == 0

case_ "a mistake that the ranks find"
fresh
echo 2 >plan
job 2
check "one start" "$(calls start)" == 1

case_ "a crash at every start"
fresh
printf '1\n1\n1\n' >plan
job 1
check "two starts, no requeue" "$(calls start) $(calls scontrol)" == "2 0"
said "failed 2 times without a new checkpoint"

case_ "crashes with progress between them"
fresh
printf '1 step-1\n137 step-2\n1\n1 step-3\n0 step-4\n' >plan
job 0
check "five starts" "$(calls start)" == 5

case_ "a lease that is free again later"
fresh
printf '75\n75\n0 step-4\n' >plan
job 0
check "three starts" "$(calls start)" == 3

case_ "a lease that another job keeps"
fresh
printf '75\n75\n75\n75\n75\n75\n' >plan
job 75
check "no requeue" "$(calls scontrol)" == 0

case_ "the time is over"
fresh
echo "wait 0 step-2" >plan
echo "stopped SIGUSR1" >state
job 0 USR1
check "requeued" "$(grep scontrol calls)" == "scontrol requeue 26"

case_ "the time of an array's element is over"
fresh SLURM_ARRAY_JOB_ID=20 SLURM_ARRAY_TASK_ID=3
echo "wait 0 step-2" >plan
echo "stopped SIGUSR1" >state
job 0 USR1
check "requeued alone" "$(grep scontrol calls)" == "scontrol requeue 20_3"

case_ "the time is over in the last step"
fresh
echo "wait 0 step-4" >plan
job 0 USR1
check "not requeued" "$(calls scontrol)" == 0

case_ "the ranks had the signal from somebody else"
fresh
echo "0 step-2" >plan
echo "stopped SIGUSR2" >state
job 0
check "requeued" "$(calls scontrol)" == 1

case_ "somebody cancels"
fresh
echo "wait 0 step-2" >plan
echo "stopped SIGTERM" >state
job 0 TERM
check "not requeued" "$(calls scontrol)" == 0
said "SIGTERM, for good"

case_ "a preemption by SIGTERM"
fresh
echo "wait 0 step-2" >plan
echo "stopped SIGTERM" >state
times="   StartTime=2026-01-01T00:00:00 EndTime=Unknown"
echo "$times PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=2026-01-01T00:00:01" >shown
job 0 TERM
check "requeued" "$(calls scontrol)" == 1
fresh
echo "0 step-2" >plan
echo "stopped SIGTERM" >state
echo "$times PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=2026-01-01T00:00:01" >shown
job 0
check "requeued" "$(calls scontrol)" == 1
fresh
echo "wait 0 step-2" >plan
echo "stopped SIGTERM" >state
echo "$times PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=2025-12-31T00:00:01" >shown
job 0 TERM
check "not requeued: that was an earlier one" "$(calls scontrol)" == 0

case_ "a restart that is refused"
fresh
echo "wait 0 step-2" >plan
echo "stopped SIGUSR1" >state
touch refused
job 1 USR1
said "that was refused: submit the script yourself, it goes on from checkpoints/step-2"

case_ "ranks that hang when the time is over"
"$emox" slurm r.ini --nodes 2 --time 10 --site site.env --output job.sh --lead 4
fresh
echo "wait hang" >plan
echo "running" >state
job 0 USR1
check "requeued" "$(calls scontrol)" == 1
said "the ranks do not end: killed"
make

case_ "run.stop_after_step"
fresh
echo "0 step-2" >plan
echo "stopped " >state
job 0
check "not requeued" "$(calls scontrol)" == 0

case_ "RUN/STOP"
fresh
mkdir run
touch run/STOP
job 0
check "not started" "$(calls start)" == 0
fresh
echo "wait 0 step-2" >plan
mkdir run
(until grep -q ^ready calls; do sleep 0.05; done; touch run/STOP) &
job 0 USR1
wait
check "not requeued" "$(calls scontrol)" == 0

case_ "restarts without progress, and with it"
fresh
echo "stopped SIGUSR1" >state
for _ in 1 2 3; do echo "wait 0"; done >plan
for _ in 1 2 3; do
  : >calls
  job 0 USR1
  check "requeued" "$(calls scontrol)" == 1
done
: >calls
job 75 USR1
check "not requeued" "$(calls scontrol)" == 0
said "started again 3 times without a new checkpoint"
: >calls
echo "wait 0 step-1" >plan
job 0 USR1
check "requeued after progress" "$(calls scontrol) $(cat run/slurm-restarts)" == "1 1 checkpoints/step-1"

case_ "another signal, another way to go on"
sed -i -e 's/^EMOX_REQUEUE=.*/EMOX_REQUEUE="chain"/' -e 's/^EMOX_SIGNAL=.*/EMOX_SIGNAL="USR2"/' site.env
make
check "what sbatch is told" "$(grep -c -e '--signal=B:USR2@' -e '--no-requeue' job.sh)" == 2
fresh SLURM_ARRAY_JOB_ID=20 SLURM_ARRAY_TASK_ID=3
echo "stopped SIGUSR2" >state
echo "wait 0 step-1" >plan
job 0 USR2
check "submitted" "$(grep sbatch calls)" == "sbatch --array=3 --dependency=afterany:20_3 --export=ALL,EMOX_RESTARTS=1 job.sh"
sed -i 's/^EMOX_REQUEUE=.*/EMOX_REQUEUE="none"/' site.env
make
fresh
echo "stopped SIGUSR2" >state
echo "wait 0 step-1" >plan
job 0 USR2
check "neither" "$(calls sbatch) $(calls scontrol)" == "0 0"

((failed == 0)) && echo "every case went as it should"
exit $failed
