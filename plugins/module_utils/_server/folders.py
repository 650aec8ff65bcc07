# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Whole folders into and out of a running instance, over any door, in pieces. Needs tar in there.

What comes out of an instance is what the instance says: nothing of it lands outside of the folder that it is for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import secrets
import tarfile
import tempfile
import typing as t

from .._errors import CommandFailed, InvalidInput, MageError
from .._values import show
from .driver import Completed
from .files import TIMEOUT, Place, Sized

CHUNK = 1 << 16
_NO_SUCH_COMMAND = 127
_BLOCK = 512
_END = bytes(2 * _BLOCK)
_UNPACK = 'mkdir -p -- "$1" && exec tar -xf - -C "$1"'
# Packs $1 into a file named $2 that only root can read, and says where that is.
_PACK = """umask 077
for folder in /var/tmp /tmp; do [ -d "$folder" ] && [ -w "$folder" ] && break; done
command -v tar >/dev/null || exit 127
tar -cf "$folder/$2" -C "$1" . && echo "$folder/$2" && exit
code=$?; rm -f "$folder/$2"; exit "$code"
"""


class Door(t.Protocol):
    """What moving folders needs of a driver."""

    def execute(
        self,
        instance: str,
        argv: t.Sequence[str],
        project: str = "default",
        stdin: t.Union[bytes, t.BinaryIO] = b"",
        environment: t.Optional[t.Mapping[str, str]] = None,
        timeout: t.Optional[float] = None,
    ) -> Completed:
        """Run a command as root in a running instance and wait for its end."""

    def pull_stream(self, place: Place, output: t.BinaryIO) -> None:
        """Write a file's content to an open file."""


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder in an instance."""

    instance: str
    path: str
    project: str = "default"

    def __post_init__(self) -> None:
        if not self.path.startswith("/") or "\0" in self.path:
            raise InvalidInput([f"path: {show(self.path)}: must be the absolute path of a folder, such as /srv/data"])


def push(door: Door, folder: Folder, source: str, timeout: t.Optional[float] = None) -> None:
    """Copy the files, folders and links of a folder here into a folder of a running instance, as root's."""
    if not os.path.isdir(source):
        raise InvalidInput([f"{folder.instance}: there is no folder {source}"])
    packed = t.cast(t.BinaryIO, _Pieces(_packed(source)))
    _run(door, folder, ["sh", "-c", _UNPACK, "sh", folder.path], packed, timeout)


def pull(door: Door, folder: Folder, target: str, timeout: t.Optional[float] = None) -> None:
    """Copy files, folders and links out of a folder of a running instance. Raises InvalidInput for what would land
    elsewhere, or on what is something else."""
    name = f".mage-{secrets.token_hex(8)}.tar"
    with _here(folder, target), tempfile.TemporaryFile() as archive:
        done = _run(door, folder, ["sh", "-c", _PACK, "sh", folder.path, name], b"", timeout)
        packed = done.stdout.decode("utf-8", "replace").splitlines()[-1:]
        if packed not in ([f"/var/tmp/{name}"], [f"/tmp/{name}"]):
            raise MageError(f"{folder.instance}: tar did not say where it packed {folder.path}")
        place = Place(folder.instance, packed[0], folder.project)
        try:
            door.pull_stream(place, t.cast(t.BinaryIO, archive))
        finally:
            # What went wrong before is what the user has to know.
            with contextlib.suppress(MageError):
                _run(door, folder, ["rm", "-f", "--", place.path], b"", timeout)
        archive.seek(0)
        _unpack(t.cast(t.BinaryIO, archive), folder, target)


@contextlib.contextmanager
def _here(folder: Folder, target: str) -> t.Iterator[None]:
    """Tell what this machine refuses as an error of ours."""
    try:
        yield
    except OSError as e:
        told = f"cannot write {e.filename2 or e.filename or target}: {e.strerror}"
        raise MageError(f"{folder.instance}:{folder.path}: {told}") from e


def _run(
    door: Door, folder: Folder, argv: t.Sequence[str], stdin: t.Union[bytes, t.BinaryIO], timeout: t.Optional[float]
) -> Completed:
    done = door.execute(folder.instance, argv, project=folder.project, stdin=stdin, timeout=timeout or TIMEOUT)
    if done.rc == _NO_SUCH_COMMAND:
        raise MageError(f"{folder.instance}: copying a folder needs tar in the instance")
    if done.rc:
        raise CommandFailed(
            [f"tar of {folder.instance}:{folder.path}"], done.rc, done.stderr.decode("utf-8", "replace")
        )
    return done


# Into an instance


class _Pieces(io.RawIOBase):
    """What is made piece by piece, as a file to be read."""

    def __init__(self, pieces: t.Iterator[bytes]) -> None:
        super().__init__()
        self._pieces = pieces
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: t.Any) -> int:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = piece
        part = self._left[: len(buffer)]
        buffer[: len(part)] = part
        self._left = self._left[len(part) :]
        return len(part)


