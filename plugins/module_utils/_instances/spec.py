# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What a user may say of an instance: words in, values out, every problem at once."""

from __future__ import annotations

import dataclasses
import re
import typing as t

from .. import _keys
from .._nat import spec as nat_spec
from .._proxy import spec as proxy_spec
from .._values import (
    Problems,
    boolean,
    choice,
    hostname,
    instance_name,
    mapping,
    sequence,
    show,
    text,
)
from . import images, waits

STATES = ("started", "stopped", "frozen", "restarted", "absent")
TYPES = ("container", "virtual-machine")
RESTARTS = ("never", "if_required", "always")
ITEM_KEYS = (
    "config",
    "copy_of",
    "depends_on",
    "description",
    "devices",
    "ephemeral",
    "hostnames",
    "image",
    "mounts",
    "name",
    "nat",
    "profiles",
    "proxy",
    "python",
    "recreate",
    "state",
    "target",
    "type",
    "wait_for",
)
ARGUMENTS: dict[str, t.Any] = {
    # Not for the host's log: values of config may be secrets.
    "instances": {"type": "list", "elements": "raw", "required": True, "no_log": True},
    "defaults": {"type": "dict", "default": {}, "no_log": True},
    "concurrency": {"type": "int", "default": 4},
    "owner": {"type": "str", "default": ""},
    "prune": {"type": "bool", "default": False},
    "restart": {"type": "str", "choices": list(RESTARTS), "default": "if_required"},
    "declared": {"type": "list", "elements": "dict", "default": []},
}

# Config whose values may be secrets: shown only as changed.
_HIDDEN = ("environment.", "cloud-init.", "user.user-data", "user.vendor-data", "user.network-config")
_MOUNT = re.compile(r"(/[^:\n]*):(/[^:\n]*)(?::(ro|rw))?")
MOUNT_RULE = 'must be "/source:/path" or "/source:/path:ro", or a mapping with source, path and readonly'


@dataclasses.dataclass(frozen=True)
class InstanceSpec:
    """One declared instance. None in ``description`` and ``profiles`` means: not declared, leave it alone.

    ``config`` and ``devices`` hold what the server will be asked for, as text, mounts included. ``path`` is where the
    item stands in the input.
    """

    path: str
    project: str
    name: str
    inventory_name: str
    state: str
    type: str
    image: t.Optional[images.Image]
    description: t.Optional[str]
    profiles: t.Optional[tuple[str, ...]]
    config: t.Mapping[str, str]
    devices: t.Mapping[str, t.Mapping[str, str]]
    nat: tuple[nat_spec.NatEntry, ...]
    proxy: tuple[proxy_spec.Route, ...]
    hostnames: tuple[str, ...]
    python: bool
    owner: str = ""
    # None: nothing was said.
    ephemeral: t.Optional[bool] = None
    # The cluster member (or @group) that a new instance comes to; empty: the server picks.
    target: str = ""
    # Names on the server, as in ``name``: these come first, and go last. They may be outside of this call.
    depends_on: tuple[str, ...] = ()
    # None: nothing was said (an address where it has a NIC); empty: nothing is waited for.
    wait_for: t.Optional[tuple[waits.WaitFor, ...]] = None
    # Another image, type or source than that of the existing instance: delete it and make it anew.
    recreate: bool = False
    copy_of: t.Optional[images.CopyOf] = None

    @property
    def label(self) -> str:
        """How messages call it: project/name."""
        return f"{self.project}/{self.name}"

    @property
    def publishes(self) -> bool:
        """Whether anything of it is to be reached by an address that must not move."""
        return bool(self.nat or self.proxy or self.hostnames)


@dataclasses.dataclass(frozen=True)
class Desired:
    """Everything that one call declares. ``declared`` is what an earlier call of this run returned as ``instances``."""

    project: str
    items: tuple[InstanceSpec, ...]
    warnings: tuple[str, ...] = ()
    concurrency: int = 4
    timeout: int = 600
    declared: tuple[t.Mapping[str, t.Any], ...] = ()
    owner: str = ""
    # Remove what ``owner`` declared before and no longer does. Only ever with an owner.
    prune: bool = False
    # One of RESTARTS.
    restart: str = "if_required"


