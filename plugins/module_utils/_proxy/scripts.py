# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""The shell scripts that run in the proxy's instance. They are constants: what varies comes as arguments and stdin."""

from __future__ import annotations

from .plan import LINKS
from .render import MAIN, PROBE_NAME, PROBES

# Exit codes of CONVERGE and of WRITE_HOSTS.
REFUSED = 65
NOT_SERVED = 66
BUSY = 75
MOVED = 76

_COMMON = """
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
export PATH LC_ALL
running() {
    for comm in /proc/[0-9]*/comm; do
        read -r name 2>/dev/null <"$comm" && [ "$name" = nginx ] && return 0
    done
    return 1
}
"""

# Runs side by side come one after another.
_LOCK = f"""
mage=$dir/mage
mkdir -p "$mage/before" || exit 1
exec 9>"$mage/lock"
tries=0
until flock -n 9; do
    tries=$((tries + 1))
    [ "$tries" -lt 600 ] || {{ echo "another run has held $mage/lock for 2 minutes"; exit {BUSY}; }}
    sleep 0.2
done
"""

# ask HOST: the last line of what nginx answers a probe for HOST; it reaches no backend.
_ASK = f"""
ask() {{
    if command -v bash >/dev/null; then
        bash -c '
            exec 3<>/dev/tcp/127.0.0.1/80 || exit 1
            printf "GET / HTTP/1.0\\r\\nHost: %s\\r\\nX-Mage-Probe: {PROBE_NAME}\\r\\n\\r\\n" "$1" >&3
            while IFS= read -r -t 5 line <&3; do last=$line; done
            printf "%s\\n" "$last"' bash "$1" 2>/dev/null
    elif command -v curl >/dev/null; then
        curl -s --noproxy '*' --max-time 5 -H "Host: $1" -H "X-Mage-Probe: {PROBE_NAME}" http://127.0.0.1/
    else
        wget -q -T 5 -Y off -O - --header "Host: $1" --header "X-Mage-Probe: {PROBE_NAME}" http://127.0.0.1/ 2>/dev/null
    fi
}}
"""

# sh -c OBSERVE sh FOLDER: facts, one a line, then an empty line, then the current tree as tar, if there is one.
OBSERVE = (
    _COMMON
    + _ASK
    + f"""
dir=$1
if command -v nginx >/dev/null; then
    echo "version $(nginx -v 2>&1 | sed 's|.*/||; s| .*||')"
    for user in www-data nginx http nobody; do
        if grep -q "^$user:" /etc/passwd; then echo "user $user"; break; fi
    done
    sed -n 's/^nameserver[[:space:]][[:space:]]*/resolver /p' /etc/resolv.conf
    if running; then
        echo "running yes"
        echo "serving $(ask {PROBE_NAME}.invalid)"
    fi
fi
for link in {" ".join(LINKS)}; do
    [ -L "$dir/$link" ] && echo "link $link $(readlink "$dir/$link")"
done
current=$(readlink "$dir/mage/current") && echo "current $current"
echo
[ -f "$dir/mage/current/{MAIN}" ] && tar -c -f - -C "$dir/mage/current/" .
exit 0
"""
)

