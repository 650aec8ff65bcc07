# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands of a loop, on a server that runs them on this machine."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import socket
import subprocess
import threading
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._server import ahead, streams, websocket
from ansible_collections.mage.lxd.plugins.module_utils._server.core import CoreDriver
from ansible_collections.mage.lxd.plugins.module_utils._server.driver import Completed
from ansible_collections.mage.lxd.plugins.module_utils._server.options import ServerOptions
from ansible_collections.mage.lxd.tests.unix_server import UnixServer

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
NAMES = ("0", "1", "2", "control")
EVERY_BYTE = bytes(range(256)) * 40
# Runs until there is a shell for the next command.
BESIDE = f"n=0; until pgrep -P {os.getpid()} -f '[I]FS= read' >/dev/null || [ $((n+=1)) -gt 999 ]; do sleep 0.02; done"


class Operation:
    """A command, its streams, and how it ended."""

    def __init__(self, body: dict[str, t.Any]) -> None:
        self.argv: list[str] = body["command"]
        self.waits = self.argv == list(ahead._WAITER)
        self.environment: dict[str, str] = {"HOME": "/root", **body["environment"]}
        self.cwd: str = body.get("cwd") or self.environment["HOME"]
        self.streams: dict[str, socket.socket] = {}
        self.started = threading.Event()
        # Whether anything was said to it.
        self.told = False
        self.ended = threading.Event()
        self.process: subprocess.Popen[bytes]
        self.rc = -1


