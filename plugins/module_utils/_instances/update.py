# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What is to be written onto one instance: three ways, between what is declared, what the last run declared and what is
there now. Pure."""

from __future__ import annotations

import dataclasses
import hashlib
import typing as t

from .. import _keys
from .._server.snapshot import Instance
from .._values import canonical_json
from . import values
from .config import is_secret
from .spec import InstanceSpec
from .states import like

Devices = t.Mapping[str, t.Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class Update:
    """What is written onto an existing instance. An empty text in ``config`` removes the key."""

    config: t.Mapping[str, str]
    devices: Devices
    drop_devices: tuple[str, ...] = ()
    profiles: t.Optional[tuple[str, ...]] = None
    description: t.Optional[str] = None
    ephemeral: t.Optional[bool] = None

    @property
    def empty(self) -> bool:
        """Whether nothing is written."""
        nothing = self.profiles is None and self.description is None and self.ephemeral is None
        return nothing and not (self.config or self.devices or self.drop_devices)

    @property
    def parts(self) -> tuple[str, ...]:
        """What is written, in the words of Notes, and the names of other fields; our own record where it is alone."""
        found = [f"config.{key}" for key in self.config if key != _keys.MANAGED]
        found += [f"devices.{name}" for name in (*self.devices, *self.drop_devices)]
        found += [name for name in ("profiles", "description", "ephemeral") if getattr(self, name) is not None]
        return tuple(sorted(found)) or tuple(f"config.{key}" for key in self.config)


@dataclasses.dataclass(frozen=True)
class Notes:
    """What an update records besides what is declared, so that it is not asked or done again.

    ``python``: an interpreter is known to be there. ``ready``: what is waited for has come true. ``waits``: parts of
    this update that the instance takes up at its next start, or that ask for a restart anyway. ``held``: parts that are
    left out, since the server refuses them while the instance runs. Both as ``config.KEY`` or ``devices.NAME``, and
    names of other fields such as ``profiles``.
    ``starts``: a start comes after this update, and what had come true has to come true again.
    """

    python: bool = False
    ready: bool = False
    waits: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    starts: bool = False


NOTHING = Notes()


def digest(value: t.Any, key: str = "") -> str:
    """The hash of a declared value that is kept on the instance: 16 hexadecimal digits of SHA-256. Values that mean
    the same have the same."""
    if isinstance(value, str):
        value = values.canonical(key, value)
    elif isinstance(value, dict):
        value = values.canonical_device(value)
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def guarded(value: str, key: str, uuid: str) -> str:
    """The hash of a value of config that is kept on the instance. A guest can read it: that of a secret is mixed with
    the instance's own UUID, which no container knows, so that nobody can try passwords against it."""
    if not is_secret(key):
        return digest(value, key)
    return digest([uuid, key, value]) if uuid else ""


def uuid_of(existing: Instance) -> str:
    """What the server alone tells an instance by."""
    return existing.config.get("volatile.uuid", "")


def is_its_uuid(kept: object, existing: Instance) -> bool:
    """Whether a record is that of this instance, not of one that it is a copy of. Once, the UUID itself was kept."""
    uuid = uuid_of(existing)
    return bool(uuid) and kept in (uuid, digest(uuid))


def desired_update(item: InstanceSpec, existing: Instance, pins: Devices, notes: Notes = NOTHING) -> Update:
    """What is to be written so that an instance is as declared: three ways, between what is declared, what the last
    run declared (with hashes of the values) and what is there now. What others set is left alone."""
    last = recorded(existing)
    config, devices = _declared_config(item), {**item.devices, **pins}
    record = _recorded_now(item, existing, config, devices, pins, notes)
    config[_keys.MANAGED] = _keys.encode(record, item.project, item.name)
    # To a server, an empty value is none.
    changed = {key: value for key, value in config.items() if not values.same(key, existing.config.get(key, ""), value)}
    for key in (*stale(last.get("config"), existing.config, config, uuid_of(existing)), *_copied(existing)):
        changed.setdefault(key, "")
    held = set(notes.held)
    profiles = None if "profiles" in held or item.profiles == existing.profiles else item.profiles
    return Update(
        config={key: value for key, value in changed.items() if f"config.{key}" not in held},
        devices={
            name: options
            for name, options in devices.items()
            if not values.same_device(existing.devices.get(name), options) and f"devices.{name}" not in held
        },
        drop_devices=tuple(
            name for name in stale(last.get("devices"), existing.devices, devices) if f"devices.{name}" not in held
        ),
        profiles=profiles,
        description=item.description if item.description not in (None, existing.description) else None,
        ephemeral=item.ephemeral if item.ephemeral not in (None, existing.ephemeral) else None,
    )


