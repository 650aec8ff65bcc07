# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What was read before a plan is made: the host, its firewall, and who else has ports on it."""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import typing as t

from ..._server.published import Publisher
from ..._server.snapshot import Network
from ..._values import PortRange
from ..render import Table


@dataclasses.dataclass(frozen=True)
class Listener:
    """A socket of the host that waits for connections or datagrams. ``process`` is empty where it is not known."""

    proto: str
    address: str
    port: int
    process: str = ""

    def __str__(self) -> str:
        """How messages call it: ``sshd listens on 0.0.0.0:22``."""
        return f"{self.process or 'a process of the host'} listens on {self.address}:{self.port}/{self.proto}"


@dataclasses.dataclass(frozen=True)
class Rival:
    """Somebody else who has ports of the host. ``ports`` is None for all of them, ``address`` for any of the host's,
    ``interface`` for packets that come in by any."""

    owner: str
    proto: str
    ports: t.Optional[PortRange]
    address: t.Optional[str]
    interface: t.Optional[str] = None


@dataclasses.dataclass(frozen=True)
class Host:
    """The host itself. ``interfaces`` maps a name to its IPv4 addresses with prefix length (``192.0.2.10/24``),
    ``masters`` a bridge port to its bridge, ``hairpin`` a bridge port to whether it sends back what came from it.
    """

    interfaces: t.Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    masters: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    hairpin: t.Mapping[str, bool] = dataclasses.field(default_factory=dict)
    listeners: tuple[Listener, ...] = ()
    ip_forward: bool = True
    bridge_netfilter: bool = False
    systemd: bool = False
    tools: str = "/usr/sbin"
    files: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    unit_enabled: bool = False

    def addresses(self, interface: str) -> tuple[str, ...]:
        """The IPv4 addresses of an interface, sorted, without prefix length."""
        found = {ipaddress.ip_interface(one).ip for one in self.interfaces.get(interface, ())}
        return tuple(str(one) for one in sorted(found))

    @functools.cached_property
    def local(self) -> frozenset[str]:
        """Every IPv4 address of the host."""
        return frozenset(one for name in self.interfaces for one in self.addresses(name))

    def subnet(self, address: str) -> t.Optional[str]:
        """The host's own network that holds an address of an instance, the narrowest; None if there is none."""
        holding = [one for one in self._networks if ipaddress.ip_address(address) in one]
        return str(max(holding, key=lambda one: one.prefixlen)) if holding else None

    @functools.cached_property
    def _networks(self) -> tuple[t.Any, ...]:
        found = {ipaddress.ip_interface(one).network for each in self.interfaces.values() for one in each}
        return tuple(sorted(found))


@dataclasses.dataclass(frozen=True)
class Observed:
    """All of it. ``backends`` maps each iptables that has rules to how many. ``ports`` maps (project, instance,
    network) to the bridge port on the host. ``networks`` are those of the server, ``server_firewall`` how the server
    itself writes rules (xtables or nftables), ``instance_networks`` those that any instance is on. ``remote`` is the
    machine of a server that is not this host's.
    """

    flavor: str
    tables: t.Mapping[str, Table]
    host: Host = Host()
    publishers: tuple[Publisher, ...] = ()
    rivals: tuple[Rival, ...] = ()
    backends: t.Mapping[str, int] = dataclasses.field(default_factory=dict)
    ports: t.Mapping[tuple[str, str, str], str] = dataclasses.field(default_factory=dict)
    networks: tuple[Network, ...] = ()
    instance_networks: tuple[str, ...] = ()
    server_firewall: str = ""
    remote: str = ""
