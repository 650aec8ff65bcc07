# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Which NICs of a publishing instance get an address that does not move, and which address. Pure."""

from __future__ import annotations

import dataclasses
import typing as t

from .._server.snapshot import Instance, Lease, Network, Nic
from .._values import Problems
from . import addresses, wishes
from .spec import InstanceSpec
from .states import like
from .update import waits

# Any address will do.
ANY = wishes.Wish("")


class Picker:
    """Hands out free addresses, none of them twice, none of those that ``declared`` instances have or will
    have, and none of the ``fixed`` ones. Those that are ``going`` (project, name) have theirs until they are gone."""

    def __init__(
        self,
        networks: t.Mapping[str, Network],
        instances: t.Sequence[Instance],
        leases: t.Sequence[Lease],
        declared: t.Sequence[t.Mapping[str, t.Any]] = (),
        fixed: t.Iterable[str] = (),
        going: t.Collection[tuple[str, str]] = (),
    ) -> None:
        self._networks = networks
        self._instances = instances
        self._pinned = addresses.pinned(instances)
        self._leases = leases
        self._promised = [address for one in declared for address in one.get("addresses") or ()]
        # Said for one instance, they are no other's, on whatever network.
        self._fixed = set(fixed)
        self._used: dict[str, set[str]] = {}
        self._going = going
        self._claims: dict[tuple[str, str], str] = {}

    def _taken(self, network: str) -> set[str]:
        if network not in self._used:
            promised = {one["address"] for one in self._promised if one["network"] == network}
            self._used[network] = addresses.taken(network, self._instances, self._leases) | promised | self._fixed
        return self._used[network]

    def pick(self, instance: Instance, nic: Nic, wish: wishes.Wish = ANY) -> t.Optional[str]:
        """The address that a NIC has now, or a free one, both as wished."""
        network = self.network(nic)
        if network is None:
            return None
        now = self.instead(instance, nic) or addresses.leased(instance, nic.device, self._leases)
        good = now and wish.allows(now) and now not in self._fixed and not self.others(instance, nic, now)
        found = now if good else addresses.pick(network, self._taken(nic.network), _label(instance), wish.ipv4)
        if found:
            self._taken(nic.network).add(found)
        return found

    def others(self, instance: Instance, nic: Nic, address: str) -> tuple[str, ...]:
        """The other instances that are pinned to an address, or will be."""
        pinned = (one for one in self._pinned.get((nic.network, address), ()) if not _same(one, instance))
        claimed = self._claims.setdefault((nic.network, address), instance.name)
        return tuple(dict.fromkeys([*(one.name for one in pinned), *([claimed] if claimed != instance.name else [])]))

    def is_left(self, instance: Instance, nic: Nic, address: str) -> bool:
        """Whether all others that are pinned to an address are removed by this very run."""
        claimed = self._claims.get((nic.network, address), instance.name) != instance.name
        pinned = [one for one in self._pinned.get((nic.network, address), ()) if not _same(one, instance)]
        return not claimed and all((one.project, one.name) in self._going for one in pinned)

    def holder(self, instance: Instance, nic: Nic, address: str) -> str:
        """Who else has leased an address."""
        return addresses.holder(instance, nic, address, self._leases, self._instances)

    def instead(self, instance: Instance, nic: Nic) -> t.Optional[str]:
        """The address that a running instance has instead of its pin."""
        return addresses.displaced(instance, nic, self._leases)

    def network(self, nic: Nic) -> t.Optional[Network]:
        """The network of a NIC, if it can pin addresses."""
        network = self._networks.get(nic.network)
        return network if network and network.managed and network.type == "bridge" else None

    def displaced(self, instance: Instance, nic: Nic) -> t.Optional[str]:
        """The address that a running instance has instead of its pin, unless that is another's pin."""
        now = addresses.displaced(instance, nic, self._leases)
        return None if now and self._pinned.get((nic.network, now)) else now

    def is_anothers(self, instance: Instance, nic: Nic, address: str) -> bool:
        """Whether an address that a NIC is pinned to is another's, who keeps it."""
        return addresses.is_anothers(instance, nic, address, self._pinned)


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
    if wished and item.address and not _contradicted(item, item.address, wished, problems):
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
        elif nic.ipv4 and (said or not own or not picker.is_anothers(instance, nic, nic.ipv4)):
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


