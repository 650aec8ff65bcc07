# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""An instance as it will be: not there yet, or after what is declared. Pure."""

from __future__ import annotations

import dataclasses
import typing as t

from .._server.published import ABSENT
from .._server.snapshot import Instance
from . import settle
from .observed import Observed
from .spec import InstanceSpec
from .update import Devices, Update, recorded, stale


def blank(item: InstanceSpec) -> Instance:
    """The instance that is not there yet."""
    return Instance(item.project, item.name, ABSENT, item.type, "", "", False, (), {}, {}, {}, {})


def first_profiles(item: InstanceSpec, observed: Observed, items: t.Iterable[InstanceSpec]) -> tuple[str, ...]:
    """The profiles that a new instance will have: the declared ones, those of what it is a copy of, or the default."""
    if item.profiles is not None or item.copy_of is None:
        return ("default",) if item.profiles is None else item.profiles
    source = observed.snapshot.find(item.project, item.copy_of.name)
    if source:
        return source.profiles
    declared = [one for one in items if one.name == item.copy_of.name and one is not item]
    return first_profiles(declared[0], observed, ()) if declared else ("default",)


def unborn(
    item: InstanceSpec, profiles: t.Sequence[str], observed: Observed, old: t.Optional[Instance] = None
) -> Instance:
    """An instance as it will be right after its creation, with the devices of its profiles; in place of an ``old`` one
    it keeps the address that we have pinned that one to."""
    source = observed.snapshot.find(item.project, item.copy_of.name) if item.copy_of else None
    own: Devices = source.devices if source else {}
    copied = {
        name: {key: value for key, value in options.items() if key not in ("ipv4.address", "ipv6.address", "hwaddr")}
        for name, options in own.items()
    }
    devices = {**devices_of(profiles, observed), **copied, **item.devices}
    return dataclasses.replace(blank(item), expanded_devices=_with_old_pins(devices, old) if old else devices)


def future(item: InstanceSpec, existing: Instance, observed: Observed) -> Instance:
    """An instance with the devices that it will have. A pin of ours is made anew where its profiles change, or a device
    is declared no longer; its address stays as long as the network does."""
    devices = dict(existing.expanded_devices)
    if has_other_nics(item, existing):
        ours = _as_left(existing)
        others = {name: options for name, options in existing.devices.items() if name not in ours}
        profiles = existing.profiles if item.profiles is None else item.profiles
        devices = {**devices_of(profiles, observed), **others}
    devices.update(item.devices)
    return dataclasses.replace(existing, expanded_devices=_with_old_pins(devices, existing))


def _with_old_pins(devices: Devices, existing: Instance) -> dict[str, t.Mapping[str, str]]:
    found = dict(devices)
    written = recorded(existing).get("devices") or {}
    for name, options in found.items():
        was = existing.devices.get(name) or {}
        if name in written and was.get("ipv4.address") and was.get("network") == options.get("network"):
            found[name] = {"ipv4.address": was["ipv4.address"], **options}
    return found


def has_other_nics(item: InstanceSpec, existing: Instance) -> bool:
    """Whether what is there now does not say which devices there will be."""
    if item.profiles is not None and item.profiles != existing.profiles:
        return True
    return bool(_as_left(existing) - set(map(str, recorded(existing).get("pins") or ())) - settle.names(item, existing))


def _as_left(existing: Instance) -> set[str]:
    """The devices that the last run wrote and nobody has changed since."""
    last = recorded(existing).get("devices")
    return set(stale(last, existing.devices, ()))


def devices_of(profiles: t.Iterable[str], observed: Observed) -> dict[str, t.Mapping[str, str]]:
    """The devices of profiles, the last one first to be asked."""
    devices: dict[str, t.Mapping[str, str]] = {}
    for name in profiles:
        devices.update(observed.profiles.get(name) or {})
    return devices


def expanded(
    item: InstanceSpec, existing: Instance, target: Update, observed: Observed
) -> tuple[dict[str, str], dict[str, t.Mapping[str, str]]]:
    """Config and devices after an update, those of the profiles included."""
    own_config = {key: value for key, value in {**existing.config, **target.config}.items() if value}
    kept = {name: options for name, options in existing.devices.items() if name not in target.drop_devices}
    own_devices = {**kept, **target.devices}
    if observed.profiles:
        profiles = existing.profiles if target.profiles is None else target.profiles
        config: dict[str, str] = {}
        for name in profiles:
            config.update(observed.profile_config.get(name) or {})
        return {**config, **own_config}, {**devices_of(profiles, observed), **own_devices}
    # The profiles stay as they are, and what they bring shows in what is there now.
    config = {key: value for key, value in existing.expanded_config.items() if key not in existing.config}
    devices = {name: one for name, one in existing.expanded_devices.items() if name not in existing.devices}
    return {**config, **own_config}, {**devices, **own_devices}
