# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What has to happen so that a list of instances becomes true. Pure."""

from __future__ import annotations

import dataclasses
import typing as t

from .. import _keys
from .._plan import Change, Plan
from .._server.published import ABSENT
from .._server.snapshot import Instance, Network, Snapshot
from .._values import Problems, nearest, show
from . import addresses, fetches, images, mounts, pins, settle, shown
from .spec import Desired, InstanceSpec
from .update import Devices, desired_update, recorded, stale


@dataclasses.dataclass(frozen=True)
class Observed:
    """What the server says. The parts after ``snapshot`` are read only where ``needs()`` asks for them.

    ``everywhere`` are the instances of all projects, ``profiles`` maps names to devices, ``networks`` names to
    networks, ``images`` aliases and fingerprints, ``python`` instance names to what the probe said, ``folders`` the
    sources of mounts to what is known of them where the server is on this machine, ``files``
    files of images to their fingerprints.
    """

    snapshot: Snapshot
    everywhere: tuple[Instance, ...] = ()
    profiles: t.Mapping[str, Devices] = dataclasses.field(default_factory=dict)
    networks: t.Mapping[str, Network] = dataclasses.field(default_factory=dict)
    images: frozenset[str] = frozenset()
    python: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    folders: t.Mapping[str, mounts.Folder] = dataclasses.field(default_factory=dict)
    files: t.Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Needs:
    """What has to be read besides the list of instances."""

    pins: bool
    images: bool
    profiles: bool
    python: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class InstanceChange(Change):
    """What happens to one instance: ``steps`` in order, out of create, update, start, stop, delete, python.

    ``pins`` maps NIC devices to the device that pins them; ``body`` is the request that creates the instance.
    """

    spec: t.Optional[InstanceSpec] = None
    steps: tuple[str, ...] = ()
    pins: Devices = dataclasses.field(default_factory=dict)
    body: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)


def needs(desired: Desired, snapshot: Snapshot) -> Needs:
    """What else must be known to plan. For a list that is true already: nothing."""
    pins = images = profiles = False
    shared = addresses.pinned(snapshot.instances)
    python = []
    for item in desired.items:
        existing = snapshot.find(item.project, item.name)
        if item.state == "absent":
            continue
        if existing is None:
            images = images or item.copy_of is None
            pinned = item.publishes or item.address is not None
            pins = pins or pinned
            profiles = profiles or pinned or item.profiles is not None or bool(item.disk)
        else:
            moves = _has_other_nics(item, existing)
            unpinned = any(not nic.ipv4 or addresses.has_to_move(existing, nic, shared) for nic in existing.nics)
            unmet = item.address is not None and (moves or _not_as_wished(item, existing, shared))
            pins = pins or unmet or (item.publishes and (moves or unpinned))
            profiles = profiles or moves
            if item.python and existing.running and not recorded(existing).get("python"):
                python.append(existing.name)
    return Needs(pins, images, profiles, tuple(python))


def _not_as_wished(item: InstanceSpec, existing: Instance, shared: addresses.Pinned) -> bool:
    nic = pins.wished_nic(item, existing)
    if nic is None or item.address is None:
        return item.address is not None
    return not item.address.met(nic.ipv4, nic.ipv6) or addresses.has_to_move(existing, nic, shared)


def plan(desired: Desired, observed: Observed, check_mode: bool) -> Plan:
    """The changes, one for each instance that is not as declared. Raises InvalidInput for what cannot be done.

    In check mode an image that is not there yet is a warning, since an earlier step may be going to bring it.
    """
    problems, warnings = Problems(), list(desired.warnings)
    everywhere = observed.everywhere or observed.snapshot.instances
    fixed = [item.address.ipv4 for item in desired.items if item.address and item.state != "absent"]
    picker = pins.Picker(observed.networks, everywhere, observed.snapshot.leases, desired.declared, fixed)
    changes: list[Change] = []
    created: list[InstanceSpec] = []
    names = {item.name for item in desired.items if item.state != "absent"}
    for said in desired.items:
        existing = observed.snapshot.find(said.project, said.name)
        item = _settled(said, existing, observed, problems, warnings)
        if existing is None and item.state != "absent":
            item = fetches.known(item, observed.files, check_mode, problems)
            created.append(item)
        if item.state == "absent":
            change = _deletion(item, existing)
        elif existing is None:
            _check_new(item, observed, names if item.copy_of else (), check_mode, problems, warnings)
            change = _creation(item, observed, picker, problems, warnings)
        else:
            _check_existing(item, existing, observed, problems)
            change = _correction(item, existing, observed, picker, problems, warnings)
        if change:
            changes.append(change)
    problems.raise_if_any()
    return Plan((*fetches.fetches(created, observed.images), *changes), tuple(warnings))


