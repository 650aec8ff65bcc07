# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every driver promises, on every way to the server."""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import os
import socket
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._server import (
    cli_exec,
    files,
    operations,
    options,
    rest,
    snapshot,
    streams,
    transport,
)
from ansible_collections.mage.lxd.plugins.module_utils._server import exec as execution
from ansible_collections.mage.lxd.plugins.module_utils._server.core import CoreDriver
from ansible_collections.mage.lxd.plugins.module_utils._server.driver import api
from ansible_collections.mage.lxd.tests.integration import server
from ansible_collections.mage.lxd.tests.integration.doors import DOORS, DRIVERS, Doors, Driver, Server

EVERY_BYTE = bytes(range(256)) * 4096
# In Incus' words; all others are LXD.
MISSING = {"incus": 'Failed to fetch instance "mt-none" in project "default": Instance not found'}
ODD_NAMES = ["a b", " lead", "-rf", "ümläut", "tab\there", "new\nline", "quote'\"$(id)", "%2F", "q?x=1&y#z", "+plus"]


@pytest.fixture(scope="module", params=DOORS)
def door(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def boxes() -> t.Iterator[dict[Server, str]]:
    """A running busybox container on each server that was asked for."""
    made: dict[Server, str] = {}
    yield made
    for host, name in made.items():
        host.delete(name)


@pytest.fixture(scope="module")
def host(doors: Doors, door: str) -> Server:
    """The server behind the door."""
    return doors.way(DOORS[door][1])[0]


@pytest.fixture(scope="module")
def box(host: Server, boxes: dict[Server, str]) -> str:
    """A running busybox container, shared by the doors of its server."""
    return running_box(host, boxes)


def running_box(host: Server, boxes: dict[Server, str]) -> str:
    if host not in boxes:
        boxes[host] = server.own_prefix() + "-box"
        host.run("launch", host.image, boxes[host])
    return boxes[host]


@pytest.fixture(scope="module")
def driver(doors: Doors, door: str) -> t.Iterator[Driver]:
    made = doors.driver(door)
    yield made
    made.close()


def settled_descriptors() -> int:
    """How many there are, once a bridge's thread has closed its ends of what was closed here."""
    found = [len(os.listdir("/proc/self/fd"))]
    while len(found) < 50 and found[-5:] != found[-1:] * 5:
        time.sleep(0.1)
        found.append(len(os.listdir("/proc/self/fd")))
    return found[-1]


def processes(driver: Driver, box: str) -> str:
    return driver.execute(box, ["ps", "-o", "stat,args"]).stdout.decode()


# Requests


def test_a_request_answers_with_status_headers_and_metadata(driver: Driver, box: str) -> None:
    answer = driver.request("GET", api("instances", box), query={"project": "default"})
    assert answer.status == 200
    assert answer.metadata["name"] == box
    assert answer.headers["etag"]


def test_errors_are_told_apart(driver: Driver, host: Server, box: str) -> None:
    with pytest.raises(_errors.NotFound) as missing:
        driver.request("GET", api("instances", "mt-none"))
    assert str(missing.value) == f"GET /1.0/instances/mt-none: {MISSING.get(host.name, 'Instance not found')} (404)"
    with pytest.raises(_errors.PreconditionFailed):
        driver.request("PATCH", api("instances", box), body={"config": {"user.a": "1"}}, headers={"If-Match": "no"})
    with pytest.raises(_errors.ServerError) as refused:
        driver.request("PATCH", api("instances", box), body={"config": {"user.a": 1}})
    assert refused.value.status == 400


def test_a_write_with_the_right_etag_is_taken(driver: Driver, host: Server, box: str) -> None:
    etag = driver.request("GET", api("instances", box)).headers["etag"]
    for value in ("ä b", ""):
        driver.request("PATCH", api("instances", box), body={"config": {"user.a": value}}, headers={"If-Match": etag})
        etag = driver.request("GET", api("instances", box)).headers["etag"]
        assert host.query(f"/1.0/instances/{box}")["config"].get("user.a", "") == value


def test_an_operation_is_waited_for(driver: Driver, box: str) -> None:
    with pytest.raises(_errors.ServerError, match="already running"):
        operations.run(driver, "PUT", api("instances", box, "state"), body={"action": "start", "timeout": 5})


def test_segments_stay_what_they_are(driver: Driver) -> None:
    for name in ("a/b", "a b", "..%2f..", "ä"):
        with pytest.raises(_errors.ServerError) as refused:
            driver.request("GET", api("instances", name))
        assert refused.value.status in (400, 404)


def test_many_threads_share_a_driver(driver: Driver, box: str) -> None:
    def ask(_number: int) -> str:
        return str(driver.request("GET", api("instances", box)).metadata["name"])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(40))) == {box}


