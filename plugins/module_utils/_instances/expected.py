# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""An instance as it will be: not there yet, or after what is declared. Pure."""

from __future__ import annotations

import dataclasses
import typing as t

from .. import _keys
from .._server.published import ABSENT
from .._server.snapshot import Instance
from . import copies, settle
from .observed import Observed
from .spec import InstanceSpec
from .update import Devices, Update, desired_update, recorded, stale, uuid_of


def config_of(
    item: InstanceSpec, existing: t.Optional[Instance], profiles: t.Iterable[str], observed: Observed
) -> dict[str, str]:
    """The config that an instance has or will have besides what its item says; without what it is to lose."""
    gone = losing(item, existing) if existing else ()
    if existing and item.profiles in (None, existing.profiles) and not (gone and observed.profiles):
        return {key: value for key, value in existing.expanded_config.items() if key not in gone}
    found: dict[str, str] = {}
    for name in existing.profiles if existing and item.profiles is None else profiles:
        found.update(observed.profile_config.get(name) or {})
    own = existing or source_of(item, observed)
    return {**found, **{key: value for key, value in (own.config if own else {}).items() if key not in gone}}


def losing(item: InstanceSpec, existing: Instance) -> tuple[str, ...]:
    """The keys of config that the last run wrote and the item no longer says."""
    return stale(recorded(existing).get("config"), existing.config, item.config, uuid_of(existing))


def blank(item: InstanceSpec) -> Instance:
    """The instance that is not there yet."""
    return Instance(item.project, item.name, ABSENT, item.type, "", "", False, (), {}, {}, {}, {})


def with_uuid(item: InstanceSpec, config: t.Mapping[str, str], pins: Devices, uuid: str) -> dict[str, str]:
    """The config of a new instance whose UUID is known beforehand: its record keeps no secret that can be guessed."""
    born = dataclasses.replace(blank(item), config={"volatile.uuid": uuid})
    record = desired_update(item, born, pins).config[_keys.MANAGED]
    return {**config, "volatile.uuid": uuid, _keys.MANAGED: record}


def first_profiles(item: InstanceSpec, observed: Observed, items: t.Iterable[InstanceSpec]) -> tuple[str, ...]:
    """The profiles that a new instance will have: the declared ones, those of what it is a copy of, or the default."""
    if item.profiles is not None or item.copy_of is None:
        return ("default",) if item.profiles is None else item.profiles
    source = source_of(item, observed)
    if source:
        return source.profiles
    declared = [one for one in items if one.name == item.copy_of.name and one is not item]
    return first_profiles(declared[0], observed, ()) if declared else ("default",)


def source_of(item: InstanceSpec, observed: Observed) -> t.Optional[Instance]:
    """The instance or the snapshot that an item is a copy of, if it is there."""
    if item.copy_of is None:
        return None
    if item.copy_of.snapshot:
        return observed.snapshots.get(item.copy_of.name, {}).get(item.copy_of.snapshot)
    return observed.snapshot.find(item.project, item.copy_of.name)


def unborn(
    item: InstanceSpec, profiles: t.Sequence[str], observed: Observed, old: t.Optional[Instance] = None
) -> Instance:
    """An instance as it will be right after its creation, with the devices of its profiles; in place of an ``old`` one
    it keeps the address that we have pinned that one to."""
    source = source_of(item, observed)
    copied = {name: copies.plain(options) for name, options in (source.devices if source else {}).items()}
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
        if name in written and was.get("network") == options.get("network"):
            kept = {key: was[key] for key in ("ipv4.address", "ipv6.address") if was.get(key)}
            found[name] = {**kept, **options}
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
