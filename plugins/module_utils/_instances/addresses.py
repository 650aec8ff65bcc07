# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Which address an instance is pinned to. Pure: every address that is taken comes in as an argument."""

from __future__ import annotations

import hashlib
import typing as t

from .. import _keys
from .._server.snapshot import Instance, Lease, Network, Nic

if t.TYPE_CHECKING:
    import netaddr


Pinned = t.Mapping[tuple[str, str], t.Sequence[Instance]]


def pinned(instances: t.Iterable[Instance]) -> Pinned:
    """The instances that are pinned to an address, by network and address."""
    found: dict[tuple[str, str], list[Instance]] = {}
    for one in instances:
        for nic in one.nics:
            if nic.ipv4:
                found.setdefault((nic.network, nic.ipv4), []).append(one)
    return found


def has_to_move(instance: Instance, nic: Nic, pins: Pinned) -> bool:
    """Whether another instance is pinned to the address of a NIC, too, and keeps it: one that is no copy, that runs,
    else the first."""
    return any(_rank(one) < _rank(instance) for one in pins.get((nic.network, nic.ipv4), ()))


def _rank(instance: Instance) -> tuple[bool, bool, str, str]:
    decoded = _keys.decode(instance.config, _keys.MANAGED, instance.project, instance.name)
    is_copy = decoded.marked and decoded.problem != ""
    return is_copy, not instance.running, instance.project, instance.name


def taken(network: str, instances: t.Iterable[Instance], leases: t.Iterable[Lease]) -> set[str]:
    """Every address of a network that is pinned by an instance of any project, leased or reserved."""
    pins = {nic.ipv4 for one in instances for nic in one.nics if nic.network == network and nic.ipv4}
    return pins | {lease.address for lease in leases if lease.network == network}


def subnet(network: Network) -> t.Optional[netaddr.IPNetwork]:
    """The IPv4 subnet of a managed network, with the gateway as its address, or None if it has none."""
    import netaddr

    value = network.config.get("ipv4.address", "none")
    return netaddr.IPNetwork(value) if "/" in value else None


def pick(
    network: Network, used: t.Collection[str], whose: str, allows: t.Callable[[str], bool] = bool
) -> t.Optional[str]:
    """A free address of a network: not its own, not the gateway's, not the broadcast, not in ``used``.

    The search begins at a place that follows from ``whose`` it will be: two runs at once rarely pick the same, nor what
    dnsmasq keeps of an instance that was deleted a moment ago. Returns None where there is no IPv4, or none is free.
    """
    for address in usable(network, whose):
        if address not in used and allows(address):
            return address
    return None


def usable(network: Network, whose: str) -> t.Iterator[str]:
    """The addresses of a network that an instance can have, all of them once, from its own place on."""
    import netaddr

    whole = subnet(network)
    if whole is None:
        return
    blocked = _blocked(network)
    start = int(hashlib.sha256(whose.encode()).hexdigest(), 16) % whole.size
    for offset in range(whole.size):
        address = netaddr.IPAddress(whole.first + (start + offset) % whole.size)
        if address not in blocked:
            yield str(address)


def is_usable(network: Network, address: str) -> bool:
    """Whether an instance can have an address."""
    whole = subnet(network)
    return whole is not None and address in whole and address not in _blocked(network)


def _blocked(network: Network) -> netaddr.IPSet:
    import netaddr

    blocked = netaddr.IPSet()
    whole = subnet(network)
    if whole is None:
        return blocked
    blocked.update([whole.ip, whole.network])
    if whole.broadcast is not None:
        blocked.add(whole.broadcast)
    for key in ("ipv4.ovn.ranges", "ipv4.routes"):
        for part in filter(None, (part.strip() for part in network.config.get(key, "").split(","))):
            first, dash, last = part.partition("-")
            blocked.add(netaddr.IPRange(first, last) if dash else netaddr.IPNetwork(first))
    return blocked


def leased(instance: Instance, device: str, leases: t.Iterable[Lease]) -> t.Optional[str]:
    """The IPv4 address that a NIC has leased now, or None."""
    for nic in instance.nics:
        for lease in leases if nic.device == device and nic.hwaddr else ():
            if lease.network == nic.network and lease.hwaddr == nic.hwaddr and ":" not in lease.address:
                return lease.address
    return None


def displaced(instance: Instance, nic: Nic, leases: t.Iterable[Lease]) -> t.Optional[str]:
    """The address that a running instance has instead of its pin, or None.

    dnsmasq does not lease a pinned address that it believes to be another's still, such as one of an instance that was
    deleted a moment ago.
    """
    if not (instance.running and nic.ipv4 and nic.hwaddr):
        return None
    for lease in leases:
        mine = lease.network == nic.network and lease.hwaddr == nic.hwaddr and ":" not in lease.address
        if mine and lease.type == "dynamic" and lease.address != nic.ipv4:
            return lease.address
    return None
