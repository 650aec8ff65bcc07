# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What a copy does not take over from what it is a copy of: what only one of the two can have. Pure."""

from __future__ import annotations

import typing as t

from .. import _keys
from .._server.snapshot import Instance
from .update import recorded, stale

# What only one NIC of a network can have.
UNIQUE = ("ipv4.address", "ipv6.address", "hwaddr")


def plain(options: t.Mapping[str, str]) -> dict[str, str]:
    """A device without what only one can have."""
    return {key: value for key, value in options.items() if key not in UNIQUE}


def nics(source: Instance) -> dict[str, dict[str, str]]:
    """The NICs of an instance or a snapshot as a copy is to have them, where that is not as they are. The pins that we
    have made ourselves are not among them: they do not outlive the making of the copy."""
    last = recorded(source)
    pins = set(stale(last.get("devices"), source.devices, ())) & set(map(str, last.get("pins") or ()))
    return {
        name: plain(options)
        for name, options in source.devices.items()
        if options.get("type") == "nic" and name not in pins and plain(options) != dict(options)
    }


def inert(source: Instance, label: str) -> dict[str, str]:
    """What somebody has written onto the source by hand, with a mark that it is another's: the copy publishes nothing
    of it, and its first update takes it away."""
    return {
        key: _keys.encode(source.config[key], source.project, label)
        for key in _keys.ALL
        if key != _keys.MANAGED and source.config.get(key) and not _keys.whose(source.config, key)
    }