# sh -c CONVERGE sh FOLDER GENERATION CURRENT, the tree as tar on stdin. Stages the whole tree, tests it, swaps one
# link, reloads or starts, asks for every vhost, and goes back to what was if one does not answer.
CONVERGE = (
    _COMMON
    + _ASK
    + """
set -u
umask 022
dir=$1 generation=$2 expected=$3
"""
    + _LOCK
    + f"""
current=$(readlink "$mage/current" || :)
[ "$current" = "$expected" ] || {{ echo "now: $current"; exit {MOVED}; }}

stage=$(mktemp -d "$mage/$generation.XXXXXX") || exit 1
chmod 755 "$stage"
tar -x -o -f - -C "$stage" || {{ rm -rf "$stage"; exit 1; }}
output=$(nginx -t -q -c "$stage/{MAIN}" 2>&1)
rc=$?
case $output in *'[warn]'* | *'[error]'* | *'[crit]'* | *'[alert]'* | *'[emerg]'*) rc=1 ;; esac
[ "$rc" = 0 ] || {{ rm -rf "$stage"; printf '%s\\n' "$output"; exit {REFUSED}; }}

point() {{ rm -rf "$2.mage-new" && ln -s "$1" "$2.mage-new" && mv -T -f "$2.mage-new" "$2"; }}
back() {{
    if [ -n "$current" ]; then point "$current" "$mage/current"; fi
    for link in $changed; do
        if [ -e "$mage/before/$link" ]; then rm -f "$dir/$link"; mv "$mage/before/$link" "$dir/$link"
        elif [ -z "$current" ]; then rm -f "$dir/$link"; fi
    done
    [ -n "$current" ] || rm -f "$mage/current"
    if [ "$was" = running ]; then nginx -s reload; else halt; fi
    rm -rf "$stage"
}}
begin() {{
    if [ -d /run/systemd/system ]; then systemctl enable -q nginx; systemctl restart nginx
    elif command -v rc-service >/dev/null; then rc-update -q add nginx default; rc-service -q nginx start
    else nginx; fi
}}
halt() {{
    if [ -d /run/systemd/system ]; then systemctl stop nginx; else nginx -s stop; fi
}}
failed() {{ back >/dev/null 2>&1 9>&-; printf '%s\\n' "$@"; exit {NOT_SERVED}; }}

was=stopped changed=
running && was=running
point "${{stage##*/}}" "$mage/current" || exit 1
for link in {" ".join(LINKS)}; do
    [ "$(readlink "$dir/$link")" = "mage/current/$link" ] && continue
    rm -rf "$mage/before/$link"
    if [ -d "$dir/$link" ]; then mv "$dir/$link" "$mage/before/$link"
    elif [ -e "$dir/$link" ]; then cp -P -p "$dir/$link" "$mage/before/$link"; fi
    changed="$changed $link"
    point "mage/current/$link" "$dir/$link" || failed "$dir/$link cannot be written"
done
output=$(nginx -t -q 2>&1) || failed "$output"
if [ "$was" = running ]; then
    output=$(nginx -s reload 2>&1 9>&-) || failed "$output"
else
    output=$(begin 2>&1 9>&-) || failed "nginx does not start: $output"
fi

# served HOST NAME TRIES: whether the new configuration answers for it; old workers take connections for a moment.
served() {{
    tries=$3
    until [ "$(ask "$1")" = "$2 $generation" ]; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 0.05
    done
}}
told() {{ tail -n 5 /var/log/nginx/error.log; }}
served {PROBE_NAME}.invalid default 200 || failed "nginx does not take the new configuration up: $(told)"
unserved=
while read -r host name; do
    served "$host" "$name" 20 || unserved="$unserved $name"
done <"$stage/{PROBES}"
[ -z "$unserved" ] || failed "not served after the reload:$unserved" "$(told)"
for old in "$mage"/*.??????; do
    case "${{old##*/}}" in "${{stage##*/}}" | "$current" | '*.??????') ;; *) rm -rf "$old" ;; esac
done
exit 0
"""
)

# sh -c WRITE_HOSTS sh FOLDER SIZE EXPECTED, the hosts file on stdin. EXPECTED is the SHA-256 of the one that was read.
WRITE_HOSTS = (
    _COMMON
    + """
umask 022
dir=$1 size=$2 expected=$3
"""
    + _LOCK
    + f"""
now=$(sha256sum </etc/hosts) || exit 1
[ "${{now%% *}}" = "$expected" ] || exit {MOVED}
cat >/etc/hosts.mage-new || exit 1
[ "$(($(wc -c </etc/hosts.mage-new)))" = "$size" ] || {{ echo "cut short"; exit 1; }}
mv -f /etc/hosts.mage-new /etc/hosts
"""
)
