# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Whole folders into and out of a running instance, over any driver. Needs tar in there."""

from __future__ import annotations

import io
import os
import tarfile
import typing as t

from .._errors import CommandFailed, InvalidInput, MageError
from .driver import Driver

_NO_SUCH_COMMAND = 127


def push(driver: Driver, name: str, source: str, target: str, project: str = "default") -> None:
    """Copy what is in a folder here into a folder of a running instance, as root's."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for entry in sorted(os.listdir(source)):
            tar.add(os.path.join(source, entry), arcname="./" + entry, filter=_as_root)
    script = 'mkdir -p -- "$1" && exec tar -xf - -C "$1"'
    _run(driver, name, project, ["sh", "-c", script, "sh", target], archive.getvalue())


def _as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def pull(driver: Driver, name: str, source: str, target: str, project: str = "default") -> None:
    """Copy files, folders and links out of a folder of a running instance. Raises InvalidInput for what would land
    elsewhere."""
    data = _run(driver, name, project, ["tar", "-cf", "-", "-C", source, "."], b"")
    links = []
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for entry in tar:
            place = _inside(target, entry.name, name)
            if entry.isdir():
                os.makedirs(place, exist_ok=True)
            elif entry.issym():
                links.append(entry)
            else:
                content = tar.extractfile(entry)
                if content is not None:
                    with open(place, "wb") as file:
                        file.write(content.read())
                    os.chmod(place, entry.mode & 0o777)
    # Last of all, so that nothing is written through a link.
    for entry in links:
        os.symlink(entry.linkname, _inside(target, entry.name, name))


def _inside(target: str, entry: str, name: str) -> str:
    """Where an entry is put. A link that stands there, as from an earlier copy, is removed."""
    parts = [part for part in entry.split("/") if part not in ("", ".")]
    if entry.startswith("/") or ".." in parts:
        raise InvalidInput([f"{name}: {entry!r} would land outside of {target}"])
    place = target
    for part in parts:
        if place != target and os.path.islink(place):
            raise InvalidInput([f"{name}: {entry!r} would land behind the link {place}"])
        place = os.path.join(place, part)
    if place != target and os.path.islink(place):
        os.unlink(place)
    return place


def _run(driver: Driver, name: str, project: str, argv: t.Sequence[str], stdin: bytes) -> bytes:
    done = driver.execute(name, argv, project=project, stdin=stdin)
    if done.rc == _NO_SUCH_COMMAND:
        raise MageError(f"{name}: copying a folder needs tar in the instance")
    if done.rc:
        raise CommandFailed(argv, done.rc, done.stderr.decode("utf-8", "replace"))
    return done.stdout
