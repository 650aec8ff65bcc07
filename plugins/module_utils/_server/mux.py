# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Many sockets over one pair of pipes: both ends of the byte bridge.

The near end runs in a thread of ours. This very text also runs as ``python3 -c`` beside the server, as the far end: so
it needs nothing but the standard library.
"""

from __future__ import annotations

import os
import select
import selectors
import socket
import struct
import sys
import typing as t

# A frame: the stream's number, what it is, and how many bytes follow.
HEAD = struct.Struct("!IBI")
NUMBER = struct.Struct("!I")
OPEN, OPENED, FAILED, DATA, END, CLOSE, CREDIT = range(7)
# What may be under way on a stream before the other end has passed it on: a slow reader stops nobody else.
WINDOW = 1 << 18
CHUNK = 1 << 15
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
Watched = tuple[t.Any, int]


class Trunk(t.Protocol):
    """What the frames go over. ``unsent`` bytes wait in it."""

    @property
    def unsent(self) -> int:
        """How many bytes wait to be sent."""

    def watched(self, reading: bool = True) -> list[Watched]:
        """What to wait for: objects for select, and events."""

    def waiting(self) -> bool:
        """Whether there is something to read that select cannot see."""

    def queue(self, data: bytes) -> None:
        """Have bytes sent by the next calls of ``flush``."""

    def flush(self) -> None:
        """Send what can be sent without waiting."""

    def read(self) -> bytes:
        """What has arrived, without waiting. Raises EOFError at the end."""


class Pipes:
    """A trunk of two descriptors."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader = reader
        self._writer = writer
        self._out = bytearray()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)

    @property
    def unsent(self) -> int:
        """How many bytes wait to be sent."""
        return len(self._out)

    def watched(self, reading: bool = True) -> list[Watched]:
        """What to wait for."""
        return ([(self._reader, READ)] if reading else []) + ([(self._writer, WRITE)] if self._out else [])

    def waiting(self) -> bool:
        """Nothing is hidden from select."""
        return False

    def queue(self, data: bytes) -> None:
        """Have bytes sent."""
        self._out += data

    def flush(self) -> None:
        """Send what can be sent without waiting."""
        try:
            while self._out:
                del self._out[: os.write(self._writer, self._out)]
        except BlockingIOError:
            return
        except OSError as e:
            raise EOFError(e.strerror or "closed") from e

    def read(self) -> bytes:
        """What has arrived."""
        try:
            data = os.read(self._reader, 1 << 16)
        except BlockingIOError:
            return b""
        except OSError as e:
            raise EOFError(e.strerror or "closed") from e
        if not data:
            raise EOFError("closed")
        return data