def parse(params: t.Mapping[str, t.Any], project: str) -> Desired:
    """The module's parameters as values. Raises InvalidInput with every problem."""
    problems = Problems()
    warnings: list[str] = []
    defaults = mapping(params.get("defaults") or {}, "defaults", ITEM_KEYS, problems) or {}
    items = []
    owner = text(params.get("owner") or "", "owner", problems, 64) or ""
    for index, raw in enumerate(params["instances"]):
        item = _item(raw, defaults, f"instances[{index}]", project, problems, warnings)
        if item:
            items.append(dataclasses.replace(item, owner=owner))
    _refuse_duplicates(items, problems)
    _refuse_shared_ports(items, problems)
    for key in ("concurrency", "timeout"):
        if params[key] < 1:
            problems.add(key, params[key], "must be 1 or more")
    prune = bool(params.get("prune"))
    if prune and not owner:
        problems.add_text("prune: needs owner: only what this owner declared before is removed")
    problems.raise_if_any()
    return Desired(
        project,
        tuple(items),
        tuple(warnings),
        params["concurrency"],
        params["timeout"],
        tuple(params.get("declared") or ()),
        owner,
        prune,
        params.get("restart") or "if_required",
    )


def _item(
    raw: object, defaults: t.Mapping[str, t.Any], path: str, project: str, problems: Problems, warnings: list[str]
) -> t.Optional[InstanceSpec]:
    before = len(problems)
    fields = mapping(raw, path, ITEM_KEYS, problems)
    if fields is None:
        return None
    fields = {**defaults, **fields}
    if "name" not in fields:
        problems.add_text(f"{path}.name: missing: every instance needs a name, such as web-1")
    name, inventory_name = _names(fields.get("name"), path, problems, warnings)
    mounts = [(f"{path}.mounts[{index}]", one) for index, one in enumerate(_list(fields, "mounts", path, problems))]
    routes = []
    for index, one in enumerate(_list(fields, "proxy", path, problems)):
        place = f"{path}.proxy[{index}]"
        if isinstance(one, str) and _MOUNT.fullmatch(one):
            warnings.append(f"{place}: {show(one)} is a mount, not a route: taken as one; its key is mounts")
            mounts.append((place, one))
        else:
            routes.append((index, one))
    devices = _devices(fields.get("devices"), f"{path}.devices", problems)
    for place, one in mounts:
        _mount(one, place, devices, problems)
    item = InstanceSpec(
        path=path,
        project=project,
        name=name,
        inventory_name=inventory_name,
        state=choice(fields.get("state", "started"), f"{path}.state", STATES, problems) or "started",
        type=choice(fields.get("type", "container"), f"{path}.type", TYPES, problems) or "container",
        image=images.parse(fields["image"], f"{path}.image", problems) if "image" in fields else None,
        description=_optional_text(fields, "description", path, problems),
        profiles=_profiles(fields, path, problems),
        config=_config(fields.get("config"), f"{path}.config", problems),
        devices=devices,
        nat=nat_spec.parse_entries(fields.get("nat"), f"{path}.nat", problems),
        proxy=proxy_spec.parse_indexed(routes, f"{path}.proxy", problems),
        hostnames=_hostnames(fields, path, problems),
        python=bool(boolean(fields.get("python", False), f"{path}.python", problems)),
        ephemeral=_optional_boolean(fields, "ephemeral", path, problems),
        target=_optional_text(fields, "target", path, problems) or "",
        depends_on=_depends_on(fields, path, problems),
        wait_for=waits.parse(fields.get("wait_for"), f"{path}.wait_for", problems),
        copy_of=images.parse_copy(fields["copy_of"], f"{path}.copy_of", problems) if "copy_of" in fields else None,
        recreate=bool(_optional_boolean(fields, "recreate", path, problems)),
    )
    return item if len(problems) == before else None