def _recorded_now(
    item: InstanceSpec,
    existing: Instance,
    config: t.Mapping[str, str],
    devices: Devices,
    pins: Devices,
    notes: Notes,
) -> dict[str, t.Any]:
    last = recorded(existing)
    record: dict[str, t.Any] = {
        "config": {key: guarded(value, key, uuid_of(existing)) for key, value in config.items()},
        "devices": {key: digest(value) for key, value in devices.items()},
    }
    _keep_held(record, last, notes.held)
    made = sorted(set(pins) - set(item.devices))
    if made:
        record["pins"] = made
    if notes.python or (item.python and last.get("python")):
        record["python"] = True
    if item.wait_for and (notes.ready or (is_ready(item, existing) and not notes.starts)):
        record["ready"] = expectation(item)
    if item.depends_on:
        record["depends_on"] = list(item.depends_on)
    made_of = origin(item) or last.get("image")
    if made_of:
        record["image"] = made_of
    waiting = {*waits(existing), *notes.waits}
    if waiting != set(waits(existing)):
        record["restart"] = {"keys": sorted(waiting), "since": existing.last_used}
    elif "restart" in last:
        record["restart"] = last["restart"]
    # It tells a renamed instance from a copy. Alone, it is not worth a write.
    uuid = uuid_of(existing)
    if uuid and record != {key: value for key, value in last.items() if key != "uuid"}:
        record["uuid"] = digest(uuid)
    elif "uuid" in last:
        record["uuid"] = last["uuid"]
    return record


def _keep_held(record: dict[str, t.Any], last: t.Mapping[str, t.Any], held: t.Iterable[str]) -> None:
    """What is left out is still as the last run left it, or as it was before."""
    for kind, _dot, key in (part.partition(".") for part in held):
        hashes = record.get(kind, {})
        hashes.pop(key, None)
        if key in last.get(kind, {}):
            hashes[key] = last[kind][key]


def expectation(item: InstanceSpec) -> str:
    """The hash of what an instance is waited for."""
    return digest([str(one) for one in item.wait_for or ()])


def is_ready(item: InstanceSpec, existing: Instance) -> bool:
    """Whether it is recorded that what an instance is waited for has come true."""
    return recorded(existing).get("ready") == expectation(item)


def origin(item: InstanceSpec) -> str:
    """What an item says that it is made from."""
    if item.copy_of:
        return f"copy of {item.copy_of}"
    return str(item.image) if item.image else ""


def waits(existing: Instance) -> tuple[str, ...]:
    """What an earlier run has written and the instance has not taken up: it has not been started since."""
    restart = recorded(existing).get("restart") or {}
    keys, since = restart.get("keys"), restart.get("since")
    if like(existing.status) == "Stopped" or since != existing.last_used or not isinstance(keys, list):
        return ()
    return tuple(sorted(key for key in keys if isinstance(key, str)))


def _copied(existing: Instance) -> tuple[str, ...]:
    """The keys that say what another instance publishes."""
    place = (existing.project, existing.name)
    return tuple(key for key in _keys.ALL if _keys.of_another(existing.config, key, *place) is not None)


def stale(last: object, present: t.Mapping[str, t.Any], declared: t.Container[str], uuid: str = "") -> tuple[str, ...]:
    """What the last run declared, is no longer declared, and is still as it was left. Of a secret, earlier releases
    have kept a plain hash."""
    if not isinstance(last, dict):
        return ()
    return tuple(
        key
        for key, was in sorted(last.items())
        if key not in declared
        and key in present
        and (was == digest(present[key], key) or (uuid and was == guarded(present[key], key, uuid)))
    )


def recorded(instance: Instance) -> dict[str, t.Any]:
    """What the last run wrote of its declaration; empty for an instance of somebody else. A copy has the pins of what
    it was copied from, and they are no use to it."""
    place = (instance.config, _keys.MANAGED, instance.project, instance.name)
    found = _record(_keys.decode(*place).value)
    other = _record(_keys.of_another(*place))
    if other:
        pins = {name: was for name, was in other.get("devices", {}).items() if name in other.get("pins", ())}
        return {"pins": list(pins), "devices": pins}
    return found


def _record(value: object) -> dict[str, t.Any]:
    """The parts of a record that are what they should be: somebody else may have written it."""
    kinds = {
        "config": dict,
        "depends_on": list,
        "devices": dict,
        "image": str,
        "pins": list,
        "python": bool,
        "ready": str,
        "restart": dict,
        "uuid": str,
    }
    known = value.items() if isinstance(value, dict) else ()
    return {key: held for key, held in known if key in kinds and isinstance(held, kinds[key])}


def _declared_config(item: InstanceSpec) -> dict[str, str]:
    config = dict(item.config)
    published: dict[str, t.Any] = {
        _keys.NAT: [entry.to_json() for entry in item.nat],
        _keys.PROXY: [route.to_json() for route in item.proxy],
        _keys.HOSTNAMES: list(item.hostnames),
        _keys.OWNER: item.owner,
        _keys.INVENTORY_NAME: item.inventory_name if item.inventory_name != item.name else "",
    }
    for key, value in published.items():
        if value:
            config[key] = _keys.encode(value, item.project, item.name)
    return config
