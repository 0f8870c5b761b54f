#!/usr/bin/env bash
# Tries the first two commands a newcomer types on a machine that has nothing: makes a minimal Debian root with
# debootstrap, puts this checkout there, runs `./run test` and `./run train` in it and prints how long they took.
# Needs root, debootstrap and some 3 GB in the temporary folder:  [MIRROR=URL] tools/clean_machine.sh [SUITE [COMMAND ...]]
# Each COMMAND is one shell line, "./run test" and "./run train" unless given. The root is removed at the end.
set -euo pipefail
checkout=$(dirname -- "$(dirname -- "$(readlink -f -- "$0")")")
suite=${1:-bookworm}
shift || true
(($# > 0)) || set -- './run test' './run train'
root=$(mktemp -d "${TMPDIR:-/tmp}/clean-machine.XXXXXX")
chmod 755 "$root"  # or no user but root could enter /

leave() {
  umount "$root/proc" "$root/dev/pts" 2>/dev/null || true
  if mountpoint -q "$root/proc" || mountpoint -q "$root/dev/pts"; then
    echo "clean machine: $root is still in use and was not removed" >&2
  else
    rm -rf --one-file-system "$root"
  fi
}
trap leave EXIT

SECONDS=0
debootstrap --variant=minbase "$suite" "$root" "${MIRROR:-http://deb.debian.org/debian}" >"$root.log" 2>&1 ||
  { tail -n 20 "$root.log" >&2; exit 1; }
rm -f "$root.log"
# packages and names are reached as this machine reaches them
cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
find /etc/apt/apt.conf.d -name '*proxy*' -exec cp {} "$root/etc/apt/apt.conf.d/" \;
mount -t proc proc "$root/proc"
mount -t devpts devpts "$root/dev/pts"
mkdir "$root/sinkhorn"
git -C "$checkout" ls-files -co --exclude-standard -z | tar -C "$checkout" --null -T - -c | tar -C "$root/sinkhorn" -x
echo "clean machine: Debian $suite made in $SECONDS s" >&2

for command; do
  SECONDS=0 status=0
  env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 TERM=dumb \
    http_proxy="${http_proxy:-}" https_proxy="${https_proxy:-}" \
    chroot "$root" bash -c "cd /sinkhorn && $command" </dev/null || status=$?
  echo "clean machine: '$command' took $SECONDS s, exit status $status" >&2
  ((status == 0)) || exit "$status"
done