def test_what_pylxd_reads_to_connect_is_not_read_again(doors: Doors) -> None:
    driver = rest.RestDriver(doors.way("lxd")[1])
    seen = snapshot.read(driver)
    driver.close()
    assert seen.server.flavor == driver.server_info["environment"]["server"]
    # Projects are read where an instance names groups: one of a test beside may.
    read = [one for one in driver.requests if one != ("GET", "/1.0/projects")]
    assert read == [("GET", "/1.0"), ("GET", "/1.0/instances")]


# Commands


def test_exit_codes_are_true(driver: Driver, box: str) -> None:
    for rc in (0, 1, 126, 127, 255):
        assert driver.execute(box, ["sh", "-c", f"exit {rc}"]) == (rc, b"", b"")


def test_a_signal_and_a_missing_command_are_exit_codes(driver: Driver, box: str) -> None:
    assert driver.execute(box, ["sh", "-c", "kill -9 $$"]).rc == 137
    assert driver.execute(box, ["mt-no-such-command"]).rc == 127


def test_what_cannot_be_executed_is_an_exit_code_and_says_nothing(driver: Driver, box: str) -> None:
    driver.push(box, "/root/odd", b"#!/none/sh\n", mode=0o755)
    for argv, rc in ((["/etc/passwd"], 126), (["/etc"], 126), (["/root/odd"], 127), ([""], 127), (["-c", "true"], 127)):
        assert driver.execute(box, argv) == (rc, b"", b""), argv


def test_what_no_kernel_takes_is_refused_in_words(driver: Driver, box: str) -> None:
    longest = "x" * 131_071
    assert driver.execute(box, ["printf", "%s", longest]).stdout == longest.encode()
    refused = {
        "must not hold a NUL": ["echo", "a\0b"],
        "must have a word at least": [],
        "it is too long: 131072 bytes in one word": ["echo", longest + "x"],
        r'"caf\\udce9": must be UTF-8': ["echo", "caf\udce9"],
        "it is too long: .* so many words": ["echo", *[longest] * 20],
    }
    for message, argv in refused.items():
        with pytest.raises(_errors.InvalidInput, match=message):
            driver.execute(box, argv)


@pytest.mark.parametrize("name", ["core-lxd", "core-incus", "cli-lxd", "cli-incus", "nested-cli", "nested2-cli"])
def test_output_of_what_a_command_leaves_behind(name: str, doors: Doors, boxes: dict[Server, str]) -> None:
    """LXD waits until all of it has closed its output, Incus for a second."""
    host, _way = doors.way(DOORS[name][1])
    box = running_box(host, boxes)
    script = "(sleep %s; printf late) & echo early"
    with contextlib.closing(doors.driver(name)) as driver:
        # Also where it ends in the moment in which the driver asks whether it still runs.
        for seconds in (0.2, 2.1, 2.2, 2.3):
            late = b"late" if host.name != "incus" or seconds < 1 else b""
            assert driver.execute(box, ["sh", "-c", script % seconds]) == (0, b"early\n" + late, b""), seconds
        if host.name != "incus":
            with pytest.raises(_errors.DeadlinePassed, match=r"not done after 1\.5 s; killed"):
                driver.execute(box, ["sh", "-c", script % 4716], timeout=1.5)
            assert "sleep 4716" not in processes(driver, box)


def test_streams_are_not_mixed(driver: Driver, box: str) -> None:
    script = "i=0; while [ $i -lt 200 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; exit 4"
    done = driver.execute(box, ["sh", "-c", script])
    assert done.rc == 4
    assert done.stdout.decode().splitlines() == [f"out {number}" for number in range(200)]
    assert done.stderr.decode().splitlines() == [f"err {number}" for number in range(200)]


def test_every_byte_goes_through(driver: Driver, box: str) -> None:
    assert driver.execute(box, ["cat"], stdin=EVERY_BYTE) == (0, EVERY_BYTE, b"")
    assert driver.execute(box, ["sh", "-c", "cat >&2"], stdin=EVERY_BYTE) == (0, b"", EVERY_BYTE)


