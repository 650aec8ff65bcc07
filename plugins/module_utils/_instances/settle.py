# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""The words of an item that depend on the server, and what it has not: settled before anything is planned. Pure."""

from __future__ import annotations

import dataclasses
import typing as t

from .._server.snapshot import Instance, Server
from .._values import Problems
from . import images, mounts, restart, values
from .spec import InstanceSpec

Devices = t.Mapping[str, t.Mapping[str, str]]

# Filesystems whose mounts the kernel maps onto the users of a container.
SHIFTED = ("ext4", "xfs", "btrfs", "f2fs", "vfat", "ntfs3", "squashfs", "erofs", "tmpfs", "zfs", "bcachefs")
# The kernel's own: nobody's files.
PLAIN = ("proc", "sysfs", "cgroup", "cgroup2", "devtmpfs", "devpts", "debugfs", "tracefs", "bpf", "configfs", "fusectl")
# What the start of an instance fails with where the server is wrong about its kernel.
UNSHIFTED = ("idmapping abilities", "shiftfs")
_EXTENSIONS = {
    "cloud-init.": "cloud_init",
    "limits.hugepages.": "limits_hugepages",
    "limits.kernel.": "kernel_limits",
    "linux.sysctl.": "linux_sysctl",
    "migration.stateful": "migration_stateful",
    "nvidia.": "nvidia_runtime",
    "raw.idmap": "id_map",
    "security.protection.delete": "container_protection_delete",
    "snapshots.": "snapshot_scheduling",
    "snapshots.expiry": "snapshot_expiry",
}
_DEVICES = {
    "infiniband": "infiniband",
    "proxy": "proxy",
    "tpm": "tpm_device_type",
    "unix-hotplug": "unix_hotplug_devices",
    "usb": "usb_devices",
    "pci": "pci_device_type",
}
_CLOUD_INIT = "cloud-init."
_OWNERS = "raw.idmap"


def settle(
    item: InstanceSpec,
    existing: t.Optional[Instance],
    server: Server,
    devices: Devices,
    folders: t.Optional[t.Mapping[str, mounts.Folder]],
    problems: Problems,
    warnings: list[str],
    config: t.Mapping[str, str],
) -> InstanceSpec:
    """The item as this server understands it. ``devices`` and ``config`` are those that it will have, from its profiles
    and from others; ``folders`` what is known of the folders that are mounted, None where they are not on this
    machine."""
    _check_server(item, existing, server, problems)
    item = _with_protocol(item, server)
    item = _with_cloud_init(item, server)
    item = _with_disk(item, devices, problems)
    return _with_mounts(item, existing, server, folders, problems, warnings, config)


def names(item: InstanceSpec, existing: Instance) -> set[str]:
    """The devices that the item will have on the instance itself, settled or not."""
    roots = [name for name, one in existing.devices.items() if item.disk and one.get("path") == "/"]
    found = mounts.named(item.mounts, item.devices, existing.devices)
    return {*item.devices, *(mount.device for mount in found), *roots}


def _check_server(item: InstanceSpec, existing: t.Optional[Instance], server: Server, problems: Problems) -> None:
    told = f"{server.flavor} {server.version}"
    if item.target and not server.clustered:
        problems.add(f"{item.path}.target", item.target, f"this {told} is no member of a cluster")
    if existing is None and item.type == "virtual-machine":
        _need(server, "virtual-machines", f"{item.path}.type", item.type, problems)
    for key in item.config:
        for start, extension in _EXTENSIONS.items():
            if key.startswith(start) and key not in item.cloud_init:
                _need(server, extension, f"{item.path}.config.{key}", "", problems)
    for name, options in item.devices.items():
        extension = _DEVICES.get(options.get("type", ""), "")
        if extension:
            _need(server, extension, f"{item.path}.devices.{name}.type", options["type"], problems)


def _need(server: Server, extension: str, path: str, value: str, problems: Problems) -> None:
    if server.extensions and extension not in server.extensions:
        shown = f" {value}:" if value else ""
        problems.add_text(
            f"{path}:{shown} this {server.flavor} {server.version} cannot: it lacks the API extension {extension}"
        )


def _with_protocol(item: InstanceSpec, server: Server) -> InstanceSpec:
    """LXD and Incus speak to each other, and each has but its own name for what they speak."""
    if item.image is None or item.image.protocol not in images.NATIVE:
        return item
    return dataclasses.replace(item, image=dataclasses.replace(item.image, protocol=server.flavor))


def _with_cloud_init(item: InstanceSpec, server: Server) -> InstanceSpec:
    """An older server has no keys of cloud-init's own: its images read those of the user."""
    if not server.extensions or "cloud_init" in server.extensions:
        return item
    config = {
        "user." + key[len(_CLOUD_INIT) :] if key in item.cloud_init else key: value
        for key, value in item.config.items()
    }
    return dataclasses.replace(item, config=config)


