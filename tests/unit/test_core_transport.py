# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests over a real socket, to a server that answers as it is told to."""

from __future__ import annotations

import errno
import json
import select
import socket
import threading
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._server import sockets, transport, websocket
from ansible_collections.mage.lxd.plugins.module_utils._server.core import CoreDriver
from ansible_collections.mage.lxd.plugins.module_utils._server.options import ServerOptions

Talk = t.Callable[[socket.socket], None]


def answer(metadata: t.Any, status: str = "200 OK") -> bytes:
    body = json.dumps({"type": "sync", "metadata": metadata, "error": "" if metadata else "the reason"}).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def read_request(sock: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(65536)
        if not part:
            return data
        data += part
    return data


def say(*answers: bytes) -> Talk:
    """Answer as many requests as there are answers, then hang up."""

    def talk(sock: socket.socket) -> None:
        for one in answers:
            if read_request(sock):
                sock.sendall(one)

    return talk


class Scripted:
    """A server at a unix socket: one talk for each connection, in order."""

    def __init__(self, path: Path, talks: t.Sequence[Talk]) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._talks = talks
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self.driver = CoreDriver(ServerOptions(f"unix://{path}"))

    def _serve(self) -> None:
        for talk in self._talks:
            sock, _address = self._listener.accept()
            with sock:
                talk(sock)
        self._listener.close()


@pytest.fixture
def scripted(tmp_path: Path) -> t.Iterator[t.Callable[..., CoreDriver]]:
    made: list[CoreDriver] = []

    def make(*talks: Talk) -> CoreDriver:
        made.append(Scripted(tmp_path / f"socket-{len(made)}", talks).driver)
        return made[-1]

    yield make
    for driver in made:
        driver.close()


def test_a_connection_is_kept_and_every_request_counted(scripted: t.Callable[..., CoreDriver]) -> None:
    driver = scripted(say(answer(1), answer(2)))
    assert driver.request("GET", "/1.0").metadata == 1
    assert driver.request("POST", "/1.0/x", body={"a": 1}).metadata == 2
    assert driver.requests == [("GET", "/1.0"), ("POST", "/1.0/x")]


def test_a_connection_that_the_server_closed_is_opened_anew(scripted: t.Callable[..., CoreDriver]) -> None:
    driver = scripted(say(answer(1)), say(answer(2)))
    assert driver.request("GET", "/1.0").metadata == 1
    time.sleep(0.05)
    assert driver.request("POST", "/1.0/x", body={}).metadata == 2


def hang_up_after_reading(sock: socket.socket) -> None:
    read_request(sock)


def test_a_read_is_sent_again_when_a_kept_connection_breaks(scripted: t.Callable[..., CoreDriver]) -> None:
    def one_then_break(sock: socket.socket) -> None:
        say(answer(1))(sock)
        hang_up_after_reading(sock)

    driver = scripted(one_then_break, say(answer(2)))
    assert driver.request("GET", "/1.0").metadata == 1
    assert driver.request("GET", "/1.0").metadata == 2


def test_a_write_is_never_sent_twice(scripted: t.Callable[..., CoreDriver]) -> None:
    def one_then_break(sock: socket.socket) -> None:
        say(answer(1))(sock)
        hang_up_after_reading(sock)

    driver = scripted(one_then_break, say(answer(2)))
    assert driver.request("GET", "/1.0").metadata == 1
    with pytest.raises(_errors.ServerUnreachable, match="connection was lost"):
        driver.request("POST", "/1.0/x", body={})


def test_a_first_connection_that_breaks_is_an_error(scripted: t.Callable[..., CoreDriver]) -> None:
    driver = scripted(hang_up_after_reading, say(answer(2)))
    with pytest.raises(_errors.ServerUnreachable, match="connection was lost"):
        driver.request("GET", "/1.0")


def test_half_an_answer_is_an_error(scripted: t.Callable[..., CoreDriver]) -> None:
    driver = scripted(say(answer("a long answer")[:-5]))
    with pytest.raises(_errors.ServerUnreachable, match="before the whole answer came"):
        driver.request("GET", "/1.0")


def test_what_is_no_http_is_named(scripted: t.Callable[..., CoreDriver]) -> None:
    driver = scripted(say(b"SSH-2.0-OpenSSH\r\n\r\n"))
    with pytest.raises(_errors.ServerUnreachable, match="does not speak HTTP"):
        driver.request("GET", "/1.0")


def test_the_deadline_is_for_the_whole_call(scripted: t.Callable[..., CoreDriver]) -> None:
    def trickle(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        for _byte in range(100):
            try:
                sock.sendall(b"x")
            except BrokenPipeError:
                return
            time.sleep(0.1)

    driver = scripted(trickle)
    start = time.monotonic()
    with pytest.raises(_errors.DeadlinePassed, match=r"GET /1.0: no answer after 0\.5 s"):
        driver.request("GET", "/1.0", timeout=0.5)
    # The answer takes ten.
    assert time.monotonic() - start < 8


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("404 Not Found", _errors.NotFound),
        ("412 Precondition Failed", _errors.PreconditionFailed),
        ("500 Error", _errors.ServerError),
    ],
)
def test_a_status_is_an_exception(
    scripted: t.Callable[..., CoreDriver], status: str, kind: type[_errors.ServerError]
) -> None:
    driver = scripted(say(answer(None, status), answer(1)))
    with pytest.raises(kind, match="the reason") as raised:
        driver.request("GET", "/1.0/x")
    assert raised.type is kind
    assert driver.request("GET", "/1.0").metadata == 1


