# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Which address an instance is pinned to. Pure: every address that is taken comes in as an argument."""

from __future__ import annotations

import hashlib
import importlib
import ipaddress
import sys
import typing as t

from .. import _keys
from .._errors import MissingLibrary
from .._server.snapshot import Instance, Lease, Network, Nic
from .states import like

if t.TYPE_CHECKING:
    import netaddr

# What a NIC may say instead of an address.
NOWHERE = ("", "none")
Pinned = t.Mapping[tuple[str, str], t.Sequence[Instance]]


def _netaddr() -> t.Any:
    """Imported where addresses are picked. Raises MissingLibrary."""
    try:
        return importlib.import_module("netaddr")
    except ImportError as e:
        raise MissingLibrary("netaddr", sys.executable) from e


def pinned(instances: t.Iterable[Instance]) -> Pinned:
    """The instances that are pinned to an address, by network and address."""
    found: dict[tuple[str, str], list[Instance]] = {}
    for one in instances:
        for nic in one.nics:
            for address in (nic.ipv4, nic.ipv6):
                if address not in NOWHERE:
                    found.setdefault((nic.network, plain(address)), []).append(one)
    return found


def plain(address: str) -> str:
    """An address as it is compared: IPv6 may be written in many ways."""
    try:
        return str(ipaddress.IPv6Address(address)) if ":" in address else address
    except ValueError:
        return address


def has_to_move(instance: Instance, nic: Nic, pins: Pinned) -> bool:
    """Whether another instance is pinned to an address of a NIC, too, and keeps it."""
    return any(is_anothers(instance, nic, address, pins) for address in (nic.ipv4, nic.ipv6))


def is_anothers(instance: Instance, nic: Nic, address: str, pins: Pinned) -> bool:
    """Whether another instance keeps an address: one that is no copy, that runs, else the first."""
    return any(_rank(one) < _rank(instance) for one in pins.get((nic.network, plain(address)), ()))


def _rank(instance: Instance) -> tuple[bool, bool, str, str]:
    decoded = _keys.decode(instance.config, _keys.MANAGED, instance.project, instance.name)
    is_copy = decoded.marked and decoded.problem != ""
    return is_copy, not instance.running, instance.project, instance.name


def taken(network: str, instances: t.Iterable[Instance], leases: t.Iterable[Lease]) -> set[str]:
    """Every address of a network that is pinned by an instance of any project, leased or reserved."""
    pins = {nic.ipv4 for one in instances for nic in one.nics if nic.network == network}
    return pins | {lease.address for lease in leases if lease.network == network}


def subnet(network: Network, family: int = 4) -> t.Optional[netaddr.IPNetwork]:
    """The subnet of a managed network, with the gateway as its address, or None if it has none."""
    netaddr = _netaddr()
    value = network.config.get(f"ipv{family}.address", "none")
    return netaddr.IPNetwork(value) if "/" in value else None


def pick(network: Network, used: t.Collection[str], whose: str, within: str = "") -> t.Optional[str]:
    """A free IPv4 address of a network, or of that part of it: not its own, not the gateway's, not the broadcast, not
    in ``used``.

    The search begins at a place that follows from ``whose`` it will be: two runs at once rarely pick the same, nor what
    dnsmasq keeps of an instance that was deleted a moment ago. Returns None where there is no IPv4, or none is free.
    """
    return next((address for address in usable(network, whose, within) if address not in used), None)


def usable(network: Network, whose: str, within: str = "") -> t.Iterator[str]:
    """The IPv4 addresses of a network, or of that part of it, that an instance can have, all of them once, from its own
    place on."""
    netaddr = _netaddr()
    whole = subnet(network)
    if whole is None:
        return
    wished = netaddr.IPNetwork(within) if within else whole.cidr
    # One is in the other, or they have nothing in common.
    part = wished if wished in whole.cidr else whole.cidr if whole.cidr in wished else None
    blocks = list((netaddr.IPSet([part]) - _blocked(network, 4)).iter_cidrs()) if part else []
    size = sum(block.size for block in blocks)
    start = int(hashlib.sha256(whose.encode()).hexdigest(), 16) % size if size else 0
    for first, last in _from(start, blocks):
        for number in range(first, last):
            yield str(netaddr.IPAddress(number, 4))


def _from(start: int, blocks: t.Sequence[netaddr.IPNetwork]) -> t.Iterator[tuple[int, int]]:
    """The blocks from a place on, and then what is before it, each as its first number and the one after its last."""
    before: list[tuple[int, int]] = []
    for block in blocks:
        left = min(start, block.size)
        start -= left
        before.append((block.first, block.first + left))
        yield block.first + left, block.last + 1
    yield from before


def is_usable(network: Network, address: str) -> bool:
    """Whether an instance can have an address."""
    family = 6 if ":" in address else 4
    whole = subnet(network, family)
    return whole is not None and address in whole and address not in _blocked(network, family)


def _blocked(network: Network, family: int) -> netaddr.IPSet:
    netaddr = _netaddr()
    blocked = netaddr.IPSet()
    whole = subnet(network, family)
    if whole is None:
        return blocked
    blocked.update([whole.ip, whole.network])
    if family == 4 and whole.broadcast is not None:
        blocked.add(whole.broadcast)
    for key in (f"ipv{family}.ovn.ranges", f"ipv{family}.routes"):
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
    """The address that an instance that runs, or is frozen, has instead of its pin, or None.

    dnsmasq does not lease a pinned address that it believes to be another's still, such as one of an instance that was
    deleted a moment ago.
    """
    if like(instance.status) not in ("Running", "Frozen") or not nic.hwaddr or nic.ipv4 in NOWHERE:
        return None
    for lease in leases:
        mine = lease.network == nic.network and lease.hwaddr == nic.hwaddr and ":" not in lease.address
        if mine and lease.type == "dynamic" and lease.address != nic.ipv4:
            return lease.address
    return None


def holder(
    instance: Instance, nic: Nic, address: str, leases: t.Iterable[Lease], instances: t.Iterable[Instance]
) -> str:
    """Who else has leased an address of a NIC's network; nothing if nobody has."""
    held = [
        lease
        for lease in leases
        if lease.network == nic.network and plain(lease.address) == address and lease.type not in ("gateway", "uplink")
    ]
    if not held:
        return ""
    known = {
        (one_nic.network, key): one
        for one in instances
        for one_nic in one.nics
        # A server knows by no more than its name who has leased an IPv6 address.
        for key in (one_nic.hwaddr, *([one.name] if one.running else []))
        if key
    }
    for lease in held:
        whose = known.get((nic.network, lease.hwaddr or lease.hostname))
        if whose and (whose.project, whose.name) != (instance.project, instance.name):
            return whose.name
        if whose is None and lease.hwaddr not in ("", nic.hwaddr):
            return lease.hostname or lease.hwaddr
    return ""