def _settled(
    item: InstanceSpec, existing: t.Optional[Instance], observed: Observed, problems: Problems, warnings: list[str]
) -> InstanceSpec:
    if item.state == "absent":
        return item
    future = _future(item, existing, observed) if existing else _unborn(item, observed)
    devices, server = future.expanded_devices, observed.snapshot.server
    return settle.settle(item, existing, server, devices, observed.folders, problems, warnings)


# --- checks -----------------------------------------------------------------------------------------------------------


def _check_new(
    item: InstanceSpec,
    observed: Observed,
    names: t.Container[str],
    check_mode: bool,
    problems: Problems,
    warnings: list[str],
) -> None:
    path = f"{item.path}.image"
    if item.copy_of:
        if item.copy_of.name not in names and not observed.snapshot.find(item.project, item.copy_of.name):
            told = f"{item.path}.copy_of: {show(str(item.copy_of))}: there is no instance {item.copy_of.name}"
            if check_mode:
                warnings.append(told)
            else:
                problems.add_text(told)
    elif item.image is None:
        problems.add_text(f"{path}: missing: {item.name} does not exist, and an image is needed to create it")
    elif images.source(item.image, observed.images) is None:
        aliases = sorted(one for one in observed.images if len(one) != 64)
        hint = nearest(str(item.image), aliases) or (
            "; there are " + ", ".join(aliases) if aliases else "; there are none"
        )
        told = f"{path}: {show(str(item.image))}: no image on the server has this alias{hint}"
        if check_mode:
            warnings.append(told)
        else:
            problems.add_text(told + ". lxd_host_images of the role mage.lxd.lxd_host brings images")
    _check_profiles(item, observed, problems)


def _check_existing(item: InstanceSpec, existing: Instance, observed: Observed, problems: Problems) -> None:
    if existing.type != item.type:
        problems.add(
            f"{item.path}.type", item.type, f"{item.name} is a {existing.type}: delete it first, or give another name"
        )
    if item.profiles is not None and item.profiles != existing.profiles:
        _check_profiles(item, observed, problems)


def _check_profiles(item: InstanceSpec, observed: Observed, problems: Problems) -> None:
    for index, name in enumerate(item.profiles or ()):
        if name not in observed.profiles:
            hint = nearest(name, observed.profiles)
            problems.add(f"{item.path}.profiles[{index}]", name, f"there is no such profile{hint}")


# --- changes ----------------------------------------------------------------------------------------------------------


def _deletion(item: InstanceSpec, existing: t.Optional[Instance]) -> t.Optional[InstanceChange]:
    if existing is None:
        return None
    before = shown.as_text(
        {"status": existing.status, "profiles": list(existing.profiles), "image": shown.image_of(existing)}
    )
    return InstanceChange(f"instance {item.label}", "delete", before, "", item, ("delete",))


def _creation(
    item: InstanceSpec, observed: Observed, picker: pins.Picker, problems: Problems, warnings: list[str]
) -> InstanceChange:
    pinned = pins.pins(item, _unborn(item, observed), (), picker, problems, warnings)
    target = desired_update(item, blank(item), pinned, False)
    body: dict[str, t.Any] = {
        "name": item.name,
        "type": item.type,
        "source": _source(item, observed),
        "config": dict(target.config),
        "devices": {name: dict(options) for name, options in target.devices.items()},
        "description": item.description or "",
    }
    if item.copy_of:
        # The record that comes with the copy says which pins are the other's.
        body["config"].pop(_keys.MANAGED, None)
        body["profiles"] = list(_copied_profiles(item, observed))
    if item.profiles is not None:
        body["profiles"] = list(item.profiles)
    if item.ephemeral is not None:
        body["ephemeral"] = item.ephemeral
    # A copy has keys and pins of what it was made from.
    steps = ["create", "update"] if item.copy_of else ["create"]
    if item.state == "started":
        steps += ["start"] + (["python"] if item.python else [])
    after = {key: value for key, value in body.items() if key not in ("name", "source")}
    config = shown.readable(target.config, item.project, item.name)
    after["copy_of" if item.copy_of else "image"] = str(item.copy_of or item.image)
    after.update(state=item.state, config=config)
    told = ", ".join(steps)
    return InstanceChange(f"instance {item.label}", told, "", shown.as_text(after), item, tuple(steps), pinned, body)


