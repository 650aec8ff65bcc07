# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Looks for a server's socket on another machine, by a POSIX shell, and starts the far end of a bridge to it."""

from __future__ import annotations

import inspect
import typing as t

from .._errors import NoBridge, ServerUnreachable
from . import mux
from .options import SOCKETS, ServerOptions

# find: only say where the socket is. bridge: and join it with standard input and output.
FIND, BRIDGE = "find", "bridge"
_MARK = "mage: "
_PLACES = " ".join(f"{flavor}:{path}" for flavor, path in SOCKETS)
# $1 find or bridge, $2 the socket or nothing, $3 the far end's program. Answers with one line, then with the server's.
_SCRIPT = """
action=$1 socket=$2 program=$3 as=
say() { echo "mage: $*"; }
listens() { grep -q " $1\\$" /proc/net/unix 2>/dev/null; }
[ -n "$socket" ] || socket=${LXD_SOCKET:-${INCUS_SOCKET:-${LXD_DIR:+$LXD_DIR/unix.socket}}}
[ -n "$socket" ] || socket=${INCUS_DIR:+$INCUS_DIR/unix.socket}
if [ -z "$socket" ]; then
    found= answering= seen=
    for place in PLACES; do
        path=${place#*:}
        [ -S "$path" ] || continue
        case $seen in *"${place%%:*}"*) continue ;; esac
        seen=$seen${place%%:*} found="$found $path"
        if listens "$path"; then answering="$answering $path"; fi
    done
    # A daemon that was stopped or killed leaves its socket behind.
    set -- $answering
    [ $# = 1 ] || set -- $found
    case $# in
        0) say none; exit ;;
        1) socket=$1 ;;
        *) say both "$@"; exit ;;
    esac
fi
[ -S "$socket" ] || { say missing "$socket"; exit; }
if [ ! -w "$socket" ]; then
    set -- $(ls -ld "$socket")
    sudo -n true 2>/dev/null || { say denied "$4 $socket"; exit; }
    as="sudo -n"
fi
if [ "$action" = find ]; then
    [ -z "$as" ] || { say sudo "$socket"; exit; }
    if listens "$socket"; then say found "$socket"; else say deaf "$socket"; fi
    exit
fi
if command -v python3 >/dev/null; then
    # One that lacks a part of its library ends before it has read anything.
    $as python3 -I -c "$program" "$socket" && exit
fi
if command -v socat >/dev/null; then say socat "$socket"; exec $as socat -t 600 - "UNIX-CONNECT:$socket"; fi
case $(nc -h 2>&1) in *"-U"*) say nc "$socket"; exec $as nc -U "$socket" ;; esac
say tools
""".replace("PLACES", _PLACES)


class Answer(t.NamedTuple):
    """What the script said: a word, and what belongs to it."""

    word: str
    rest: str


def command(action: str, socket: str = "") -> list[str]:
    """The command that looks for the socket, or opens a bridge to it."""
    return ["sh", "-c", _SCRIPT, "sh", action, socket, inspect.getsource(mux) if action == BRIDGE else ""]


def first_line(output: bytes) -> t.Optional[Answer]:
    """The answer in what came so far, or None if it is not whole. Shells may be chatty before it."""
    for line in output.split(b"\n")[:-1]:
        text = line.decode("utf-8", "replace")
        if text.startswith(_MARK):
            word, _blank, rest = text[len(_MARK) :].partition(" ")
            return Answer(word, rest)
    return None


def after_first_line(output: bytes) -> bytes:
    """What follows the answer."""
    start = 0 if output.startswith(_MARK.encode()) else output.index(b"\n" + _MARK.encode()) + 1
    return output[output.index(b"\n", start) + 1 :]


def both_inside(instance: str, paths: t.Iterable[str] = ()) -> str:
    """What to do where an instance of ``via`` has both servers: no endpoint says which one of them is meant."""
    found = set(paths) or {path for _flavor, path in reversed(SOCKETS)}
    by_flavor = {flavor: path for flavor, path in reversed(SOCKETS) if path in found}
    ways = " or ".join(f"environment.{flavor.upper()}_SOCKET={path}" for flavor, path in sorted(by_flavor.items()))
    return f"LXD and Incus are both in {instance}: say which one by the setting of that instance, {ways}"


def check(answer: Answer, options: ServerOptions, host: str) -> None:
    """Raises ServerUnreachable if there is no one server to speak with. ``host`` is how a person calls the machine."""
    shown = options.shown
    if answer.word == "none":
        places = ", ".join(path for _flavor, path in SOCKETS)
        raise ServerUnreachable(shown, f"there is no LXD or Incus on {host} (looked for {places})")
    if answer.word == "both":
        paths = answer.rest.split()
        known = f"LXD and Incus are both on {host}: say which one after the host in endpoint, {' or '.join(paths)}"
        raise ServerUnreachable(shown, both_inside(host, paths) if options.via else known)
    if answer.word == "missing":
        raise ServerUnreachable(shown, f"there is no socket {answer.rest} on {host}")
    if answer.word == "deaf":
        raise ServerUnreachable(shown, f"nothing listens on {answer.rest} on {host}: the daemon is not running")
    if answer.word == "denied":
        group, _blank, socket = answer.rest.partition(" ")
        told = f"permission denied on {socket}: add the user on {host} to the group {group}, or allow it sudo"
        raise ServerUnreachable(shown, f"{told} without a password")
    if answer.word == "tools":
        raise NoBridge(shown, f"there is neither python3, socat nor nc -U in {host} to open a bridge with")
