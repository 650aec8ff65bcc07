# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands over a real socket, on a server that breaks off where a real one seldom does."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._server import exec as execution
from ansible_collections.mage.lxd.plugins.module_utils._server.core import CoreDriver
from ansible_collections.mage.lxd.plugins.module_utils._server.options import ServerOptions

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
EOF = b"\x81\x00"
FDS = {"0": "in", "1": "out", "2": "err", "control": "control"}


class Server:
    """Answers one exec with exit code 0. ``output`` is what stdout's websocket sends before it hangs up."""

    def __init__(self, path: Path, output: bytes) -> None:
        self.connections = 0
        self._output = output
        self._sent = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            sock, _address = self._listener.accept()
            self.connections += 1
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, sock.makefile("rb") as reader:
            while True:
                head = [line.rstrip() for line in iter(reader.readline, b"\r\n") if line]
                if not head:
                    return
                headers = dict(line.lower().split(b": ", 1) for line in head[1:])
                reader.read(int(headers.get(b"content-length", 0)))
                if b"/websocket" in head[0]:
                    key = next(line.split(b": ")[1] for line in head if line.startswith(b"Sec-WebSocket-Key"))
                    self._stream(sock, head[0], key)
                    return
                sock.sendall(self._answer(head[0]))

    def _answer(self, line: bytes) -> bytes:
        metadata: dict[str, t.Any] = {"id": "x", "metadata": {"fds": FDS}}
        if b"/wait" in line:
            self._sent.wait(5)
            metadata = {"status_code": 200, "metadata": {"return": 0}}
        body = json.dumps({"type": "sync", "metadata": metadata}).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    def _stream(self, sock: socket.socket, line: bytes, key: bytes) -> None:
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: %s\r\n\r\n" % accept)
        if b"secret=out" in line:
            sock.sendall(self._output)
            self._sent.set()
        else:
            sock.sendall(EOF if b"secret=err" in line else b"")
            sock.recv(1)


def run(tmp_path: Path, output: bytes) -> tuple[CoreDriver, Server]:
    server = Server(tmp_path / "socket", output)
    return CoreDriver(ServerOptions(f"unix://{tmp_path}/socket")), server


def test_output_that_breaks_off_is_an_error(tmp_path: Path) -> None:
    driver, _server = run(tmp_path, b"\x82\x03abc\x82\x05ab")
    with pytest.raises(_errors.ServerUnreachable, match="the connection was lost before a command's whole output came"):
        driver.execute("web", ["cat"])
    driver.close()


def test_whole_output_is_no_error_and_the_connection_serves_again(tmp_path: Path) -> None:
    driver, server = run(tmp_path, b"\x82\x03abc" + EOF)
    for _time in range(3):
        assert driver.execute("web", ["cat"]) == (0, b"abc", b"")
    driver.close()
    assert server.connections == 1 + 3 * 4


class Stuck(Server):
    """Ends no command, not even the one that kills."""

    def _answer(self, line: bytes) -> bytes:
        if b"/wait" in line:
            time.sleep(30)
        return super()._answer(line)

    def _stream(self, sock: socket.socket, line: bytes, key: bytes) -> None:
        super()._stream(sock, line.replace(b"secret=out", b"secret=in").replace(b"secret=err", b"secret=in"), key)


def test_a_deadline_is_kept_although_nothing_can_be_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "GRACE", 0.1)
    Stuck(tmp_path / "socket", b"")
    driver = CoreDriver(ServerOptions(f"unix://{tmp_path}/socket"))
    told: list[str] = []

    def execute() -> None:
        with pytest.raises(_errors.DeadlinePassed) as raised:
            driver.execute("web", ["sleep", "9"], timeout=0.1)
        told.append(str(raised.value))

    thread = threading.Thread(target=execute, daemon=True)
    thread.start()
    thread.join(10)
    assert told == ["web: sleep 9: not done after 0.1 s; it did not even end when killed"]


def test_a_gate_is_asked_again_while_nothing_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "PATIENCE", 0.1)
    asked: list[bytes] = []

    def gate(stdout: bytes, stderr: bytes) -> tuple[bool, bytes]:
        asked.append(stdout + stderr)
        if len(asked) > 3:
            raise _errors.DeadlinePassed("no prompt")
        return False, b""

    Stuck(tmp_path / "socket", b"")
    driver = CoreDriver(ServerOptions(f"unix://{tmp_path}/socket"))
    told: list[str] = []

    def execute() -> None:
        with pytest.raises(_errors.DeadlinePassed) as raised:
            driver.execute("web", ["su"], gate=gate)
        told.append(str(raised.value))

    thread = threading.Thread(target=execute, daemon=True)
    thread.start()
    thread.join(10)
    assert told == ["no prompt"]
