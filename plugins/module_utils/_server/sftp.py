# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""As much of SFTP (version 3) as moving a file takes, over a connection that the server has switched to it."""

from __future__ import annotations

import collections
import dataclasses
import errno
import os
import socket
import stat
import struct
import typing as t

from .._errors import DeadlinePassed, ServerUnreachable

# What every server takes and gives at once, and how many such parts are under way.
PART = 1 << 15
AHEAD = 64
READ, WRITE, CREATE, EXCLUSIVE = 0x01, 0x02, 0x08, 0x20
_LONGEST = 1 << 18
# Two classes before Python 3.10.
_SILENT = (TimeoutError, socket.timeout)
_INIT, _VERSION, _OPEN, _CLOSE, _READ, _WRITE, _FSTAT, _FSETSTAT, _REMOVE, _STAT = 1, 2, 3, 4, 5, 6, 8, 10, 13, 17
_EXTENDED, _STATUS, _HANDLE, _DATA, _ATTRS = 200, 101, 102, 103, 105
_OK, _EOF, _NO_SUCH_FILE, _DENIED = 0, 1, 2, 3
_HAS_SIZE, _HAS_OWNER, _HAS_MODE = 0x1, 0x2, 0x4


class Refused(OSError):
    """What the other end answered instead of doing it. ``errno`` is 0 where it gave only words."""


@dataclasses.dataclass(frozen=True)
class Attributes:
    """What is known of a file."""

    size: int
    mode: int

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_pipe(self) -> bool:
        """Whether to open it waits for somebody at its other end."""
        return stat.S_ISFIFO(self.mode)


