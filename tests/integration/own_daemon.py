# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An LXD or Incus of one's own, in a machine of namespaces: it may be killed. Up in about a second."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import signal
import subprocess
import time
import typing as t
from pathlib import Path

from ansible_collections.mage.lxd.plugins.module_utils._server.options import ServerOptions
from ansible_collections.mage.lxd.tests.integration import doors, host_bare, server
from ansible_collections.mage.lxd.tests.integration.engine import Engine

PRESEED = b"""
networks: [{name: own0, type: bridge, config: {ipv4.address: 10.64.9.1/24, ipv4.nat: "false", ipv4.firewall: "false",
    ipv6.address: none, ipv6.firewall: "false"}}]
storage_pools: [{name: default, driver: dir}]
profiles:
  - name: default
    devices: {root: {type: disk, pool: default, path: /}, eth0: {type: nic, network: own0, name: eth0}}
"""
# By server: the daemon with its arguments, its client, and the client's words for a first setting.
DAEMONS = {
    "lxd": (("lxd", "--group", "lxd"), "lxc", ("lxd", "init")),
    "incus": (("/usr/libexec/incus/incusd", "--group", "incus-admin"), "incus", ("incus", "admin", "init")),
}


@dataclasses.dataclass
class OwnDaemon:
    """A daemon that may be killed and started again."""

    name: str
    machine: host_bare.BareMachine
    log: Path
    process: t.Optional[subprocess.Popen[bytes]] = None
    # What its instances begin with, and nobody else's do.
    prefix: str = dataclasses.field(default_factory=server.own_prefix)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        program = DAEMONS[self.name][0]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.machine.prefix, "sh", "-c", 'echo $$ >/run/own.pid; exec "$@"', "sh", *program],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.machine.run(program[0], "waitready", "--timeout", "60", timeout=90)

    def end(self, how: signal.Signals) -> None:
        """Send it a signal, and see it end. Its containers go on."""
        assert self.process is not None
        self.machine.run("sh", "-c", f"kill -{how.value} $(cat /run/own.pid)")
        self.process.wait(60)

    def engine(self) -> Engine:
        """The instances' wing on it, in this process."""
        client = (*self.machine.prefix, DAEMONS[self.name][1])
        socket = f"unix:///proc/{self.machine.pid}/root/var/lib/{self.name}/unix.socket"
        return Engine(doors.Server(self.name, client), ServerOptions(socket), self.prefix)


@contextlib.contextmanager
def own_daemon(name: str, folder: Path) -> t.Iterator[OwnDaemon]:
    """``name`` is lxd or incus. Gone afterwards, with all that it made."""
    image = folder / "busybox.tar.gz"
    server.run("bash", str(Path(__file__).with_name("busybox-image.sh")), str(image))
    with host_bare.bare_machine() as machine:
        own = OwnDaemon(name, machine, folder / "daemon.log")
        try:
            own.start()
            server.run(*machine.prefix, *DAEMONS[name][2], "--preseed", stdin=PRESEED)
            own.engine().server.run("image", "import", str(image), "--alias", doors.IMAGE)
            yield own
        finally:
            if own.process:
                own.process.kill()
                own.process.wait()
    _forget_cgroups(own.prefix)


def _forget_cgroups(prefix: str) -> None:
    """Containers that end with their machine leave empty groups behind."""
    # Groups of others come and go meanwhile: walk() goes on then.
    groups = [
        Path(top, name)
        for top, names, _files in os.walk("/sys/fs/cgroup")
        for name in names
        if name.startswith((f"lxc.payload.{prefix}-", f"lxc.monitor.{prefix}-"))
    ]
    # What is frozen cannot even die, and it is frozen in one hierarchy of several.
    for group in groups:
        _thaw(group)
    for group in groups:
        for folder, _folders, _files in os.walk(group, topdown=False):
            _remove(folder)


def _thaw(group: Path) -> None:
    for name, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        with contextlib.suppress(FileNotFoundError), (group / name).open("r+", encoding="ascii") as file:
            file.write(word)


def _remove(folder: str) -> None:
    """A group is busy as long as a process of it is dying."""
    deadline = time.monotonic() + 30
    while True:
        try:
            os.rmdir(folder)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.1)
