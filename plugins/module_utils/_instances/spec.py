# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What a user may say of an instance: words in, values out, every problem at once."""

from __future__ import annotations

import dataclasses
import re
import typing as t

from .._nat import spec as nat_spec
from .._proxy import spec as proxy_spec
from .._values import (
    Problems,
    boolean,
    choice,
    hostname,
    instance_name,
    mapping,
    refuse_halves,
    sequence,
    show,
    text,
)
from . import config, images, merge, mounts, stops, waits, wishes

STATES = ("started", "stopped", "frozen", "restarted", "absent")
TYPES = ("container", "virtual-machine")
RESTARTS = ("never", "if_required", "always")
ITEM_KEYS = (
    "address",
    "autostart",
    "cloud_init",
    "config",
    "copy_of",
    "depends_on",
    "description",
    "devices",
    "ephemeral",
    "hostnames",
    "image",
    "instance_type",
    "limits",
    "mounts",
    "name",
    "nat",
    "nesting",
    "privileged",
    "profiles",
    "proxy",
    "python",
    "recreate",
    "state",
    "stop",
    "target",
    "type",
    "wait_for",
)
# How a list of these is written.
_LISTS = {
    "depends_on": "[db-1]",
    "hostnames": "[db.example.org]",
    "mounts": "[/srv/data:/data]",
    "profiles": "[default]",
    "proxy": proxy_spec.EXAMPLE,
}
# Not for all at once.
NO_DEFAULTS = ("name", "address", "copy_of")
_TOLD_OF_IMAGE = tuple(key for key in images.KEYS if key != "secret")
_TARGET = re.compile(r"@?[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
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


@dataclasses.dataclass(frozen=True)
class InstanceSpec:
    """One declared instance. None in ``description`` and ``profiles`` means: not declared, leave it alone.

    ``config`` and ``devices`` hold what the server will be asked for, as text; what depends on the server (mounts, the
    size of the disk, cloud-init's keys) comes in by ``settle``. ``path`` is where the item stands in the input.
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
    stop: stops.Stop = dataclasses.field(default_factory=stops.Stop)
    # Another image, type or source than that of the existing instance: delete it and make it anew.
    recreate: bool = False
    copy_of: t.Optional[images.CopyOf] = None
    mounts: tuple[mounts.Mount, ...] = ()
    # The keys of config that the word cloud_init stands for.
    cloud_init: frozenset[str] = frozenset()
    # The size of the root device; empty: as the profile has it.
    disk: str = ""
    address: t.Optional[wishes.Wish] = None
    # Not declared: it goes since its owner declares it no longer.
    pruned: bool = False

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
    problems = _Discreet()
    warnings: list[str] = []
    defaults = _defaults(params.get("defaults") or {}, project, problems)
    items = []
    owner = text(params.get("owner") or "", "owner", problems, 64) or ""
    refuse_halves(owner, "owner", problems)
    for index, raw in enumerate(params["instances"]):
        item = _item(merge.merged(defaults, raw), f"instances[{index}]", project, problems, warnings)
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


def _defaults(raw: object, project: str, problems: Problems) -> t.Mapping[str, t.Any]:
    """What every item has that does not say otherwise. Its mistakes are told once, not with every item."""
    before = len(problems)
    known = tuple(key for key in ITEM_KEYS if key not in NO_DEFAULTS)
    fields = mapping(raw, "defaults", known, problems) or {}
    if len(problems) == before:
        _item({**fields, "name": "defaults"}, "defaults", project, problems, [])
    return fields if len(problems) == before else {}


def _item(raw: object, path: str, project: str, problems: Problems, warnings: list[str]) -> t.Optional[InstanceSpec]:
    before = len(problems)
    if not isinstance(raw, dict):
        # Not shown: it may be a part of a list that was given as text, with secrets in it.
        kind = "text" if isinstance(raw, str) else "a list" if isinstance(raw, (list, tuple)) else "no mapping"
        problems.add_text(f"{path}: is {kind}: must be a mapping with the keys {', '.join(ITEM_KEYS)}")
        return None
    refuse_halves(raw, path, problems)
    if len(problems) > before:
        return None
    fields = mapping(raw, path, ITEM_KEYS, problems) or {}
    if "name" not in fields:
        problems.add_text(f"{path}.name: missing: every instance needs a name, such as web-1")
    name, inventory_name = _names(fields.get("name"), path, problems, warnings)
    devices = mounts.parse_devices(fields.get("devices"), f"{path}.devices", problems)
    routes, shares = _routes_and_mounts(fields, path, problems, warnings)
    copy_of = images.parse_copy(fields["copy_of"], f"{path}.copy_of", problems) if "copy_of" in fields else None
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
        config=config.parse(fields, path, problems),
        devices=devices,
        nat=nat_spec.parse_entries(fields.get("nat"), f"{path}.nat", problems),
        proxy=proxy_spec.parse_indexed(routes, f"{path}.proxy", problems),
        hostnames=_hostnames(fields, path, problems),
        python=bool(boolean(fields.get("python", False), f"{path}.python", problems)),
        ephemeral=_optional_boolean(fields, "ephemeral", path, problems),
        target=_target(fields, path, problems),
        depends_on=_depends_on(fields, path, name, problems),
        wait_for=waits.parse(fields.get("wait_for"), f"{path}.wait_for", problems),
        stop=stops.parse(fields.get("stop"), f"{path}.stop", problems),
        copy_of=copy_of,
        recreate=bool(_optional_boolean(fields, "recreate", path, problems)),
        mounts=mounts.parse(shares, devices, problems),
        cloud_init=config.cloud_keys(fields),
        disk=config.disk_limit(fields.get("limits"), path, problems),
        address=wishes.parse(fields.get("address"), f"{path}.address", problems),
    )
    _check(item, fields, problems)
    return item if len(problems) == before else None


def _check(item: InstanceSpec, fields: t.Mapping[str, t.Any], problems: Problems) -> None:
    """What each key allows and both together do not."""
    if item.copy_of and item.image:
        problems.add_text(f"{item.path}.copy_of: has image as well: one of them says what it is made from")
    if item.copy_of and item.copy_of.name == item.name and not item.copy_of.snapshot:
        problems.add_text(f"{item.path}.copy_of: {item.name} cannot be made from itself")
    if item.ephemeral and item.state == "stopped":
        problems.add_text(f"{item.path}.ephemeral: is deleted when it stops: state cannot be stopped")
    nic = item.address.nic if item.address else ""
    if item.address and nic and "ipv4.address" in item.devices.get(nic, {}):
        problems.add_text(f"{item.path}.address: devices.{nic} has an ipv4.address as well: one of them is enough")


def _routes_and_mounts(
    fields: t.Mapping[str, t.Any], path: str, problems: Problems, warnings: list[str]
) -> tuple[list[tuple[int, t.Any]], list[tuple[str, t.Any]]]:
    """The items of proxy and of mounts, each with its place. A mount among the routes is taken as what it is."""
    shares = [(f"{path}.mounts[{index}]", one) for index, one in enumerate(_list(fields, "mounts", path, problems))]
    routes = []
    for index, one in enumerate(_list(fields, "proxy", path, problems)):
        place = f"{path}.proxy[{index}]"
        if isinstance(one, str) and mounts.STRING.fullmatch(one):
            warnings.append(f"{place}: {show(one)} is a mount, not a route: taken as one; its key is mounts")
            shares.append((place, one))
        else:
            routes.append((index, one))
    return routes, shares


def _list(fields: t.Mapping[str, t.Any], key: str, path: str, problems: Problems) -> list[t.Any]:
    return sequence(fields.get(key), f"{path}.{key}", problems, _LISTS[key])


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


def _target(fields: t.Mapping[str, t.Any], path: str, problems: Problems) -> str:
    """A member of the cluster, or @group."""
    raw = fields.get("target", "")
    if isinstance(raw, str) and (not raw or _TARGET.fullmatch(raw)):
        return raw
    problems.add(f"{path}.target", raw, "must be the name of a member of the cluster, or @ and the name of a group")
    return ""


def _depends_on(fields: t.Mapping[str, t.Any], path: str, own: str, problems: Problems) -> tuple[str, ...]:
    """Names of instances, with the underscores that an inventory may have as the server's hyphens."""
    raw = fields.get("depends_on")
    names = [raw] if isinstance(raw, str) else _list(fields, "depends_on", path, problems)
    found = []
    for index, name in enumerate(names):
        place = f"{path}.depends_on[{index}]"
        known = instance_name(name.replace("_", "-") if isinstance(name, str) else name, place, problems)
        if known and known == own:
            problems.add(place, name, "is the instance itself")
        found.append(known)
    return tuple(dict.fromkeys(name for name in found if name and name != own))


def _profiles(fields: t.Mapping[str, t.Any], path: str, problems: Problems) -> t.Optional[tuple[str, ...]]:
    if "profiles" not in fields:
        return None
    names = _list(fields, "profiles", path, problems)
    parsed = [text(name, f"{path}.profiles[{index}]", problems) for index, name in enumerate(names)]
    for index, name in enumerate(parsed):
        if name == "":
            problems.add(f"{path}.profiles[{index}]", name, "must be the name of a profile, such as default")
    return tuple(name for name in parsed if name)


def _hostnames(fields: t.Mapping[str, t.Any], path: str, problems: Problems) -> tuple[str, ...]:
    names = _list(fields, "hostnames", path, problems)
    parsed = [hostname(name, f"{path}.hostnames[{index}]", problems) for index, name in enumerate(names)]
    return tuple(name for name in parsed if name)


class _Discreet(Problems):
    """Problems that show no secret, in whatever place of an item it stands."""

    def add(self, path: str, value: object, rule: str) -> None:
        super().add(path, config.told(value), rule)


def hidden(params: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The module's parameters as they may be told: without the values of config that may be secrets."""
    items = params.get("instances")
    shown: dict[str, t.Any] = {"defaults": _hidden_item(params.get("defaults"))}
    shown["instances"] = [_hidden_item(one) for one in items] if isinstance(items, list) else config.UNTOLD
    return {**params, **shown}


def _hidden_item(item: t.Any) -> t.Any:
    if not isinstance(item, dict):
        # It may be a part of a list that was given as text.
        return config.UNTOLD if item else item
    return {key: _hidden_word(key, value) for key, value in item.items()}


def _hidden_word(key: t.Any, value: t.Any) -> t.Any:
    """What an item says under a key. Under one that is mistyped, nobody knows what stands."""
    if value is None:
        return value
    if key == "config":
        return config.told_config(value)
    if key == "cloud_init" and isinstance(value, dict):
        return dict.fromkeys(value, config.UNTOLD)
    if key == "image" and isinstance(value, dict):
        return {word: config.told(one) if word in _TOLD_OF_IMAGE else config.UNTOLD for word, one in value.items()}
    plain = isinstance(value, str) if key == "image" else key in ITEM_KEYS and key != "cloud_init"
    return config.told(value) if plain else config.UNTOLD
