# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection plugin on every way to a server: ansible-core's own test of a connection, and what it leaves out."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import subprocess
import sys
import tarfile
import threading
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible.release import __version__ as ansible_version

from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._server import options
from ansible_collections.mage.lxd.plugins.module_utils._server.core import CoreDriver
from ansible_collections.mage.lxd.tests.integration import doors as doors_module
from ansible_collections.mage.lxd.tests.integration import playbook, server
from ansible_collections.mage.lxd.tests.integration.conftest import RunPlaybook

CACHE = playbook.ROOT / ".cache" / "ansible-core"
TARGET = "test/integration/targets/connection"
# The machine's own Python serves a box of busybox, which then starts in a tenth of a second.
USR = ("usr", "disk", "source=/usr", "path=/usr", "readonly=true")
LINKS = "for name in lib lib64; do ln -sf usr/$name /$name; done; ln -sf /proc/mounts /etc/mtab"
GIB = 1 << 30
LARGE = bytes(range(256)) * 8192


@dataclasses.dataclass(frozen=True)
class Box:
    """A container with Python, and the variables by which the plugin finds it."""

    name: str
    variables: dict[str, t.Any]


@pytest.fixture(scope="module")
def boxes(doors: doors_module.Doors) -> t.Iterator[dict[str, Box]]:
    """A box for each way; ways to one server share it."""
    name = server.own_prefix() + "-py"
    servers: dict[str, doors_module.Server] = {}
    made = {}
    for way in doors_module.WAYS:
        at, where = doors.way(way)
        if at.name not in servers:
            servers[at.name] = at
            at.run("init", at.image, name)
            at.run("config", "device", "add", name, *USR)
            at.run("start", name)
            at.run("exec", name, "--", "sh", "-c", LINKS)
        made[way] = Box(name, variables(where))
    yield made
    for at in servers.values():
        at.delete(name)


def variables(where: options.ServerOptions) -> dict[str, t.Any]:
    """The server's options as a host's variables."""
    named = {f"ansible_lxd_{key}": getattr(where, key) for key in options.NAMES}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in named.items() if value}


