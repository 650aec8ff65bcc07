#!/bin/sh
# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PID 1 of a container that is a host itself: its /usr is the outer machine's, and LXD all that runs in it.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin HOME=/root
trap 'exit 0' PWR TERM INT

# Where the outer machine has each of these v1 controllers alone, a link to both at once leads nowhere.
if [ -L /sys/fs/cgroup/cpu ]; then
    mount -o remount,rw /sys/fs/cgroup
    for controller in cpu cpuacct; do
        rm "/sys/fs/cgroup/$controller"
        mkdir "/sys/fs/cgroup/$controller"
        mount -t cgroup -o "$controller" cgroup "/sys/fs/cgroup/$controller"
    done
fi
# Without a freezer, the LXD in here could pause nothing.
if [ ! -e /sys/fs/cgroup/freezer ] && grep -q '^freezer[[:space:]]*[1-9]' /proc/cgroups; then
    mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
    mkdir /sys/fs/cgroup/freezer
    mount -t cgroup -o freezer cgroup /sys/fs/cgroup/freezer
fi
# A tenth of the identities stays here, the rest is for the containers inside.
read -r _ _ size </proc/self/uid_map
echo "root:$((size / 10)):$((size - size / 10))" | tee /etc/subuid >/etc/subgid
ip link set lo up

# As a service manager would: a server that ends is started again, and what it said last is kept.
serve() {
    while :; do
        lxd --group lxd --logfile /var/log/lxd/lxd.log >/var/log/lxd/stdout 2>&1
        { echo "exit code $?"; tail -n 60 /var/log/lxd/stdout; } >>/var/log/lxd/ended
        sleep 1
    done
}
serve &
lxd waitready --timeout 60
lxd init --preseed <<YAML
networks: [{name: lxdbr0, type: bridge, config: {ipv4.address: "10.64.$MAGE_DEPTH.1/24", ipv4.nat: "false",
    ipv4.firewall: "false", ipv6.address: none, ipv6.firewall: "false"}}]
storage_pools: [{name: default, driver: dir}]
profiles:
  - name: default
    devices: {root: {type: disk, pool: default, path: /}, eth0: {type: nic, network: lxdbr0, name: eth0}}
YAML
lxc image import /srv/busybox.tar.gz --alias mage-test/busybox
lxc image import /srv/nested.tar.gz --alias mage-test/nested
touch /run/ready
while :; do
    sleep 3600 &
    wait $!
done