def _packed(source: str) -> t.Iterator[bytes]:
    """The archive of a folder. Raises InvalidInput for what cannot be read."""
    try:
        with tarfile.open(fileobj=io.BytesIO(), mode="w", format=tarfile.GNU_FORMAT) as head:
            for path in _below(source):
                entry = head.gettarinfo(path, "./" + os.path.relpath(path, source))
                if entry is None or not (entry.isreg() or entry.isdir() or entry.issym() or entry.islnk()):
                    continue
                entry.uid = entry.gid = 0
                entry.uname = entry.gname = ""
                yield entry.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
                if entry.isreg():
                    yield from _content(path, entry.size)
    except OSError as e:
        raise InvalidInput([f"{e.filename or source}: cannot be read: {e.strerror}"]) from e
    yield _END


def _below(folder: str) -> t.Iterator[str]:
    """All that is in a folder, each folder before what is in it. Links are not followed."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        yield entry.path
        if entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path)


def _content(path: str, size: int) -> t.Iterator[bytes]:
    with open(path, "rb") as file:
        sized = Sized(file, size)
        while True:
            data = sized.read(CHUNK)
            if not data:
                break
            yield data
        sized.check(path)
    yield bytes(-size % _BLOCK)


# Out of an instance


def _unpack(archive: t.BinaryIO, folder: Folder, target: str) -> None:
    links: list[tarfile.TarInfo] = []
    written: dict[str, str] = {}
    try:
        with tarfile.open(fileobj=archive, mode="r:") as tar:
            for entry in iter(tar.next, None):
                if entry.issym():
                    links.append(entry)
                else:
                    _put(tar, entry, _inside(target, entry, folder), written, folder)
                # It would remember all of them.
                t.cast(t.Any, tar).members.clear()
        # Last of all, so that nothing is written through a link.
        for entry in links:
            place = _inside(target, entry, folder)
            _make_way(place)
            os.symlink(entry.linkname, place)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as e:
        raise MageError(f"{folder.instance}: what its tar made of {folder.path} cannot be read: {e}") from e


def _put(tar: tarfile.TarFile, entry: tarfile.TarInfo, place: str, written: dict[str, str], folder: Folder) -> None:
    """A folder or a file. Devices and the like are left out."""
    if entry.isdir():
        _make_folder(place)
        return
    if entry.islnk():
        _same_file(place, written, entry, folder)
    elif entry.isreg() and not entry.issparse():
        _write(place, t.cast(t.IO[bytes], tar.extractfile(entry)), entry.mode & 0o777)
    else:
        return
    written[entry.name] = place


def _inside(target: str, entry: tarfile.TarInfo, folder: Folder) -> str:
    """Where an entry is put: never outside, and never behind a link."""
    parts = [part for part in entry.name.split("/") if part not in ("", ".")]
    told = f"{folder.instance}: {show(entry.name)} would land"
    if entry.name.startswith("/") or ".." in parts or not (parts or entry.isdir()):
        raise InvalidInput([f"{told} outside of {target}"])
    place = target
    for part in parts:
        if place != target and os.path.islink(place):
            raise InvalidInput([f"{told} behind the link {place}"])
        place = os.path.join(place, part)
    if place != target and os.path.islink(place) and entry.isdir():
        # As from an earlier copy: what is in the folder would land behind it.
        os.unlink(place)
    return place


def _make_folder(place: str) -> None:
    try:
        os.makedirs(place, exist_ok=True)
    except FileExistsError as e:
        raise InvalidInput([f"{place}: something else stands where a folder is to be"]) from e


def _make_way(place: str) -> None:
    """Have nothing stand at a place, and its folder be there. What is there may be a link, or one file of two names."""
    _make_folder(os.path.dirname(place))
    if os.path.isdir(place) and not os.path.islink(place):
        raise InvalidInput([f"{place}: a folder stands where something else is to be"])
    with contextlib.suppress(FileNotFoundError):
        os.unlink(place)


def _write(place: str, content: t.IO[bytes], mode: int) -> None:
    _make_way(place)
    descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        while True:
            data = content.read(CHUNK)
            if not data:
                break
            file.write(data)
        os.fchmod(file.fileno(), mode)


def _same_file(place: str, written: t.Mapping[str, str], entry: tarfile.TarInfo, folder: Folder) -> None:
    """A second name for a file of the same archive."""
    known = written.get(entry.linkname)
    if known is None:
        raise InvalidInput([f"{folder.instance}: {show(entry.name)} is one file with {show(entry.linkname)}, outside"])
    if place != known:
        _make_way(place)
        os.link(known, place, follow_symlinks=False)
