# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bridges and relays when something goes wrong: nobody waits for ever, and nothing is left behind."""

from __future__ import annotations

import socket
import tempfile
import threading
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._server import bridge, cli, mux, relay, transport
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
