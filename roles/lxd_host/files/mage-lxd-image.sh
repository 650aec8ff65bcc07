#!/usr/bin/env bash
# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Brings one image into the server and points an alias at it.
#   mage-lxd-image.sh CLIENT ALIAS build SUITE MIRROR PACKAGES DEFINITION
#   mage-lxd-image.sh CLIENT ALIAS file METADATA [ROOTFS]
#   mage-lxd-image.sh CLIENT ALIAS pull SERVER PROTOCOL SOURCE_ALIAS
# CLIENT is lxc or incus. MIRROR may be empty: the host's own. PACKAGES are joined by commas and may be empty.
# Says what it did; a server that has it all already is left alone, and nothing is said.
# The alias moves only after the new image is in the server, so a run that dies leaves the old image usable.
set -euo pipefail

CLIENT=$1 ALIAS=$2 KIND=$3
shift 3
WORK=/var/cache/mage-lxd
# A configuration of its own: the client of this user may be switched to another server or project.
CONFIGURATION=$(mktemp -d)
export LXD_CONF=$CONFIGURATION INCUS_CONF=$CONFIGURATION
unset INCUS_REMOTE INCUS_PROJECT LXD_REMOTE LXD_PROJECT

fail() { printf '%s\n' "$*" >&2; exit 1; }

# quote TEXT: as one segment of a URL.
quote() { python3 -c 'import sys, urllib.parse; print(urllib.parse.quote(sys.argv[1], safe=""))' "$1"; }

# json KEY...: the value at that path of the JSON on standard input.
json() {
    python3 -c 'import functools, json, sys; print(functools.reduce(lambda d, k: d[k], sys.argv[1:], json.load(sys.stdin)))' "$@"
}

# sources: the release as each source of packages names it, its codename, its origin and its URI.
sources() {
    apt-get indextargets --format "\$(RELEASE)|\$(CODENAME)|\$(ORIGIN)|\$(REPO_URI)" 'Created-By: Packages' 'Component: main'
}

# own_mirror SUITE: deb lines from the host's own sources, where they are of that distribution. Nothing where they are
# not: mmdebstrap knows each distribution's mirror.
own_mirror() {
    local codename main security
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    # A source may name the suite (stable) instead of the release, and lie at any path.
    main=$(sources | awk -F'|' -v s="$codename" '
        ($1 == s || ($2 == s && $1 !~ /-/)) && ($3 ~ /^(Debian|Ubuntu)$/ || $4 ~ /\/(debian|ubuntu)\/?$/) {print $4; exit}')
    security=$(sources | awk -F'|' -v s="$codename-security" '$1 == s || $2 == s {print $4; exit}')
    grep -qx 'ID=debian' /etc/os-release || grep -qx "$1" <(ubuntu-distro-info --all 2>/dev/null) || return 0
    [ -n "$main" ] || return 0
    echo "deb $main $1 main"
    case $1 in
        sid | unstable | experimental) ;;
        *)
            echo "deb $main $1-updates main"
            [ -z "$security" ] || echo "deb $security $1-security main"
            ;;
    esac
}

# metadata DIRECTORY SUITE DEFINITION: metadata.yaml and the templates that name each container.
metadata() {
    local arch
    arch=$(uname -m)
    mkdir -p "$1/templates"
    cat >"$1/metadata.yaml" <<YAML
architecture: $arch
creation_date: $(date +%s)
properties:
  architecture: $arch
  description: $2, built by mage.lxd
  mage.definition: $3
  release: $2
templates:
  /etc/hostname: {when: [create, copy], template: hostname.tpl}
  /etc/hosts: {when: [create, copy], template: hosts.tpl}
YAML
    echo '{{ instance.name }}' >"$1/templates/hostname.tpl"
    cat >"$1/templates/hosts.tpl" <<'HOSTS'
127.0.0.1 localhost
127.0.1.1 {{ instance.name }}
::1 localhost ip6-localhost ip6-loopback
ff02::1 ip6-allnodes
ff02::2 ip6-allrouters
HOSTS
}

# customise ROOT: the network by DHCP, names by systemd-resolved, nothing of the machine that built it.
customise() {
    install -d "$1/etc/systemd/network" "$1/etc/systemd/system/systemd-networkd.service.d"
    cat >"$1/etc/systemd/network/80-eth0.network" <<'NETWORK'
[Match]
Name=eth0

[Network]
DHCP=yes

# By the MAC address: the machine's own id is the same in a copy, and copies would share an address.
[DHCPv4]
ClientIdentifier=mac
UseDomains=true
NETWORK
    # With /sys writable, networkd waits for a udev that a container has not.
    printf '[Service]\nBindReadOnlyPaths=/sys\n' >"$1/etc/systemd/system/systemd-networkd.service.d/no-udev.conf"
    # The image's own: a host without an init system has none.
    chroot "$1" systemctl --root=/ enable --quiet systemd-networkd systemd-resolved
    # The first waits for a network that a container may not have, the others care for file systems it has not.
    chroot "$1" systemctl --root=/ disable --quiet systemd-networkd-wait-online.service e2scrub_all.timer e2scrub_reap.service
    ln -sfn /run/systemd/resolve/stub-resolv.conf "$1/etc/resolv.conf"
    echo 'LANG=C.UTF-8' >"$1/etc/default/locale"
    : >"$1/etc/machine-id"
    rm -f "$1/var/lib/dbus/machine-id" "$1/etc/hostname" "$1/etc/hosts"
}