class Session:
    """One SFTP session. The socket's timeout holds for each read and write.

    Raises Refused, DeadlinePassed and ServerUnreachable.
    """

    def __init__(self, sock: socket.socket, endpoint: str) -> None:
        self._sock = sock
        self._endpoint = endpoint
        self._number = 0
        self._buffer = bytearray()
        self._send(_INIT, struct.pack("!I", 3))
        kind, _body = self._packet()
        if kind != _VERSION:
            raise ServerUnreachable(endpoint, "what answers for files does not speak SFTP")

    def close(self) -> None:
        """Let go of the connection."""
        self._sock.close()

    def open(self, path: str, flags: int) -> bytes:
        """A handle of a file. Links are followed."""
        return self._call(_OPEN, _string(_name(path)) + struct.pack("!II", flags, 0), _HANDLE)

    def close_handle(self, handle: bytes) -> None:
        """Close a file."""
        self._call(_CLOSE, _string(handle), _STATUS)

    def attributes(self, handle: bytes) -> Attributes:
        """Size and mode of an open file."""
        return _attributes(self._call(_FSTAT, _string(handle), _ATTRS))

    def attributes_of(self, path: str) -> Attributes:
        """Size and mode of the file of that name, or of what a link leads to."""
        return _attributes(self._call(_STAT, _string(_name(path)), _ATTRS))

    def is_directory(self, path: str) -> bool:
        """Whether there is a directory of that name, or a link that leads to one."""
        try:
            return self.attributes_of(path).is_directory
        except Refused:
            return False

    def set_owner_and_mode(self, handle: bytes, uid: int, gid: int, mode: int) -> None:
        """Whose an open file is, and who may do what with it."""
        # One by one: some servers read them in another order than the protocol has.
        self._call(_FSETSTAT, _string(handle) + struct.pack("!III", _HAS_OWNER, uid, gid), _STATUS)
        self._call(_FSETSTAT, _string(handle) + struct.pack("!II", _HAS_MODE, mode), _STATUS)

    def rename(self, source: str, target: str) -> None:
        """Put a file in another's place, at once."""
        names = _string(_name(source)) + _string(_name(target))
        self._call(_EXTENDED, _string(b"posix-rename@openssh.com") + names, _STATUS)

    def remove(self, path: str) -> None:
        """Remove a file."""
        self._call(_REMOVE, _string(_name(path)), _STATUS)

    def write(self, handle: bytes, data: t.BinaryIO, size: int) -> int:
        """Write up to ``size`` bytes of a file. Returns how many there were."""
        offset = 0
        waiting = 0
        while True:
            part = data.read(min(PART, size - offset))
            if part:
                body = _string(handle) + struct.pack("!QI", offset, len(part)) + part
                self._send(_WRITE, self._next() + body)
                offset += len(part)
                waiting += 1
            while waiting and (not part or waiting >= AHEAD):
                _expect(_STATUS, *self._packet())
                waiting -= 1
            if not part:
                return offset

    def read(self, handle: bytes, output: t.BinaryIO) -> int:
        """Write the content of an open file to ``output``. Returns its size."""
        size = 0
        while True:
            got, ended = self._read_on(handle, output, size)
            size += got
            if ended:
                return size

    def _read_on(self, handle: bytes, output: t.BinaryIO, start: int) -> tuple[int, bool]:
        """Read ahead until a part is shorter than asked for: what follows it was asked for at the wrong place."""
        asked: collections.deque[bytes] = collections.deque()
        early: dict[bytes, tuple[int, bytes]] = {}
        offset, got, short, ended = start, 0, False, False
        while True:
            while len(asked) < AHEAD and not (short or ended):
                asked.append(self._next())
                self._send(_READ, asked[-1] + _string(handle) + struct.pack("!QI", offset, PART))
                offset += PART
            if not asked:
                return got, ended
            while asked[0] not in early:
                kind, body = self._packet()
                early[body[:4]] = (kind, body)
            kind, body = early.pop(asked.popleft())
            if short or ended:
                continue
            if kind == _STATUS and _status(body) == _EOF:
                ended = True
                continue
            part = _unstring(_expect(_DATA, kind, body))
            output.write(part)
            got += len(part)
            short = len(part) < PART

    def _call(self, kind: int, body: bytes, wanted: int) -> bytes:
        self._send(kind, self._next() + body)
        answer = _expect(wanted, *self._packet())
        return _unstring(answer) if wanted == _HANDLE else answer

    def _next(self) -> bytes:
        self._number = (self._number + 1) & 0xFFFFFFFF
        return struct.pack("!I", self._number)

    def _send(self, kind: int, body: bytes) -> None:
        try:
            self._sock.sendall(struct.pack("!IB", len(body) + 1, kind) + body)
        except _SILENT as e:
            raise self._silent() from e
        except OSError as e:
            raise self._lost() from e

    def _packet(self) -> tuple[int, bytes]:
        """The next packet: its kind, and what follows."""
        (size,) = struct.unpack("!I", self._take(4))
        if not 1 <= size <= _LONGEST:
            raise ServerUnreachable(self._endpoint, "what answers for files does not speak SFTP")
        packet = self._take(size)
        return packet[0], packet[1:]

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            try:
                part = self._sock.recv(1 << 18)
            except _SILENT as e:
                raise self._silent() from e
            except OSError as e:
                raise self._lost() from e
            if not part:
                raise self._lost()
            self._buffer += part
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _silent(self) -> DeadlinePassed:
        """The file is slow, and not the server that cannot be reached: its line is open."""
        return DeadlinePassed(f"no answer after {self._sock.gettimeout():g} s")

    def _lost(self) -> ServerUnreachable:
        return ServerUnreachable(self._endpoint, "the connection was lost while a file was moved")


def _attributes(body: bytes) -> Attributes:
    (flags,) = struct.unpack_from("!I", body)
    place, size, mode = 4, 0, 0
    if flags & _HAS_SIZE:
        (size,) = struct.unpack_from("!Q", body, place)
        place += 8
    place += 8 if flags & _HAS_OWNER else 0
    if flags & _HAS_MODE:
        (mode,) = struct.unpack_from("!I", body, place)
    return Attributes(size, mode)


def _name(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _string(value: bytes) -> bytes:
    return struct.pack("!I", len(value)) + value


def _unstring(value: bytes) -> bytes:
    (size,) = struct.unpack_from("!I", value)
    return value[4 : 4 + size]


def _status(body: bytes) -> int:
    return int(struct.unpack_from("!I", body, 4)[0])


def _expect(wanted: int, kind: int, body: bytes) -> bytes:
    """What follows the number of an answer of the kind that is wanted. Raises Refused for any other."""
    if kind == wanted and (kind != _STATUS or _status(body) == _OK):
        return body[4:]
    if kind != _STATUS:
        raise Refused(errno.EPROTO, os.strerror(errno.EPROTO))
    code = {_NO_SUCH_FILE: errno.ENOENT, _DENIED: errno.EACCES}.get(_status(body), 0)
    message = _unstring(body[8:]).decode("utf-8", "replace")
    raise Refused(code, os.strerror(code) if code else message)
