# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The byte bridge by each of its tools, to a socket of ours: bytes, ends, order, and what is left behind."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._server import bridge, lookup, mux, options

BASICS = ("grep", "ls", "sh")
TOOLS = ("python3", "socat", "nc")
SERVER = options.ServerOptions("unix:///nowhere", via=("outer",))


class CommandTrunk(mux.Pipes):
    """The pipes of a command on this machine."""

    told = ""

    def __init__(self, argv: t.Sequence[str], path: Path) -> None:
        pipe = subprocess.PIPE
        environment = {"PATH": str(path)}
        self.process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, env=environment, start_new_session=True)
        assert self.process.stdin
        assert self.process.stdout
        super().__init__(self.process.stdout.fileno(), self.process.stdin.fileno())

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()

    def kill(self) -> None:
        """As an instance that stops."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()


class Echo:
    """A server that sends back what it gets, and ends when its client does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            client, _address = self._listener.accept()
            threading.Thread(target=self._echo, args=(client,), daemon=True).start()

    def _echo(self, client: socket.socket) -> None:
        self.open += 1
        # A client may go away in mid-sentence.
        with client, contextlib.suppress(ConnectionError):
            while data := client.recv(1 << 16):
                client.sendall(data)
        self.open -= 1


@pytest.fixture
def echo(tmp_path: Path) -> Echo:
    return Echo(tmp_path / "server")


def path_with(folder: Path, *programs: str) -> Path:
    """A PATH on which there are only these."""
    folder.mkdir()
    for name in (*BASICS, *programs):
        found = "/usr/bin/python3" if name == "python3" else shutil.which(name)
        assert found, name
        (folder / name).symlink_to(found)
    return folder


def opened(folder: Path, server: Path, *programs: str) -> tuple[CommandTrunk, bridge.Bridge | socket.socket]:
    trunk = CommandTrunk(lookup.command(lookup.BRIDGE, str(server)), path_with(folder, *programs))
    return trunk, bridge.joined(trunk, SERVER, "outer")


def stream(made: bridge.Bridge | socket.socket) -> socket.socket:
    sock = made.connect(10) if isinstance(made, bridge.Bridge) else made
    assert sock is not None
    sock.settimeout(30)
    return sock


def received(sock: socket.socket) -> bytes:
    digest = hashlib.sha256()
    while data := sock.recv(1 << 16):
        digest.update(data)
    return digest.digest()


def until(check: t.Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def sockets_open() -> int:
    """How many this process has. Other descriptors, such as a selector's, come and go with every turn of a bridge."""
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")
    return found


@pytest.mark.parametrize("tool", TOOLS)
def test_bytes_go_both_ways_at_once_and_the_command_goes_with_its_last_user(
    tool: str, echo: Echo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "_POLL", 0.05)
    data = os.urandom(1 << 20) * 20
    trunk, made = opened(tmp_path / "bin", echo.path, tool)
    sock = stream(made)
    monkeypatch.setattr(bridge, "IDLE", 0.1)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        reader = pool.submit(lambda: hashlib.sha256(b"".join(_exactly(sock, len(data)))).digest())
        sock.sendall(data)
        assert reader.result(60) == hashlib.sha256(data).digest()
    sock.close()
    until(lambda: echo.open == 0)
    until(lambda: trunk.process.returncode is not None)


def _exactly(sock: socket.socket, size: int) -> t.Iterator[bytes]:
    while size > 0:
        data = sock.recv(1 << 16)
        assert data
        size -= len(data)
        yield data


def test_the_end_of_one_direction_leaves_the_other_open(echo: Echo, tmp_path: Path) -> None:
    trunk, made = opened(tmp_path / "bin", echo.path, "python3")
    data = os.urandom(1 << 20)
    with stream(made) as sock, concurrent.futures.ThreadPoolExecutor(1) as pool:
        reader = pool.submit(received, sock)
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        assert reader.result(30) == hashlib.sha256(data).digest()
    trunk.kill()


def test_a_stream_that_nobody_reads_stops_no_other_and_fills_no_memory(echo: Echo, tmp_path: Path) -> None:
    trunk, made = opened(tmp_path / "bin", echo.path, "python3")
    stuck, other = stream(made), stream(made)
    stuck.settimeout(1)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 100 << 20:
            sent += stuck.send(bytes(1 << 16))
    # What was taken: a window in each direction, and the buffers of the kernel's sockets.
    assert sent < 4 * mux.WINDOW + (2 << 20)
    for number in range(50):
        other.sendall(b"%d" % number)
        assert other.recv(100) == b"%d" % number
    stuck.close()
    other.close()
    until(lambda: echo.open == 0)
    trunk.kill()


def test_many_streams_side_by_side_are_all_right(echo: Echo, tmp_path: Path) -> None:
    trunk, made = opened(tmp_path / "bin", echo.path, "python3")
    before = sockets_open()

    def ask(number: int) -> bool:
        data = bytes([number % 256]) * (number * 97)
        with stream(made) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            return received(sock) == hashlib.sha256(data).digest()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert [number for number, right in enumerate(pool.map(ask, range(400))) if not right] == []
    until(lambda: echo.open == 0)
    until(lambda: sockets_open() <= before, bridge.IDLE / 2)
    trunk.kill()


def test_a_server_that_is_gone_and_a_command_that_dies_are_told(echo: Echo, tmp_path: Path) -> None:
    trunk, made = opened(tmp_path / "bin", echo.path, "python3")
    assert isinstance(made, bridge.Bridge)
    sock = stream(made)
    echo.path.unlink()
    with pytest.raises(OSError, match="No such file"):
        made.connect(10)
    trunk.kill()
    assert sock.recv(1) == b""
    until(lambda: made.over)
    assert made.connect(10) is None


@pytest.mark.parametrize(
    ("socket_name", "programs", "kind", "problem"),
    [
        ("server", (), _errors.NoBridge, "neither python3, socat nor nc -U in outer"),
        ("none", TOOLS, _errors.ServerUnreachable, "there is no socket .*/none on outer"),
    ],
)
def test_what_is_missing_is_said(
    socket_name: str, programs: t.Sequence[str], kind: type[Exception], problem: str, echo: Echo, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=problem):
        opened(tmp_path / "bin", tmp_path / socket_name, *programs)


def test_the_environment_of_the_host_says_which_socket(echo: Echo, tmp_path: Path) -> None:
    found = path_with(tmp_path / "bin")
    for variable, value in (("LXD_SOCKET", echo.path), ("INCUS_SOCKET", echo.path)):
        environment = {"PATH": str(found), variable: str(value)}
        done = subprocess.run(lookup.command(lookup.FIND), env=environment, capture_output=True, check=True)
        assert lookup.first_line(b"Welcome!\n" + done.stdout) == ("found", str(echo.path))
