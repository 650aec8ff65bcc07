# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Which NICs of a publishing instance get an address that does not move, and which address. Pure."""

from __future__ import annotations

import typing as t

from .._server.snapshot import Instance, Lease, Network, Nic
from .._values import Problems
from . import addresses, wishes
from .spec import InstanceSpec


class Picker:
    """Hands out free addresses, none of them twice, none of those that ``declared`` instances have or will
    have, and none of the ``fixed`` ones."""

    def __init__(
        self,
        networks: t.Mapping[str, Network],
        instances: t.Sequence[Instance],
        leases: t.Sequence[Lease],
        declared: t.Sequence[t.Mapping[str, t.Any]] = (),
        fixed: t.Iterable[str] = (),
    ) -> None:
        self._networks = networks
        self._instances = instances
        self._pinned = addresses.pinned(instances)
        self._leases = leases
        self._promised = [address for one in declared for address in one.get("addresses") or ()]
        # Said for one instance, they are no other's, on whatever network.
        self._fixed = set(fixed)
        self._used: dict[str, set[str]] = {}
        self._claims: dict[tuple[str, str], str] = {}

    def _taken(self, network: str) -> set[str]:
        if network not in self._used:
            promised = {one["address"] for one in self._promised if one["network"] == network}
            self._used[network] = addresses.taken(network, self._instances, self._leases) | promised | self._fixed
        return self._used[network]

    def pick(self, instance: Instance, nic: Nic, allows: t.Callable[[str], bool] = bool) -> t.Optional[str]:
        """The address that a NIC has now, or a free one."""
        network = self.network(nic)
        if network is None:
            return None
        now = addresses.leased(instance, nic.device, self._leases)
        good = now and allows(now) and now not in self._fixed and not self.others(instance, nic, now)
        found = now if good else addresses.pick(network, self._taken(nic.network), _label(instance), allows)
        if found:
            self._taken(nic.network).add(found)
        return found

    def others(self, instance: Instance, nic: Nic, address: str) -> tuple[str, ...]:
        """The other instances that are pinned to an address, or will be."""
        pinned = (one for one in self._pinned.get((nic.network, address), ()) if not _same(one, instance))
        claimed = self._claims.setdefault((nic.network, address), instance.name)
        return tuple(dict.fromkeys([*(one.name for one in pinned), *([claimed] if claimed != instance.name else [])]))

    def network(self, nic: Nic) -> t.Optional[Network]:
        """The network of a NIC, if it can pin addresses."""
        network = self._networks.get(nic.network)
        return network if network and network.managed and network.type == "bridge" else None

    def displaced(self, instance: Instance, nic: Nic) -> t.Optional[str]:
        """The address that a running instance has instead of its pin, unless that is another's pin."""
        now = addresses.displaced(instance, nic, self._leases)
        return None if now and self._pinned.get((nic.network, now)) else now

    def has_to_move(self, instance: Instance, nic: Nic) -> bool:
        """Whether the pin of a NIC is another's, who keeps it."""
        return addresses.has_to_move(instance, nic, self._pinned)


def _label(instance: Instance) -> str:
    return f"{instance.project}/{instance.name}"


def _same(one: Instance, other: Instance) -> bool:
    return (one.project, one.name) == (other.project, other.name)


def pins(
    item: InstanceSpec,
    instance: Instance,
    ours: t.Container[str],
    picker: Picker,
    problems: Problems,
    warnings: list[str],
) -> dict[str, dict[str, str]]:
    """The devices that give a publishing instance an address that does not move.

    ``instance`` has the devices that it will have. ``ours`` are those that an earlier run wrote; a pin that somebody
    else made is left to them.
    """
    found: dict[str, dict[str, str]] = {}
    wished = _wished_nic(item, instance, problems)
    if wished and item.address:
        options = _as_wished(item.address, instance, wished, picker, problems)
        if wished.device in ours or wished.device in item.devices or not _met(item.address, wished):
            found[wished.device] = options
    for nic in _published_nics(item, instance, problems, warnings):
        if nic == wished and item.address and item.address.ipv4:
            continue
        options = found.get(nic.device) or dict(instance.expanded_devices[nic.device])
        own = nic.device in ours or nic.device in item.devices
        said = "ipv4.address" in item.devices.get(nic.device, {})
        now = picker.displaced(instance, nic) if own and not said else None
        if now:
            warnings.append(told_of_move(item.label, nic.ipv4, now))
        elif nic.ipv4 and (said or not own or not picker.has_to_move(instance, nic)):
            if own:
                found[nic.device] = options
            continue
        address = now or picker.pick(instance, nic)
        if address is None:
            warnings.append(
                f"{item.path}: {item.name} publishes from {nic.device} on {nic.network or 'no network'}, which has no "
                "addresses to pin: it publishes the address that it has now"
            )
        else:
            found[nic.device] = {**options, "ipv4.address": address}
    return found