class Stream:
    """One socket, and what is on its way to it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.inbox = bytearray()
        # How much we may send, and how much we have passed on without saying so.
        self.credit = WINDOW
        self.passed = 0
        # The socket has ended; the other end's socket has ended, or was closed; the socket was told.
        self.ended = False
        self.end_due = False
        self.close_due = False
        self.shut = False


class Mux:
    """Streams over a trunk. ``connect`` makes the socket of a stream that the other end opens."""

    def __init__(self, trunk: Trunk, connect: t.Optional[t.Callable[[], socket.socket]] = None) -> None:
        self.trunk = trunk
        self.streams: dict[int, Stream] = {}
        self._connect = connect
        self._buffer = bytearray()

    def turn(self, timeout: t.Optional[float] = None, bell: t.Optional[socket.socket] = None) -> bool:
        """Wait until something can be moved, and move it. Says whether ``bell`` rang. Raises EOFError at the end."""
        with selectors.DefaultSelector() as selector:
            if bell is not None:
                selector.register(bell, READ, bell)
            for watched, events in self.trunk.watched():
                selector.register(watched, events)
            for number, stream in self.streams.items():
                events = self._events(stream)
                if events:
                    selector.register(stream.sock, events, number)
            ready = {key.data: events for key, events in selector.select(0 if self.trunk.waiting() else timeout)}
        self.trunk.flush()
        self._take(self.trunk.read())
        for number, events in ready.items():
            if isinstance(number, int) and events & WRITE:
                self._pass_on(number)
            if isinstance(number, int) and events & READ:
                self._receive(number)
        self.trunk.flush()
        return bell is not None and bell in ready

    def _events(self, stream: Stream) -> int:
        room = stream.close_due or (stream.credit > 0 and self.trunk.unsent < WINDOW)
        readable = room and not stream.ended
        return (READ if readable else 0) | (WRITE if stream.inbox else 0)

    def send(self, number: int, kind: int, payload: bytes = b"") -> None:
        """Queue a frame."""
        self.trunk.queue(HEAD.pack(number, kind, len(payload)) + payload)

    def _take(self, data: bytes) -> None:
        """Act on the frames that are whole."""
        self._buffer += data
        start = 0
        while len(self._buffer) >= start + HEAD.size:
            number, kind, size = HEAD.unpack_from(self._buffer, start)
            if size > CHUNK:
                raise EOFError("something else than frames came")
            end = start + HEAD.size + size
            if len(self._buffer) < end:
                break
            self.frame(number, kind, bytes(self._buffer[start + HEAD.size : end]))
            start = end
        del self._buffer[:start]

    def frame(self, number: int, kind: int, payload: bytes) -> None:
        """Act on a frame. One for a stream that was closed here meanwhile is of no use any more."""
        if kind == OPEN:
            self._open(number)
        stream = self.streams.get(number)
        if stream is None:
            return
        if kind == CREDIT:
            stream.credit += NUMBER.unpack(payload)[0]
            return
        stream.inbox += payload if kind == DATA else b""
        stream.end_due = stream.end_due or kind == END
        stream.close_due = stream.close_due or kind == CLOSE
        self._pass_on(number)

    def _open(self, number: int) -> None:
        try:
            sock = self._connect() if self._connect is not None else None
        except OSError as e:
            self.send(number, FAILED, (e.strerror or str(e)).encode())
            return
        if sock is not None:
            self.streams[number] = Stream(sock)
            self.send(number, OPENED)

    def _pass_on(self, number: int) -> None:
        """Write to the socket what came for it, and close it as the other end did."""
        stream = self.streams.get(number)
        if stream is None:
            return
        try:
            while stream.inbox:
                sent = stream.sock.send(stream.inbox)
                del stream.inbox[:sent]
                stream.passed += sent
        except BlockingIOError:
            pass
        except OSError:
            self.drop(number, True)
            return
        if stream.passed >= WINDOW // 2:
            self.send(number, CREDIT, NUMBER.pack(stream.passed))
            stream.passed = 0
        if stream.inbox:
            return
        if stream.close_due:
            self.drop(number, False)
        elif stream.end_due and not stream.shut:
            stream.shut = True
            try:
                stream.sock.shutdown(socket.SHUT_WR)
            except OSError:
                self.drop(number, True)
                return
            self._drop_if_done(number, stream)

    def _receive(self, number: int) -> None:
        """Read from the socket what the other end has room for."""
        stream = self.streams.get(number)
        if stream is None:
            return
        try:
            data = stream.sock.recv(CHUNK if stream.close_due else min(CHUNK, stream.credit))
        except BlockingIOError:
            return
        except OSError:
            self.drop(number, True)
            return
        if stream.close_due:
            # Nobody wants it; but who cannot get rid of it takes nothing in.
            if not data:
                self.drop(number, False)
        elif data:
            stream.credit -= len(data)
            self.send(number, DATA, data)
        elif hung_up(stream.sock):
            self.drop(number, True)
        else:
            stream.ended = True
            self.send(number, END)
            self._drop_if_done(number, stream)

    def _drop_if_done(self, number: int, stream: Stream) -> None:
        if stream.ended and stream.shut:
            self.drop(number, False)

    def drop(self, number: int, tell: bool) -> None:
        """Close a stream, and have the other end close it."""
        self.streams.pop(number).sock.close()
        if tell:
            self.send(number, CLOSE)

    def close(self) -> None:
        """Close every stream."""
        while self.streams:
            self.streams.popitem()[1].sock.close()


def hung_up(sock: socket.socket) -> bool:
    """Whether the peer has closed its socket, and not only its half of the line."""
    poll = select.poll()
    poll.register(sock, 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _descriptor, events in poll.poll(0))


def serve(path: str) -> None:
    """The far end: connects streams to a server's socket until standard input ends."""

    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
        except OSError:
            sock.close()
            raise
        return sock

    os.write(1, f"mage: python {path}\n".encode())
    mux = Mux(Pipes(0, 1), connect)
    try:
        while True:
            mux.turn()
    except EOFError:
        mux.close()


if __name__ == "__main__":
    serve(sys.argv[1])