def _list(fields: t.Mapping[str, t.Any], key: str, path: str, problems: Problems) -> list[t.Any]:
    return sequence(fields.get(key), f"{path}.{key}", problems)


def _names(raw: object, path: str, problems: Problems, warnings: list[str]) -> tuple[str, str]:
    """The instance's name and the inventory's. Servers refuse underscores, inventories do not."""
    if raw is None:
        return "", ""
    name = raw
    if isinstance(raw, str) and "_" in raw:
        name = raw.replace("_", "-")
    before = len(problems)
    if instance_name(name, f"{path}.name", problems) is None:
        return "", ""
    if name != raw and len(problems) == before:
        warnings.append(f"{path}.name: {show(raw)}: servers take no underscores: the instance is called {name}")
    return str(name), str(raw)


def _refuse_duplicates(items: t.Sequence[InstanceSpec], problems: Problems) -> None:
    seen: dict[str, InstanceSpec] = {}
    for item in items:
        other = seen.setdefault(item.name, item)
        if other is not item:
            also = f" ({other.inventory_name} becomes {other.name})" if other.inventory_name != other.name else ""
            problems.add(f"{item.path}.name", item.inventory_name, f"already declared as {other.path}.name{also}")


def _refuse_shared_ports(items: t.Sequence[InstanceSpec], problems: Problems) -> None:
    """Two items that claim one port of the host. Which one is meant only the user knows."""
    claims = [(entry, index, item) for item in items if item.state != "absent" for index, entry in enumerate(item.nat)]
    claims.sort(key=lambda claim: claim[0].extport)
    open_claims: list[tuple[nat_spec.NatEntry, int, InstanceSpec]] = []
    for entry, index, item in claims:
        open_claims = [claim for claim in open_claims if claim[0].extport.last >= entry.extport.first]
        for other, place, owner in open_claims:
            if owner is not item and entry.overlaps(other):
                path = f"{item.path}.nat[{index}].extport"
                problems.add(
                    path, str(entry.extport), f"{owner.name} claims {other} already, in {owner.path}.nat[{place}]"
                )
        open_claims.append((entry, index, item))


def _optional_text(fields: t.Mapping[str, t.Any], key: str, path: str, problems: Problems) -> t.Optional[str]:
    return text(fields[key], f"{path}.{key}", problems) if key in fields else None


def _optional_boolean(fields: t.Mapping[str, t.Any], key: str, path: str, problems: Problems) -> t.Optional[bool]:
    return boolean(fields[key], f"{path}.{key}", problems) if key in fields else None


def _depends_on(fields: t.Mapping[str, t.Any], path: str, problems: Problems) -> tuple[str, ...]:
    """Names of instances, with the underscores that an inventory may have as the server's hyphens."""
    raw = fields.get("depends_on")
    names = [raw] if isinstance(raw, str) else _list(fields, "depends_on", path, problems)
    found: dict[t.Optional[str], None] = {}
    for index, name in enumerate(names):
        known = name.replace("_", "-") if isinstance(name, str) else name
        found[instance_name(known, f"{path}.depends_on[{index}]", problems)] = None
    return tuple(name for name in found if name)


def _profiles(fields: t.Mapping[str, t.Any], path: str, problems: Problems) -> t.Optional[tuple[str, ...]]:
    if "profiles" not in fields:
        return None
    names = _list(fields, "profiles", path, problems)
    parsed = [text(name, f"{path}.profiles[{index}]", problems) for index, name in enumerate(names)]
    return tuple(name for name in parsed if name)


def _hostnames(fields: t.Mapping[str, t.Any], path: str, problems: Problems) -> tuple[str, ...]:
    names = _list(fields, "hostnames", path, problems)
    parsed = [hostname(name, f"{path}.hostnames[{index}]", problems) for index, name in enumerate(names)]
    return tuple(name for name in parsed if name)


def _scalar(raw: object) -> t.Optional[str]:
    """A value as the server wants it: text. A bare number or boolean gets a raw Go error there."""
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, (str, int, float)):
        return str(raw)
    return None


