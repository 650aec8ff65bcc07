# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A project of the benchmarks' own on the machine's server, with the instances that jobs need."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import re
import time
import typing as t
from pathlib import Path

from . import bare
from .processes import Failed, call

SOCKET = os.environ.get("LXD_SOCKET", "/var/lib/lxd/unix.socket")
PREFIX = "mage-bench"
BUSYBOX = "mage-test/busybox"
DEBIAN = "debian/bookworm"
WORKERS = 4
_OURS = re.compile(rf"{PREFIX}-(\d+)-.*")
# PID 1 of a container that has Python and sshd, and nothing that works in the background.
INIT = """#!/bin/sh
trap 'exit 0' PWR TERM
ip link set lo up
mkdir -p /run/sshd
/usr/sbin/sshd
dhclient eth0
while :; do sleep 3600 & wait $!; done
"""
PREPARE = """set -e
export DEBIAN_FRONTEND=noninteractive
for i in $(seq 100); do getent hosts {mirror} >/dev/null && break; sleep 0.2; done
apt-get update -q
apt-get install -qy --no-install-recommends python3 openssh-server isc-dhcp-client iproute2
mkdir -p -m 700 /root/.ssh
"""
SOURCE = "python-source"


class Room:
    """A project with the default project's images, profiles and networks. Gone at the end, with all that is in it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.project = f"{PREFIX}-{os.getpid()}-{name}"
        self.server = bare.Server(SOCKET, self.project)
        self._folder = folder
        config = {"features.images": "false", "features.profiles": "false", "features.storage.volumes": "false"}
        bare.Server(SOCKET).request("POST", "projects", {"name": self.project, "config": config})

    def close(self) -> None:
        """Delete it."""
        delete_project(self.project)

    def names(self) -> set[str]:
        """All instances."""
        return instances_of(self.server)

    def make(self, names: t.Iterable[str], start: bool = False, **spec: t.Any) -> list[str]:
        """Make those that are not there, of busybox unless spec says otherwise."""
        wanted, there = list(names), self.names()
        each(lambda name: self.make_one(name, start, **spec), [name for name in wanted if name not in there])
        return wanted

    def make_one(self, name: str, start: bool = False, **spec: t.Any) -> None:
        """Make an instance, of busybox unless spec says otherwise."""
        body = {"source": {"type": "image", "alias": BUSYBOX}, "profiles": ["default"], **spec}
        self.server.request("POST", "instances", {"name": name, **body})
        if start:
            self.server.request("PUT", f"instances/{name}/state", {"action": "start"})

    def remove(self, names: t.Iterable[str]) -> None:
        """Delete those that are there, running or not."""
        each(lambda name: delete_instance(self.server, name), sorted(self.names() & set(names)))

    def python_boxes(self, count: int) -> list[str]:
        """Running containers with Python and an sshd that lets our key in."""
        if SOURCE not in self.names():
            self._make_source()
        spec = {"source": {"type": "copy", "source": SOURCE}, "config": {"raw.lxc": "lxc.init.cmd = /sbin/bench-init"}}
        names = self.make((f"python-{number}" for number in range(count)), start=True, **spec)
        for name in names:
            self.wait_for(name, "ip -4 addr show eth0 | grep -q inet")
        return names

    def _make_source(self) -> None:
        """A stopped container, to be copied."""
        self.make([SOURCE], start=True, source={"type": "image", "alias": DEBIAN})
        _code, mirror, _error = call(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"])
        script = PREPARE.format(mirror=mirror.split("/")[2])
        code, output, error = self.server.execute(SOURCE, ["sh", "-c", script])
        if code:
            raise Failed(f"Python and sshd in a container: exit {code}: {(output + error)[-2000:].decode()}")
        call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)])
        init = self._folder / "init"
        init.write_text(INIT, encoding="ascii")
        self.server.push(SOURCE, str(init), "/sbin/bench-init", "0755")
        self.server.push(SOURCE, f"{self.key}.pub", "/root/.ssh/authorized_keys", "0600")
        self.server.request("PUT", f"instances/{SOURCE}/state", {"action": "stop", "force": True})

    @property
    def key(self) -> Path:
        """What opens sshd in the containers."""
        return self._folder / "key"

    def wait_for(self, name: str, script: str, seconds: float = 60) -> None:
        """Until a script in an instance succeeds."""
        deadline = time.monotonic() + seconds
        while True:
            code, _output, error = self.server.execute(name, ["sh", "-c", script])
            if code == 0:
                return
            if time.monotonic() > deadline:
                raise Failed(f"{name}: {script}: exit {code} after {seconds:g} s: {error.decode(errors='replace')}")
            time.sleep(0.1)

    def addresses(self, name: str) -> list[str]:
        """The IPv4 addresses that an instance has on its first NIC."""
        networks = self.server.request("GET", f"instances/{name}/state")["network"] or {}
        nic = networks.get("eth0", {"addresses": []})
        return [one["address"] for one in nic["addresses"] if one["family"] == "inet"]


def each(work: t.Callable[[str], object], names: t.Sequence[str], workers: int = WORKERS) -> None:
    """Do it for every name, some at a time; what failed is raised after the others are done."""
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        done = [pool.submit(work, name) for name in names]
    for one in done:
        one.result()


def instances_of(server: bare.Server) -> set[str]:
    """Their names."""
    return {one["name"] for one in server.request("GET", "instances", recursion="1")}


def delete_project(project: str) -> None:
    """With all that is in it."""
    server = bare.Server(SOCKET, project)
    each(lambda name: delete_instance(server, name), sorted(instances_of(server)))
    bare.Server(SOCKET).request("DELETE", f"projects/{project}")


def delete_instance(server: bare.Server, name: str) -> None:
    """Running or not. One that is just starting or dying is busy, and can be deleted moments later."""
    deadline = time.monotonic() + 60
    while True:
        try:
            if server.request("GET", f"instances/{name}")["status"] != "Stopped":
                with contextlib.suppress(bare.ServerRefused):
                    server.request("PUT", f"instances/{name}/state", {"action": "stop", "force": True})
            server.request("DELETE", f"instances/{name}")
            return
        except bare.ServerRefused as error:
            if "not found" in str(error):
                return
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def delete_orphans() -> None:
    """What former runs left that were killed."""
    for project in bare.Server(SOCKET).request("GET", "projects", recursion="1"):
        if is_orphan(project["name"]):
            delete_project(project["name"])


def is_orphan(project: str) -> bool:
    """Whether a run made this project and its process is gone."""
    match = _OURS.fullmatch(project)
    return match is not None and not Path("/proc", match[1]).exists()