def test_stdin_ends_where_there_is_none(driver: Driver, box: str) -> None:
    assert driver.execute(box, ["cat"], timeout=60) == (0, b"", b"")


def test_stdin_that_nobody_reads_does_no_harm(driver: Driver, box: str) -> None:
    assert driver.execute(box, ["true"], stdin=EVERY_BYTE).rc == 0
    assert driver.execute(box, ["head", "-c", "5"], stdin=EVERY_BYTE).stdout == EVERY_BYTE[:5]


def test_arguments_and_environment_arrive_as_given(driver: Driver, box: str) -> None:
    argv = ["printf", r"%s\n", "a b", "$HOME", "", "*", "ä", "-n"]
    assert driver.execute(box, argv).stdout.decode().splitlines() == argv[2:]
    done = driver.execute(box, ["sh", "-c", 'echo "$A"; echo "$HOME"; pwd; id -u'], environment={"A": "x y=ä"})
    assert done.stdout.decode().splitlines() == ["x y=ä", "/root", "/root", "0"]
    done = driver.execute(box, ["sh", "-c", "id -u; id -g; pwd"], user=1000, group=1001, cwd="/tmp")
    assert done.stdout.decode().split() == ["1000", "1001", "/tmp"]


def test_a_deadline_ends_the_command_and_what_it_started(driver: Driver, box: str) -> None:
    start = time.monotonic()
    with pytest.raises(_errors.DeadlinePassed, match=r"not done after 0\.5 s; killed"):
        driver.execute(box, ["sh", "-c", "env -i sleep 4711 & sleep 4712; true"], timeout=0.5)
    assert time.monotonic() - start < 60
    assert "sleep 471" not in processes(driver, box)


def test_a_command_ends_with_the_caller(driver: Driver, box: str) -> None:
    def stop(stdout: bytes, stderr: bytes) -> tuple[bool, bytes]:
        if stdout:
            raise KeyboardInterrupt
        return False, b""

    command = ["sh", "-c", "echo up; exec sleep 4713"]
    with pytest.raises(KeyboardInterrupt):
        driver.execute(box, command, gate=stop)
    for _try in range(50):
        if "sleep 4713" not in processes(driver, box):
            return
        time.sleep(0.1)
    pytest.fail("the command goes on")


@pytest.mark.parametrize("kind", ["core", "cli"])
def test_what_stays_after_all_has_come_is_not_waited_for(kind: str, doors: Doors, boxes: dict[Server, str]) -> None:
    """As the client of LXD does at times, which a nested server's driver runs inside."""
    host, way = doors.way("lxd")
    name = running_box(host, boxes)
    with contextlib.closing(DRIVERS[kind](way)) as driver:
        argv = ["sh", "-c", "echo out; echo done; echo done >&2; exec sleep 4715"]
        start = time.monotonic()
        done = driver.execute(name, argv, ended=lambda out, err: out.endswith(b"done\n") and err.endswith(b"done\n"))
        assert done == (0, b"out\ndone\n", b"done\n")
        assert time.monotonic() - start < 60


def test_a_gate_answers_before_stdin_flows(driver: Driver, box: str) -> None:
    asked: list[bytes] = []

    def gate(stdout: bytes, stderr: bytes) -> tuple[bool, bytes]:
        if b"ready" in stdout:
            return True, b""
        if b"who?" in stderr and not asked:
            asked.append(stderr)
            return False, b"me\n"
        return False, b""

    script = "printf who? >&2; read name; echo ready; cat; echo $name"
    done = driver.execute(box, ["sh", "-c", script], stdin=b"body\n", gate=gate, timeout=60)
    assert done == (0, b"ready\nbody\nme\n", b"who?")


def test_output_is_whole_although_a_command_closes_it_early(driver: Driver, box: str) -> None:
    assert driver.execute(box, ["sh", "-c", "echo out; exec >&- 2>&-; sleep 0.3; exit 3"]) == (3, b"out\n", b"")


def test_what_cannot_run_says_why(driver: Driver, host: Server, box: str) -> None:
    with pytest.raises(_errors.NotFound):
        driver.execute("mt-none", ["true"])
    stopped = box + "-off"
    host.run("init", host.image, stopped)
    with pytest.raises(_errors.ServerError, match="not running"):
        driver.execute(stopped, ["true"])
    host.run("delete", stopped)


