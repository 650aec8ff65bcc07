# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Which values a server takes for the same: sizes, booleans, numbers as text. Pure."""

from __future__ import annotations

import re
import typing as t

_UNITS = {"": 1, "B": 1, "bytes": 1}
_UNITS.update({f"{letter}B": 1000**power for power, letter in enumerate("kMGTPE", 1)})
_UNITS.update({f"{letter}iB": 1024**power for power, letter in enumerate("KMGTPE", 1)})
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)")
SIZE_RULE = "must be a size, such as 512MiB or 10GiB"

# Config and options of devices that hold sizes.
_SIZES = re.compile(r"limits\.memory|limits\.hugepages\..*|size|size\.state|limits\.disk\..*|security\.sev\..*size")
_BOOLEANS = re.compile(
    r"agent\.nic_config|boot\.autostart|limits\.memory\.hugepages|migration\.(stateful|incremental\.memory)"
    r"|nvidia\.runtime|security\.(agent\.metrics|csm|devlxd|devlxd\.images|guestapi|guestapi\.images|idmap\.isolated"
    r"|nesting|privileged|protection\.(delete|shift|start)|secureboot|sev|sev\.policy\.es"
    r"|syscalls\.(deny_compat|deny_default|intercept\.[a-z_]+|intercept\.mount\.shift))|snapshots\.schedule\.stopped"
    r"|readonly|required|recursive|shift|security\.(mac|ipv4|ipv6)_filtering|security\.port_isolation|nat|proxy_protocol"
)
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


def size(text: str) -> t.Optional[int]:
    """The bytes of a size such as 512MiB or 0.5GiB, or None."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2] not in _UNITS:
        return None
    whole, _dot, part = match[1].partition(".")
    return int(whole) * _UNITS[match[2]] + (int(part) * _UNITS[match[2]] // 10 ** len(part) if part else 0)


def canonical(key: str, value: str) -> str:
    """One text for all values of a config key, or of a device's option, that mean the same."""
    if _SIZES.fullmatch(key):
        found = size(value)
        return value if found is None else str(found)
    if _BOOLEANS.fullmatch(key):
        word = value.lower()
        return "true" if word in _TRUE else "false" if word in _FALSE else value
    return value


def same(key: str, one: str, other: str) -> bool:
    """Whether two values of a config key mean the same."""
    return one == other or canonical(key, one) == canonical(key, other)


def canonical_device(options: t.Mapping[str, str]) -> dict[str, str]:
    """A device with the canonical value of each option; the server drops what is empty."""
    return {key: canonical(key, value) for key, value in options.items() if value}


def same_device(one: t.Optional[t.Mapping[str, str]], other: t.Mapping[str, str]) -> bool:
    """Whether two devices mean the same. None: there is none."""
    return one is not None and canonical_device(one) == canonical_device(other)