class Machine(UnixServer):
    """Runs what it is asked for as a process. ``operations`` holds all of it, in order."""

    # What /bin/sh is.
    shell = "/bin/sh"

    def __init__(self, path: Path) -> None:
        self.operations: list[Operation] = []
        self._lock = threading.Lock()
        super().__init__(path)

    @property
    def shells(self) -> list[Operation]:
        """Those that wait for a command, or did."""
        return [one for one in self.operations if one.waits]

    @property
    def idle(self) -> list[Operation]:
        """Those that wait for one now."""
        return [one for one in self.shells if one.started.is_set() and not one.told and not one.ended.is_set()]

    def asked(self, count: int) -> None:
        """Wait until it was asked for so many shells."""
        self._until(count, lambda: self.shells)

    def started(self, count: int) -> list[Operation]:
        """So many shells, once they have started; in no order."""
        return self._until(count, lambda: [one for one in self.shells if one.started.is_set()])

    def _until(self, count: int, find: t.Callable[[], list[Operation]]) -> list[Operation]:
        deadline = time.monotonic() + 20
        while True:
            found = find()
            if len(found) == count:
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.01)

    def serve(self, sock: socket.socket) -> None:
        # Whoever has what it wants does not wait for the rest.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError), sock.makefile("rb") as reader:
            while True:
                head = list(iter(lambda: reader.readline().rstrip(), b""))
                if not head or not head[0].endswith(b"HTTP/1.1"):
                    break
                headers = dict(line.split(b": ", 1) for line in head[1:])
                if b"/websocket" in head[0]:
                    self._join(sock, reader, head[0].decode(), headers[b"Sec-WebSocket-Key"])
                    break
                self._answer(sock, head[0].decode(), reader.read(int(headers.get(b"Content-Length", 0))))
        sock.close()

    def _answer(self, sock: socket.socket, line: str, body: bytes) -> None:
        if line.startswith("POST"):
            with self._lock:
                self.operations.append(Operation(json.loads(body)))
                number = len(self.operations) - 1
            fds = {name: f"{number}-{name}" for name in NAMES}
            metadata: dict[str, t.Any] = {"id": str(number), "metadata": {"fds": fds}}
        else:
            operation = self.operations[int(line.split("/")[3])]
            operation.ended.wait(60)
            metadata = {"status_code": 200, "metadata": {"return": operation.rc}}
        text = json.dumps({"type": "sync", "metadata": metadata}).encode()
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text) + text)

    def _join(self, sock: socket.socket, reader: io.BufferedReader, line: str, key: bytes) -> None:
        number, name = line.split("secret=")[1].split(" ")[0].split("-")
        operation = self.operations[int(number)]
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: %s\r\n\r\n" % accept)
        with self._lock:
            operation.streams[name] = sock
            whole = len(operation.streams) == len(NAMES)
        if whole:
            threading.Thread(target=self._run, args=(operation,), daemon=True).start()
        if name == "0":
            self._feed(operation, reader)
        operation.ended.wait(60)

    def start(self, operation: Operation) -> subprocess.Popen[bytes]:
        """Its process."""
        pipe = subprocess.PIPE
        environment = {"PATH": os.environ["PATH"], **operation.environment}
        program = self.shell if operation.argv[0] == "/bin/sh" else None
        cwd = operation.cwd if os.path.isdir(operation.cwd) else "/"
        return subprocess.Popen(
            operation.argv,
            executable=program,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=environment,
            cwd=cwd,
            bufsize=0,
        )

    def _feed(self, operation: Operation, reader: io.BufferedReader) -> None:
        operation.started.wait(60)
        stdin = operation.process.stdin
        assert stdin is not None
        decoder = websocket.Decoder()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:
                data = reader.read1(65536)
                messages = list(decoder.feed(data))
                for message in messages:
                    if message.kind == websocket.BINARY:
                        operation.told = True
                        stdin.write(message.data)
                if not data or any(message.kind != websocket.BINARY for message in messages):
                    break
        stdin.close()

    def _run(self, operation: Operation) -> None:
        process = operation.process = self.start(operation)
        operation.started.set()
        pumps = [
            threading.Thread(target=self._pump, args=(operation.streams[name], pipe))
            for name, pipe in (("1", process.stdout), ("2", process.stderr))
        ]
        for pump in pumps:
            pump.start()
        rc = process.wait()
        for pump in pumps:
            pump.join()
        operation.rc = rc if rc >= 0 else 128 - rc
        operation.ended.set()

    def _pump(self, sock: socket.socket, pipe: t.BinaryIO) -> None:
        with pipe, contextlib.suppress(OSError):
            for data in iter(lambda: pipe.read(4096), b""):
                sock.sendall(websocket.frame(websocket.BINARY, data))
            sock.sendall(websocket.frame(websocket.TEXT, b""))


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy is late by seconds."""
    for name in ("_AWAITED", "_BESIDE", "_FRESH", "_OLD", "_START", "_END"):
        monkeypatch.setattr(ahead, name, 60.0)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "socket")


@pytest.fixture
def driver(tmp_path: Path) -> t.Iterator[CoreDriver]:
    with contextlib.closing(CoreDriver(ServerOptions(f"unix://{tmp_path}/socket"))) as made:
        yield made


def run(driver: CoreDriver, script: str, **more: t.Any) -> Completed:
    return driver.execute("web", ["/bin/sh", "-c", script], more=True, **more)


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_each_command_but_the_first_has_a_shell_that_waits(machine: Machine, driver: CoreDriver, shell: str) -> None:
    machine.shell = shell
    for number in range(5):
        expected = (number, b"%d'$" % number + EVERY_BYTE, b"err")
        script = f"printf %s {number}\\''$'; cat; printf err >&2; exit {number}"
        assert run(driver, script, stdin=EVERY_BYTE) == expected
    assert len(machine.operations) - len(machine.shells) == 1
    machine.asked(4 + ahead._ASKED)
    machine.started(5)
    (last,) = machine.idle
    driver.close()
    assert last.ended.wait(20)
    machine.started(5)


def started_at(operation: Operation) -> float:
    """When a process began, as time.time() has it, to a hundredth of a second."""
    # Field 22 of stat, in ticks since boot.
    text = Path(f"/proc/{operation.process.pid}/stat").read_text(encoding="utf-8")
    ticks = int(text.rpartition(")")[2].split()[19])
    booted = max(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) for _time in range(5))
    return booted + ticks / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    "others",
    [{}, {"user": 1000}, {"cwd": "tmp"}, {"environment": {"HOME": "tmp"}}, {"environment": {"CDPATH": "/"}}],
)
@pytest.mark.parametrize("beside", [60.0, 0.0])
def test_when_a_shell_starts(
    tmp_path: Path,
    machine: Machine,
    driver: CoreDriver,
    monkeypatch: pytest.MonkeyPatch,
    beside: float,
    others: dict[str, t.Any],
) -> None:
    """After the command before has ended; or beside it, but not one that may not go where the next one is to run."""
    monkeypatch.setattr(ahead, "_BESIDE", beside)
    earlier = not others and not beside
    for number in range(3):
        ended_at = tmp_path / str(number)
        waits = f"{BESIDE}; sleep 0.1" if earlier else "sleep 0.1"
        assert run(driver, f"{waits}; date +%s%N >{ended_at}", **others).rc == 0
        ended = int(ended_at.read_text(encoding="utf-8"))
        machine.started(number + 1)
        (shell,) = machine.idle
        assert (started_at(shell) < ended / 1e9 - 0.02) is earlier
    machine.asked(2 + ahead._ASKED)
    assert len(machine.operations) - len(machine.shells) == 1


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_a_shell_beside_a_command_finds_what_that_one_did(
    tmp_path: Path, machine: Machine, driver: CoreDriver, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    monkeypatch.setattr(ahead, "_BESIDE", 0.0)
    machine.shell = shell
    place = tmp_path / "it's a $place"
    place.mkdir()
    # What bash itself tells a program, and the /bin/sh that the shell becomes perhaps not.
    see = "pwd; ls; env | grep -v '^SHLVL=\\|^_=' | sort"
    for where in ({"cwd": str(place)}, {"environment": {"HOME": str(place)}}):
        for action in ("mkdir '{}'; >'{}/new'", "true", "mv '{}' '{}'2", "rm -r '{}'2; mkdir '{}'"):
            script = action.replace("{}", str(place).replace("'", "'\\''"))
            run(driver, f"{BESIDE}; {script}", **where)
            plain = driver.execute("web", ["/bin/sh", "-c", see], **where)
            assert plain.stderr == b""
            assert run(driver, see, **where) == plain
    assert len([one for one in machine.operations if not one.waits]) == 10


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_a_shell_follows_links_as_the_kernel_does(
    tmp_path: Path, machine: Machine, driver: CoreDriver, shell: str
) -> None:
    machine.shell = shell
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    for _time in range(2):
        assert run(driver, "pwd", cwd=f"{tmp_path}/link/..") == (0, f"{tmp_path}/a\n".encode(), b"")
    assert len([one for one in machine.operations if not one.waits]) == 1


def test_beside_a_long_command_shells_start_for_as_many_as_came_since_the_last(
    tmp_path: Path, machine: Machine, driver: CoreDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "_BESIDE", 1.5)

    def take_long(shells: int) -> None:
        """Until so many shells wait for what comes next, and have had time to become more."""
        gate = tmp_path / f"gate{len(machine.operations)}"

        def watch() -> None:
            while not gate.exists():
                time.sleep(0.01)
            deadline = time.monotonic() + 20
            while len(machine.idle) != shells and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.5)
            gate.unlink()

        threading.Thread(target=watch, daemon=True).start()
        assert run(driver, f"touch {gate}; sleep 2; while [ -e {gate} ]; do sleep 0.01; done").rc == 0
        assert len(machine.idle) == shells

    take_long(1)
    for count, shells in ((6, 1), (0, ahead._MOST), (2, 1), (0, 3)):
        for number in range(count):
            assert run(driver, f"echo {number}") == (0, b"%d\n" % number, b"")
        take_long(shells)
    left = machine.idle
    driver.close()
    assert all(shell.ended.wait(20) for shell in left)
    # The first command alone had no shell that waited.
    assert len(machine.operations) - len(machine.shells) == 1


@pytest.mark.parametrize("odd", ["echo one\necho two", "echo ümläut", "true " + "x" * 5000, "printf '\t'"])
def test_what_no_shell_could_read_as_a_line_runs_by_itself(machine: Machine, driver: CoreDriver, odd: str) -> None:
    expected = subprocess.run(["/bin/sh", "-c", odd], capture_output=True, check=True).stdout
    for script, output in ((odd, expected), ("echo a", b"a\n"), (odd, expected), ("echo a", b"a\n")):
        assert run(driver, script) == (0, output, b"")
    assert [one.argv[2] for one in machine.operations if not one.waits] == [
        odd,
        "echo a",
        odd,
        "echo a",
    ]


def test_another_program_than_the_shell_runs_by_itself(machine: Machine, driver: CoreDriver) -> None:
    for _time in range(2):
        assert driver.execute("web", ["echo", "a"], more=True) == (0, b"a\n", b"")
        assert driver.execute("web", ["/bin/sh", "-c", 'echo "$1"', "sh", "b"], more=True) == (0, b"b\n", b"")
        # A shell would leave its own instead.
        assert (
            run(driver, "tr '\\0' '\\n' </proc/$$/environ | grep SHL", environment={"SHLVL": "7"}).stdout
            == b"SHLVL=7\n"
        )
    assert machine.shells == []


@pytest.mark.parametrize(
    "other",
    [{"user": 1000}, {"group": 7}, {"cwd": "/tmp"}, {"project": "p"}, {"environment": {"A": "1"}}, {"timeout": 9}],
)
def test_a_shell_serves_only_commands_like_its_own(
    machine: Machine, driver: CoreDriver, other: dict[str, t.Any]
) -> None:
    run(driver, "true")
    (first,) = machine.started(1)
    assert run(driver, 'echo "$A"', **other) == (0, b"1\n" if "environment" in other else b"\n", b"")
    assert first.ended.wait(20)
    assert [one.argv[2] for one in machine.operations if not one.waits] == ["true", 'echo "$A"']


@pytest.mark.parametrize(("limit", "asks"), [("_FRESH", 2), ("_OLD", 3)])
def test_a_shell_that_waited_too_long_is_not_used(
    machine: Machine, driver: CoreDriver, monkeypatch: pytest.MonkeyPatch, limit: str, asks: int
) -> None:
    """The instance may have been frozen, or its environment changed: the server knows."""
    run(driver, "true")
    (shell,) = machine.started(1)
    monkeypatch.setattr(ahead, limit, 0.0)
    assert run(driver, "echo a") == (0, b"a\n", b"")
    assert shell.ended.wait(20)
    assert [one.argv[2] for one in machine.operations if not one.waits] == ["true", "echo a"]
    # What takes longer than this may wait gains nothing by it.
    run(driver, "true")
    machine.asked(asks * ahead._ASKED)


def test_a_shell_that_was_asked_for_too_long_ago_never_starts(
    machine: Machine, driver: CoreDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has given it up, or is about to."""
    monkeypatch.setattr(ahead, "_AWAITED", 0.2)
    for _time in range(ahead._MISSES + 1):
        assert run(driver, "sleep 0.4", user=1000).rc == 0
    assert not any(shell.streams for shell in machine.shells)
    # It is not its fault.
    monkeypatch.setattr(ahead, "_AWAITED", 60.0)
    for _time in range(2):
        assert run(driver, "echo a", user=1000) == (0, b"a\n", b"")
    assert any(shell.streams for shell in machine.shells)