def _wished_nic(item: InstanceSpec, instance: Instance, problems: Problems) -> t.Optional[Nic]:
    """The NIC whose address is said."""
    nic = wished_nic(item, instance)
    if item.address and nic is None:
        known = ", ".join(one.device for one in instance.nics) or "none"
        problems.add(f"{item.address.path}.nic", item.address.nic, f"{item.name} has no such NIC; there is {known}")
    return nic


def wished_nic(item: InstanceSpec, instance: Instance) -> t.Optional[Nic]:
    """The NIC whose address is said, or None."""
    if item.address is None:
        return None
    return next((nic for nic in instance.nics if item.address.nic in ("", nic.device)), None)


def _met(wish: wishes.Wish, nic: Nic) -> bool:
    return wish.met(nic.ipv4, nic.ipv6)


def _as_wished(wish: wishes.Wish, instance: Instance, nic: Nic, picker: Picker, problems: Problems) -> dict[str, str]:
    """A NIC's device with the address that is said for it, or one of the range."""
    options = dict(instance.expanded_devices[nic.device])
    if wish.ipv6:
        options["ipv6.address"] = wish.ipv6
    if not wish.ipv4 or (wish.allows(nic.ipv4) and not picker.has_to_move(instance, nic)):
        return options
    network = picker.network(nic)
    if network is None:
        told = f"{nic.device} is on {nic.network or 'no network'}, which has no addresses to pin"
        problems.add(wish.path, wish.ipv4, told)
        return options
    if "/" in wish.ipv4:
        address = picker.pick(instance, nic, wish.allows)
        if address is None:
            problems.add(wish.path, wish.ipv4, f"no address of it is free on {nic.network}")
        return {**options, "ipv4.address": address or ""}
    if not addresses.is_usable(network, wish.ipv4):
        subnet = addresses.subnet(network)
        problems.add(wish.path, wish.ipv4, f"is none that an instance can have on {nic.network} ({subnet})")
    others = picker.others(instance, nic, wish.ipv4)
    if others:
        problems.add(wish.path, wish.ipv4, f"is the address of {', '.join(others)} already")
    return {**options, "ipv4.address": wish.ipv4}


def told_of_move(label: str, pin: str, now: str) -> str:
    """The warning for an instance that did not get the address that it was pinned to."""
    return f"{label}: the network has leased it {now} instead of {pin}: pinned to {now}"


def followed(item: InstanceSpec, made: t.Mapping[str, t.Mapping[str, str]], has: t.Mapping[str, str]) -> dict[str, str]:
    """The devices whose pin an instance did not get when it started, each with the address that it has instead. What
    the user has pinned is not moved. ``made`` are the devices that pin, ``has`` maps devices to IPv4 addresses."""
    return {
        device: has[device]
        for device, options in made.items()
        if device in has
        and not (item.address and item.address.ipv4)
        and options.get("ipv4.address") not in (None, has[device])
        and "ipv4.address" not in item.devices.get(device, {})
    }


def _published_nics(item: InstanceSpec, instance: Instance, problems: Problems, warnings: list[str]) -> list[Nic]:
    """The NICs that something is published from: those that ``intif`` names, else the first."""
    nics = list(instance.nics)
    if not item.publishes:
        return []
    if not nics:
        warnings.append(f"{item.path}: {item.name} publishes, but has no NIC")
        return []
    found: dict[str, Nic] = {}
    for index, entry in enumerate(item.nat):
        there = [nic for nic in nics if entry.intif in (None, nic.network, nic.device)]
        if there:
            found.setdefault(there[0].device, there[0])
        else:
            known = ", ".join(f"{nic.device} on {nic.network}" for nic in nics)
            rule = f"no NIC of {item.name} is on it; there is {known}"
            problems.add(f"{item.path}.nat[{index}].intif", entry.intif, rule)
    if item.proxy or item.hostnames:
        found.setdefault(nics[0].device, nics[0])
    return list(found.values())
