# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands of a loop: their shells are started ahead, and nothing else is different."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._server import ahead, streams
from ansible_collections.mage.lxd.plugins.module_utils._server.core import CoreDriver
from ansible_collections.mage.lxd.plugins.module_utils._server.driver import Completed
from ansible_collections.mage.lxd.tests.integration import server
from ansible_collections.mage.lxd.tests.integration.conftest import RunPlaybook
from ansible_collections.mage.lxd.tests.integration.doors import DOORS, INCUS_SOCKET, LXD_SOCKET, Doors, Server

EVERY_BYTE = bytes(range(256)) * 4096
WAITING = "[I]FS= read -r mage_command"
Options = dict[str, t.Any]
# What a command may see of where it runs. Each item: a script, and what else is asked for.
SAME: list[tuple[str, Options]] = [
    ("echo out; echo err >&2; exit 3", {}),
    ("tr '\\0' '\\n' </proc/self/environ | sort", {}),
    ("tr '\\0' '\\n' </proc/$$/environ | sort", {"environment": {"A": "x y=ä"}}),
    ("set", {}),
    ('echo "$0" $# $-; tr "\\0" "\\n" </proc/$$/cmdline; cut -d " " -f 2-4 /proc/$$/stat', {}),
    ("pwd; id; umask; ulimit -a; ls /proc/self/fd", {}),
    ("pwd; id", {"user": 1000, "group": 1001, "cwd": "/tmp"}),
    ("kill -9 $$", {}),
    ("kill -TERM $$; sleep 9", {}),
    ("cat; cat >&2", {"stdin": EVERY_BYTE}),
    ('read -r line; echo "[$line]"; cat', {"stdin": b"one\ntwo\n\xff"}),
    ("cat", {"stdin": b""}),
    ("true", {"stdin": EVERY_BYTE}),
    ("mt-none", {}),
    ("exec /etc/passwd", {}),
    ("if", {}),
    ("echo '\\n' \"a  b\" $(echo c) `echo d` \\\\ *", {}),
    ("exec >&- 2>&-; sleep 0.3; exit 4", {}),
    ("pwd; id", {"cwd": "/tmp"}),
    ("pwd; id", {"cwd": "/none"}),
    ("pwd", {"environment": {"HOME": "/tmp"}}),
    ("pwd; echo $HOME", {"user": 1000, "group": 1000}),
]
# What a command may do to the directory in which the next one runs.
_TO_ITS_DIRECTORY = (
    "true",
    "rm -r /root; mkdir /root; echo >/root/new",
    "mount -t tmpfs none /root; echo >/root/mounted",
    "cd /; umount /root",
    "mv /root /root2; ln -s /root2 /root",
    "rm /root; rm -r /root2",
    "mkdir /root",
)


