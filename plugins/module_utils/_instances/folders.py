# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""The folders of this machine that are mounted into instances: what is known of them, and their access lists."""

from __future__ import annotations

import errno
import os
import re
import stat
import typing as t

from .._errors import MageError
from . import acl
from .mounts import Folder, Mount
from .spec import InstanceSpec

# A range of so many ids is one for whole containers.
_RANGE = 65536
_ACCESS, _DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


def read(items: t.Iterable[InstanceSpec], endpoint: str) -> t.Optional[dict[str, Folder]]:
    """The folders of all mounts, by source. None where the server is on another machine, or in a container."""
    if not re.fullmatch(r"unix:///\S+", endpoint):
        return None
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


def grant(mounts: t.Iterable[Mount], config: t.Mapping[str, str]) -> None:
    """Let the root of a container into the folders that ask for access lists; what it makes there stays its owner's,
    too. Raises MageError."""
    root = acl.root_of(config)
    for mount in mounts:
        if not mount.acl or root is None:
            continue
        rights = acl.READ if mount.readonly else acl.READ | acl.WRITE
        try:
            owner = os.stat(mount.source).st_uid
            for folder, _folders, files in os.walk(mount.source):
                for path in (folder, *(os.path.join(folder, name) for name in files)):
                    _grant(path, root, owner, rights)
        except OSError as error:
            raise MageError(f"{mount.place}.acl: {error.filename or mount.source}: {error.strerror}") from error


def _grant(path: str, root: int, owner: int, rights: int) -> None:
    status = os.lstat(path)
    folder = stat.S_ISDIR(status.st_mode)
    if not (folder or stat.S_ISREG(status.st_mode)):
        return
    held = rights | (acl.EXECUTE if folder or status.st_mode & 0o111 else 0)
    _write(path, _ACCESS, acl.granted(_read(path, _ACCESS), status.st_mode, [root], held))
    if folder:
        default = _read(path, _DEFAULT)
        default = acl.granted(default, status.st_mode, [root], held)
        _write(path, _DEFAULT, acl.granted(default, status.st_mode, [owner] if owner else [], 7))


def _read(path: str, kind: str) -> t.Optional[bytes]:
    try:
        return os.getxattr(path, kind, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise


def _write(path: str, kind: str, value: bytes) -> None:
    if _read(path, kind) != value:
        os.setxattr(path, kind, value, follow_symlinks=False)


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