def _copied_profiles(item: InstanceSpec, observed: Observed) -> tuple[str, ...]:
    """Those of what is copied, which LXD does not take over by itself."""
    source = observed.snapshot.find(item.project, item.copy_of.name) if item.copy_of else None
    return source.profiles if source else ("default",)


def _source(item: InstanceSpec, observed: Observed) -> dict[str, t.Any]:
    if item.copy_of:
        return {"type": "copy", "source": str(item.copy_of)}
    return (images.source(item.image, observed.images) if item.image else None) or {}


def _correction(
    item: InstanceSpec,
    existing: Instance,
    observed: Observed,
    picker: pins.Picker,
    problems: Problems,
    warnings: list[str],
) -> t.Optional[InstanceChange]:
    ours = recorded(existing).get("devices") or {}
    pinned = pins.pins(item, _future(item, existing, observed), ours, picker, problems, warnings)
    probe = observed.python.get(item.name, "")
    target = desired_update(item, existing, pinned, probe == "usable")
    steps = [] if target.empty else ["update"]
    if item.state == "started" and not existing.running:
        steps += ["start"]
    elif item.state == "stopped" and existing.status != "Stopped":
        steps += ["stop"]
    missing = probe != "usable" if existing.running else True
    if item.python and item.state == "started" and missing and not recorded(existing).get("python"):
        steps += ["python"]
    if not steps:
        return None
    before, after = shown.difference(existing, target)
    if "start" in steps or "stop" in steps:
        before["state"], after["state"] = existing.status.lower(), item.state
    if "python" in steps:
        after["python"] = "as modules need it"
    return InstanceChange(
        f"instance {item.label}",
        ", ".join(steps),
        shown.as_text(before),
        shown.as_text(after),
        item,
        tuple(steps),
        pinned,
    )


def blank(item: InstanceSpec) -> Instance:
    """The instance that is not there yet."""
    return Instance(item.project, item.name, ABSENT, item.type, "", "", False, (), {}, {}, {}, {})


def _unborn(item: InstanceSpec, observed: Observed) -> Instance:
    """An instance as it will be right after its creation, with the devices of its profiles."""
    source = observed.snapshot.find(item.project, item.copy_of.name) if item.copy_of else None
    profiles = item.profiles if item.profiles is not None else _copied_profiles(item, observed)
    own: Devices = source.devices if source else {}
    copied = {
        name: {key: value for key, value in options.items() if key not in ("ipv4.address", "ipv6.address", "hwaddr")}
        for name, options in own.items()
    }
    return dataclasses.replace(
        blank(item), expanded_devices={**_devices_of(profiles, observed), **copied, **item.devices}
    )


def _future(item: InstanceSpec, existing: Instance, observed: Observed) -> Instance:
    """An instance with the devices that it will have. A pin of ours is made anew where its profiles change, or a device
    is declared no longer; its address stays as long as the network does."""
    devices = dict(existing.expanded_devices)
    if _has_other_nics(item, existing):
        ours = _as_left(existing)
        others = {name: options for name, options in existing.devices.items() if name not in ours}
        profiles = existing.profiles if item.profiles is None else item.profiles
        devices = {**_devices_of(profiles, observed), **others}
    devices.update(item.devices)
    written = recorded(existing).get("devices") or {}
    for name, options in devices.items():
        was = existing.devices.get(name) or {}
        if name in written and was.get("ipv4.address") and was.get("network") == options.get("network"):
            devices[name] = {"ipv4.address": was["ipv4.address"], **options}
    return dataclasses.replace(existing, expanded_devices=devices)


def _has_other_nics(item: InstanceSpec, existing: Instance) -> bool:
    """Whether what is there now does not say which devices there will be."""
    if item.profiles is not None and item.profiles != existing.profiles:
        return True
    return bool(_as_left(existing) - set(map(str, recorded(existing).get("pins") or ())) - settle.names(item, existing))


def _as_left(existing: Instance) -> set[str]:
    """The devices that the last run wrote and nobody has changed since."""
    last = recorded(existing).get("devices")
    return set(stale(last, existing.devices, ()))


def _devices_of(profiles: t.Iterable[str], observed: Observed) -> dict[str, t.Mapping[str, str]]:
    devices: dict[str, t.Mapping[str, str]] = {}
    for name in profiles:
        devices.update(observed.profiles.get(name) or {})
    return devices
