#!/usr/bin/env bash
# Run cluster tests on the Slurm of another release of Debian, in a root of its own:
#   tests/cluster/newer_slurm.sh RELEASE [arguments of pytest]        (RELEASE: trixie has Slurm 24.11)
# Needs root, debootstrap and the package mirror of this machine. The root is kept in
# FITB_SLURM_ROOT (default /var/tmp/fitb-RELEASE) for the next time.
set -euo pipefail
release=$1 && shift
root=${FITB_SLURM_ROOT:-/var/tmp/fitb-$release}
here=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")

if [[ ! -e $root/made-by-fitb ]]; then
  [[ ! -e $root ]] || { echo "$root exists and is not ours; set FITB_SLURM_ROOT" >&2 && exit 1; }
  # shellcheck disable=SC2016 # apt-get expands it
  mirror=$(apt-get indextargets --format '$(REPO_URI)' | head -n 1)
  packages=slurmctld,slurmd,slurm-client,munge,iproute2,procps,util-linux,libffi8,libssl3t64,libsqlite3-0,libbz2-1.0,liblzma5,zlib1g,libreadline8t64
  debootstrap --variant=minbase --include="$packages" "$release" "$root.part" "$mirror"
  touch "$root.part/etc/hosts" # `ip netns exec` mounts that of a host over it
  mv "$root.part" "$root"
  touch "$root/made-by-fitb"
fi

# A mount namespace of its own: the mounts end with it. The root is a mount too, for `ip netns`.
export root here
# shellcheck disable=SC2016 # the inner shell expands it
exec unshare --mount bash -c '
  mount --bind "$root" "$root"
  for path in /proc /sys /dev /tmp "$here" "$(python -c "import sys; print(sys.base_prefix)")"; do
    mkdir -p "$root$path"
    mount --rbind "$path" "$root$path"
  done
  mount --make-rslave "$root/proc" && mount -t tmpfs tmpfs "$root/run"
  exec chroot "$root" env --chdir="$here" PATH="$here/.venv/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
    python -m pytest -rs -p no:cacheprovider "$@"
' bash "$@"
