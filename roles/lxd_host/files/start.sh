#!/usr/bin/env bash
# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# start.sh lxd|incus: starts the daemon on a machine without systemd, detached from the caller, as the package's
# own init script does, and lxcfs before it.
set -euo pipefail

case $1 in
    lxd) daemon=/usr/bin/lxd group=lxd ;;
    incus) daemon=/usr/libexec/incus/incusd group=incus-admin ;;
    *) echo "unknown flavor: $1" >&2; exit 1 ;;
esac
PATH="$(dirname "$daemon"):/usr/sbin:/usr/bin:/sbin:/bin"
export PATH

grep -q ' cgroup' /proc/self/mounts || mount -t cgroup2 cgroup2 /sys/fs/cgroup
apparmor="/usr/libexec/$1/$1-apparmor-load"
[ ! -x "$apparmor" ] || "$apparmor"
# An lxcfs that was killed leaves a mount that nobody answers for.
if grep -q '^lxcfs /var/lib/lxcfs ' /proc/mounts && ! stat -t /var/lib/lxcfs/proc >/dev/null 2>&1; then
    umount --lazy /var/lib/lxcfs
fi
install -d "/var/log/$1" /var/lib/lxcfs
# Not where it runs, and not in a container that the outer host serves with it.
if ! grep -q '^lxcfs ' /proc/mounts; then
    start-stop-daemon --start --background --make-pidfile --pidfile /run/lxcfs.pid \
        --exec /usr/bin/lxcfs --oknodo -- /var/lib/lxcfs
fi
# The unit's limit, or in a container what that may have.
ulimit -n 1048576 2>/dev/null || ulimit -n "$(ulimit -H -n)"
start-stop-daemon --start --background --make-pidfile --pidfile "/run/$1.pid" --output "/var/log/$1/start.log" \
    --exec "$daemon" --oknodo -- --group "$group" --logfile "/var/log/$1/$1.log"