# built DEFINITION: the image that was built from it, under whatever alias, or nothing.
built() {
    "$CLIENT" query '/1.0/images?recursion=1' | python3 -c '
import json, sys
for image in json.load(sys.stdin) or []:
    if image["properties"].get("mage.definition") == sys.argv[1]:
        print(image["fingerprint"])
        break' "$1"
}

# discard: what a build leaves, whatever a build that was killed may have mounted in there.
discard() { rm -rf --one-file-system "$WORK/build"; }

# forget: the client's configuration.
forget() { rm -rf "$CONFIGURATION"; }
trap forget EXIT

# build SUITE MIRROR PACKAGES DEFINITION
build() {
    local suite=$1 mirror=$2 packages=$3 directory="$WORK/build" log="$WORK/build.log" proxy there
    local base=systemd,systemd-sysv,dbus,iproute2,netbase
    there=$(built "$4")
    if [ -n "$there" ]; then
        point "$there"
        return
    fi
    # What an interrupted build left.
    discard
    mkdir -p "$directory/metadata"
    trap 'discard; forget' EXIT
    # Older suites have systemd-resolved within systemd.
    base+=',?exact-name(systemd-resolved)|?exact-name(netbase)'
    [ -n "$mirror" ] || mirror=$(own_mirror "$suite")
    # Without it, apt in the containers trusts no mirror.
    case $mirror in *https://*) base+=,ca-certificates ;; esac
    proxy=$(apt-config shell PROXY Acquire::http::Proxy)
    eval "$proxy"
    # A file: the environment of a hook passes through dash, which drops exported functions.
    { echo '#!/bin/bash -e'; declare -f customise; echo "customise \"\$1\""; } >"$directory/customise"
    chmod 0755 "$directory/customise"
    metadata "$directory/metadata" "$suite" "$4"
    TMPDIR=$directory timeout 1800 mmdebstrap --quiet --mode=root --variant=minbase --include="$base${packages:+,$packages}" \
        ${PROXY:+--aptopt="Acquire::http::Proxy \"$PROXY\""} \
        --aptopt='Acquire::Languages "none"' \
        --dpkgopt='force-unsafe-io' \
        --customize-hook="$directory/customise" \
        --format=tar "$suite" - ${mirror:+"$mirror"} 2>"$log" | zstd -1 -T0 -q >"$directory/rootfs.tar.zst" ||
        fail "mmdebstrap $suite failed; the end of $log: $(tail -n 15 "$log")"
    tar -C "$directory/metadata" -cf "$directory/metadata.tar" metadata.yaml templates
    add "$directory/metadata.tar" "$directory/rootfs.tar.zst"
}

# fingerprint FILE...: what the server will call the image.
fingerprint() { cat -- "$@" | sha256sum | cut -d' ' -f1; }

# add METADATA [ROOTFS]: imports the files, unless that very image is there, and points the alias at it.
add() {
    local print
    print=$(fingerprint "$@")
    if ! "$CLIENT" query "/1.0/images/$print" >/dev/null 2>&1; then
        "$CLIENT" image import "$@" >/dev/null || fail "the server refused the image $ALIAS"
    fi
    point "$print"
}

# pull SERVER PROTOCOL SOURCE_ALIAS: has the server fetch it, and keep it up to date.
pull() {
    local body operation
    body=$(python3 -c '
import json, sys
server, protocol, alias = sys.argv[1:]
source = dict(type="image", mode="pull", server=server, protocol=protocol, alias=alias)
print(json.dumps(dict(auto_update=True, source=source)))' "$@")
    operation=$(timeout 1800 "$CLIENT" query --wait -X POST -d "$body" /1.0/images) || fail "$1: $3: the server could not fetch it"
    # An image has one source, and may be asked for by several names: each alias says which it came by.
    point "$(json metadata fingerprint <<<"$operation")" "$*"
}

# point FINGERPRINT [DESCRIPTION]: moves the alias, then removes the image it was on, if this script built that and nothing names it.
point() {
    local path there old="" said="" body
    path="/1.0/images/aliases/$(quote "$ALIAS")"
    if there=$("$CLIENT" query "$path" 2>/dev/null); then
        old=$(json target <<<"$there") said=$(json description <<<"$there")
        [ "$old" != "$1" ] || [ "${2:-$said}" != "$said" ] || return 0
    fi
    body=$(python3 -c '
import json, sys
print(json.dumps(dict(zip(("name", "target", "description"), sys.argv[1:]))))' "$ALIAS" "$1" "${2:-$said}")
    if [ -n "$old" ]; then
        "$CLIENT" query -X PUT -d "$body" "$path" >/dev/null
        [ "$old" = "$1" ] || sweep "$old"
    else
        "$CLIENT" query -X POST -d "$body" /1.0/images/aliases >/dev/null
    fi
    printf '%s %s\n' "$ALIAS" "$1"
}

# sweep FINGERPRINT
sweep() {
    "$CLIENT" query "/1.0/images/$1" | python3 -c '
import json, sys
image = json.load(sys.stdin)
sys.exit(0 if "mage.definition" in image["properties"] and not image["aliases"] else 1)' || return 0
    "$CLIENT" image delete "$1"
}

mkdir -p "$WORK"
exec 9>"$WORK/lock"
flock -w 900 9 || fail "another build holds $WORK/lock for 15 minutes"
case $KIND in
    build) build "$@" ;;
    file) add "$@" ;;
    pull) pull "$@" ;;
    *) fail "unknown kind of image: $KIND" ;;
esac