def _with_disk(item: InstanceSpec, devices: Devices, problems: Problems) -> InstanceSpec:
    """The size of the disk stands on a copy of the profile's root device."""
    if not item.disk:
        return item
    everything = {**devices, **item.devices}
    roots = [name for name, one in sorted(everything.items()) if one.get("type") == "disk" and one.get("path") == "/"]
    if not roots:
        problems.add(f"{item.path}.limits.disk", item.disk, "it has no root device: a profile or devices gives it one")
        return item
    said = item.devices.get(roots[0], {}).get("size", item.disk)
    if not values.same("size", said, item.disk):
        problems.add(f"{item.path}.limits.disk", item.disk, f"devices.{roots[0]}.size says {said}")
    root = {**everything[roots[0]], "size": item.disk}
    return dataclasses.replace(item, devices={**item.devices, roots[0]: root})


# --- mounts -----------------------------------------------------------------------------------------------------------


def _with_mounts(
    item: InstanceSpec,
    existing: t.Optional[Instance],
    server: Server,
    folders: t.Optional[t.Mapping[str, mounts.Folder]],
    problems: Problems,
    warnings: list[str],
    config: t.Mapping[str, str],
) -> InstanceSpec:
    if not item.mounts:
        return item
    known = mounts.named(item.mounts, item.devices, existing.devices if existing else {})
    item = dataclasses.replace(item, mounts=known)
    for mount in item.mounts if folders is None else ():
        if mount.acl:
            problems.add_text(
                f"{mount.place}.acl: access lists are written on the machine that the module runs on, and this server "
                "is on another one or in a container: run it where the server is, or say shift or owner"
            )
    plain = restart.is_privileged({**config, **item.config}) or item.type == "virtual-machine"
    settled = tuple(
        mount if plain or mount.acl else _shifted(mount, item, existing, server, folders or {}, problems)
        for mount in item.mounts
    )
    return _with_devices(dataclasses.replace(item, mounts=settled), problems, warnings)


def _shifted(
    mount: mounts.Mount,
    item: InstanceSpec,
    existing: t.Optional[Instance],
    server: Server,
    folders: t.Mapping[str, mounts.Folder],
    problems: Problems,
) -> mounts.Mount:
    """A mount of which is known whether the kernel shifts its owners, and else who they are."""
    folder = folders.get(mount.source)
    filesystem = folder.filesystem if folder else ""
    known = mount.shift is not None or mount.owner is not None
    if filesystem in PLAIN and not known:
        return mount
    able = bool({"idmapped_mounts", "shiftfs"} & server.features)
    if mount.shift and not able:
        problems.add(f"{mount.place}.shift", True, f"the kernel under this {server.flavor} {server.version} cannot")
    kept = existing.devices.get(mount.device) if existing else None
    # What had to be mounted without it is not tried anew. In a privileged container, nothing had to.
    stays = kept is None or values.same("shift", kept.get("shift", ""), "true") or restart.was_privileged(existing)
    automatic = not known and able and stays and (not filesystem or filesystem in SHIFTED)
    owner = mount.owner or ((folder.uid, folder.gid) if folder else None)
    return dataclasses.replace(
        mount,
        shift=bool(mount.shift) or automatic,
        owner=owner,
        automatic=automatic,
        delegated=folder.delegated if folder else True,
    )


def is_unshifted(message: str) -> bool:
    """Whether a server says that the kernel shifts no owners after all."""
    return any(word in message for word in UNSHIFTED)


def unshifted(item: InstanceSpec) -> t.Optional[InstanceSpec]:
    """The item with the owners of its mounts mapped, not shifted; None if it asked for that, or has none. Raises
    InvalidInput where the host does not let them be mapped."""
    if not any(mount.automatic for mount in item.mounts):
        return None
    problems = Problems()
    settled = tuple(
        dataclasses.replace(mount, shift=False, automatic=False) if mount.automatic else mount for mount in item.mounts
    )
    item = _with_devices(dataclasses.replace(item, mounts=settled), problems, [])
    problems.raise_if_any()
    return item


def _with_devices(item: InstanceSpec, problems: Problems, warnings: list[str]) -> InstanceSpec:
    """The mounts as devices. Where the kernel does not shift owners, they are themselves in the instance."""
    devices = dict(item.devices)
    owners: dict[str, None] = {}
    for mount in item.mounts:
        devices[mount.device] = {**mount.options, "shift": "true"} if mount.shift else mount.options
        if mount.shift is False and _OWNERS not in item.config:
            owners.update(dict.fromkeys(_owners_of(mount, problems, warnings)))
    config = {**item.config, _OWNERS: "\n".join(owners)} if owners else item.config
    return dataclasses.replace(item, devices=devices, config=config)


def _owners_of(mount: mounts.Mount, problems: Problems, warnings: list[str]) -> tuple[str, ...]:
    if mount.owner is None:
        warnings.append(f"{mount.place}: whose {mount.source} is, is not known here: owner says it")
        return ()
    user, group = mount.owner
    if 0 in mount.owner:
        # Mapped, the instance's root would be the host's.
        warnings.append(f"{mount.place}: {mount.source} is root's and is not shifted: the instance sees it as nobody's")
        return ()
    if not mount.delegated:
        problems.add_text(
            f"{mount.place}: {mount.source} is of user {user} and group {group}, and the server may not map them: add "
            f"root:{user}:1 to /etc/subuid and root:{group}:1 to /etc/subgid, or say acl: true"
        )
    return (f"both {user} {user}",) if user == group else (f"uid {user} {user}", f"gid {group} {group}")