@pytest.mark.parametrize("door", ["core-lxd", "core-incus", "core-https", "core-ssh", "nested-bridge"], scope="module")
def test_streams_that_wait_for_their_command_hold_nobody_up(driver: Driver, door: str, doors: Doors) -> None:
    """A server takes no other connection while it waits for the first words on one."""
    assert isinstance(driver, CoreDriver)
    waiting = driver.transport.connections(len(streams.STREAMS), api("operations", ""))
    try:
        with contextlib.closing(doors.driver(door)) as other:
            assert other.request("GET", "/1.0", timeout=20).status == 200
    finally:
        transport.close_all(waiting)


def test_commands_side_by_side_are_all_right(driver: Driver, box: str) -> None:
    def run(number: int) -> bool:
        data = bytes((number + index) % 256 for index in range(number * 37))
        done = driver.execute(box, ["sh", "-c", f"cat; echo {number} >&2; exit {number % 256}"], stdin=data, timeout=60)
        return done == (number % 256, data, f"{number}\n".encode())

    def wrong() -> list[int]:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            return [number for number, right in enumerate(pool.map(run, range(25))) if not right]

    # The first ones leave connections behind that serve the next ones.
    assert wrong() == []
    before = settled_descriptors()
    assert wrong() == []
    assert settled_descriptors() - before <= 5


# Files


def test_files_are_there_whole_under_odd_names(driver: Driver, box: str) -> None:
    data = os.urandom(70_000)
    for name in ODD_NAMES:
        driver.push(box, f"/tmp/{name}", name.encode() + data, mode=0o640, uid=1000, gid=1001)
    for name in ODD_NAMES:
        assert driver.pull(box, f"/tmp/{name}") == name.encode() + data
    driver.push(box, f"/tmp/{ODD_NAMES[0]}", b"", mode=0o600)
    assert driver.pull(box, f"/tmp/{ODD_NAMES[0]}") == b""
    found = driver.execute(box, ["sh", "-c", 'cd /tmp; stat -c "%a %u %g %s" -- *; ls -A | wc -l; rm -f -- *'])
    sizes = {f"640 1000 1001 {70_000 + len(name.encode())}" for name in ODD_NAMES[1:]}
    lines = found.stdout.decode().splitlines()
    assert set(lines[:-1]) == {"600 0 0 0", *sizes}
    assert len(lines[:-1]) == len(ODD_NAMES)


class Pieces(io.FileIO):
    """Notes the longest piece that is written."""

    longest = 0

    def write(self, data: t.Any) -> int:
        self.longest = max(self.longest, len(data))
        return super().write(data)


def test_20_mib_go_both_ways(driver: Driver, box: str, tmp_path: Path) -> None:
    size = 20 << 20
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        for _part in range(20):
            file.write(os.urandom(1 << 20))
    place = files.Place(box, "/root/large")
    with source.open("rb") as file:
        driver.push_stream(place, file, size)
    with Pieces(target, "wb") as pieces:
        driver.pull_stream(place, t.cast(t.BinaryIO, pieces))
        # It never was in memory as a whole.
        assert pieces.longest <= 1 << 20
    driver.execute(box, ["rm", "/root/large"])
    assert server.run("cmp", str(source), str(target)) == ""


def test_files_of_a_stopped_instance(driver: Driver, host: Server, box: str) -> None:
    stopped = box + "-off"
    host.run("init", host.image, stopped)
    driver.push(stopped, "/root/file", EVERY_BYTE, mode=0o600)
    assert driver.pull(stopped, "/root/file") == EVERY_BYTE
    host.run("delete", stopped)


@pytest.fixture
def ice(host: Server, box: str) -> t.Iterator[str]:
    """A frozen instance."""
    name = f"{box}-ice"
    host.run("launch", host.image, name)
    host.run("pause", name)
    yield name
    host.delete(name)


