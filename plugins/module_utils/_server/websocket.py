# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""A small websocket client (RFC 6455) that never blocks: made for a loop over several of them."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import ssl
import struct
import typing as t

from .._errors import ServerError, ServerUnreachable
from .driver import Response, checked

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_LONGEST_HEAD = 65536
_WAIT = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
# Beside ConnectionError: no route any more to a host that was there before, and the like.
_LOST = OSError


class Message(t.NamedTuple):
    """One whole message: its kind (TEXT or BINARY) and what it holds."""

    kind: int
    data: bytes


def frame(opcode: int, payload: bytes) -> bytes:
    """A masked frame, as a client has to send it."""
    mask = os.urandom(4)
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
    return head + mask + masked(payload, mask)


def masked(payload: bytes, mask: bytes) -> bytes:
    """The payload XORed with the mask."""
    size = len(payload)
    pad = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")).to_bytes(size, "big")


class Decoder:
    """Frames in, messages out, however the bytes are cut."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._parts = bytearray()
        self._kind = BINARY

    def feed(self, data: bytes) -> t.Iterator[Message]:
        """Every message that is whole now; control frames come as messages of their own kind."""
        self._buffer += data
        while True:
            taken = self._take()
            if taken is None:
                return
            final, opcode, payload = taken
            if opcode >= CLOSE:
                yield Message(opcode, payload)
                continue
            if opcode != CONTINUATION:
                self._kind = opcode
                self._parts.clear()
            self._parts += payload
            if final:
                yield Message(self._kind, bytes(self._parts))
                self._parts.clear()

    def _take(self) -> t.Optional[tuple[bool, int, bytes]]:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        size, start = buffer[1] & 0x7F, 2
        if size >= 126:
            layout, start = ("!H", 4) if size == 126 else ("!Q", 10)
            if len(buffer) < start:
                return None
            size = struct.unpack_from(layout, buffer, 2)[0]
        mask = b""
        if buffer[1] & 0x80:
            mask, start = bytes(buffer[start : start + 4]), start + 4
        if len(buffer) < start + size:
            return None
        payload = bytes(buffer[start : start + size])
        final, opcode = bool(buffer[0] & 0x80), buffer[0] & 0x0F
        del buffer[: start + size]
        return final, opcode, masked(payload, mask) if mask else payload


class WebSocket:
    """One websocket after its handshake.

    ``closed`` is true once all that the other end has sent is read. ``deaf`` is true once it takes no more: what it has
    sent before may still be on its way.
    """

    def __init__(self, sock: socket.socket, rest: bytes = b"") -> None:
        self.sock = sock
        self.closed = False
        self.deaf = False
        self._rest = rest
        self._decoder = Decoder()
        self._out = bytearray()
        sock.setblocking(False)

    def fileno(self) -> int:
        """For select."""
        return self.sock.fileno()

    @property
    def unsent(self) -> int:
        """How many bytes wait to be sent."""
        return len(self._out)

    @property
    def waiting(self) -> bool:
        """Whether there is something to read that select cannot see."""
        return bool(self._rest) or (isinstance(self.sock, ssl.SSLSocket) and self.sock.pending() > 0)

    def queue(self, kind: int, data: bytes) -> None:
        """Have a message sent by the next calls of ``flush``."""
        self._out += frame(kind, data)

    def flush(self) -> None:
        """Send what can be sent without waiting."""
        try:
            while self._out and not self.deaf:
                del self._out[: self.sock.send(self._out)]
        except _WAIT:
            return
        except _LOST:
            self.deaf = True
        if self.deaf:
            self._out.clear()

    def receive(self) -> list[Message]:
        """The messages that have arrived, without waiting.

        Pings stay without an answer. LXD does not read what comes on a stream that it writes: an answer that lies there
        when it hangs up resets the connection, and over TLS the end of a command's output was lost by that.
        """
        data, self._rest = self._rest, b""
        try:
            data += self._read()
        except _WAIT:
            pass
        except _LOST:
            self.closed = self.deaf = True
        messages = []
        for message in self._decoder.feed(data):
            if message.kind == CLOSE:
                self.closed = self.deaf = True
            elif message.kind not in (PING, PONG):
                messages.append(message)
        return messages

    def _read(self) -> bytes:
        data = self.sock.recv(1 << 18)
        if not data:
            self.closed = self.deaf = True
        return data

    def close(self, politely: bool = True) -> None:
        """Say goodbye if that can be said without waiting, and let go of the socket."""
        if politely and not self.closed:
            self.queue(CLOSE, struct.pack("!H", 1000))
            self.flush()
        self.sock.close()


def beginning(path: str) -> bytes:
    """What a handshake sends first, if the path that it will ask for begins so."""
    return f"GET {path}".encode("ascii") if path else b""


class Handshake:
    """A connected socket on its way to be a websocket: asked by ``__init__``, answered to ``finish``.

    So several can be under way at once. Both stay within the socket's timeout. Of ``begun``, the beginning of the
    target, ``beginning`` was sent already.
    """

    def __init__(
        self,
        sock: socket.socket,
        target: str,
        host: str,
        endpoint: str,
        protocol: str = "websocket",
        begun: str = "",
    ) -> None:
        self._sock = sock
        self._path = target.partition("?")[0]
        self._endpoint = endpoint
        self._key = base64.b64encode(os.urandom(16))
        lines = (
            f"GET {target} HTTP/1.1",
            f"Host: {host}",
            f"Upgrade: {protocol}",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {self._key.decode()}",
            "Sec-WebSocket-Version: 13",
        )
        sock.sendall("\r\n".join((*lines, "", "")).encode("ascii")[len(beginning(begun)) :])

    def finish(self) -> WebSocket:
        """Read the answer. Raises ServerError, ServerUnreachable."""
        headers, rest = self.accepted()
        expected = base64.b64encode(hashlib.sha1(self._key + _GUID).digest()).decode()
        if headers.get("sec-websocket-accept") != expected:
            raise ServerUnreachable(self._endpoint, "it did not answer the websocket handshake as it must")
        return WebSocket(self._sock, rest)

    def outcome(self) -> t.Union[WebSocket, ServerError]:
        """The websocket, or what the server said instead. Raises ServerUnreachable."""
        try:
            return self.finish()
        except ServerError as e:
            return e

    def accepted(self) -> tuple[dict[str, str], bytes]:
        """Read the answer's head, and what has come with it. Raises ServerError, ServerUnreachable."""
        status, headers, rest = _head(self._sock, self._endpoint)
        if status != 101:
            body = _body(self._sock, headers, rest)
            checked(Response(status if status >= 400 else 502, headers, body), "GET " + self._path)
        return headers, rest


def _head(sock: socket.socket, endpoint: str) -> tuple[int, dict[str, str], bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(65536)
        if not part or len(data) > _LONGEST_HEAD:
            raise ServerUnreachable(endpoint, "the connection was lost during the websocket handshake")
        data += part
    head, _end, rest = data.partition(b"\r\n\r\n")
    status, headers = parsed_head(head)
    if status is None:
        raise ServerUnreachable(endpoint, "what answers there does not speak HTTP")
    return status, headers, rest


def parsed_head(head: bytes) -> tuple[t.Optional[int], dict[str, str]]:
    """Status and headers (names in lower case) of an answer, from all before its empty line. No status: no HTTP."""
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _colon, value in (line.partition(":") for line in lines)}
    status = first.split(" ")[1:2]
    if not first.startswith("HTTP/1.") or not status or not status[0].isdigit():
        return None, headers
    return int(status[0]), headers


def _body(sock: socket.socket, headers: t.Mapping[str, str], rest: bytes) -> bytes:
    """What a refusal says: it may come after the head."""
    size = headers.get("content-length", "")
    while size.isdigit() and len(rest) < min(int(size), _LONGEST_HEAD):
        part = sock.recv(65536)
        if not part:
            break
        rest += part
    return rest
