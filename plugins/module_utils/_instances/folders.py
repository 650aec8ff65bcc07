# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What the host knows of the folders that are mounted into instances, if the server is on this machine."""

from __future__ import annotations

import os
import re
import typing as t

from .mounts import Folder
from .spec import InstanceSpec

# A range of so many ids is one for whole containers.
_RANGE = 65536


def read(items: t.Iterable[InstanceSpec], endpoint: str) -> dict[str, Folder]:
    """The folders of all mounts, by source. None where the server is on another machine, or in a container."""
    if not re.fullmatch(r"unix:///\S+", endpoint):
        return {}
    sources = {mount.source for item in items if item.state != "absent" for mount in item.mounts}
    if not sources:
        return {}
    points = _mount_points()
    users, groups = _delegated("/etc/subuid"), _delegated("/etc/subgid")
    found = {}
    for source in sources:
        try:
            status = os.stat(source)
        except OSError:
            # The server says so when it is asked to mount it; an earlier task may be going to make it.
            continue
        real = os.path.realpath(source)
        point = max((one for one in points if _within(real, one)), key=len, default="")
        allowed = any(status.st_uid in one for one in users) and any(status.st_gid in one for one in groups)
        found[source] = Folder(points.get(point, ""), status.st_uid, status.st_gid, allowed)
    return found


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _mount_points() -> dict[str, str]:
    """Filesystems by mount point; the last one mounted on a point is the one that is seen."""
    found = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            before, _dash, after = line.partition(" - ")
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), before.split()[4])
            found[point] = after.split()[0]
    return found


def _delegated(path: str) -> list[range]:
    """The ids of the host that root may map into containers, besides those that are no user's."""
    try:
        with open(path, encoding="utf-8") as lines:
            parts = [line.strip().split(":") for line in lines]
    except OSError:
        return []
    numbers = [part for part in parts if len(part) == 3 and part[0] in ("root", "0") and part[1].isdigit()]
    found = [range(int(first), int(first) + int(count)) for _name, first, count in numbers if count.isdigit()]
    # A server refuses ids out of the range that it gives to containers.
    return [one for one in found if len(one) < _RANGE]
