# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests over a real socket, to a server that answers as it is told to."""

from __future__ import annotations

import json
import select
import socket
import threading
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _errors
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
        for _byte in range(30):
            try:
                sock.sendall(b"x")
            except BrokenPipeError:
                return
            time.sleep(0.1)

    driver = scripted(trickle)
    start = time.monotonic()
    with pytest.raises(_errors.DeadlinePassed, match=r"GET /1.0: no answer after 0\.5 s"):
        driver.request("GET", "/1.0", timeout=0.5)
    assert time.monotonic() - start < 1.5


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


def test_an_answer_that_breaks_off_is_an_error(scripted: t.Callable[..., CoreDriver]) -> None:
    pending = scripted(say(answer("a long answer")[:-5])).transport.begin("GET", "/1.0/operations/x/wait", {})

    def finish() -> None:
        for _try in range(3):
            select.select([pending], [], [], 5)
            pending.finish()

    with pytest.raises(_errors.ServerUnreachable, match="connection was lost"):
        finish()
    pending.close()
