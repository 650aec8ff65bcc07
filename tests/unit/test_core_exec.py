# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands over a real socket, on a server that breaks off where a real one seldom does."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import io
import json
import socket
import threading
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._server import exec as execution
from ansible_collections.mage.lxd.plugins.module_utils._server import transport, websocket
from ansible_collections.mage.lxd.plugins.module_utils._server.command import Command
from ansible_collections.mage.lxd.plugins.module_utils._server.core import CoreDriver
from ansible_collections.mage.lxd.plugins.module_utils._server.options import ServerOptions
from ansible_collections.mage.lxd.tests.unix_server import UnixServer

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
EOF = b"\x81\x00"
# Whoever has what it wants does not wait for the rest.
HANGS_UP = contextlib.suppress(BrokenPipeError, ConnectionResetError)
FDS = {"0": "in", "1": "out", "2": "err", "control": "control"}


class Server(UnixServer):
    """Answers execs with exit code 0, and counts them in ``asked``.

    ``output`` is what stdout's websocket sends before it hangs up.
    """

    def __init__(self, path: Path, output: bytes) -> None:
        self._output = output
        self._sent = threading.Event()
        self.asked = 0
        super().__init__(path)

    def serve(self, sock: socket.socket) -> None:
        with HANGS_UP, sock, sock.makefile("rb") as reader:
            while True:
                # Also at the end of the line, where there is no empty one.
                head = list(iter(lambda: reader.readline().rstrip(), b""))
                if not head:
                    return
                headers = dict(line.lower().split(b": ", 1) for line in head[1:])
                self.asked += head[0].startswith(b"POST")
                reader.read(int(headers.get(b"content-length", 0)))
                if b"/websocket" in head[0]:
                    key = next(line.split(b": ")[1] for line in head if line.startswith(b"Sec-WebSocket-Key"))
                    self._stream(sock, head[0], key)
                    return
                answer = self._answer(head[0])
                if not answer:
                    return
                sock.sendall(answer)

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


@pytest.mark.parametrize("losses", [1, 2])
def test_a_line_that_breaks_before_the_command_can_run_is_tried_once_more(tmp_path: Path, losses: int) -> None:
    class Dropping(Server):
        lost = 0

        def _answer(self, line: bytes) -> bytes:
            if not line.startswith(b"POST") or self.lost == losses:
                return super()._answer(line)
            self.lost += 1
            return b""

    server = Dropping(tmp_path / "socket", b"\x82\x03abc" + EOF)
    with contextlib.closing(CoreDriver(ServerOptions(f"unix://{tmp_path}/socket"))) as driver:
        if losses == 1:
            assert driver.execute("web", ["cat"]) == (0, b"abc", b"")
        else:
            with pytest.raises(_errors.ConnectionLost, match="the connection was lost before the whole answer came"):
                driver.execute("web", ["cat"])
    assert server.lost == losses


