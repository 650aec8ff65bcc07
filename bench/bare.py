# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The least that speaks to a server: the standard library over its socket, and nothing of the collection.

It is the floor of the benchmarks, and what they make and delete their instances with.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shutil
import socket
import struct
import threading
import typing as t
import urllib.parse

STREAMS = ("0", "1", "2")
TEXT, CLOSE, PING = 1, 8, 9
PART = 1 << 20
# A server that is stuck fails the run instead of holding it for ever.
TIMEOUT = 300.0


class ServerRefused(Exception):
    """The server said no."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = _connected(self._path)


def _connected(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(TIMEOUT)
    sock.connect(path)
    return sock


class Server:
    """A server and one of its projects. Each thread has a connection of its own, which is kept."""

    def __init__(self, path: str, project: str = "default") -> None:
        self.path = path
        self.project = project
        self._local = threading.local()

    @property
    def _connection(self) -> _Connection:
        if not hasattr(self._local, "connection"):
            self._local.connection = _Connection(self.path)
        connection: _Connection = self._local.connection
        return connection

    def _target(self, path: str, query: t.Mapping[str, str]) -> str:
        return f"/1.0/{path}".rstrip("/") + f"?{urllib.parse.urlencode({'project': self.project, **query})}"

    def request(self, method: str, path: str, body: t.Any = None, **query: str) -> t.Any:
        """The metadata of an answer; path is below /1.0. Waits for what goes on in the background."""
        data = None if body is None else json.dumps(body)
        self._connection.request(method, self._target(path, query), data)
        answer = json.loads(self._connection.getresponse().read())
        if answer["type"] == "error":
            raise ServerRefused(f"{method} {path}: {answer['error']}")
        metadata = answer["metadata"]
        if answer["type"] == "async" and not (metadata.get("metadata") or {}).get("fds"):
            return self._waited(method, path, metadata["id"])
        return metadata

    def _waited(self, method: str, path: str, operation: str) -> t.Any:
        done = self.request("GET", f"operations/{operation}/wait")
        if done["status_code"] >= 400:
            raise ServerRefused(f"{method} {path}: {done['err']}")
        return done["metadata"]

    def execute(self, instance: str, argv: t.Sequence[str], stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        """Run a command in an instance, as its exit code, stdout and stderr."""
        body = {"command": list(argv), "wait-for-websocket": True, "interactive": False}
        operation = self.request("POST", f"instances/{instance}/exec", body)
        keys = operation["metadata"]["fds"]
        sockets = {name: _connected(self.path) for name in (*STREAMS, "control")}
        try:
            for name, sock in sockets.items():
                where = self._target(f"operations/{operation['id']}/websocket", {"secret": keys[name]})
                _ask_for_websocket(sock, where)
            readers = {name: _Frames(sock) for name, sock in sockets.items()}
            # A command may end without having read it.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                if stdin:
                    sockets["0"].sendall(frame(2, stdin))
                sockets["0"].sendall(frame(TEXT, b""))
            output = [readers[name].all() for name in STREAMS[1:]]
            done = self.request("GET", f"operations/{operation['id']}/wait")
        finally:
            for sock in sockets.values():
                sock.close()
        return int(done["metadata"]["return"]), output[0], output[1]

    def push(self, instance: str, source: str, path: str, mode: str = "0644") -> None:
        """Write a file of an instance."""
        size = os.path.getsize(source)
        headers = {"X-LXD-type": "file", "X-LXD-mode": mode, "Content-Length": str(size)}
        self._connection.blocksize = PART
        with open(source, "rb") as file:
            where = self._target(f"instances/{instance}/files", {"path": path})
            self._connection.request("POST", where, file, headers)
            answer = json.loads(self._connection.getresponse().read())
        if answer["type"] == "error":
            raise ServerRefused(f"push {path}: {answer['error']}")

    def pull(self, instance: str, path: str, target: str) -> None:
        """Read a file of an instance."""
        self._connection.request("GET", self._target(f"instances/{instance}/files", {"path": path}))
        answer = self._connection.getresponse()
        if answer.status != 200:
            raise ServerRefused(f"pull {path}: {json.loads(answer.read())['error']}")
        with open(target, "wb") as file:
            shutil.copyfileobj(answer, file, PART)


def _ask_for_websocket(sock: socket.socket, target: str) -> None:
    key = base64.b64encode(os.urandom(16)).decode()
    head = ("Host: localhost", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
    lines = (f"GET {target} HTTP/1.1", *head, f"Sec-WebSocket-Key: {key}", "", "")
    sock.sendall("\r\n".join(lines).encode())


def frame(kind: int, data: bytes) -> bytes:
    """A frame of a websocket client."""
    # A mask of zeros leaves the data as it is.
    size = struct.pack("!B", 0x80 | len(data)) if len(data) < 126 else struct.pack("!BQ", 0xFF, len(data))
    return bytes([0x80 | kind]) + size + bytes(4) + data


class _Frames:
    """What a websocket says, after the server's answer to its handshake."""

    def __init__(self, sock: socket.socket) -> None:
        self._file = sock.makefile("rb")
        status = self._file.readline()
        if b" 101 " not in status:
            raise ServerRefused(f"websocket: {status.decode().strip()}")
        while self._file.readline().strip():
            pass

    def all(self) -> bytes:
        """The data up to the mark of its end."""
        found = bytearray()
        while True:
            head = self._file.read(2)
            if len(head) < 2 or head[0] & 0x0F in (TEXT, CLOSE):
                return bytes(found)
            size = head[1] & 0x7F
            if size >= 126:
                layout, length = ("!H", 2) if size == 126 else ("!Q", 8)
                size = struct.unpack(layout, self._file.read(length))[0]
            data = self._file.read(size)
            if head[0] & 0x0F != PING:
                found += data
