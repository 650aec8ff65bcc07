# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client beside the host: a network namespace joined to it by a veth pair, in addresses that nobody routes."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import json
import os
import random
import secrets
import subprocess
import typing as t

from .server import is_orphan, run

POOL = ipaddress.ip_network("10.64.0.0/10")
PREFIX = "mt"


@dataclasses.dataclass(frozen=True)
class Namespace:
    """name is the namespace's; interface is the host's end, the way in for the client's packets."""

    name: str
    interface: str
    address: str
    host_address: str

    def prefix(self) -> list[str]:
        """What to put before a command to run it in here."""
        return ["ip", "netns", "exec", self.name]

    def run(self, *argv: str, timeout: float = 60) -> str:
        """Run a command in here and return what it printed; raises RuntimeError if it fails."""
        return run(*self.prefix(), *argv, timeout=timeout)

    def curl(self, url: str, *arguments: str, timeout: int = 10) -> str:
        """The body of an answer; raises RuntimeError on a refused or unanswered request. Proxies are not asked."""
        return self.run("curl", "-sS", "--noproxy", "*", "--max-time", str(timeout), *arguments, url)

    def connects(self, address: str, port: int, timeout: int = 20) -> bool:
        """Whether a TCP connection is accepted."""
        script = f"exec 3<>/dev/tcp/{address}/{port}"
        done = subprocess.run([*self.prefix(), "timeout", str(timeout), "bash", "-c", script], check=False)
        return done.returncode == 0


def free_network(prefix: int = 30) -> ipaddress.IPv4Network:
    """A network of the pool that overlaps nothing that the host routes."""
    routes = json.loads(run("ip", "-j", "-4", "route", "show", "table", "all"))
    taken = [
        ipaddress.ip_network(route["dst"], strict=False) for route in routes if route["dst"] not in ("default", "")
    ]
    chosen = random.SystemRandom()
    while True:
        address = chosen.randrange(int(POOL.network_address), int(POOL.broadcast_address))
        candidate = ipaddress.IPv4Network((address, prefix), strict=False)
        if not any(candidate.overlaps(network) for network in taken):
            return candidate


def _delete(name: str) -> None:
    run("ip", "netns", "delete", name)


def delete_orphans() -> None:
    """Delete the namespaces of runs that were interrupted."""
    for line in run("ip", "netns", "list").splitlines():
        if line and is_orphan(line.split()[0]):
            _delete(line.split()[0])


@contextlib.contextmanager
def client_namespace() -> t.Iterator[Namespace]:
    """A namespace whose default route is the host; gone afterwards, its veth pair with it."""
    host_address, address = (str(host) for host in free_network().hosts())
    token = secrets.token_hex(3)
    name, outside, inside = f"{PREFIX}{os.getpid()}-{token}", f"mt{token}h", f"mt{token}c"
    run("ip", "netns", "add", name)
    try:
        run("ip", "link", "add", outside, "type", "veth", "peer", "name", inside, "netns", name)
        run("ip", "address", "add", f"{host_address}/30", "dev", outside)
        run("ip", "link", "set", outside, "up")
        for command in (
            ("ip", "address", "add", f"{address}/30", "dev", inside),
            ("ip", "link", "set", "lo", "up"),
            ("ip", "link", "set", inside, "up"),
            ("ip", "route", "add", "default", "via", host_address),
        ):
            run("ip", "netns", "exec", name, *command)
        yield Namespace(name, outside, address, host_address)
    finally:
        # The kernel takes a deleted namespace's interfaces down later; ours is to be gone now.
        if outside in run("ip", "-br", "link"):
            run("ip", "link", "delete", outside)
        _delete(name)
