#!/usr/bin/env bash
# cluster.sh SECONDS COMMAND...: runs COMMAND where a real Slurm with two nodes is up, node1 and node2, of two cores each. The
# exit code is the command's; 137 after SECONDS; 77, with one line that says why, where that is not allowed.
#
# All of it lies in namespaces made for this call, so that processes, links and mounts end with it, whatever ends it. A node is a
# network, UTS and mount namespace with its own host name, address and /dev/shm; the controller and COMMAND are beside both.
# Partitions: main, whose jobs those of `high` preempt. For COMMAND: SLURM_CONF, and CLUSTER_NODES, a folder with the pid of each
# node's slurmd (node1.pid, node2.pid); `cluster.sh --node 2` starts one again that was killed.
set -euo pipefail
self=$(realpath "${BASH_SOURCE[0]}")
net=10.77.0

configure() { # FOLDER
  local at=$1 n
  mkdir -p "$at"/{pid,log,state,munge,pmix,pmix.node1,pmix.node2,spool.node1,spool.node2}
  chmod 755 "$at"
  chmod 711 "$at/munge"
  head -c 64 /dev/urandom >"$at/munge/key"
  chmod 400 "$at/munge/key"
  cat >"$at/slurm.conf" <<CONF
ClusterName=emox
SlurmctldHost=login($net.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$at/munge/socket
CredType=cred/munge
StateSaveLocation=$at/state
SlurmdSpoolDir=$at/spool.%n
SlurmctldPidFile=$at/pid/slurmctld.pid
SlurmdPidFile=$at/pid/%n.pid
SlurmctldLogFile=$at/log/slurmctld.log
SlurmdLogFile=$at/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=pmix
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$at/log/jobs.txt
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,sched_min_interval=0
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=600
SlurmctldTimeout=30
SlurmdTimeout=30
NodeName=node1 NodeAddr=$net.1 CPUs=2 RealMemory=4000 State=UNKNOWN
NodeName=node2 NodeAddr=$net.2 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
  printf 'CgroupAutomount=no\nCgroupPlugin=cgroup/v1\n' >"$at/cgroup.conf"
  echo "PMIxCliTmpDirBase=$at/pmix" >"$at/mpi.conf"
  {
    echo "127.0.0.1 localhost"
    echo "$net.254 login"
    for n in 1 2; do echo "$net.$n node$n"; done
  } >"$at/hosts"
}

# The node waits for its link, and has it before slurmd looks for the controller.
start_node() { # NUMBER FOLDER
  local n=$1 at=$2 node line
  rm -f "$at/linked.$n"
  mkfifo "$at/linked.$n"
  # shellcheck disable=SC2016  # for the shell inside
  unshare --net --uts --mount --ipc bash -c '
    hostname "node$0" && mount -t tmpfs tmpfs /dev/shm && mount --bind "$1/pmix.node$0" "$1/pmix" && ip link set lo up
    echo up >"$1/linked.$0"
    read -r _ <"$1/linked.$0"
    exec slurmd -D -N "node$0" -f "$1/slurm.conf"' "$n" "$at" >>"$at/log/start.log" 2>&1 &
  node=$!
  read -r line <"$at/linked.$n" && [[ $line == up ]]
  ip link del "veth$n" 2>/dev/null || true # of a node that was killed: something may still keep its network
  ip link add "veth$n" type veth peer name eth0 netns "$node"
  ip link set "veth$n" master bridge0 up
  nsenter --target "$node" --net ip addr add "$net.$n/24" dev eth0
  nsenter --target "$node" --net ip link set eth0 up
  echo linked >"$at/linked.$n"
}

inside() { # COMMAND...
  local at n code=0
  at=$(mktemp -d /tmp/emox-cluster.XXXXXX)
  # shellcheck disable=SC2064  # the folder's name now
  trap "umount -l '$at'; rmdir '$at'" EXIT
  mount -t tmpfs tmpfs "$at" # gone with this namespace, whatever ends it
  hostname login
  ip link set lo up
  configure "$at"
  mount --bind "$at/hosts" /etc/hosts
  export SLURM_CONF=$at/slurm.conf CLUSTER_NODES=$at/pid
  munged --force --key-file="$at/munge/key" --socket="$at/munge/socket" --pid-file="$at/munge/pid" \
    --log-file="$at/munge/log" --seed-file="$at/munge/seed" 2>>"$at/log/start.log"
  ip link add bridge0 type bridge
  ip addr add "$net.254/24" dev bridge0
  ip link set bridge0 up
  for n in 1 2; do start_node $n "$at"; done
  slurmctld -c -f "$SLURM_CONF"
  for _ in $(seq 100); do
    [[ $(sinfo -h -p main -N -t idle -o %N 2>/dev/null | wc -l) == 2 ]] && break
    sleep 0.1
  done
  if [[ $(sinfo -h -p main -N -t idle -o %N | wc -l) != 2 ]]; then
    tail -n 20 "$at"/log/*.log
    echo "cluster.sh: the two nodes are not up after 10 s"
    return 1
  fi
  "$@" || code=$?
  if ((code != 0)); then tail -n 5 "$at"/log/*.log; fi
  return $code
}

skip() {
  echo "cluster.sh: skipped, no Slurm of two nodes here: $*"
  exit 77
}

case ${1-} in
  --node) # NUMBER: inside, starts a node that was killed
    start_node "$2" "$(dirname "$SLURM_CONF")"
    ;;
  --inside)
    shift
    inside "$@"
    ;;
  *)
    ((EUID == 0)) || skip "it needs root"
    for program in ip:iproute2 unshare:util-linux slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client munged:munge; do
      command -v "${program%:*}" >/dev/null || skip "no ${program%:*} (Debian package ${program#*:})"
    done
    seconds=$1
    shift
    namespaces=(--net --uts --mount --ipc --pid --fork --kill-child --mount-proc)
    why=$(unshare "${namespaces[@]}" bash -c \
      'hostname probe && mount -t tmpfs tmpfs /dev/shm && ip link add probe0 type bridge' 2>&1) || skip "$why"
    exec timeout --signal=KILL "$seconds" unshare "${namespaces[@]}" "$self" --inside "$@"
    ;;
esac