@pytest.mark.parametrize("door", ["core-lxd", "core-incus", "cli-lxd", "cli-incus"], scope="module")
def test_what_is_frozen(driver: Driver, host: Server, ice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.push(ice, "/root/file", EVERY_BYTE, mode=0o600)
    assert driver.pull(ice, "/root/file") == EVERY_BYTE
    for module in (execution, cli_exec):
        monkeypatch.setattr(module, "GRACE", 0.5)
    monkeypatch.setattr(cli_exec, "_FATE", 0.5)

    def freeze(stdout: bytes, stderr: bytes) -> tuple[bool, bytes]:
        if stdout:
            host.run("pause", ice)
        return bool(stdout), stderr

    host.run("start", ice)
    with pytest.raises(_errors.DeadlinePassed, match="it did not even end when killed"):
        driver.execute(ice, ["sh", "-c", "echo up; exec sleep 4717"], timeout=10, gate=freeze)


def test_files_of_the_kernel(driver: Driver, box: str) -> None:
    """They claim to have no byte, or a page."""
    for name in ("/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled"):
        assert driver.pull(box, name) == driver.execute(box, ["cat", name]).stdout != b""


def test_links_are_followed_inside(driver: Driver, box: str) -> None:
    driver.execute(box, ["sh", "-c", "ln -sf ../etc/passwd /root/a; ln -sf a /root/b; ln -sf loop /root/loop"])
    assert driver.pull(box, "/root/b") == driver.pull(box, "/etc/passwd")
    with pytest.raises(_errors.ServerError, match="too many links"):
        driver.pull(box, "/root/loop")


def test_a_transfer_that_cannot_be_says_why_and_leaves_nothing(driver: Driver, box: str) -> None:
    with pytest.raises(_errors.NotFound):
        driver.pull(box, "/root/none")
    with pytest.raises(_errors.NotFound):
        driver.push(box, "/none/file", b"data")
    with pytest.raises(_errors.ServerError, match="it is a directory"):
        driver.pull(box, "/etc")
    driver.execute(box, ["ln", "-sfn", "/etc", "/root/link"])
    for name in ("/root", "/root/link"):
        with pytest.raises(_errors.CommandFailed, match=f"{name} is a directory"):
            driver.push(box, name, b"data")
    assert driver.execute(box, ["readlink", "/root/link"]).stdout == b"/etc\n"
    for move in (lambda: driver.push("mt-none", "/root/file", b""), lambda: driver.pull("mt-none", "/etc/passwd")):
        with pytest.raises(_errors.NotFound, match=r"^GET /1\.0/instances/mt-none.*nstance not found"):
            move()
    with pytest.raises(_errors.InvalidInput, match="absolute"):
        driver.push(box, "etc/file", b"data")
    with pytest.raises(_errors.InvalidInput, match="shorter"):
        driver.push_stream(files.Place(box, "/root/short"), io.BytesIO(b"12345"), 10)
    found = driver.execute(box, ["find", "/", "-xdev", "-name", ".mage-*", "-o", "-xdev", "-name", "short"])
    assert found.stdout == b""


def test_a_folder_that_cannot_be_copied_says_why_and_leaves_nothing(driver: Driver, box: str, tmp_path: Path) -> None:
    with pytest.raises(_errors.CommandFailed, match="/none"):
        driver.pull_folder(box, "/none", str(tmp_path))
    with pytest.raises(_errors.CommandFailed, match="/etc/passwd"):
        driver.push_folder(box, "/etc/passwd", str(tmp_path))
    with pytest.raises(_errors.NotFound):
        driver.push_folder("mt-none", "/srv", str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert driver.execute(box, ["sh", "-c", "ls -A /tmp /var/tmp | grep mage"]).stdout == b""


# Servers that are not there


def test_no_socket(tmp_path: Path) -> None:
    for make in DRIVERS.values():
        with pytest.raises(_errors.ServerUnreachable, match=r"unix:///.*none: there is no such socket"):
            make(options.ServerOptions(f"unix://{tmp_path}/none")).request("GET", "/1.0")


def test_no_daemon(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    socket.socket(socket.AF_UNIX).bind(str(path))
    for make in DRIVERS.values():
        with pytest.raises(_errors.ServerUnreachable, match="connection refused: the daemon is not running"):
            make(options.ServerOptions(f"unix://{path}")).request("GET", "/1.0")


def test_no_permission() -> None:
    """As a user who is nobody: a process of its own, since it cannot come back."""
    path = options.parse({}).socket_path
    code = (
        "import os, sys; from ansible_collections.mage.lxd.plugins.module_utils._server import core, options\n"
        "from ansible_collections.mage.lxd.plugins.module_utils._errors import ServerUnreachable\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"try: core.CoreDriver(options.ServerOptions('unix://{path}')).request('GET', '/1.0')\n"
        "except ServerUnreachable as e: print(e)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / ".tree")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert f"unix://{path}: permission denied: run as root" in done.stdout