def refuse(sock: socket.socket, status: int, message: str) -> None:
    """An error as servers give it."""
    body = json.dumps({"type": "error", "error": message, "error_code": status}).encode()
    sock.sendall(b"HTTP/1.1 %d Refused\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)


@pytest.mark.parametrize(
    "refusal",
    [
        (404, "Operation not found"),
        (500, "Only running operations can be connected"),
        (500, "websocket: bad handshake"),
    ],
    ids=["forgotten", "given-up", "cluster"],
)
@pytest.mark.parametrize("late", [2, 3])
def test_streams_that_the_server_no_longer_waited_for_are_asked_for_again(
    tmp_path: Path, late: int, refusal: tuple[int, str]
) -> None:
    """The instance is there, and the command has not run."""

    class Impatient(Server):
        def _stream(self, sock: socket.socket, line: bytes, key: bytes) -> None:
            if self.asked > late:
                super()._stream(sock, line, key)
                return
            refuse(sock, *refusal)

    server = Impatient(tmp_path / "socket", b"\x82\x03abc" + EOF)
    with contextlib.closing(CoreDriver(ServerOptions(f"unix://{tmp_path}/socket"))) as driver:
        if late == 2:
            assert driver.execute("web", ["cat"]) == (0, b"abc", b"")
        else:
            with pytest.raises(_errors.ServerUnreachable, match="it gave a command up 3 times before"):
                driver.execute("web", ["cat"])
    assert server.asked == 3


def test_streams_that_wait_for_their_command_hold_nobody_up(tmp_path: Path) -> None:
    """LXD and Incus take no other connection before the first 8 bytes of one are there."""

    class OneByOne(Server):
        others = 0

        def _took(self, sock: socket.socket) -> None:
            sock.recv(8, socket.MSG_PEEK | socket.MSG_WAITALL)

        def _answer(self, line: bytes) -> bytes:
            if line.startswith(b"POST"):
                while self.connections < 5:
                    time.sleep(0.01)
                with socket.socket(socket.AF_UNIX) as other:
                    other.settimeout(5)
                    other.connect(str(tmp_path / "socket"))
                    other.sendall(b"GET /1.0 HTTP/1.1\r\n\r\n")
                    self.others += other.recv(4096).startswith(b"HTTP/1.1 200")
            return super()._answer(line)

    server = OneByOne(tmp_path / "socket", b"\x82\x03abc" + EOF)
    with contextlib.closing(CoreDriver(ServerOptions(f"unix://{tmp_path}/socket"))) as driver:
        assert driver.execute("web", ["cat"]) == (0, b"abc", b"")
    assert server.others == 1


@pytest.mark.parametrize("stdin", [b"in", io.BytesIO(b"in")], ids=["bytes", "file"])
def test_a_command_given_up_as_its_last_stream_came_is_asked_for_again(tmp_path: Path, stdin: t.Any) -> None:
    """Not where a part of what it was to read may be gone."""

    class AtTheLastMoment(Server):
        def _answer(self, line: bytes) -> bytes:
            if b"/wait" not in line or self.asked > 1:
                return super()._answer(line)
            failed = {"status_code": 400, "err": "Timed out waiting for websockets to connect", "metadata": None}
            body = json.dumps({"type": "sync", "metadata": failed}).encode()
            return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    server = AtTheLastMoment(tmp_path / "socket", b"\x82\x03abc" + EOF)
    with contextlib.closing(CoreDriver(ServerOptions(f"unix://{tmp_path}/socket"))) as driver:
        if isinstance(stdin, bytes):
            assert driver.execute("web", ["cat"], stdin=stdin) == (0, b"abc", b"")
        else:
            with pytest.raises(_errors.ServerError, match="Timed out waiting for websockets to connect"):
                driver.execute("web", ["cat"], stdin=stdin)
    assert server.asked == 1 + isinstance(stdin, bytes)


def test_a_line_without_a_route_is_one_that_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_route(*_arguments: t.Any) -> None:
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    driver, _server = run(tmp_path, b"")
    monkeypatch.setattr(websocket, "beginning", no_route)
    with contextlib.closing(driver), pytest.raises(_errors.ConnectionLost):
        driver.execute("web", ["cat"])


def test_a_command_that_ran_without_its_control_stream_is_not_run_again(tmp_path: Path) -> None:
    """Newer servers wait for the other three only: this command has ended when the fourth comes."""

    class Quick(Server):
        def _stream(self, sock: socket.socket, line: bytes, key: bytes) -> None:
            if b"secret=control" in line:
                refuse(sock, 404, "not found")
            else:
                super()._stream(sock, line, key)

    server = Quick(tmp_path / "socket", b"\x82\x03abc" + EOF)
    with contextlib.closing(CoreDriver(ServerOptions(f"unix://{tmp_path}/socket"))) as driver:
        assert driver.execute("web", ["cat"]) == (0, b"abc", b"")
    assert server.asked == 1


@pytest.mark.parametrize(("idle", "connections"), [(20.0, 1 + 2 * 4), (0.0, 2 * 6)])
def test_what_was_idle_for_long_is_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, idle: float, connections: int
) -> None:
    monkeypatch.setattr(transport, "IDLE", idle)
    driver, server = run(tmp_path, b"\x82\x03abc" + EOF)
    for _time in range(2):
        assert driver.execute("web", ["cat"]) == (0, b"abc", b"")
    driver.close()
    assert server.connections == connections


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"argv": ["sh", "-c", "x" * 100 + " rm caf\udce9"]}, r'command: "x{23} rm caf\\udce9": must be UTF-8'),
        ({"argv": ["true"], "environment": {"A": "\udce9"}}, r'environment: "\\udce9": must be UTF-8'),
        ({"argv": ["true"], "environment": {"\udce9": "a"}}, r'environment: "\\udce9": must be UTF-8'),
        ({"argv": ["true"], "cwd": "/srv/\udce9"}, r'cwd: "/srv/\\udce9": must be UTF-8'),
    ],
)
def test_bytes_that_would_arrive_as_others_are_refused(given: dict[str, t.Any], told: str) -> None:
    """A file's name of such bytes becomes another file's."""
    with pytest.raises(_errors.InvalidInput, match=told):
        Command("web", **given)


