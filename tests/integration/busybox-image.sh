#!/usr/bin/env bash
# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# busybox-image.sh FILE: writes a unified image of static busybox: an address by DHCP, a web page with its own
# name on port 80, `exec sh`, and a stop within moments. The same busybox gives the same file.
# busybox-image.sh --import CLIENT: brings it into the server as mage-test/busybox, and says so if it was not there.
set -euo pipefail

directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
if [ "$1" = --import ]; then
    bash "$0" "$directory/image.tar.gz"
    bash "$(dirname "$0")/../../roles/lxd_host/files/mage-lxd-image.sh" "$2" mage-test/busybox file "$directory/image.tar.gz"
    exit
fi
root=$directory/rootfs
mkdir -p "$root"/{bin,sbin,dev,etc,proc,root,run,srv/www,sys,tmp,usr/bin,usr/sbin,usr/share/udhcpc,var} "$directory/templates"
chmod 1777 "$root/tmp"
ln -s /run "$root/var/run"
install -m 0755 /bin/busybox "$root/bin/busybox"
chroot "$root" /bin/busybox --install -s
rm -f "$root/sbin/init"

cat >"$root/sbin/init" <<'INIT'
#!/bin/sh
# PID 1: the server stops it with SIGPWR, and it reaps what it is left with.
trap 'exit 0' PWR TERM INT
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
ip link set lo up
hostname >/srv/www/index.html
httpd -p 80 -h /srv/www
if [ -e /sys/class/net/eth0 ]; then
    ip link set eth0 up
    udhcpc -f -S -i eth0 -t 20 -T 1 -A 2 -x "hostname:$(hostname)" -s /usr/share/udhcpc/default.script &
fi
while :; do
    sleep 3600 &
    wait $!
done
INIT

cat >"$root/usr/share/udhcpc/default.script" <<'DHCP'
#!/bin/sh
case $1 in
    deconfig) ip -4 addr flush dev "$interface" ;;
    bound | renew)
        ip addr replace "$ip/$mask" dev "$interface"
        for gateway in $router; do ip route replace default via "$gateway" dev "$interface"; done
        : >/etc/resolv.conf.new
        for server in $dns; do echo "nameserver $server" >>/etc/resolv.conf.new; done
        mv /etc/resolv.conf.new /etc/resolv.conf
        ;;
esac
DHCP
chmod 0755 "$root/sbin/init" "$root/usr/share/udhcpc/default.script"
echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"

arch=$(uname -m)
cat >"$directory/metadata.yaml" <<YAML
architecture: $arch
creation_date: 1700000000
properties: {architecture: $arch, description: busybox for the tests of mage.lxd, mage.definition: busybox, os: busybox}
templates:
  /etc/hostname: {when: [create, copy], template: hostname.tpl}
  /etc/hosts: {when: [create, copy], template: hosts.tpl}
YAML
echo '{{ instance.name }}' >"$directory/templates/hostname.tpl"
printf '127.0.0.1 localhost\n127.0.1.1 {{ instance.name }}\n' >"$directory/templates/hosts.tpl"
tar -C "$directory" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@1700000000 -cf - \
    metadata.yaml rootfs templates | gzip -1n >"$1"
