#!/usr/bin/env bash
# packages.sh [--tests] [--update]: installs the Debian 12 packages that emox is built with; does nothing when all are there.
#   --tests    also what tests/run.sh needs
#   --update   fetch apt's package lists anew
#   --list     print the names and stop
set -euo pipefail

build_packages=(
  g++ cmake ninja-build pkg-config
  libopenmpi-dev openmpi-bin     # ranks
  libhdf5-openmpi-dev            # checkpoints
  libdnnl-dev                    # matrix products
  libboost-program-options-dev   # recipes
  nlohmann-json3-dev             # metrics, manifests
  libfmt-dev libxxhash-dev zlib1g-dev
  libgtest-dev libboost-context-dev   # every preset configures the tests; the second: threads of tests/support/cuda_emulator
)
test_packages=(
  hdf5-tools                     # h5ls: checkpoints are readable without emox
  iproute2 procps                # ip: two nodes on one machine; pgrep
  zstd                           # tests/gpu.sh: the bundle
  slurmd slurmctld slurm-client munge libpmix2   # tests/slurm: a Slurm on this machine
  python3-h5py                   # the same with Python
  clang-format-14 clang-tidy-14 shellcheck   # tests/house
)

wanted=("${build_packages[@]}")
update=false
list=false
for argument in "$@"; do
  case $argument in
    --tests) wanted+=("${test_packages[@]}") ;;
    --update) update=true ;;
    --list) list=true ;;
    *) echo "packages.sh: unknown argument $argument" >&2; exit 2 ;;
  esac
done
if $list; then printf '%s\n' "${wanted[@]}"; exit 0; fi

if ! command -v apt-get >/dev/null; then
  echo "packages.sh: no apt here; install what these Debian packages hold: ${wanted[*]}" >&2
  exit 2
fi

missing=()
for package in "${wanted[@]}"; do
  # shellcheck disable=SC2016  # dpkg-query's own variable
  [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
done

as_root() {
  if ((EUID == 0)); then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    echo "packages.sh: needs root or sudo for: $*" >&2
    exit 2
  fi
}
update_lists() { as_root apt-get update -q; }
install_missing() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
}
have_lists() { compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null; }

if $update || ! have_lists; then update_lists; fi
if ((${#missing[@]} == 0)); then
  echo "all ${#wanted[@]} packages are installed"
  exit 0
fi
echo "installing ${missing[*]}"
# A failure usually means that the lists are older than the archive.
install_missing || { update_lists && install_missing; }