def test_an_error_under_a_good_status_is_an_error(scripted: t.Callable[..., CoreDriver]) -> None:
    """Incus answers 200 to a wait, and tells in the body that the operation failed."""
    body = b'{"type":"error","error_code":404,"error":"Image not found","metadata":null}'
    driver = scripted(say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body))
    with pytest.raises(_errors.ServerError, match=r"Image not found \(404\)") as raised:
        driver.request("GET", "/1.0/operations/x/wait")
    assert not isinstance(raised.value, _errors.NotFound)


def test_what_a_guest_wrote_is_no_error_of_the_server(scripted: t.Callable[..., CoreDriver]) -> None:
    log = b'{"type":"error","error_code":404,"error":"said the guest"}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % len(log)
    assert scripted(say(head + log)).request("GET", "/1.0/instances/x/console").body == log


def test_an_answer_that_comes_in_parts_is_waited_for(scripted: t.Callable[..., CoreDriver]) -> None:
    parts = [
        b"HTTP/1.1 200 OK\r\nTransfer-",
        b"Encoding: chunked\r\n\r\n",
        b"e\r\n",
        b'{"metadata":7}\r\n0\r\n',
        b"\r\n",
    ]
    go = threading.Semaphore(0)

    def slowly(sock: socket.socket) -> None:
        read_request(sock)
        for part in parts:
            go.acquire()
            sock.sendall(part)
        go.acquire()

    pending = scripted(slowly).transport.begin("GET", "/1.0/operations/x/wait", {})
    assert pending.finish() is None
    found = []
    for _part in parts:
        go.release()
        select.select([pending], [], [], 5)
        found.append(pending.finish())
    assert found[:-2] == [None, None, None]
    answer_found = found[-1] or found[-2]
    assert answer_found is not None
    assert answer_found.metadata == 7
    pending.close()
    go.release()


def test_an_answer_of_known_length_is_waited_for(scripted: t.Callable[..., CoreDriver]) -> None:
    whole = b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"metadata":7}'
    seen = []

    def slowly(sock: socket.socket) -> None:
        for _request in range(2):
            seen.append(read_request(sock))
            for part in (whole[:20], whole[20:-3], whole[-3:]):
                sock.sendall(part)
                time.sleep(0.05)

    driver = scripted(slowly)
    pending = driver.transport.begin("POST", "/1.0/x", {"a": "b"}, {"key": 1})
    assert pending.wait(5).metadata == 7
    pending.close()
    # The same connection serves another request.
    assert driver.request("GET", "/1.0").metadata == 7
    assert seen[0].startswith(b"POST /1.0/x?a=b ")
    assert b"Content-Length: 10\r\n" in seen[0]