def test_who_has_no_use_for_shells_gets_no_more(machine: Machine, driver: CoreDriver) -> None:
    for number in range(8):
        run(driver, "true", cwd=f"/{number}")
    assert len(machine.shells) == ahead._MISSES * ahead._ASKED


class Broken(Machine):
    """Its shells do something else."""

    instead: t.Sequence[str] = ()

    def start(self, operation: Operation) -> subprocess.Popen[bytes]:
        if operation.waits:
            operation.argv = list(self.instead)
        return super().start(operation)


@pytest.mark.parametrize(
    "instead",
    [
        ["false"],
        ["sleep", "60"],
        ["sh", "-c", "echo hello; cat"],
        ["sh", "-c", "echo; exit 3"],
        ["sh", "-c", "exec >&-"],
    ],
    ids=["ends", "is silent", "says something else", "ends at once", "ends its output"],
)
def test_a_shell_that_does_not_start_gets_no_command(
    tmp_path: Path, driver: CoreDriver, monkeypatch: pytest.MonkeyPatch, instead: list[str]
) -> None:
    monkeypatch.setattr(ahead, "_START", 0.3)
    server = Broken(tmp_path / "socket")
    server.instead = instead
    ran = tmp_path / "ran"
    for number in range(5):
        if instead[-1] == "echo; exit 3" and number:
            # It looks as if it were there; when it is asked, it is gone.
            assert all(one.ended.wait(20) for one in server.started(min(number, ahead._MISSES)))
        assert run(driver, f"echo {number} >>{ran}; exit {number}") == (number, b"", b"")
    assert ran.read_text(encoding="utf-8") == "0\n1\n2\n3\n4\n"


