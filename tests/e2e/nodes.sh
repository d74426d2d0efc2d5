#!/usr/bin/env bash
# nodes.sh SECONDS RANKS COMMAND...: runs COMMAND under mpirun on two nodes, RANKS ranks on each, and prints what crossed the
# link between them:   link: N bytes (node1 sent A, node2 sent B)
# The exit code is mpirun's; 137 after SECONDS; 77, with one line that says why, where namespaces are not allowed.
#
# A node is a network namespace with its own host name and /dev/shm. mpirun starts its daemon on node2 as on any other machine,
# but by nsenter instead of ssh; nothing but the link joins the two. All of it lies in a pid and a mount namespace made for this
# call: whatever ends this script, processes, link and mounts end with it, and calls at the same time do not meet.
set -euo pipefail
self=$(realpath "${BASH_SOURCE[0]}")

# Runs in the new namespaces: this is node1.
nodes() { # RANKS COMMAND...
  local ranks=$1 code=0 node2 line before after
  shift
  exec 3< <(exec unshare --net --uts --mount --ipc bash -c \
    'hostname node2 && mount -t tmpfs tmpfs /dev/shm && ip link set lo up && echo up && exec sleep infinity')
  node2=$!
  read -r line <&3 && [[ $line == up ]]
  hostname node1
  mount -t tmpfs tmpfs /dev/shm
  ip link set lo up
  ip link add link0 type veth peer name link0 netns $node2
  ip addr add 10.0.0.1/24 dev link0
  ip link set link0 up
  nsenter --target $node2 --net ip addr add 10.0.0.2/24 dev link0
  nsenter --target $node2 --net ip link set link0 up
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1
  # OpenMPI names its files by host and pid, and pids repeat here: each node keeps them in its own memory.
  export OMPI_MCA_orte_tmpdir_base=/dev/shm OMPI_MCA_plm=rsh OMPI_MCA_plm_rsh_agent="$self --on-node2" NODE2=$node2
  read -ra before < <(link_bytes)
  mpirun --host "10.0.0.1:$ranks,10.0.0.2:$ranks" --map-by slot -n $((2 * ranks)) "$@" || code=$?
  read -ra after < <(link_bytes)
  local received=$((after[0] - before[0])) sent=$((after[1] - before[1]))
  echo "link: $((received + sent)) bytes (node1 sent $sent, node2 sent $received)"
  return $code
}
# What this end of the link has received and sent.
link_bytes() { awk '$1 == "link0:" { print $2, $10 }' /proc/net/dev; }

skip() {
  echo "nodes.sh: skipped, no two nodes here: $*"
  exit 77
}

case ${1-} in
  --on-node2) # HOST COMMAND...: what mpirun calls in place of ssh
    shift 2
    exec nsenter --target "$NODE2" --net --uts --mount --ipc -- bash -c "$*"
    ;;
  --inside) # SECONDS RANKS COMMAND...
    shift
    nodes "$@"
    ;;
  *)
    for program in ip:iproute2 unshare:util-linux nsenter:util-linux mpirun:openmpi-bin; do
      command -v "${program%:*}" >/dev/null || skip "no ${program%:*} (Debian package ${program#*:})"
    done
    seconds=$1
    shift
    namespaces=(--net --uts --mount --ipc --pid --fork --kill-child --mount-proc)
    # Somebody who is not root can still be root of a user namespace, where the kernel lets them.
    ((EUID == 0)) || namespaces=(--user --map-root-user "${namespaces[@]}")
    why=$(unshare "${namespaces[@]}" bash -c \
      'hostname probe && mount -t tmpfs tmpfs /dev/shm && ip link add probe0 type veth peer name probe1' 2>&1) || skip "$why"
    exec timeout --signal=KILL "$seconds" unshare "${namespaces[@]}" "$self" --inside "$@"
    ;;
esac
