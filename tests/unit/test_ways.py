# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bridges and relays when something goes wrong: nobody waits for ever, and nothing is left behind."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
import typing as t
from pathlib import Path

import pytest
from ansible.errors import AnsibleError

from ansible_collections.mage.lxd.plugins.connection import lxd
from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._server import (
    bridge,
    cli,
    mux,
    relay,
    rest,
    runner,
    sockets,
    transport,
)
from ansible_collections.mage.lxd.plugins.module_utils._server.options import ServerOptions


class Sockets:
    """A trunk over a socket. ``failure`` is raised by the next read."""

    told = ""
    unsent = 0

    def __init__(self, sock: socket.socket, failure: t.Optional[Exception] = None) -> None:
        self._sock = sock
        self._failure = failure
        self.closed = threading.Event()

    def watched(self, reading: bool = True) -> list[mux.Watched]:
        return [(self._sock, mux.READ)]

    def waiting(self) -> bool:
        return False

    def queue(self, data: bytes) -> None:
        self._sock.sendall(data)

    def flush(self) -> None:
        pass

    def end(self) -> None:
        pass

    def read(self) -> bytes:
        if self._failure:
            raise self._failure
        try:
            return self._sock.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        self.closed.set()


def ends(made: bridge.Bridge) -> bool:
    """Whether nobody is left to wait: for a socket that is asked for now, too."""
    try:
        return made.connect(5) is None
    except TimeoutError:
        return False
    except OSError:
        return True


def test_a_far_end_that_says_something_else_ends_the_bridge() -> None:
    ours, theirs = socket.socketpair()
    trunk = Sockets(ours)
    made = bridge.Bridge(trunk)
    # As when the program there was killed, and its shell goes on with another.
    theirs.sendall(b"mage: socat /var/lib/lxd/unix.socket\n")
    assert ends(made)
    assert made.connect(5) is None
    assert trunk.closed.wait(5)


def test_a_bridge_that_fails_is_over() -> None:
    ours, theirs = socket.socketpair()
    trunk = Sockets(ours, OSError(113, "No route to host"))
    made = bridge.Bridge(trunk)
    theirs.sendall(b"x")
    assert ends(made)
    assert made.connect(5) is None
    assert trunk.closed.wait(5)


def test_a_relay_has_a_short_path_wherever_temporary_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    made = relay.Relay(ServerOptions("https://nowhere.example.org"))
    assert Path(made.path).is_socket()
    made.close()
    assert not Path(made.path).parent.exists()


def test_a_client_that_is_not_trusted_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(options: ServerOptions) -> None:
        raise _errors.ServerUnreachable(options.shown, "it does not trust us")

    # Short enough for a socket.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setattr(transport, "greet", refused)
        with pytest.raises(_errors.ServerUnreachable, match="it does not trust us"):
            cli.CliDriver(ServerOptions("https://nowhere.example.org"), client="lxc")
        assert list(Path(folder).iterdir()) == []


def test_a_client_that_says_nothing_is_not_waited_for_by_a_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PATIENCE", 0.1)
    asked: list[bytes] = []

    def gate(stdout: bytes, stderr: bytes) -> tuple[bool, bytes]:
        asked.append(stdout + stderr)
        if len(asked) > 3:
            raise _errors.DeadlinePassed("no prompt")
        return False, b""

    with pytest.raises(_errors.DeadlinePassed, match="no prompt"):
        runner.LocalRunner("/nowhere").run(["sleep", "9"], gate=gate)


class Become:
    """A method that asks for a password, takes any, and does nothing then."""

    name = "su"

    def check_success(self, _output: bytes) -> bool:
        return False

    check_incorrect_password = check_missing_password = check_success

    def check_password_prompt(self, output: bytes) -> bool:
        return output == b"Password: "

    def get_option(self, _name: str) -> str:
        return "secret"


def test_become_has_a_while_to_ask_and_a_while_to_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lxd, "_PROMPT", -1.0)
    with pytest.raises(AnsibleError, match="su: after -1 s, it asked for no password"):
        lxd._Password(Become())(b"", b"")
    gate = lxd._Password(Become())
    assert gate(b"", b"Password: ") == (False, b"secret\n")
    with pytest.raises(AnsibleError, match="su: after -1 s, it took the password and did nothing") as raised:
        gate(b"", b"Password: \n")
    assert "secret" not in str(raised.value)


def test_who_has_said_all_still_gets_the_whole_answer() -> None:
    """Where a server is reached by socat or nc, for one connection alone."""
    ours, theirs = socket.socketpair()
    theirs.sendall(b"mage: nc /socket\n")
    near = bridge.joined(Sockets(ours), ServerOptions("unix:///s", via=("outer",)), "outer")
    assert isinstance(near, socket.socket)
    near.shutdown(socket.SHUT_WR)
    # Until all on the way is full.
    theirs.settimeout(0.3)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 32 * mux.WINDOW:
            sent += theirs.send(bytes(1 << 16))
    near.settimeout(5)
    got = 0
    while got < sent:
        got += len(near.recv(1 << 16))
    assert got == sent > mux.WINDOW


def test_modules_say_why_a_server_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ways: list[socket.socket] = []

    def connect(options: ServerOptions) -> socket.socket:
        if len(ways) == 2:
            raise _errors.ServerUnreachable(options.shown, "the host is down")
        near, far = socket.socketpair()
        ways.append(far)
        threading.Thread(target=serve, args=(far,), daemon=True).start()
        return near

    def serve(far: socket.socket) -> None:
        with far:
            if far.recv(65536):
                body = b'{"type": "sync", "metadata": {"auth": "trusted", "environment": {}, "api_extensions": []}}'
                far.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)

    monkeypatch.setattr(sockets, "connect", connect)
    driver = rest.RestDriver(ServerOptions("ssh://host"))
    with pytest.raises(_errors.ServerUnreachable, match=r"^Cannot reach the server at ssh://host: the host is down$"):
        driver.request("GET", "/1.0/instances")
    driver.close()
