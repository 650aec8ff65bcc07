# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""The devices of an instance, and bind mounts, which become devices. Pure."""

from __future__ import annotations

import dataclasses
import hashlib
import posixpath
import re
import typing as t

from .._values import Problems, boolean, mapping
from .config import scalar

Devices = t.Mapping[str, t.Mapping[str, str]]

STRING = re.compile(r"(/[^:\n]*):(/[^:\n]*)(?::(ro|rw))?")
KEYS = ("source", "path", "readonly", "shift", "owner", "acl")
RULE = 'must be "/source:/path" or "/source:/path:ro", or a mapping with ' + ", ".join(KEYS)
_OWNER = re.compile(r"([0-9]{1,10})(?::([0-9]{1,10}))?")
_DEVICE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder of the server's host: its filesystem, its owner, and whether the server may map that owner."""

    filesystem: str
    uid: int
    gid: int
    delegated: bool


@dataclasses.dataclass(frozen=True)
class Mount:
    """A folder of the host in an instance. ``device`` is its device's name, ``place`` where it stands in the input.

    ``shift`` is None where nothing was said: owners are shifted by the kernel if it can, else ``owner`` (user and group
    on the host; None: those of the folder) is mapped. ``acl``: the folder's access lists let the instance in instead.
    """

    place: str
    device: str
    source: str
    path: str
    readonly: bool = False
    shift: t.Optional[bool] = None
    owner: t.Optional[tuple[int, int]] = None
    acl: bool = False
    # Filled in by settle: the collection's own choice of shift; the server may map the owner.
    automatic: bool = False
    delegated: bool = True

    @property
    def options(self) -> dict[str, str]:
        """The options of its device, but for the owners."""
        options = {"type": "disk", "source": self.source, "path": self.path}
        return {**options, "readonly": "true"} if self.readonly else options


def parse_devices(raw: object, path: str, problems: Problems) -> dict[str, dict[str, str]]:
    """Devices by name, their options as text."""
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        problems.add(path, raw, "must be a mapping of devices, such as {data: {type: disk, source: /srv, path: /srv}}")
        return {}
    devices: dict[str, dict[str, str]] = {}
    for name, options in raw.items():
        place = f"{path}.{name}"
        if not isinstance(name, str) or not _DEVICE.fullmatch(name):
            problems.add(path, name, "is not the name of a device, such as data")
        elif not isinstance(options, dict) or options.get("type") is None:
            # Not shown: it may be a key of config in a wrong place.
            problems.add_text(f"{place}: must be a mapping with at least type, such as {{type: disk, path: /srv}}")
        else:
            devices[name] = _device(options, place, problems)
    return devices


def _device(options: t.Mapping[t.Any, t.Any], path: str, problems: Problems) -> dict[str, str]:
    device = {}
    for key, value in options.items():
        text = scalar(value) if value is not None else ""
        if text is None:
            problems.add_text(f"{path}.{key}: must be text, a number or a boolean")
        elif text:
            # The server drops what is empty.
            device[str(key)] = text
    return device


def parse(raw: t.Iterable[tuple[str, object]], devices: Devices, problems: Problems) -> tuple[Mount, ...]:
    """The mounts of an item, each given with its path in the input. ``devices`` are those that it declares."""
    found: dict[tuple[str, str], Mount] = {}
    for place, one in raw:
        mount = _mount(one, place, problems)
        if mount is None:
            continue
        key = mount.device, _plain(mount.path)
        taken = _is_at(devices.get(mount.device), mount.path) or _other_name(mount.path) in devices
        if taken or key in found:
            problems.add(place, one, f"there is a device or mount for {mount.path} already")
        else:
            found[key] = mount
    return named(tuple(found.values()), devices, {})


def named(mounts: t.Sequence[Mount], devices: Devices, there: Devices) -> tuple[Mount, ...]:
    """Mounts with the names of their devices, each another one. A device that is ``there`` keeps its name, wherever it
    stands in the list; ``devices`` are those that are declared."""
    kept = {mount.place: _kept(mount, devices, there) for mount in mounts}
    taken = {*devices, *kept.values()}
    found = []
    for mount in mounts:
        name = kept[mount.place] or _device_name(mount.path)
        if not kept[mount.place] and name in taken:
            name = _other_name(mount.path)
        taken.add(name)
        found.append(dataclasses.replace(mount, device=name))
    return tuple(found)


def _kept(mount: Mount, devices: Devices, there: Devices) -> str:
    """The name that a mount has already: among those that are declared, it is settled; or nothing."""
    if _is_at(devices.get(mount.device), mount.path):
        return mount.device
    names = (_other_name(mount.path), _device_name(mount.path))
    return next((name for name in names if name not in devices and _is_at(there.get(name), mount.path)), "")


def _is_at(device: t.Optional[t.Mapping[str, str]], path: str) -> bool:
    at = device.get("path") if device else None
    return bool(at) and _plain(str(at)) == _plain(path)


def _plain(path: str) -> str:
    return "/" + posixpath.normpath(path).lstrip("/")


def _mount(raw: object, path: str, problems: Problems) -> t.Optional[Mount]:
    if isinstance(raw, str):
        match = STRING.fullmatch(raw)
        if match:
            return Mount(path, _device_name(match[2]), match[1], match[2], match[3] == "ro")
        problems.add(path, raw, _rule(raw))
        return None
    before = len(problems)
    fields = mapping(raw, path, KEYS, problems)
    if fields is None or len(problems) > before:
        return None
    for key in ("source", "path"):
        value = fields.get(key)
        if not isinstance(value, str) or not value.startswith("/") or "\n" in value:
            problems.add(f"{path}.{key}", value, "must be an absolute path, such as /srv")
    readonly, shift, acl = (
        boolean(fields[key], f"{path}.{key}", problems) if key in fields else None
        for key in ("readonly", "shift", "acl")
    )
    owner = _owner(fields.get("owner"), f"{path}.owner", problems)
    if acl and (shift or owner):
        problems.add_text(f"{path}.acl: lets the instance in by access lists: shift and owner are of no use with it")
    if shift and owner:
        problems.add_text(f"{path}.owner: with shift every owner is right: one of them is enough")
    if len(problems) > before:
        return None
    device = _device_name(fields["path"])
    return Mount(path, device, fields["source"], fields["path"], bool(readonly), shift, owner, bool(acl))


def _rule(raw: str) -> str:
    """What is to be changed in a mount that is written as text."""
    parts = raw.split(":")
    for name, part in zip(("source", "path"), parts if len(parts) in (2, 3) else ()):
        if part and not part.startswith("/"):
            return f'its {name} must be an absolute path, such as "/srv/data:/data"'
    return RULE


def _device_name(path: str) -> str:
    """A mount is named after its place in the instance."""
    return ("mount-" + (re.sub(r"[^A-Za-z0-9]+", "-", path).strip("-") or "root"))[:64]


def _other_name(path: str) -> str:
    """What it is named where another device has that name."""
    return f"{_device_name(path)[:55]}-{hashlib.sha256(_plain(path).encode()).hexdigest()[:8]}"


def _owner(raw: object, path: str, problems: Problems) -> t.Optional[tuple[int, int]]:
    if raw is None:
        return None
    match = _OWNER.fullmatch(str(raw))
    if match and not isinstance(raw, bool):
        user = int(match[1])
        return user, int(match[2]) if match[2] else user
    problems.add(path, raw, 'must be the number of a user, or "user:group", such as "1000:1000"')
    return None