@pytest.mark.parametrize(
    ("head", "body", "kept"),
    [
        (b"Content-Length: 14", b'{"metadata":7}', True),
        (b"Content-Length: 14", b'{"metadata":7}HTTP/1.1 200 OK', False),
        (b"Content-Length: 14\r\nConnection: close", b'{"metadata":7}', False),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 3", b'e\r\n{"metadata":7}\r\n0\r\n\r\n', True),
    ],
)
def test_whether_a_connection_serves_again(
    scripted: t.Callable[..., CoreDriver], head: bytes, body: bytes, kept: bool
) -> None:
    transport = scripted(say(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + body)).transport
    assert transport.begin("GET", "/1.0/x", {}).wait(5).metadata == 7
    assert len(transport._idle) == kept


def test_an_answer_that_does_not_come_ends_with_the_deadline(scripted: t.Callable[..., CoreDriver]) -> None:
    over = threading.Event()

    def silent(sock: socket.socket) -> None:
        read_request(sock)
        over.wait(5)

    pending = scripted(silent).transport.begin("POST", "/1.0/x", {}, {})
    with pytest.raises(_errors.DeadlinePassed, match=r"POST /1.0/x: no answer after 0.2 s"):
        pending.wait(0.2)
    pending.close()
    over.set()


def test_an_answer_that_breaks_off_is_an_error(scripted: t.Callable[..., CoreDriver]) -> None:
    pending = scripted(say(answer("a long answer")[:-5])).transport.begin("GET", "/1.0/operations/x/wait", {})

    def finish() -> None:
        for _try in range(3):
            select.select([pending], [], [], 5)
            pending.finish()

    with pytest.raises(_errors.ServerUnreachable, match="connection was lost"):
        finish()
    pending.close()


def test_a_refusal_that_comes_after_its_head_is_read() -> None:
    ours, theirs = socket.socketpair()
    whole = answer(None, "404 Not Found")
    head, body = whole[: whole.index(b"{")], whole[whole.index(b"{") :]

    def slowly() -> None:
        read_request(theirs)
        theirs.sendall(head)
        time.sleep(0.05)
        theirs.sendall(body)

    threading.Thread(target=slowly, daemon=True).start()
    with ours, theirs, pytest.raises(_errors.NotFound, match="the reason"):
        websocket.Handshake(ours, "/1.0/x", "localhost", "unix:///s", "sftp").accepted()


@pytest.mark.parametrize("line", [b"SSH-2.0-OpenSSH", b"HTTP/1.1", b"HTTP/1.1 no"])
def test_a_handshake_with_something_else_is_told(line: bytes) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(line + b"\r\n\r\n")
    with ours, theirs, pytest.raises(_errors.ServerUnreachable, match="does not speak HTTP"):
        websocket.Handshake(ours, "/1.0/x", "localhost", "unix:///s").accepted()


def test_an_answer_of_some_other_server_is_told(scripted: t.Callable[..., CoreDriver]) -> None:
    driver = scripted(say(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"))
    with pytest.raises(_errors.ServerError, match="is this a server of LXD or Incus"):
        assert driver.request("GET", "/1.0").metadata


class NoRoute:
    """A socket whose other end has no route to it any more."""

    def settimeout(self, _seconds: float | None) -> None:
        pass

    def send(self, data: t.Any) -> int:
        return len(data)

    def recv_into(self, _buffer: t.Any) -> int:
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    def recv(self, _size: int) -> bytes:
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    def setblocking(self, _flag: bool) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_host_that_went_away_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "connect", lambda options: NoRoute())
    driver = CoreDriver(ServerOptions("unix:///s"))
    with pytest.raises(_errors.ServerUnreachable, match="connection was lost"):
        driver.request("GET", "/1.0")
    with pytest.raises(_errors.ServerUnreachable, match="connection was lost"):
        driver.transport.begin("GET", "/1.0/operations/x/wait", {}).finish()
    ws = websocket.WebSocket(t.cast(socket.socket, NoRoute()))
    assert (ws.receive(), ws.closed, ws.deaf) == ([], True, True)


def test_a_query_holds_every_byte_of_a_files_name() -> None:
    assert transport.target("/1.0", {"path": "/a b\udce9/\u00fc"}) == "/1.0?path=%2Fa+b%E9%2F%C3%BC"


def test_a_silent_line_is_asked_for_a_sign_of_life() -> None:
    wanted = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, sockets.dial("127.0.0.1", listener.getsockname()[1], 5) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        idle, gap, count = (sock.getsockopt(socket.IPPROTO_TCP, option) for option in wanted)
    assert idle + gap * count <= 60
