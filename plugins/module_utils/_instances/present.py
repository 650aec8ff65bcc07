# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""How instances and their changes are shown: diffs for people, and return values. Pure."""

from __future__ import annotations

import dataclasses
import typing as t

from .. import _inventory, _keys
from .._plan import Change
from .._server.snapshot import Address, Instance, Snapshot
from .addresses import NOWHERE
from .expected import blank
from .observed import InstanceChange
from .spec import Desired, InstanceSpec
from .states import STATUS
from .update import Devices, desired_update, waits


def present(
    desired: Desired, snapshot: Snapshot, changes: t.Iterable[Change], carried_out: bool, errors: t.Mapping[str, str]
) -> list[dict[str, t.Any]]:
    """One mapping for each item, in the order of the input, then for each that is pruned. Where the changes were not
    carried out (check mode), what will be: status, addresses and keys as planned."""
    by_name = {change.spec.name: change for change in changes if isinstance(change, InstanceChange) and change.spec}
    declared = {item.name for item in desired.items}
    pruned = [change.spec for name, change in by_name.items() if name not in declared and change.spec]
    return [
        _presented(item, snapshot, by_name.get(item.name), carried_out, errors.get(item.name, ""))
        for item in (*desired.items, *pruned)
    ]


def found(existing: Instance, snapshot: Snapshot) -> dict[str, t.Any]:
    """What the server says of one instance, in the shape of a return value."""
    name = _inventory.names([existing])[0][existing.project, existing.name]
    addresses = snapshot.addresses(existing)
    return {
        "name": existing.name,
        "inventory_name": name,
        "project": existing.project,
        "type": existing.type,
        "status": existing.status,
        "location": existing.location,
        **_address_values(addresses),
        "groups": list(_inventory.groups(existing, snapshot.trusts(existing))),
        "keys": {key: value for key, value in existing.config.items() if key in _keys.ALL},
    }


def _presented(
    item: InstanceSpec, snapshot: Snapshot, change: t.Optional[InstanceChange], carried_out: bool, error: str
) -> dict[str, t.Any]:
    existing = snapshot.find(item.project, item.name) or blank(item)
    if change and change.body and not carried_out:
        # Made anew: nothing of the old one stays.
        existing = blank(item)
    value = found(existing, snapshot)
    if change and not carried_out:
        value.update(_foreseen(item, existing, snapshot, change))
    value.update(
        inventory_name=item.inventory_name,
        changed=bool(change and change.steps),
        actions=list(change.steps) if change else [],
        error=error,
        restart_required=_restart_required(existing, change, carried_out),
    )
    return value


def _foreseen(item: InstanceSpec, existing: Instance, snapshot: Snapshot, change: InstanceChange) -> dict[str, t.Any]:
    """What will be said of it when the change is carried out."""
    if item.state == "absent":
        return found(blank(item), snapshot)
    target = desired_update(item, existing, change.pins, change.notes)
    config = {key: text for key, text in {**existing.config, **target.config}.items() if text}
    profiles = tuple(change.body.get("profiles") or ("default",)) if change.body else target.profiles
    profiles = existing.profiles if profiles is None else profiles
    future = dataclasses.replace(existing, status=STATUS[item.state], config=config, profiles=profiles)
    planned = _planned(snapshot.addresses(existing), change.pins, target.drop_devices, future.running)
    return {
        "status": future.status,
        "groups": list(_inventory.groups(future, snapshot.trusts(future))),
        "keys": {key: text for key, text in config.items() if key in _keys.ALL},
        **_address_values(planned),
    }


def _restart_required(existing: Instance, change: t.Optional[InstanceChange], carried_out: bool) -> list[str]:
    """What the instance has not taken up, and will not before its next start."""
    if carried_out or change is None:
        return list(waits(existing))
    return list(change.waits)


def _address_values(addresses: t.Sequence[Address]) -> dict[str, t.Any]:
    ipv4 = [one.address for one in addresses if one.family == 4]
    return {"address": ipv4[0] if ipv4 else "", "addresses": [one._asdict() for one in addresses]}


def _planned(now: t.Sequence[Address], pins: Devices, dropped: t.Container[str], runs: bool) -> list[Address]:
    """A pin that goes leaves the address that it has until it stops."""
    coming = [
        Address(device, options.get("network") or options.get("parent") or "", family, address, True)
        for device, options in pins.items()
        for family, address in ((4, options.get("ipv4.address", "")), (6, options.get("ipv6.address", "")))
        if address not in NOWHERE
    ]
    moved = {(one.device, one.family) for one in coming}
    kept = [one._replace(pinned=one.pinned and one.device not in dropped) for one in now]
    kept = [one for one in kept if (one.pinned or runs) and (one.device, one.family) not in moved]
    return sorted([*kept, *coming])
