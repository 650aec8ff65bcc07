# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which server is meant, as users say it: nothing at all, the environment, module_defaults, ansible.cfg, variables."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import subprocess
import sys
import threading
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._server import connect, options
from ansible_collections.mage.lxd.plugins.module_utils._server.cli import CliDriver
from ansible_collections.mage.lxd.tests.integration import doors, playbook, server, tls
from ansible_collections.mage.lxd.tests.integration.conftest import RunPlaybook

BOTH = (
    f"LXD and Incus are both on this machine: say which one, unix://{doors.INCUS_SOCKET} or unix://{doors.LXD_SOCKET}"
)
# The tests name LXD in the environment; nothing counts as not set.
NAMELESS = {"LXD_SOCKET": ""}
ASKED = """
- hosts: localhost
  gather_facts: false
  environment:
    LXD_SOCKET: ""
  tasks:
    - name: Say nothing
      mage.lxd.instances_info:
      ignore_errors: true
    - name: Say it in the environment
      mage.lxd.instances_info:
      environment: "{{ item }}"
      loop:
        - {LXD_SOCKET: /var/lib/lxd/unix.socket}
        - {INCUS_SOCKET: /var/lib/incus/unix.socket}
        - {LXD_DIR: /var/lib/lxd, INCUS_DIR: /var/lib/incus}
        - {INCUS_DIR: /var/lib/incus}
    - name: Say it in the task
      mage.lxd.instances_info:
        endpoint: "{{ item }}"
      loop: [/var/lib/incus/unix.socket, "lxc:local"]
    - name: Say it once for all
      module_defaults:
        group/mage.lxd.lxd:
          endpoint: incus:local
          project: "{{ project }}"
          driver: cli
      block:
        - name: Ask the one that was said
          mage.lxd.instances_info:
        - name: Ask another one all the same
          mage.lxd.instances_info:
            endpoint: lxc:local
            project: default
"""


def test_modules_are_told_where_the_server_is(run_playbook: RunPlaybook) -> None:
    project = server.own_prefix()
    doors.INCUS.run("project", "create", project)
    try:
        run = run_playbook(ASKED, extra_vars={"project": project}, environment=NAMELESS).succeeded()
    finally:
        doors.INCUS.run("project", "delete", project)
    assert run.result("Say nothing")["msg"] == f"Invalid input: endpoint: {BOTH}"

    def flavors(task: str) -> list[str]:
        return [one["server"]["flavor"] for one in run.result(task)["results"]]

    assert flavors("Say it in the environment") == ["lxd", "incus", "lxd", "incus"]
    assert flavors("Say it in the task") == ["incus", "lxd"]
    said = run.result("Ask the one that was said")
    assert (said["server"]["flavor"], said["instances"]) == ("incus", [])
    assert run.result("Ask another one all the same")["server"]["flavor"] == "lxd"


@pytest.fixture(scope="module")
def box() -> t.Iterator[str]:
    """Two running containers of one name, in LXD and in Incus. Each says whose it is."""
    name = server.own_prefix() + "-box"
    for host in (doors.LXD, doors.INCUS):
        host.run("launch", host.image, name, "-c", f"environment.SERVER={host.name}")
    yield name
    for host in (doors.LXD, doors.INCUS):
        host.delete(name)


def test_plugins_are_told_where_the_server_is(box: str, tmp_path: Path) -> None:
    config = tmp_path / "ansible.cfg"
    config.write_text(f"[lxd_connection]\nendpoint = unix://{doors.INCUS_SOCKET}\n", encoding="utf-8")
    lines = [f"plain ansible_lxd_instance={box}"]
    lines += [f"told ansible_lxd_instance={box} ansible_lxd_endpoint=unix://{doors.LXD_SOCKET}"]
    hosts = tmp_path / "hosts.ini"
    hosts.write_text("\n".join([*lines, "[all:vars]", "ansible_connection=mage.lxd.lxd", ""]), encoding="utf-8")

    def answers(**environment: str) -> tuple[str, str]:
        """What the host says that names no server, and the one that names LXD."""
        module = ["-m", "ansible.builtin.raw", "-a", "echo $SERVER"]
        argv = [str(playbook.BIN / "ansible"), "all", "-i", str(hosts), *module]
        environment = playbook.ansible_environment(**NAMELESS, **environment)
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=120)
        found = {}
        for part in done.stdout.replace("plain |", "\0plain |").replace("told |", "\0told |").split("\0")[1:]:
            # What Ansible says besides comes at any moment.
            found[part.split()[0]] = " ".join(part.split("[ERROR]")[0].split("|", 1)[1].split())
        return found["plain"], found["told"]

    told = "CHANGED | rc=0 >> lxd"
    nothing, by_variable = answers()
    assert "UNREACHABLE!" in nothing
    assert BOTH in nothing
    assert by_variable == told
    assert answers(ANSIBLE_CONFIG=str(config)) == ("CHANGED | rc=0 >> incus", told)
    assert answers(ANSIBLE_LXD_ENDPOINT=f"unix://{doors.INCUS_SOCKET}") == ("CHANGED | rc=0 >> incus", told)
    assert answers(INCUS_SOCKET=doors.INCUS_SOCKET) == ("CHANGED | rc=0 >> incus", told)


def test_without_pylxd_modules_take_the_client_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pylxd", None)
    way = options.ServerOptions(f"unix://{doors.LXD_SOCKET}")
    with contextlib.closing(connect.connect(way)) as driver:
        assert isinstance(driver, CliDriver)
        assert driver.request("GET", "/1.0").metadata["environment"]["server"] == "lxd"
    missing = f"The Python package pylxd is missing for {sys.executable}"
    with pytest.raises(_errors.MissingLibrary, match=missing):
        connect.connect(dataclasses.replace(way, driver="rest"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(_errors.MissingLibrary, match=missing):
        connect.connect(way)
    with pytest.raises(_errors.ServerUnreachable, match="driver cli needs the program lxc, and it is not on this"):
        connect.connect(dataclasses.replace(way, driver="cli"))


@contextlib.contextmanager
def silence(family: int, address: t.Any) -> t.Iterator[t.Any]:
    """Somebody who takes calls and says nothing."""
    held = []
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen()

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(listener.accept())

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()
        listener.shutdown(socket.SHUT_RDWR)
    for sock, _address in held:
        sock.close()


@pytest.mark.parametrize("make", doors.DRIVERS.values(), ids=doors.DRIVERS)
def test_a_timeout_is_kept(make: t.Callable[[options.ServerOptions], doors.Driver], tmp_path: Path) -> None:
    """For connecting, and for a request: a server that does not speak."""
    cert, key = tls.make_certificate(tmp_path, "client")
    certificates = {"client_cert": cert, "client_key": key, "server_fingerprint": "ab" * 32}
    with (
        silence(socket.AF_INET, ("127.0.0.1", 0)) as (host, port),
        silence(socket.AF_UNIX, str(tmp_path / "s")) as path,
    ):
        for params, kind, words in (
            ({"endpoint": f"https://{host}:{port}", **certificates}, _errors.ServerUnreachable, "no answer in time"),
            ({"endpoint": f"unix://{path}"}, _errors.MageError, "no answer after 1 s"),
        ):
            start = time.monotonic()
            with (
                pytest.raises(kind, match=words),
                contextlib.closing(make(options.parse({**params, "timeout": 1}))) as one,
            ):
                one.request("GET", "/1.0")
            assert time.monotonic() - start < 30
