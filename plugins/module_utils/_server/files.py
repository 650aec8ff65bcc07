# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Files in an instance, over the server's files API: to a temporary name, size checked, then renamed."""

from __future__ import annotations

import dataclasses
import io
import posixpath
import secrets
import typing as t

from .._errors import CommandFailed, InvalidInput, NotFound, ServerError, ServerUnreachable
from .._values import show
from .driver import Completed, Response, api, checked
from .transport import Transport, lowered

# For a whole file of any size; each part has the request's own deadline.
TIMEOUT = 3600.0
PART = 1 << 20
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


def push(transport: Transport, place: Place, data: t.BinaryIO, size: int, execute: Execute) -> None:
    """Write ``size`` bytes to a file over the API. See ``deliver``."""

    def write(target: Place, request: str) -> None:
        _write(transport, target, data, size, request)

    deliver(place, data, size, execute, write, lambda temporary: _forget(transport, temporary))


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
        forget(temporary)
        raise
    if not renamed:
        forget(temporary)
        data.seek(start)
        write(place, place.request("push"))


def _rename(execute: Execute, temporary: Place, place: Place, size: int) -> bool:
    """Whether the instance could do it: a stopped one cannot, nor one without a shell."""
    try:
        result = execute(["sh", "-c", _RENAME, "sh", temporary.path, place.path, str(size)])
    except ServerError as e:
        if "not running" in e.message:
            return False
        raise
    if result.rc == _NO_SUCH_COMMAND:
        return False
    if result.rc != 0:
        raise CommandFailed([place.request("push")], result.rc, result.stderr.decode("utf-8", "replace"))
    return True


def _write(transport: Transport, place: Place, data: t.BinaryIO, size: int, request: str) -> None:
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
    for prefix in ("X-LXD-", "X-Incus-"):
        values = {"type": "file", "write": "overwrite", "mode": f"{place.mode:04o}", "uid": place.uid, "gid": place.gid}
        headers.update({prefix + key: str(value) for key, value in values.items()})
    body = Sized(data, size)
    with transport.exchange("POST", _path(place), _query(place), body, headers, TIMEOUT) as answer:
        response = Response(answer.status, lowered(answer), answer.read())
    checked(response, request)
    body.check(request)


def _forget(transport: Transport, temporary: Place) -> None:
    """Remove a temporary file, if it came to be."""
    with transport.exchange("DELETE", _path(temporary), _query(temporary), None, {}, TIMEOUT) as answer:
        answer.read()


def pull(transport: Transport, place: Place, output: t.BinaryIO) -> None:
    """Write a file's content to ``output``. Links are followed inside the instance. Raises NotFound."""
    request = place.request("pull")
    for _link in range(MOST_LINKS):
        with transport.exchange("GET", _path(place), _query(place), None, {}, TIMEOUT) as answer:
            headers = lowered(answer)
            if answer.status >= 400:
                raise _refusal(Response(answer.status, headers, answer.read()), request)
            kind = headers.get("x-lxd-type") or headers.get("x-incus-type")
            if kind == "directory":
                raise ServerError(400, "it is a directory", request)
            if kind != "symlink":
                _copy(transport, answer, output)
                return
            link = answer.read().decode("utf-8", "surrogateescape").rstrip("\n")
        folder = posixpath.dirname(place.path)
        place = dataclasses.replace(place, path=posixpath.normpath(posixpath.join(folder, link)))
    raise ServerError(400, "too many links", request)


def _copy(transport: Transport, answer: t.Any, output: t.BinaryIO) -> None:
    expected = answer.getheader("Content-Length")
    size = 0
    while True:
        part = answer.read(PART)
        if not part:
            break
        output.write(part)
        size += len(part)
    if expected is not None and size != int(expected):
        raise ServerUnreachable(transport.options.endpoint, f"the connection was lost after {size} of {expected} bytes")


def _refusal(response: Response, request: str) -> ServerError:
    """LXD answers 404 and sometimes 500 for a file that is not there."""
    try:
        checked(response, request)
    except ServerError as e:
        return NotFound(404, e.message, request) if tells_of_missing(e.message) else e
    return ServerError(response.status, "no reason given", request)


def tells_of_missing(message: str) -> bool:
    """Whether a server's message says that there is no such file."""
    return "not exist" in message or "no such file" in message.lower()


def _path(place: Place) -> str:
    return api("instances", place.instance, "files")


def _query(place: Place) -> dict[str, str]:
    return {"path": place.path, "project": place.project}


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
