# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What the server itself publishes by other means: proxy devices and network forwards."""

from __future__ import annotations

import ipaddress
import typing as t

from ..._server.snapshot import Instance
from ..._values import PortRange, Problems, port_range
from .observed import Rival


def proxy_rivals(instances: t.Iterable[Instance]) -> tuple[Rival, ...]:
    """The proxy devices that listen on the host, of all instances, running or not."""
    found: list[Rival] = []
    for one in instances:
        for device, options in sorted(one.expanded_devices.items()):
            if options.get("type") != "proxy" or options.get("bind", "host") != "host":
                continue
            proto, _colon, rest = options.get("listen", "").partition(":")
            address, _colon, ports = rest.rpartition(":")
            owner = f"the proxy device {device} of {one.project}/{one.name}"
            if proto in ("tcp", "udp") and not _is_other_family(address):
                found += [Rival(owner, proto, span, _single(address)) for span in _spans(ports)]
    return tuple(found)


def forward_rivals(network: str, forwards: t.Iterable[t.Mapping[str, t.Any]]) -> tuple[Rival, ...]:
    """The forwards of a network, as the server lists them. A default target takes every port of the address."""
    found: list[Rival] = []
    for one in forwards:
        address = str(one.get("listen_address", ""))
        owner = f"the forward of {address} on network {network}"
        for said in one.get("ports") or ():
            spans = _spans(str(said.get("listen_port", "")))
            found += [Rival(owner, str(said.get("protocol", "tcp")), span, address) for span in spans]
        if (one.get("config") or {}).get("target_address"):
            found += [Rival(owner, proto, None, address) for proto in ("tcp", "udp")]
    return tuple(found)


def _spans(text: str) -> list[PortRange]:
    spans = (port_range(part.strip(), "", Problems()) for part in text.split(","))
    return [span for span in spans if span]


def _single(address: str) -> t.Optional[str]:
    """None for a wildcard: [::] takes IPv4 as well."""
    return None if not address or ipaddress.ip_address(address.strip("[]")).is_unspecified else address


def _is_other_family(address: str) -> bool:
    """An IPv6 address other than [::], or what is no address."""
    try:
        parsed = ipaddress.ip_address(address.strip("[]") or "0.0.0.0")
    except ValueError:
        return True
    return parsed.version == 6 and not parsed.is_unspecified