def _contradicted(item: InstanceSpec, wish: wishes.Wish, nic: Nic, problems: Problems) -> bool:
    """Whether the item says another address in its devices: which one is meant only the user knows. A device that may
    have several is none that can be pinned, and told as such."""
    said = item.devices.get(nic.device, {})
    ipv4, ipv6 = said.get("ipv4.address", ""), said.get("ipv6.address", "")
    kept = {
        "ipv4.address": not (ipv4 and wish.ipv4) or "," in ipv4 or wish.allows(ipv4),
        "ipv6.address": not (ipv6 and wish.ipv6) or "," in ipv6 or addresses.plain(ipv6) == wish.ipv6,
    }
    for key in (key for key, good in kept.items() if not good):
        problems.add_text(f"{wish.path}: devices.{nic.device} has an {key} as well: one of them is enough")
    return not all(kept.values())


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
    """A NIC's device with the addresses that are said for it, or one of the range."""
    options = dict(instance.expanded_devices[nic.device])
    for family, said, has in ((4, wish.ipv4, nic.ipv4), (6, wish.ipv6, addresses.plain(nic.ipv6))):
        kept = wish.allows(has) if family == 4 else said == has
        if family == 4 and "/" in said and picker.network(nic) and picker.instead(instance, nic):
            # Somebody has it, whether the server knows or not: another address of the range is as good. Unless it has
            # but not been started since.
            kept = kept and f"devices.{nic.device}" in waits(instance)
        if said and not (kept and not picker.is_anothers(instance, nic, has)):
            options[f"ipv{family}.address"] = _wished(wish, family, said, instance, nic, picker, problems)
    return options


def _wished(
    wish: wishes.Wish, family: int, said: str, instance: Instance, nic: Nic, picker: Picker, problems: Problems
) -> str:
    """The address that is said, or one of the range that is."""
    network = picker.network(nic)
    if network is None:
        told = f"{nic.device} is on {nic.network or 'no network'}, which has no addresses to pin"
        problems.add(wish.path, said, told)
        return said
    if "/" in said:
        address = picker.pick(instance, nic, wish)
        if address is None:
            problems.add(wish.path, said, f"no address of it is free on {nic.network}")
        return address or ""
    problem = _refused(family, said, instance, nic, network, picker)
    if problem:
        problems.add(wish.path, said, problem)
    return said


def _refused(family: int, said: str, instance: Instance, nic: Nic, network: Network, picker: Picker) -> str:
    """Why a NIC cannot have an address; nothing if it can."""
    if not addresses.is_usable(network, said):
        subnet = addresses.subnet(network, family) or f"it has no IPv{family}"
        return f"is none that an instance can have on {nic.network} ({subnet})"
    if family == 6 and network.config.get("ipv6.dhcp.stateful") != "true":
        return f"{nic.network} leases no IPv6 addresses: set its ipv6.dhcp.stateful to true"
    others = picker.others(instance, nic, said)
    if others:
        # What goes and what comes are not in order: the server would refuse the one before it has lost the other.
        left = (
            ", which this run is to remove: let one run remove it first" if picker.is_left(instance, nic, said) else ""
        )
        return f"is the address of {', '.join(others)} already{left}"
    holder = picker.holder(instance, nic, said)
    return f"is leased to {holder} now" if holder else ""


def told_of_move(label: str, pin: str, now: str) -> str:
    """The warning for an instance that did not get the address that it was pinned to."""
    return f"{label}: the network has leased it {now} instead of {pin}: pinned to {now}"


