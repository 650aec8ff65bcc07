# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""``address``: which address a NIC is to have. Pure."""

from __future__ import annotations

import dataclasses
import ipaddress
import typing as t

from .._values import Problems, address, interface, mapping
from .addresses import NOWHERE, plain

KEYS = ("nic", "ipv4", "ipv6")
RULE = "must be an address such as 192.0.2.10, a range such as 192.0.2.0/28, or a mapping with nic, ipv4, ipv6"


@dataclasses.dataclass(frozen=True)
class Wish:
    """The address of one NIC: ``nic`` names the device (empty: the first one). ``ipv4`` is an address, or with a slash
    a range to pick a free one from; ``ipv6`` is an address. Both may be empty, not at once."""

    path: str
    nic: str = ""
    ipv4: str = ""
    ipv6: str = ""

    def met(self, ipv4: str, ipv6: str) -> bool:
        """Whether pinned addresses are what is wished."""
        return (not self.ipv4 or self.allows(ipv4)) and self.ipv6 in ("", plain(ipv6))

    def allows(self, ipv4: str) -> bool:
        """Whether an IPv4 address is as wished."""
        if ipv4 in NOWHERE:
            return False
        try:
            return ipaddress.ip_address(ipv4) in ipaddress.ip_network(self.ipv4) if self.ipv4 else True
        except ValueError:
            # A device of the type routed or ipvlan may have several, and with their masks.
            return False


def parse(raw: object, path: str, problems: Problems) -> t.Optional[Wish]:
    """A wish, as text or as a mapping."""
    if raw is None:
        return None
    if isinstance(raw, str):
        version = 6 if ":" in raw else 4
        found = _one(raw, path, problems, version)
        return None if not found else Wish(path, ipv6=found) if version == 6 else Wish(path, ipv4=found)
    if not isinstance(raw, dict):
        problems.add(path, raw, RULE)
        return None
    before = len(problems)
    fields = mapping(raw, path, KEYS, problems) or {}
    nic = interface(fields["nic"], f"{path}.nic", problems) if "nic" in fields else ""
    ipv4, ipv6 = (
        _one(fields[key], f"{path}.{key}", problems, version) if key in fields else ""
        for key, version in (("ipv4", 4), ("ipv6", 6))
    )
    if len(problems) == before and not (ipv4 or ipv6):
        problems.add_text(f"{path}: needs ipv4 or ipv6")
    return Wish(path, nic or "", ipv4, ipv6) if len(problems) == before else None


def _one(raw: object, path: str, problems: Problems, version: int) -> str:
    """An address, or for IPv4 a range whose host bits are not set."""
    if isinstance(raw, str) and "/" in raw and version == 6:
        problems.add(path, raw, "must be one IPv6 address, such as 2001:db8::10: ranges are for IPv4 only")
        return ""
    if isinstance(raw, str) and "/" in raw and version == 4:
        try:
            return str(ipaddress.IPv4Network(raw))
        except ValueError:
            hint = _network_of(raw)
            problems.add(path, raw, "must be an address, or a network such as 192.0.2.0/28" + hint)
            return ""
    found = address(raw, path, problems)
    if found is not None and found.version != version:
        problems.add(path, raw, f"must be an IPv{version} address")
        return ""
    if found is not None and (found.is_unspecified or found.is_loopback or found.is_multicast):
        problems.add(path, raw, "is none that an instance can have")
        return ""
    return str(found) if found is not None else ""


def _network_of(raw: str) -> str:
    try:
        return f" (did you mean {ipaddress.IPv4Network(raw, strict=False)}?)"
    except ValueError:
        return ""