def hidden(params: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The module's parameters as they may be told: without the values of config that may be secrets."""
    items = params.get("instances")
    shown: dict[str, t.Any] = {"defaults": _hidden_item(params.get("defaults"))}
    shown["instances"] = [_hidden_item(one) for one in items] if isinstance(items, list) else items
    return {**params, **shown}


def _hidden_item(item: t.Any) -> t.Any:
    if not isinstance(item, dict) or not isinstance(item.get("config"), dict):
        return item
    config = {key: "(hidden)" if is_secret(str(key)) else value for key, value in item["config"].items()}
    return {**item, "config": config}


def is_secret(key: str) -> bool:
    """Whether a key of an instance's config may hold a secret."""
    return key.startswith(_HIDDEN)


def _config(raw: object, path: str, problems: Problems) -> dict[str, str]:
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        problems.add(path, raw, "must be a mapping of the server's keys, such as {limits.memory: 512MiB}")
        return {}
    config: dict[str, str] = {}
    for key, value in raw.items():
        place = f"{path}.{key}"
        scalar = _scalar(value)
        if str(key).startswith((_keys.PREFIX, "volatile.", "image.")):
            problems.add_text(f"{place}: is the collection's or the server's own key, and cannot be declared")
        elif not isinstance(key, str) or not re.fullmatch(r"[A-Za-z0-9_.:/-]+", key):
            problems.add(path, key, "is not a key of the server, such as limits.memory")
        elif scalar is None:
            problems.add(place, "(hidden)" if is_secret(key) else value, "must be text, a number or a boolean")
        else:
            config[key] = scalar
    return config


def _devices(raw: object, path: str, problems: Problems) -> dict[str, dict[str, str]]:
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        problems.add(path, raw, "must be a mapping of devices, such as {data: {type: disk, source: /srv, path: /srv}}")
        return {}
    devices: dict[str, dict[str, str]] = {}
    for name, options in raw.items():
        place = f"{path}.{name}"
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
            problems.add(path, name, "is not the name of a device, such as data")
        elif not isinstance(options, dict) or "type" not in options:
            problems.add(place, options, "must be a mapping with at least type, such as {type: disk, path: /srv}")
        else:
            devices[name] = _device(options, place, problems)
    return devices


def _device(options: t.Mapping[t.Any, t.Any], path: str, problems: Problems) -> dict[str, str]:
    device = {}
    for key, value in options.items():
        scalar = _scalar(value)
        if scalar is None:
            problems.add(f"{path}.{key}", value, "must be text, a number or a boolean")
        elif scalar:
            # The server drops what is empty.
            device[str(key)] = scalar
    return device


def _mount(raw: object, path: str, devices: dict[str, dict[str, str]], problems: Problems) -> None:
    """Add a bind mount as a disk device, named after its place in the instance."""
    parts = _mount_parts(raw, path, problems)
    if parts is None:
        return
    source, target, readonly = parts
    name = "mount-" + (re.sub(r"[^A-Za-z0-9]+", "-", target).strip("-") or "root")
    if name[:64] in devices:
        problems.add(path, raw, f"there is a device or mount for {target} already")
        return
    devices[name[:64]] = {
        "type": "disk",
        "source": source,
        "path": target,
        **({"readonly": "true"} if readonly else {}),
    }


def _mount_parts(raw: object, path: str, problems: Problems) -> t.Optional[tuple[str, str, bool]]:
    if isinstance(raw, str):
        match = _MOUNT.fullmatch(raw)
        if match:
            return match[1], match[2], match[3] == "ro"
        problems.add(path, raw, MOUNT_RULE)
        return None
    before = len(problems)
    fields = mapping(raw, path, ("source", "path", "readonly"), problems)
    if fields is None or len(problems) > before:
        return None
    for key in ("source", "path"):
        if not str(fields.get(key, "")).startswith("/"):
            problems.add(f"{path}.{key}", fields.get(key), "must be an absolute path, such as /srv")
    readonly = boolean(fields.get("readonly", False), f"{path}.readonly", problems)
    return (fields["source"], fields["path"], bool(readonly)) if len(problems) == before else None
