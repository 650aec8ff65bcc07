# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Which changes a running instance takes up at once, which wait for its next start, and which are refused until it is
stopped. Pure.

The tables follow the servers: the column "Live update" of their documentation of instance options, what ``Update`` of
their drivers for LXC and QEMU does with a key, and ``CanHotPlug`` and ``UpdatableFields`` of their devices, as of
LXD 5.0 and Incus 6.0.
"""

from __future__ import annotations

import re
import typing as t

from .._server.snapshot import Instance
from . import values
from .update import waits

CONTAINER, VM = "container", "virtual-machine"
LIVE, NEXT_START, REFUSED = "live", "next start", "refused"
PRIVILEGED = "security.privileged"
Devices = t.Mapping[str, t.Mapping[str, str]]

# A container takes every key; these it reads when it starts.
_CONTAINER_START = re.compile(
    r"linux\.sysctl\..*|limits\.kernel\..*|nvidia\..*|raw\.(idmap|lxc|seccomp)|security\.(privileged|idmap\..*)"
    r"|security\.syscalls\.(?!intercept\.mount\.(allowed|fuse|shift)$).*|(cloud-init\.|user\.)(user-data|vendor-data|network-config)"
)
# Of these, saying false is saying nothing.
_OFF = re.compile(
    r"nvidia\.runtime|security\.(privileged|idmap\.isolated|syscalls\.(deny_compat|intercept\.(?!mount\.)[a-z_]+))"
)
# A virtual machine that runs refuses all other keys, but for those of containers, which mean nothing to it.
_VM_TAKEN = re.compile(
    r"cluster\.evacuate|limits\.memory|security\.(agent\.metrics|csm|devlxd|guestapi|protection\.delete|secureboot)"
    r"|(boot|cloud-init|environment|image|snapshots|user|volatile)\..*"
)
_VM_START = re.compile(
    r"security\.(csm|secureboot)|(cloud-init\.|user\.)(user-data|vendor-data|network-config)", re.ASCII
)
_CONTAINER_ONLY = re.compile(
    r"linux\..*|limits\.(kernel|hugepages)\..*|limits\.(processes|cpu\.(allowance|priority)|memory\.(enforce|swap.*))"
    r"|migration\.incremental\..*|nvidia\..*|raw\.(idmap|lxc|seccomp)"
    r"|security\.(devlxd\.images|guestapi\.images|idmap\..*|nesting|privileged|protection\.shift|syscalls\..*)"
)
# Devices that cannot be plugged while the instance runs, as type or type/kind.
_COLD = {
    CONTAINER: {"gpu/mig", "nic/ipvlan"},
    VM: {"gpu", "infiniband", "nic/ipvlan", "tpm", "unix-block", "unix-char", "unix-hotplug"},
}
# Options of devices that change without unplugging.
_UPDATABLE = {
    "disk": re.compile(r"limits\.(max|read|write)|size(\.state)?"),
    "nic": re.compile(
        r"limits\.(ingress|egress|max|priority)|ipv[46]\.(address|routes|routes\.external)"
        r"|security\.(acls.*|mac_filtering|ipv4_filtering|ipv6_filtering)"
    ),
}


def key_effect(kind: str, key: str, old: str, new: str, extensions: t.Container[str]) -> str:
    """What a running instance does with a changed key."""
    if kind == CONTAINER:
        off = "false" if _OFF.fullmatch(key) else ""
        return LIVE if values.same(key, old or off, new or off) or not _CONTAINER_START.fullmatch(key) else NEXT_START
    if key == "limits.cpu":
        # Cores can be plugged, pinned ones cannot.
        plain = all(value.isdigit() or not value for value in (old, new))
        return LIVE if plain and "cpu_hotplug" in extensions else REFUSED
    if _VM_START.fullmatch(key):
        return LIVE if values.same(key, old, new) else NEXT_START
    return LIVE if _VM_TAKEN.fullmatch(key) or _CONTAINER_ONLY.fullmatch(key) else REFUSED


def device_effect(
    kind: str, old: t.Optional[t.Mapping[str, str]], new: t.Optional[t.Mapping[str, str]], flavor: str
) -> str:
    """What a running instance does with a device that comes, changes or goes (None: there is none)."""
    if old == new:
        return LIVE
    if old and new and old.get("type") == new.get("type"):
        changed = {key for key in {*old, *new} if old.get(key) != new.get(key)}
        updatable = _UPDATABLE.get(old.get("type", ""))
        if updatable and all(updatable.fullmatch(key) for key in changed):
            return LIVE
    return REFUSED if any(_is_cold(kind, one, flavor) for one in (old, new) if one) else LIVE


def _is_cold(kind: str, options: t.Mapping[str, str], flavor: str) -> bool:
    name = options.get("type", "")
    detail = options.get("nictype") or options.get("gputype") or ""
    if kind == VM and name == "disk" and flavor == "lxd":
        # LXD cannot share a folder with a virtual machine that runs.
        return bool(options.get("path"))
    return name in _COLD[kind] or f"{name}/{detail}" in _COLD[kind]


def is_privileged(config: t.Mapping[str, str]) -> bool:
    """Whether config, that of the profiles included, makes a container privileged."""
    return values.same(PRIVILEGED, config.get(PRIVILEGED, ""), "true")


def was_privileged(existing: t.Optional[Instance]) -> bool:
    """Whether a container is privileged, or may be until it starts again."""
    return existing is not None and (
        is_privileged(existing.expanded_config) or f"config.{PRIVILEGED}" in waits(existing)
    )


class Effects(t.NamedTuple):
    """What of a change waits: ``start`` for the next start, ``refused`` until the instance is stopped. Both hold what
    is told: ``config.raw.lxc``, ``devices.gpu0``."""

    start: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """Everything that waits, sorted."""
        return tuple(sorted({*self.start, *self.refused}))


def effects(
    existing: Instance, config: t.Mapping[str, str], devices: Devices, extensions: t.Container[str], flavor: str
) -> Effects:
    """Compare what a running instance has, its profiles included, with what it will have."""
    start, refused = [], []
    now = existing.expanded_config
    for key in {*now, *config}:
        old, new = now.get(key, ""), config.get(key, "")
        effect = LIVE if old == new else key_effect(existing.type, key, old, new, extensions)
        start += [f"config.{key}"] if effect == NEXT_START else []
        refused += [f"config.{key}"] if effect == REFUSED else []
    for name in {*existing.expanded_devices, *devices}:
        old_device, new_device = existing.expanded_devices.get(name), devices.get(name)
        if device_effect(existing.type, old_device, new_device, flavor) == REFUSED:
            refused.append(f"devices.{name}")
    unshifted = _unshifted(existing, devices)
    if unshifted and was_privileged(existing) and not is_privileged(config):
        # Both go together: mounted as they are, the owners would be nobody's.
        refused += [*unshifted, f"config.{PRIVILEGED}"]
    return Effects(tuple(sorted(start)), tuple(sorted(set(refused))))


def _unshifted(existing: Instance, devices: Devices) -> list[str]:
    """The devices whose owners are to be shifted, which no container can take as long as it is privileged."""
    return [
        f"devices.{name}"
        for name, options in devices.items()
        if values.same("shift", options.get("shift", ""), "true") and options != existing.expanded_devices.get(name)
    ]
