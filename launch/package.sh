#!/usr/bin/env bash
# A folder with emox and all that it needs but glibc, a GPU's driver and CUDA's libraries: it runs wherever it is unpacked, on
# machines that have none of its packages.
#
#   launch/package.sh [--build DIR] FILE.tar.zst     pack emox-VERSION/
#   launch/package.sh [--build DIR] --into FOLDER    only fill the folder (`cmake --install DIR --component bundle` does this)
#
# Default of --build: build/gpu, which `cmake --preset gpu` and `cmake --build --preset gpu` make for any x86-64-v3 processor.
# In it: bin/emox and bin/mpirun (they set what Open MPI has to know of its place), recipes, README, LICENSE.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
fail() { echo "launch/package.sh: $*" >&2; exit 2; }

build=$root/build/gpu file='' into=''
while (($#)); do
  case $1 in
    --build) build=$2; shift 2 ;;
    --into) into=$2; shift 2 ;;
    -h | --help) sed -n '2,/^set /{/^# \{0,1\}/s///p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    -*) fail "unknown option $1; there are --build and --into" ;;
    *) file=$1; shift ;;
  esac
done
[[ -n $file || -n $into ]] || fail "name the file, e.g. emox.tar.zst, or a folder with --into"
[[ -x $build/launch/emox ]] || fail "$build/launch/emox is not there: cmake --preset gpu && cmake --build --preset gpu"

# Libraries that programs need, but for glibc's, CUDA's, and InfiniBand's, which come with the drivers of a machine: ours would
# hide those from NCCL. Parts of Open MPI that need them are left out where there are none.
libraries_of() {
  ldd "$@" 2>/dev/null | awk '$3 ~ /^\// { print $3 }' | sort -u |
    grep -Ev '/(libc|libm|libdl|libpthread|librt|libresolv|ld-linux.*|libcudart|libcublas|libcublasLt|libcuda|libibverbs|librdmacm|libmlx5|libnl-3|libnl-route-3)\.so'
}

fill() {
  local to=$1 library
  mkdir -p "$to"/{bin,libexec,lib/openmpi,lib/pmix,share/emox}
  cp "$build/launch/emox" "$to/libexec/emox"
  strip --strip-debug "$to/libexec/emox"
  cp "$(readlink -f "$(command -v orterun)")" "$to/libexec/orterun"
  cp "$(readlink -f "$(command -v orted)")" "$to/libexec/orted"
  cp /usr/lib/x86_64-linux-gnu/openmpi/lib/openmpi3/mca_*.so "$to/lib/openmpi"
  cp /usr/lib/x86_64-linux-gnu/pmix2/lib/pmix/*.so "$to/lib/pmix"
  while read -r library; do cp -L "$library" "$to/lib"; done < <(
    libraries_of "$to"/libexec/* "$to"/lib/openmpi/*.so "$to"/lib/pmix/*.so)
  mkdir -p "$to"/share/{openmpi,emox/recipes,emox/hardware,emox/slurm}
  cp -rL /usr/share/openmpi/. "$to/share/openmpi"
  cp -r "$root/launch/recipes/." "$to/share/emox/recipes"
  cp -r "$root/launch/hardware/." "$to/share/emox/hardware"
  cp "$root"/slurm/{job.sh,site.env} "$to/share/emox/slurm"
  cp "$root/README.md" "$root/LICENSE" "$to"
  # No path is written anywhere: programs are started through this, which finds its own place.
  cat >"$to/bin/emox" <<'START'
#!/bin/sh
# Starts the program of the same name with this folder's libraries.
self=$0
[ "${self%/*}" != "$self" ] || self=$(command -v "$0")
if command -v readlink >/dev/null 2>&1; then self=$(readlink -f "$self"); fi  # a link to it may lie elsewhere
place=${self%/*}
EMOX_HOME=$(cd "$place/.." && pwd -P)
cuda=
for cuda in "${CUDA_HOME-}" /usr/local/cuda; do [ -n "$cuda" ] && [ -d "$cuda/lib64" ] && break; done
export EMOX_HOME LD_LIBRARY_PATH="$EMOX_HOME/lib:${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}${cuda:-/usr/local/cuda}/lib64"
export OPAL_PREFIX="$EMOX_HOME" OMPI_MCA_mca_base_component_path="$EMOX_HOME/lib/openmpi"
export PMIX_INSTALL_PREFIX="$EMOX_HOME" PMIX_MCA_mca_base_component_path="$EMOX_HOME/lib/pmix"
export OMPI_MCA_orte_launch_agent="$EMOX_HOME/bin/orted" OMPI_MCA_btl_vader_single_copy_mechanism=none
# Alone, nothing is started on other machines: neither Slurm nor ssh is asked for.
if [ -z "${SLURM_JOB_ID-}" ] && ! command -v ssh >/dev/null 2>&1; then export OMPI_MCA_plm=isolated; fi
if [ -z "${OMPI_COMM_WORLD_SIZE-}${PMIX_RANK-}" ]; then export OMPI_MCA_ess_singleton_isolated=1; fi
program=${0##*/}
[ "$program" != mpirun ] || program=orterun
exec "$EMOX_HOME/libexec/$program" "$@"
START
  chmod +x "$to/bin/emox"
  local name
  for name in mpirun orted; do cp "$to/bin/emox" "$to/bin/$name"; done
}

if [[ -n $into ]]; then
  fill "$into"
else
  command -v zstd >/dev/null || fail "zstd is not installed"
  version=$(sed -n 's/^project(emox VERSION \([0-9.]*\).*/\1/p' "$root/CMakeLists.txt")
  stage=$(mktemp -d)
  trap 'rm -rf "$stage"' EXIT
  fill "$stage/emox-$version"
  tar -C "$stage" -c "emox-$version" | zstd -q -9 -T0 -f -o "$file"
  echo "$file: $(($(stat -c %s "$file") / 1048576)) MiB"
fi
