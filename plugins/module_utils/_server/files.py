# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What a file in an instance is, and how one gets there whole where only a shell can rename it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import posixpath
import secrets
import typing as t

from .._errors import CommandFailed, InvalidInput, MageError, ServerError
from .._values import show
from .driver import Completed

# For a whole file of any size.
TIMEOUT = 3600.0
MOST_LINKS = 40
# Moves $1 to $2 if it has $3 bytes. A directory is no place for it, or it would land inside.
_RENAME = """if [ -d "$2" ]; then echo "$2 is a directory" >&2; exit 1; fi
size=$(stat -c %s "$1" 2>/dev/null || wc -c <"$1") || exit 1
if [ "$size" -ne "$3" ]; then echo "$size bytes arrived instead of $3" >&2; exit 1; fi
exec mv -f "$1" "$2"
"""
_NO_SUCH_COMMAND = 127

Execute = t.Callable[[t.Sequence[str]], Completed]


@dataclasses.dataclass(frozen=True)
class Place:
    """A file in an instance, and how it is to be there."""

    instance: str
    path: str
    project: str = "default"
    mode: int = 0o644
    uid: int = 0
    gid: int = 0

    def __post_init__(self) -> None:
        if not self.path.startswith("/") or "\0" in self.path or posixpath.basename(self.path) in ("", ".", ".."):
            raise InvalidInput([f"path: {show(self.path)}: must be the absolute path of a file, such as /etc/motd"])

    def request(self, method: str) -> str:
        """What is said of the request in an error."""
        return f"{method} {self.instance}:{self.path}"


def deliver(
    place: Place,
    data: t.BinaryIO,
    size: int,
    execute: Execute,
    write: t.Callable[[Place, str], None],
    forget: t.Callable[[Place], None],
) -> None:
    """Write a file. Where a shell runs in the instance, the file is there whole or not at all.

    ``write`` puts what is left of ``data`` to a place and ``forget`` removes it; ``execute`` runs a command.
    """
    temporary = dataclasses.replace(
        place, path=posixpath.join(posixpath.dirname(place.path), f".mage-{secrets.token_hex(8)}")
    )
    start = data.tell()
    try:
        write(temporary, place.request("push"))
        renamed = _rename(execute, temporary, place, size)
    except BaseException:
        # What went wrong before is what the user has to know.
        with contextlib.suppress(MageError):
            forget(temporary)
        raise
    if not renamed:
        forget(temporary)
        data.seek(start)
        write(place, place.request("push"))


def _rename(execute: Execute, temporary: Place, place: Place, size: int) -> bool:
    """Whether the instance could do it: a stopped or frozen one cannot, nor one without a shell."""
    try:
        result = execute(["sh", "-c", _RENAME, "sh", temporary.path, place.path, str(size)])
    except ServerError as e:
        if "not running" in e.message or "is frozen" in e.message:
            return False
        raise
    if result.rc == _NO_SUCH_COMMAND:
        return False
    if result.rc != 0:
        raise CommandFailed([place.request("push")], result.rc, result.stderr.decode("utf-8", "replace"))
    return True


def tells_of_missing(message: str) -> bool:
    """Whether a server's message says that there is no such file."""
    return "not exist" in message or "no such file" in message.lower()


class Sized(io.RawIOBase):
    """As many bytes of a file as were announced. Where there are fewer, zeros follow, and ``missing`` says how many.

    To hang up instead would leave the server to write what it got after the temporary file was removed.
    """

    def __init__(self, data: t.BinaryIO, size: int) -> None:
        super().__init__()
        self._data = data
        self._left = size
        self.missing = 0

    def check(self, request: str) -> None:
        """Raise InvalidInput if there were fewer."""
        if self.missing:
            raise InvalidInput([f"{request}: the file became {self.missing} bytes shorter while it was read"])

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: t.Any) -> int:
        wanted = min(len(buffer), self._left)
        part = self._data.read(wanted)
        if wanted and not part:
            part = bytes(wanted)
            self.missing += wanted
        buffer[: len(part)] = part
        self._left -= len(part)
        return len(part)