class Hasty(Server):
    """Tells the end of a command before it sends its output, as of one that it takes for not started."""

    def _answer(self, line: bytes) -> bytes:
        if b"/wait" not in line:
            return super()._answer(line)
        metadata = {"status_code": 400, "err": "Command not found", "metadata": {"return": 127}}
        body = json.dumps({"type": "sync", "metadata": metadata}).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    def _stream(self, sock: socket.socket, line: bytes, key: bytes) -> None:
        time.sleep(0.2 if b"secret=out" in line else 0)
        super()._stream(sock, line, key)


@pytest.mark.parametrize("end", [EOF, b""])
def test_output_of_a_command_that_ends_with_127_is_whole(tmp_path: Path, end: bytes) -> None:
    Hasty(tmp_path / "socket", b"\x82\x03abc" + end)
    driver = CoreDriver(ServerOptions(f"unix://{tmp_path}/socket"))
    assert driver.execute("web", ["cat"]) == (127, b"abc", b"")
    driver.close()


class Trickling(Hasty):
    """The line is slow: each message comes later than the last one is waited for."""

    def _stream(self, sock: socket.socket, line: bytes, key: bytes) -> None:
        if b"secret=out" not in line:
            Server._stream(self, sock, line, key)
            return
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: %s\r\n\r\n" % accept)
        for piece in (b"\x82\x01a", b"\x82\x01b", b"\x82\x01c", b"\x82\x01d", EOF):
            time.sleep(0.5)
            sock.sendall(piece)


@pytest.mark.parametrize("timeout", [None, 1.5])
def test_output_that_still_comes_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout: float | None
) -> None:
    """The command has ended in time, and its deadline is not that of the line."""
    monkeypatch.setattr(execution, "LINGERING", 2)
    Trickling(tmp_path / "socket", b"")
    driver = CoreDriver(ServerOptions(f"unix://{tmp_path}/socket"))
    assert driver.execute("web", ["cat"], timeout=timeout) == (127, b"abcd", b"")
    driver.close()


class Slow(Server):
    """Has written all the output when it tells the end; the line brings it later, in pieces."""

    pieces: t.Sequence[bytes] = ()
    pause = 0.5

    def _answer(self, line: bytes) -> bytes:
        self._sent.set()
        return super()._answer(line)

    def _stream(self, sock: socket.socket, line: bytes, key: bytes) -> None:
        if b"secret=out" not in line:
            super()._stream(sock, line, key)
            return
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: %s\r\n\r\n" % accept)
        with contextlib.suppress(BrokenPipeError):
            for piece in self.pieces:
                time.sleep(self.pause)
                sock.sendall(piece)
        sock.recv(1)


def slow(tmp_path: Path, pieces: list[bytes], timeout: float) -> CoreDriver:
    Slow(tmp_path / "socket", b"").pieces = pieces
    return CoreDriver(ServerOptions(f"unix://{tmp_path}/socket", timeout=timeout))


@pytest.mark.parametrize(
    ("pieces", "timeout"),
    [([b"\x82\x03abc", b"\x82\x03def" + EOF], 5), ([b"\x82", b"\x06", b"abc", b"de", b"f", EOF], 2)],
    ids=["a stall", "single bytes"],
)
def test_output_on_a_slow_line_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: list[bytes], timeout: float
) -> None:
    monkeypatch.setattr(execution, "GRACE", 0.2)
    with contextlib.closing(slow(tmp_path, pieces, timeout)) as driver:
        assert driver.execute("web", ["cat"]) == (0, b"abcdef", b"")


def test_output_that_stays_out_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "GRACE", 0.5)
    driver = slow(tmp_path, [b"\x82\x03abc"], 0.5)
    with pytest.raises(_errors.ServerUnreachable, match="the rest of a command's output did not come in time"):
        driver.execute("web", ["cat"])
    driver.close()


def test_output_that_came_while_nobody_looked_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "LINGERING", 0.1)
    monkeypatch.setattr(execution, "GRACE", 0.5)

    def ended(stdout: bytes, stderr: bytes) -> bool:
        time.sleep(2)
        return False

    with contextlib.closing(slow(tmp_path, [b"\x82\x03abc" + EOF], 0.5)) as driver:
        assert execution.run(driver.transport, Command("web", ["cat"], ended=ended)) == (0, b"abc", b"")


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
