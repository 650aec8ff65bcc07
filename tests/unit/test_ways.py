# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bridges and relays when something goes wrong: nobody waits for ever, and nothing is left behind."""

from __future__ import annotations

import contextlib
import fcntl
import resource
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
from ansible_collections.mage.lxd.tests.unix_server import UnixServer


def test_what_makes_a_bridge_may_ask_for_it_itself() -> None:
    """As the way of an ssh login with sudo does."""
    registry, options = bridge.Registry(), ServerOptions("ssh://x")
    ours, theirs = socket.socketpair()

    def make() -> socket.socket:
        return registry.socket(options, lambda: ours)

    found: list[socket.socket] = []
    thread = threading.Thread(target=lambda: found.append(registry.socket(options, make)), daemon=True)
    thread.start()
    thread.join(10)
    assert found == [ours]
    for one in (ours, theirs):
        one.close()


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


def far_end(sock: socket.socket) -> None:
    """Opens every stream that it is asked for."""
    held: list[socket.socket] = []

    def connect() -> socket.socket:
        held.append(socket.socketpair()[0])
        return held[-1]

    made = mux.Mux(mux.Pipes(sock.fileno(), sock.fileno()), connect)
    with sock, contextlib.suppress(EOFError, OSError):
        while True:
            made.turn()
    made.close()


def test_who_comes_as_a_bridge_ends_of_itself_gets_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has decided to end, and still takes who comes."""
    monkeypatch.setattr(bridge, "IDLE", 0.1)
    monkeypatch.setattr(bridge, "_POLL", 0.05)
    decided, come = threading.Event(), threading.Event()
    finish = bridge.Bridge._finish

    def late(self: bridge.Bridge) -> None:
        if not come.is_set():
            decided.set()
            come.wait(5)
        finish(self)

    monkeypatch.setattr(bridge.Bridge, "_finish", late)
    trunks: list[socket.socket] = []

    def make() -> bridge.Bridge:
        near, far = socket.socketpair()
        threading.Thread(target=far_end, args=(far,), daemon=True).start()
        trunks.append(near)
        return bridge.Bridge(Sockets(near))

    registry, options = bridge.Registry(), ServerOptions("unix:///x", via=("outer",))
    registry.socket(options, make).close()
    assert decided.wait(5)
    threading.Timer(0.2, come.set).start()
    registry.socket(options, make).close()
    assert len(trunks) == 2
    for trunk in trunks:
        trunk.close()


def test_bridges_that_end_as_they_are_asked_are_not_made_for_ever() -> None:
    made: list[bridge.Bridge] = []

    def make() -> bridge.Bridge:
        ours, theirs = socket.socketpair()
        theirs.close()
        made.append(bridge.Bridge(Sockets(ours, EOFError("closed"))))
        return made[-1]

    with pytest.raises(OSError, match="the bridge to it is gone"):
        bridge.Registry().socket(ServerOptions("unix:///x", via=("outer",)), make)
    assert len(made) <= 3


def test_a_relay_has_a_short_path_wherever_temporary_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    made = relay.Relay(ServerOptions("https://nowhere.example.org"))
    assert Path(made.path).is_socket()
    made.close()
    assert not Path(made.path).parent.exists()


def test_a_relay_carries_bytes_by_descriptors_of_any_number() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    client, near = socket.socketpair()
    far, server = socket.socketpair()
    high = [socket.socket(fileno=fcntl.fcntl(one, fcntl.F_DUPFD, 1100)) for one in (near, far)]
    near.close()
    far.close()
    client.settimeout(5)
    try:
        thread = threading.Thread(target=relay._pump, args=high, daemon=True)
        thread.start()
        server.sendall(b"hello")
        assert client.recv(5) == b"hello"
        client.sendall(b"there")
        assert server.recv(5) == b"there"
        client.close()
        thread.join(5)
        assert not thread.is_alive()
    finally:
        for one in (client, server, *high):
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_relay_speaks_to_the_server_when_its_client_does(tmp_path: Path) -> None:
    """A server takes no other connection while one is silent."""

    class Echo(UnixServer):
        def serve(self, sock: socket.socket) -> None:
            with sock:
                sock.sendall(sock.recv(10))

    server = Echo(tmp_path / "socket")
    made = relay.Relay(ServerOptions(f"unix://{tmp_path}/socket"))
    with (
        contextlib.closing(made),
        sockets.connect_unix(made.path, 5) as silent,
        sockets.connect_unix(made.path, 5) as one,
    ):
        one.sendall(b"hello")
        assert one.recv(10) == b"hello"
        assert server.connections == 1
        silent.sendall(b"there")
        assert silent.recv(10) == b"there"


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