class Lagging(Broken):
    """Tells the end of a shell well after that of its streams, as a server does where an instance goes down."""

    instead = ("sh", "-c", "echo")

    def _answer(self, sock: socket.socket, line: str, body: bytes) -> None:
        if "/wait" in line and self.operations[int(line.split("/")[3])].waits:
            threading.Event().wait(1)
        super()._answer(sock, line, body)


def test_a_shell_that_died_a_moment_ago_gets_no_command(tmp_path: Path, driver: CoreDriver) -> None:
    server = Lagging(tmp_path / "socket")
    for number in range(3):
        if number:
            assert all(one.ended.wait(20) for one in server.started(number))
            # Its last words are on their way to us.
            time.sleep(0.1)
        assert run(driver, f"echo {number}") == (0, b"%d\n" % number, b"")


class Refusing(Machine):
    """Runs one command, and is then gone."""

    refused = 0

    def _answer(self, sock: socket.socket, line: str, body: bytes) -> None:
        if line.startswith("POST") and self.operations:
            self.refused += 1
            text = json.dumps({"type": "error", "error": "Instance is not running", "error_code": 400}).encode()
            sock.sendall(b"HTTP/1.1 400 Bad\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
            return
        super()._answer(sock, line, body)


@pytest.mark.parametrize("beside", [60.0, 0.0])
def test_what_is_wrong_is_told_to_the_next_command(
    tmp_path: Path, driver: CoreDriver, monkeypatch: pytest.MonkeyPatch, beside: float
) -> None:
    monkeypatch.setattr(ahead, "_BESIDE", beside)
    server = Refusing(tmp_path / "socket")
    assert run(driver, "sleep 0.5; echo a") == (0, b"a\n", b"")
    assert server.refused == ahead._ASKED
    with pytest.raises(_errors.ServerError, match="Instance is not running"):
        run(driver, "echo a")


def test_a_server_that_takes_no_more_is_asked_once_beside_a_command(
    machine: Machine, driver: CoreDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time, the command would have to wait."""
    monkeypatch.setattr(ahead, "_BESIDE", 1.0)
    for script in ("sleep 1.2", "true", "true", "true", "sleep 1.2"):
        assert run(driver, script).rc == 0
    asked: list[str] = []

    def refuse(*_args: t.Any) -> t.NoReturn:
        asked.append("")
        raise _errors.ServerUnreachable("a server", "it is gone")

    monkeypatch.setattr(streams, "Asked", refuse)
    assert run(driver, "sleep 1.5; echo a") == (0, b"a\n", b"")
    assert len(asked) == 1


def test_a_killed_command_is_found_by_its_shells_mark(machine: Machine, driver: CoreDriver) -> None:
    run(driver, "true", timeout=20)
    with pytest.raises(_errors.DeadlinePassed, match=r"not done after 0\.3 s; killed"):
        run(driver, "sleep 4724; true", timeout=0.3)
    found = subprocess.run(["pgrep", "-f", "sleep 4724"], capture_output=True, check=False)
    assert found.stdout == b""


def test_a_gate_holds_back_what_comes_after_the_line(
    machine: Machine, driver: CoreDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []

    def gate(stdout: bytes, stderr: bytes) -> tuple[bool, bytes]:
        answers = stdout == b"Password:" and stdout not in asked
        asked.append(stdout)
        return b"got" in stdout, b"secret\n" if answers else b""

    monkeypatch.setattr(ahead, "_BESIDE", 0.0)
    script = 'printf Password:; read -r word; sleep 0.3; printf "got $word:"; cat'
    for _time in range(3):
        asked.clear()
        assert run(driver, script, stdin=b"rest", gate=gate) == (0, b"Password:got secret:rest", b"")
    machine.asked(2 + ahead._ASKED)
    assert len(machine.operations) - len(machine.shells) == 1