def _is_said(item: InstanceSpec, instance: Instance, nic: Nic, family: int = 4) -> bool:
    """Whether the user says which address of a family a NIC has, or a range for it."""
    wished = wished_nic(item, instance)
    wish = item.address if wished and wished.device == nic.device else None
    in_wish = bool(wish and (wish.ipv4 if family == 4 else wish.ipv6))
    declared = item.devices.get(nic.device, {}).get(f"ipv{family}.address", "none")
    return in_wish or declared not in addresses.NOWHERE


def followed(
    item: InstanceSpec,
    instance: Instance,
    made: t.Mapping[str, t.Mapping[str, str]],
    has: t.Mapping[str, t.Sequence[str]],
) -> dict[str, str]:
    """The devices whose pin an instance did not get when it started, each with the address that it has instead. What
    the user has pinned is moved only within the range that is said. ``made`` are the devices that pin, ``has`` maps
    devices to IPv4 addresses."""
    found = {}
    for nic in instance.nics:
        pin, now = made.get(nic.device, {}).get("ipv4.address", ""), has.get(nic.device, ())
        if pin in addresses.NOWHERE or not now or pin in now:
            continue
        wished = wished_nic(item, instance)
        ranged = wished == nic and item.address and "/" in item.address.ipv4 and item.address.allows(now[0])
        if ranged or not _is_said(item, instance, nic):
            found[nic.device] = now[0]
    return found


def missed(
    item: InstanceSpec, instance: Instance, has: t.Mapping[str, t.Sequence[str]], moved: t.Container[str]
) -> str:
    """What the user has said and an instance did not get when it started; nothing if it has all. ``moved`` are the
    devices whose pin follows."""
    told = []
    for nic in instance.nics:
        now = has.get(nic.device, ())
        if not now or nic.ipv4 in addresses.NOWHERE or nic.device in moved or not _is_said(item, instance, nic):
            continue
        # A device of the type routed or ipvlan may have several, and with their masks.
        if not {part.strip().partition("/")[0] for part in nic.ipv4.split(",")} & set(now):
            told.append(
                f"{nic.device} has {', '.join(now)} instead of {nic.ipv4}: another has that address, or had it a "
                "moment ago, or the instance asks nobody for its own: free the address, or say another one"
            )
    return "; ".join(told)


def away(
    item: InstanceSpec,
    existing: Instance,
    instance: Instance,
    pinned: t.Mapping[str, t.Any],
    picker: Picker,
    warnings: list[str],
) -> tuple[str, ...]:
    """The devices that have another address than the user says, and may get theirs by a restart. ``instance`` has the
    devices that ``existing`` will have, but for those that are ``pinned``."""
    if like(existing.status) not in ("Running", "Frozen"):
        return ()
    future = dataclasses.replace(instance, expanded_devices={**instance.expanded_devices, **pinned})
    before = {nic.device: nic for nic in existing.nics}
    found = []
    for nic in future.nics:
        for family, pin in ((4, nic.ipv4), (6, nic.ipv6)):
            said = pin not in addresses.NOWHERE and _is_said(item, future, nic, family)
            now = _had(existing, before.get(nic.device), future, nic, family, picker) if said else ""
            if now in ("", addresses.plain(pin)):
                continue
            holder = picker.holder(future, nic, addresses.plain(pin))
            if holder:
                warnings.append(f"{item.label}: {nic.device} has {now} instead of {pin}, which {holder} has leased")
            else:
                found.append(nic.device)
    return tuple(dict.fromkeys(found))


def _had(existing: Instance, old: t.Optional[Nic], future: Instance, nic: Nic, family: int, picker: Picker) -> str:
    """The address that a NIC keeps until its instance is started again; nothing if nobody knows."""
    if family == 6:
        # Of these, leases tell too little.
        now = addresses.plain(old.ipv6) if old else ""
    else:
        now = picker.instead(future, nic) or (old and (picker.instead(existing, old) or old.ipv4)) or ""
    return "" if now in addresses.NOWHERE else now


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