@pytest.fixture(scope="module", params=["core-lxd", "core-incus", "core-https", "core-ssh", "nested-bridge"])
def door(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def host(doors: Doors, door: str) -> Server:
    """The server behind the door."""
    return doors.way(DOORS[door][1])[0]


@pytest.fixture(scope="module")
def box(host: Server, door: str) -> t.Iterator[str]:
    """A running busybox container."""
    name = f"{server.own_prefix()}-{door}"
    host.run("launch", host.image, name)
    yield name
    host.delete(name)


@pytest.fixture
def driver(doors: Doors, door: str) -> t.Iterator[CoreDriver]:
    made = doors.driver(door)
    assert isinstance(made, CoreDriver)
    with contextlib.closing(made):
        yield made


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether there was a shell for a command, for each for which one was asked. No shell waits too long."""
    found: list[bool] = []
    monkeypatch.setattr(ahead, "_AWAITED", 4.5)
    monkeypatch.setattr(ahead, "_FRESH", 60.0)
    monkeypatch.setattr(ahead, "_OLD", 60.0)
    monkeypatch.setattr(ahead, "_START", 60.0)
    taken = ahead._Waiting.taken

    def watched(waiting: ahead._Waiting, *args: t.Any) -> t.Optional[streams.Joined]:
        joined = taken(waiting, *args)
        found.append(joined is not None)
        return joined

    monkeypatch.setattr(ahead._Waiting, "taken", watched)
    return found


def until(count: int) -> str:
    """A script that runs until so many shells wait for a command."""
    found = f"[ $(ps | grep -c '{WAITING}') -ge {count} ]"
    return f"n=0; until {found} || [ $((n+=1)) -gt 300 ]; do sleep 0.1; done; {found}"


def run(driver: CoreDriver, box: str, script: str, more: bool = True, **options: t.Any) -> Completed:
    return driver.execute(box, ["/bin/sh", "-c", script], more=more, **options)


def wait_for_shells(driver: CoreDriver, box: str, count: int) -> None:
    """Until so many shells wait in the instance."""
    deadline = time.monotonic() + 60
    while int(driver.execute(box, ["sh", "-c", f"ps | grep -c '{WAITING}'"]).stdout) != count:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_all_is_as_without(driver: CoreDriver, box: str, served: list[bool]) -> None:
    for script, options in SAME:
        plain = run(driver, box, script, more=False, **options)
        # Another user's shell serves nobody else.
        run(driver, box, "true", **{key: value for key, value in options.items() if key != "stdin"})
        for _time in range(2):
            assert run(driver, box, script, **options) == plain, script
        driver.close()
    # What takes a server longer than 3 s is not waited for.
    assert all(served)
    assert len(served) > len(SAME)


def test_a_shell_beside_a_command_finds_what_that_one_did(driver: CoreDriver, box: str, served: list[bool]) -> None:
    see = "pwd; ls; tr '\\0' '\\n' </proc/$$/environ | sort"
    for script in _TO_ITS_DIRECTORY:
        assert run(driver, box, f"{until(1)} && {{ {script}; }}") == (0, b"", b""), script
        plain = run(driver, box, see, more=False)
        assert plain.stderr == b""
        assert run(driver, box, see) == plain, script
    assert served == [True] * (2 * len(_TO_ITS_DIRECTORY) - 1)


def test_as_many_shells_as_may_be(
    driver: CoreDriver, box: str, served: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "_BESIDE", 2.0)
    most = ahead._MOST
    for script in ("sleep 2", *["true"] * most, f"sleep 2; {until(1)}", until(most), *["true"] * most):
        assert run(driver, box, script) == (0, b"", b""), script
    assert served == [True] * (2 * most + 2)
    driver.close()
    wait_for_shells(driver, box, 0)


def test_a_deadline_ends_the_command_and_what_it_started(driver: CoreDriver, box: str, served: list[bool]) -> None:
    for _time in range(2):
        run(driver, box, "true", timeout=60)
        with pytest.raises(_errors.DeadlinePassed, match=r"not done after 1 s; killed"):
            run(driver, box, "env -i sleep 4721 & sleep 4722; true", timeout=1)
        assert b"sleep 472" not in driver.execute(box, ["ps"]).stdout
    assert True in served


def test_shells_end_with_those_who_asked_for_them(doors: Doors, door: str, driver: CoreDriver, box: str) -> None:
    with contextlib.closing(doors.driver(door)) as other:
        assert isinstance(other, CoreDriver)
        run(other, box, "true")
        wait_for_shells(driver, box, 1)
    wait_for_shells(driver, box, 0)


@pytest.mark.parametrize("door", ["core-lxd", "core-incus"], scope="module")
def test_shells_end_with_a_killed_controller(doors: Doors, door: str, driver: CoreDriver, box: str) -> None:
    pid = os.fork()
    if not pid:
        try:
            other = doors.driver(door)
            assert isinstance(other, CoreDriver)
            run(other, box, "true")
            os.kill(os.getpid(), signal.SIGSTOP)
        finally:
            os._exit(1)
    os.waitpid(pid, os.WUNTRACED)
    try:
        wait_for_shells(driver, box, 1)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    wait_for_shells(driver, box, 0)


@pytest.mark.parametrize("door", ["core-lxd", "core-incus"], scope="module")
def test_an_instance_that_goes_and_comes(host: Server, driver: CoreDriver, box: str) -> None:
    for _time in range(2):
        run(driver, box, "true")
    host.run("restart", "--force", box)
    assert run(driver, box, "echo a") == (0, b"a\n", b"")
    host.run("stop", "--force", box)
    with pytest.raises(_errors.ServerError, match="not running"):
        run(driver, box, "echo a")
    host.run("start", box)
    for _time in range(3):
        assert run(driver, box, "echo a") == (0, b"a\n", b"")
    host.run("pause", box)
    time.sleep(ahead._FRESH)
    try:
        with pytest.raises(_errors.ServerError, match=r"(?i)frozen|not running"):
            run(driver, box, "echo a")
    finally:
        host.run("start", box)


LOOPS = """
- hosts: boxes
  gather_facts: false
  tasks:
    - name: Run each
      ansible.builtin.raw: echo {{ item }}; exit {{ item % 2 }}
      loop: "{{ range(12) | list }}"
      failed_when: result.rc != item % 2 or result.stdout_lines != [item | string]
      register: result
    - name: Run each as somebody
      ansible.builtin.raw: id -u
      vars:
        ansible_user: "{{ item }}"
      loop: [root, eve, eve, eve, root, root]
    - name: Move each
      ansible.builtin.script: "{{ playbook_dir }}/../script.sh {{ item }}"
      loop: "{{ range(3) | list }}"
    - name: Take too long
      ansible.builtin.raw: sleep {{ item }}
      vars:
        ansible_lxd_command_timeout: 15
      loop: [0, 0, 4723, 0]
      register: late
      ignore_errors: true
    - name: See what is left
      ansible.builtin.raw: ps
"""


@pytest.mark.parametrize("door", ["core-lxd", "core-incus"], scope="module")
def test_loops_of_tasks(run_playbook: RunPlaybook, tmp_path: Path, host: Server, box: str) -> None:
    (tmp_path / "script.sh").write_text('#!/bin/sh\necho "[$1]"\n', encoding="utf-8")
    host.run("exec", box, "--", "sh", "-c", "echo 'eve:x:1000:1000::/tmp:/bin/sh' >>/etc/passwd")
    socket = INCUS_SOCKET if host.name == "incus" else LXD_SOCKET
    hosts = f"[boxes]\n{box} ansible_connection=mage.lxd.lxd ansible_lxd_endpoint=unix://{socket}\n"
    done = run_playbook(LOOPS, inventory=hosts).succeeded()

    def said(task: str) -> list[str]:
        return [one["stdout"].strip() for one in done.result(task, box)["results"]]

    assert said("Run each") == [str(number) for number in range(12)]
    assert said("Run each as somebody") == ["0", "1000", "1000", "1000", "0", "0"]
    assert said("Move each") == ["[0]", "[1]", "[2]"]
    assert [bool(one.get("failed")) for one in done.result("Take too long", box)["results"]] == [
        False,
        False,
        True,
        False,
    ]
    assert "sleep 4723" not in done.result("See what is left", box)["stdout"]
    left = host.run("exec", box, "--", "sh", "-c", "sleep 2; ps")
    assert "httpd" in left
    assert "mage_command" not in left
