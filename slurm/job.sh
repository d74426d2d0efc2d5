#!/bin/bash
# shellcheck disable=SC2016,SC2034,SC2154  # what sh expands itself; what emox alone reads; what emox sets
@SBATCH@
# Written by `emox slurm` (emox @VERSION@); @LEAD_NOTE@
# The job saves and ends before its time is over, and goes on by itself: exit code 0 done or stopped for good, 2 something is
# wrong in the command or the recipe, 75 tried often enough, else what failed.
set -u
say() { echo "=== $(date '+%F %T') $*"; }

# ---- the site ----
@SITE@
# ---- end of the site ----

emox=${EMOX:-@EMOX@} job=@JOB@ lead=@LEAD@
# An element's number is not the array's: that would start all elements again.
me=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
me=${me:-$SLURM_JOB_ID}
@ARGUMENTS@

say "job $me, restart ${EMOX_RESTARTS:-${SLURM_RESTART_COUNT:-0}}, on $SLURM_JOB_NODELIST: emox $job $*"
# shellcheck disable=SC2086  # a list of modules
if [[ -n ${EMOX_MODULES-} ]]; then module load $EMOX_MODULES || exit 2; fi
read -ra launch <<<"$EMOX_LAUNCH ${EMOX_BIND-}"
for program in "${launch[0]}" "$emox"; do
  command -v "$program" >/dev/null || { say "there is no $program on $(hostname): EMOX_LAUNCH, or EMOX=PATH"; exit 2; }
done
# srun takes this from its own variable only.
[[ -z ${SLURM_CPUS_PER_TASK-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# Once, before the ranks: one message for what is wrong, and where the run is.
@PREFLIGHT@
stop_file=$dir/STOP tally=$dir/slurm-restarts
# The newest checkpoint, of a study's cells too: what tells progress.
newest() {
  find "$dir" -maxdepth 5 -path '*/checkpoints/step-*' -name 'step-*[0-9]' -printf '%T@ %P\n' 2>/dev/null |
    sort -n | sed -n '$s/^[^ ]* //p'
}
# How a training run says it is; of other jobs nothing is known.
state() { [[ $job != train ]] || "$emox" status "$dir" --json 2>/dev/null | grep -o "\"$1\":\"[^\"]*\"" | cut -d'"' -f4; }
nap() { sleep "$1" & wait $!; } # a trap need not wait for it

asked='' at=0 # requeue: the time is over, or the job is preempted; end: somebody ends it
# Slurm may preempt by SIGTERM, also to the ranks alone: then the job is to go on, and Slurm does nothing for one that has
# ended by itself.
preempted() {
  local now start
  now=$(scontrol show job "$me" 2>/dev/null) || return
  start=$(grep -o '\bStartTime=[^ ]*' <<<"$now") now=$(grep -o 'PreemptTime=[0-9][^ ]*' <<<"$now")
  [[ -n $now && ! ${now#*=} < ${start#*=} ]] # not one before this start
}
ask() {
  [[ -z $asked ]] || return
  asked=$1 at=$SECONDS
  say "$2: the step ends and is saved"
}
trap 'ask requeue "SIG$EMOX_SIGNAL"' "$EMOX_SIGNAL"
trap 'if preempted; then ask requeue "SIGTERM, preempted"; else ask end "SIGTERM, for good"; fi' TERM

# The ranks ignore the signal until they can take it: it may come while they start. A signal that came too early for srun
# is given again until it ends. Ranks that hang would keep the job until Slurm ends it, and such a one is not started again.
run() {
  "${launch[@]}" sh -c 'trap "" "$0"; exec "$@"' "$EMOX_SIGNAL" "$emox" "$job" "$@" & local pid=$!
  while :; do
    if [[ -n $asked ]]; then
      kill -s "$EMOX_SIGNAL" "$pid" 2>/dev/null
      nap 2
      if ((SECONDS - at > (lead > 40 ? lead - 20 : lead / 2))); then
        say "the ranks do not end: killed; the last checkpoint counts"
        kill -KILL "$pid" 2>/dev/null
      fi
      kill -0 "$pid" 2>/dev/null && continue
    fi
    wait "$pid"
    rc=$?
    kill -0 "$pid" 2>/dev/null || break # else it was a trap that ended the wait
  done
}

failures=0 waited=0
while :; do
  [[ ! -e $stop_file ]] || { say "$stop_file is there: stopped for good; remove it to go on"; exit 0; }
  before=$(newest)
  [[ -n $asked ]] || run "$@"
  after=$(newest)
  say "ended with ${rc:-nothing done}, checkpoint ${before:-none} -> ${after:-none}"
  [[ ! -e $stop_file ]] || { say "$stop_file is there: stopped for good"; exit "${rc:-0}"; }
  if [[ -z $asked ]] && preempted; then ask requeue "preempted"; fi
  [[ -z $asked ]] || break
  case $rc in
    0)
      # Somebody gave the ranks the signal without this script, which means the same.
      [[ $(state state) == stopped && $(state signal) == SIGUSR[12] ]] || exit 0
      asked=requeue
      break
      ;;
    2) exit 2 ;;
    75) # another job has the run
      ((++waited < 5)) || { say "the run directory is another job's"; exit 75; }
      nap "$EMOX_PAUSE_S"
      continue
      ;;
  esac
  # A node that was lost makes the first step of the next start fail, and the second one work.
  if [[ $before == "$after" ]]; then failures=$((failures + 1)); else failures=0; fi
  ((failures < EMOX_MAX_FAILURES)) || { say "failed $failures times without a new checkpoint: the reason is above"; exit "$rc"; }
  nap "$EMOX_PAUSE_S"
done

[[ $asked == requeue ]] || exit "${rc:-0}"
[[ $(state state) != finished ]] || { say "finished"; exit 0; }
[[ $EMOX_REQUEUE != none ]] || { say "saved; EMOX_REQUEUE is none, so the same script goes on when you submit it"; exit 0; }
# Restarts in a row that have saved nothing new.
count=0
if [[ -r $tally ]]; then read -r count last <"$tally"; [[ ${last-} == "${after:-none}" ]] || count=0; fi
((count < EMOX_MAX_RESTARTS)) || { say "started again $count times without a new checkpoint: not again"; exit 75; }
mkdir -p "$dir"
echo "$((count + 1)) ${after:-none}" >"$tally.tmp" && mv "$tally.tmp" "$tally"
say "to be started again"
again=1
if [[ $EMOX_REQUEUE == chain ]]; then
  sbatch ${SLURM_ARRAY_TASK_ID:+"--array=$SLURM_ARRAY_TASK_ID"} --dependency="afterany:$me" \
    --export="ALL,EMOX_RESTARTS=$((${EMOX_RESTARTS:-0} + 1))" "$0" || again=0
else
  scontrol requeue "$me" || again=0
fi
((again)) || { say "that was refused: submit the script yourself, it goes on from ${after:-the beginning}"; exit 1; }
