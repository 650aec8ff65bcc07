# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What a user may say about published ports: an instance's ``nat`` list, and the parameters of ``mage.lxd.nat``."""

from __future__ import annotations

import dataclasses
import ipaddress
import typing as t

from .. import _values
from .._values import PortRange, Problems

ENTRY_KEYS = ("extif", "extaddr", "intif", "extport", "intport", "proto")
PROTOCOLS = ("tcp", "udp")
POLICY_KEYS = ("projects", "ports", "interfaces")
EXAMPLE = "[{extport: 8080, intport: 80}]"
_EXTADDR_RULE = "must be an IPv4 address without prefix length, such as 192.0.2.10"

ARGUMENTS: dict[str, t.Any] = {
    "declared": {"type": "list", "elements": "dict", "default": []},
    # Raw: Ansible's own check would tell of one mistake alone, and suggest nothing.
    "nat_policy": {"type": "raw"},
    "persist": {"type": "str", "choices": ["auto", "true", "false"], "default": "auto"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}


@dataclasses.dataclass(frozen=True)
class NatEntry:
    """One published port, or range of ports of the same size outside and inside.

    Without ``extif`` and ``extaddr`` it is published at every address of the host. ``intif`` names the network whose
    NIC the instance is reached by.
    """

    extport: PortRange
    intport: PortRange
    proto: str = "tcp"
    extif: t.Optional[str] = None
    extaddr: t.Optional[str] = None
    intif: t.Optional[str] = None

    def to_json(self) -> dict[str, t.Any]:
        """What is kept on the instance. Single ports are numbers, ranges text; what was not said is left out."""
        said: dict[str, t.Any] = {
            "extaddr": self.extaddr,
            "extif": self.extif,
            "extport": _plain(self.extport),
            "intif": self.intif,
            "intport": _plain(self.intport),
            "proto": self.proto,
        }
        return {key: value for key, value in said.items() if value is not None}

    def __str__(self) -> str:
        """How messages call it: ``tcp port 8080 of 198.51.100.7 on enp3s0``."""
        text = f"{self.proto} port {self.extport}"
        text += f" of {self.extaddr}" if self.extaddr else ""
        return text + (f" on {self.extif}" if self.extif else "")

    def overlaps(self, other: NatEntry) -> bool:
        """Whether both claim a port at one address, as far as that can be known without the host's addresses."""
        if self.proto != other.proto or not self.extport.overlaps(other.extport):
            return False
        if self.extaddr and other.extaddr:
            return self.extaddr == other.extaddr
        if self.extif and other.extif:
            return self.extif == other.extif
        return not (self.extif and other.extaddr) and not (self.extaddr and other.extif)


@dataclasses.dataclass(frozen=True)
class Policy:
    """Who may publish what. ``projects``: the restricted ones that may; None for ports or interfaces means any."""

    projects: frozenset[str] = frozenset()
    ports: t.Optional[tuple[PortRange, ...]] = None
    interfaces: t.Optional[tuple[str, ...]] = None


@dataclasses.dataclass(frozen=True)
class Desired:
    """The parameters of ``mage.lxd.nat``. ``persist`` is None for auto."""

    declared: tuple[t.Mapping[str, t.Any], ...] = ()
    policy: Policy = Policy()
    persist: t.Optional[bool] = None
    present: bool = True


def parse_entries(raw: object, path: str, problems: Problems) -> tuple[NatEntry, ...]:
    """An instance's ``nat`` list. ``proto: both`` makes two entries. What cannot be meant is added to ``problems``."""
    entries: list[NatEntry] = []
    places: list[str] = []
    for index, one in enumerate(_values.sequence(raw, path, problems, EXAMPLE)):
        place = f"{path}[{index}]"
        for entry in _parse_entry(one, place, problems):
            for earlier, before in zip(places, entries):
                if before.overlaps(entry):
                    problems.add_text(f"{place}.extport: {entry}: already published by {earlier} ({before})")
            entries.append(entry)
            places.append(place)
    return tuple(entries)


def _parse_entry(raw: object, path: str, problems: Problems) -> tuple[NatEntry, ...]:
    said = _values.mapping(raw, path, ENTRY_KEYS, problems)
    if said is None:
        return ()
    if "extport" not in said:
        problems.add_text(f"{path}.extport: missing: {_values.RANGE_RULE}")
    extport = _values.port_range(said["extport"], f"{path}.extport", problems) if "extport" in said else None
    intport = _values.port_range(said["intport"], f"{path}.intport", problems) if "intport" in said else extport
    if extport and intport and extport.size != intport.size:
        problems.add(
            f"{path}.intport", str(intport), f"must be as many ports as extport ({extport}), such as {extport}"
        )
    protos = _protocols(said.get("proto", "tcp"), f"{path}.proto", problems)
    extif, intif = (
        _values.interface(said[key], f"{path}.{key}", problems) if key in said else None for key in ("extif", "intif")
    )
    extaddr = _external_address(said["extaddr"], f"{path}.extaddr", problems) if "extaddr" in said else None
    if extport is None or intport is None:
        return ()
    return tuple(NatEntry(extport, intport, proto, extif, extaddr, intif) for proto in protos)


def _protocols(raw: object, path: str, problems: Problems) -> tuple[str, ...]:
    chosen = _values.choice(raw, path, (*PROTOCOLS, "both"), problems)
    if chosen is None:
        return ()
    return PROTOCOLS if chosen == "both" else (chosen,)


def _external_address(raw: object, path: str, problems: Problems) -> t.Optional[str]:
    """An IPv4 address of the host. 0.0.0.0 means every address, as if it had not been said."""
    parsed = _values.address(raw, path, problems, _EXTADDR_RULE)
    if parsed is None or str(parsed) == "0.0.0.0":
        return None
    if not isinstance(parsed, ipaddress.IPv4Address):
        problems.add(path, raw, "must be an IPv4 address: ports are published over IPv4 only")
        return None
    if parsed.is_loopback or parsed.is_multicast or str(parsed) == "255.255.255.255":
        problems.add(path, raw, "must be an address that other hosts can reach, such as 192.0.2.10")
        return None
    return str(parsed)


def _plain(ports: PortRange) -> t.Union[int, str]:
    return ports.first if ports.size == 1 else str(ports)


def parse(params: t.Mapping[str, t.Any], project: str) -> Desired:
    """The parameters of ``mage.lxd.nat``. Raises InvalidInput. Rules cover all projects, so ``project`` is not used."""
    problems = Problems()
    declared = tuple(params.get("declared") or ())
    for index, item in enumerate(declared):
        for key in ("project", "name", "status"):
            if not isinstance(item.get(key), str):
                problems.add(f"declared[{index}].{key}", item.get(key), "must be as mage.lxd.instances returned it")
    policy = _parse_policy(params.get("nat_policy"), "nat_policy", problems)
    problems.raise_if_any()
    persist = {"true": True, "false": False}.get(str(params.get("persist")))
    return Desired(declared, policy, persist, params.get("state") != "absent")


def _parse_policy(raw: object, path: str, problems: Problems) -> Policy:
    said = {} if raw is None else _values.mapping(raw, path, POLICY_KEYS, problems) or {}
    projects = _values.words(said.get("projects"), f"{path}.projects", problems, "[customer-a]")
    ports = _values.sequence(said.get("ports"), f"{path}.ports", problems, "[80, 8000-8999]")
    names = _values.sequence(said.get("interfaces"), f"{path}.interfaces", problems, "[enp3s0]")
    ranges = [_values.port_range(one, f"{path}.ports[{index}]", problems) for index, one in enumerate(ports)]
    interfaces = [_values.interface(one, f"{path}.interfaces[{index}]", problems) for index, one in enumerate(names)]
    return Policy(
        projects=frozenset(projects),
        ports=tuple(one for one in ranges if one) if "ports" in said else None,
        interfaces=tuple(one for one in interfaces if one) if "interfaces" in said else None,
    )
