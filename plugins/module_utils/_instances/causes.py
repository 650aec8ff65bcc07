# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Known causes of a start that fails or does not last, and what to do about each. Pure."""

from __future__ import annotations

import re
import typing as t

# What a console, a log or an error says, and what is told of it.
KNOWN: tuple[tuple[str, str], ...] = (
    (
        r"Too many open files|Failed to allocate manager object|inotify",
        "The host has run out of inotify instances: raise fs.inotify.max_user_instances (the role lxd_host does)",
    ),
    (
        r"uid/gid allocation|No uid/gid|subordinate|newuidmap|Failed to .*idmap|No map range|subuid|subgid",
        (
            "The host has no subordinate ids for the container: give root a range in /etc/subuid and /etc/subgid, such "
            "as root:1000000:1000000000, and restart the server"
        ),
    ),
    (
        (
            r"Failed to mount \"?/?(proc|sys)|mount.*(proc|sysfs).*(not permitted|denied)|Failed to mount (API|cgroup)"
            r"|Failed to (set up|start up).*(mount namespac|credentials|namespac)|overlay.*(not permitted|denied)"
            r"|unprivileged container.*nest"
        ),
        "What runs in it needs nesting: set nesting: true",
    ),
    (
        r"already defined on another NIC",
        "Another instance is pinned to its address: lxc list shows which",
    ),
    (
        r"No space left on device",
        "The host or the storage pool is full",
    ),
    (
        r"Exec format error",
        "The image is of another architecture than the host",
    ),
    (
        r"/sbin/init.*No such file|Failed to exec \"?/sbin/init|No such file or directory - Failed to exec",
        "The image has no /sbin/init: it cannot start as a system",
    ),
)


def advice(texts: t.Iterable[str]) -> str:
    """What to do about the first cause that is known, with a blank before it; else nothing."""
    whole = "\n".join(texts)
    for pattern, told in KNOWN:
        if re.search(pattern, whole, re.IGNORECASE):
            return f" {told}."
    return ""


# What asking for the state of an instance leaves in its log, what every start does, and what comes after a cause.
_NOISE = re.compile(r"\s(WARN\s+(attach|cgfsng)|ERROR\s+(af_unix|commands))\s+-\s")
_LEVEL = re.compile(r"\s(TRACE|DEBUG|INFO|NOTICE|WARN|ERROR|CRIT|ALERT|FATAL)\s+\S+\s+-\s\S+\.c:")
_ERROR = re.compile(r"\s(ERROR|CRIT|ALERT|FATAL)\s")


def last_lines(raw: bytes, count: int = 5) -> list[str]:
    """The last lines of a console or a log that say anything. Of those with a level, errors come before warnings."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw.decode("utf-8", "replace"))
    lines = ["".join(char for char in line if char.isprintable()).strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not _NOISE.search(line)]
    errors = [line for line in lines if not _LEVEL.search(line) or _ERROR.search(line)]
    return (errors or lines)[-count:]