def inventory(folder: Path, boxes: dict[str, Box]) -> Path:
    hosts = {}
    for way, box in boxes.items():
        for pipelining in (True, False):
            hosts[f"{way}-{'pipelining' if pipelining else 'files'}"] = {
                **box.variables,
                "ansible_lxd_instance": box.name,
                "ansible_pipelining": pipelining,
            }
    common = {"ansible_connection": "mage.lxd.lxd", "ansible_python_interpreter": "/usr/bin/python3"}
    path = folder / "boxes.yml"
    path.write_text(yaml.safe_dump({"boxes": {"hosts": hosts, "vars": common}}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def core_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ansible-core's test target, out of the source of the version that is installed."""
    name = f"ansible_core-{ansible_version}"
    archive = CACHE / f"{name}.tar.gz"
    if not archive.exists():
        wanted = ["--no-deps", "--no-binary", ":all:", "--dest", str(CACHE), f"ansible-core=={ansible_version}"]
        server.run(sys.executable, "-m", "pip", "download", "--quiet", *wanted, timeout=300)
    folder = tmp_path_factory.mktemp("core")
    with tarfile.open(archive) as source:
        for one in source:
            file = source.extractfile(one) if one.name.startswith(f"{name}/{TARGET}/") else None
            if file is not None:
                (folder / Path(one.name).name).write_bytes(file.read())
    return folder


def test_what_ansible_core_asks_of_a_connection(boxes: dict[str, Box], core_target: Path, tmp_path: Path) -> None:
    where = inventory(tmp_path, boxes)
    values = {"target_hosts": "boxes", "action_prefix": "", "remote_tmp": "/tmp/ansible-remote"}
    values["local_tmp"] = str(tmp_path / "local")
    arguments = [word for key, value in values.items() for word in ("-e", f"{key}={value}")]
    done = subprocess.run(
        ["bash", "test.sh", *arguments],
        cwd=core_target,
        env=playbook.ansible_environment(INVENTORY=str(where)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    recap = done.stdout.split("PLAY RECAP")[1].split("\n\n")[0]
    for way in boxes:
        for kind in ("pipelining", "files"):
            (line,) = [line for line in recap.splitlines() if line.startswith(f"{way}-{kind} ")]
            assert "unreachable=0    failed=0" in line


TASKS = """
- hosts: boxes
  gather_facts: false
  tasks:
    - name: Exit with 3
      ansible.builtin.raw: echo out; echo 'fatal UNREACHABLE! Connection refused' >&2; exit 3
      failed_when: false
    - name: End by a signal
      ansible.builtin.raw: kill -{{ item }} $$
      loop: [9, 15, 6]
      failed_when: false
    - name: Copy a tree
      ansible.builtin.copy:
        src: "{{ tree }}/"
        dest: /root/tree/
        mode: preserve
    - name: Look at the tree
      ansible.builtin.command: find /root/tree -type f -printf '%m %u %s %f\\0'
    - name: Fetch what was copied
      ansible.builtin.fetch:
        src: "/root/tree/{{ item }}"
        dest: "{{ back }}/{{ inventory_hostname }}/{{ item }}"
        flat: true
      loop: "{{ names }}"
    - name: Fetch what is not there
      ansible.builtin.fetch:
        src: /root/none
        dest: "{{ back }}/none"
      ignore_errors: true
    - name: Start a job
      ansible.builtin.command: sh -c 'sleep 0.3; echo done'
      async: 30
      poll: 0
      register: job
    - name: Ask for the job
      ansible.builtin.async_status:
        jid: "{{ job.ansible_job_id }}"
      register: asked
      until: asked.finished
      delay: 1
      retries: 20
    - name: Set where and with what
      ansible.builtin.shell: echo "$GREETING"; pwd
      args:
        chdir: /tmp
      environment:
        GREETING: "grüß 'Gott'"
    - name: Clean up
      ansible.builtin.raw: rm -r /root/tree; find / -xdev -name '.mage-*'
"""
NAMES = ["a b", "-rf", "ümläut $(id)", "new\nline", "sub/deep/quote'\"", "sub/empty"]


def test_what_ansible_core_does_not_ask(run_playbook: RunPlaybook, boxes: dict[str, Box], tmp_path: Path) -> None:
    tree, back = tmp_path / "tree", tmp_path / "back"
    for name in NAMES:
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if "empty" in name else name.encode() * 30_000 + b"\0\xff\r\n")
        path.chmod(0o640)
    values = {"tree": str(tree), "back": str(back), "names": NAMES}
    arguments = ("--forks", "4")
    where = inventory(tmp_path, boxes)
    run = run_playbook(TASKS, inventory=where, extra_vars=values, arguments=arguments).succeeded()
    for host in run.stats:
        ended = run.result("Exit with 3", host)
        assert (ended["rc"], ended["stdout"]) == (3, "out\n")
        assert ended["stderr"] == "fatal UNREACHABLE! Connection refused\n"
        assert [one["rc"] for one in run.result("End by a signal", host)["results"]] == [137, 143, 134]
        found = set(run.result("Look at the tree", host)["stdout"].split("\0")) - {""}
        assert found == {f"640 root {(tree / name).stat().st_size} {Path(name).name}" for name in NAMES}
        assert {name: (back / host / name).read_bytes() for name in NAMES} == {
            name: (tree / name).read_bytes() for name in NAMES
        }
        assert run.task("Fetch what is not there", host).status == "ignored"
        assert run.result("Ask for the job", host)["stdout"] == "done"
        assert run.result("Set where and with what", host)["stdout_lines"] == ["grüß 'Gott'", "/tmp"]
        assert run.result("Clean up", host)["stdout"] == ""


@pytest.mark.parametrize("way", ["lxd", "incus"])
def test_a_thousand_commands_and_a_gibibyte(boxes: dict[str, Box], way: str) -> None:
    """In one process with four threads: nothing wrong, nothing left open, no further process, little memory."""
    box = boxes[way]
    worker = str(Path(__file__).with_name("connection_worker.py"))
    argv = [sys.executable, worker, box.name, "1000", str(GIB)]
    argv += [f"{key}={value}" for key, value in box.variables.items() if isinstance(value, str)]
    done = subprocess.run(
        argv, env=playbook.ansible_environment(), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["leaked"] <= 5
    assert found["same"]
    assert found["memory"] < 128 << 20
    assert not found["started"]
    assert not found["pylxd"]


@contextlib.contextmanager
def _cutting(path: str, at: Path, after: int) -> t.Iterator[None]:
    """A socket that leads to the server's. The first connection that moves so many bytes either way is cut."""
    cut = threading.Event()

    def move(source: socket.socket, target: socket.socket) -> None:
        moved = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                moved += len(data)
                if moved > after and not cut.is_set():
                    cut.set()
                    source.shutdown(socket.SHUT_RDWR)
                    break
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                outer, _address = listener.accept()
                inner = socket.socket(socket.AF_UNIX)
                inner.connect(path)
                for pair in ((outer, inner), (inner, outer)):
                    threading.Thread(target=move, args=pair, daemon=True).start()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(at))
        listener.listen()
        threading.Thread(target=accept, daemon=True).start()
        yield
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("way", ["lxd", "incus"])
@pytest.mark.parametrize("move", ["push", "pull"])
def test_a_transfer_that_is_cut_is_an_error_and_leaves_nothing(
    doors: doors_module.Doors, boxes: dict[str, Box], way: str, move: str, tmp_path: Path
) -> None:
    name, path = boxes[way].name, str(doors.way(way)[1].socket_path)
    whole = CoreDriver(options.ServerOptions(f"unix://{path}"))
    whole.push(name, "/root/file", LARGE)
    arguments = {"push": (name, "/root/file", LARGE + LARGE), "pull": (name, "/root/file")}
    with _cutting(path, tmp_path / "socket", len(LARGE) // 2):
        cut = CoreDriver(options.ServerOptions(f"unix://{tmp_path}/socket"))
        with pytest.raises(_errors.ServerUnreachable, match="connection was lost while a file was moved"):
            getattr(cut, move)(*arguments[move])
        cut.close()
    assert whole.pull(name, "/root/file") == LARGE
    assert whole.execute(name, ["find", "/root", "-name", ".mage-*"]).stdout == b""
    whole.execute(name, ["rm", "/root/file"])
    whole.close()
