# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Instances as hosts of an inventory: their names, groups and variables. Pure.

The inventory plugin, the modules and the roles all ask here, so that they give the same names to the same hosts.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import typing as t

from . import _keys
from ._server.snapshot import Address, Instance, Snapshot

CONNECTION = "mage.lxd.lxd"
ALL_GROUP = "lxd_instances"
DECLARED_GROUP = "lxd_containers"
# A host of that name would be taken for the controller, or for a group.
RESERVED = frozenset({"localhost", "all", "ungrouped", ALL_GROUP, DECLARED_GROUP})
# The proxy serves the declared containers, and is none of them.
PROXY_OWNER = "mageproxy"
NAME_RULE = "must be a name of letters, digits, dots, hyphens and underscores, such as web_1"

_HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}", re.ASCII)
# What Ansible replaces in names of groups: C.INVALID_VARIABLE_NAMES.
_NOT_IN_GROUPS = re.compile(r"^[\d\W]|[^\w]")


@dataclasses.dataclass(frozen=True)
class Host:
    """One instance as a host. ``variables`` hold what the server said: data, never templates."""

    name: str
    groups: tuple[str, ...]
    variables: t.Mapping[str, t.Any]


@dataclasses.dataclass(frozen=True)
class Listing:
    """All hosts, sorted by project and instance, and what is wrong with the names that instances ask for."""

    hosts: tuple[Host, ...]
    warnings: tuple[str, ...] = ()


def hosts(snapshot: Snapshot, endpoint: str) -> Listing:
    """Every instance of the snapshot as a host."""
    found, warnings = names(snapshot.instances)
    made = tuple(
        Host(
            found[one.project, one.name],
            groups(one),
            {**variables(one, snapshot.addresses(one)), **connection(one, endpoint)},
        )
        for one in snapshot.instances
    )
    return Listing(made, tuple(warnings))


def names(instances: t.Sequence[Instance]) -> tuple[dict[tuple[str, str], str], list[str]]:
    """The inventory's name of each (project, instance), and warnings.

    It is the one in ``user.mage.inventory_name`` if that is valid and neither taken nor an instance's own, else the
    instance's. Where that is taken, too, it is ``NAME.PROJECT``. The project ``default`` comes first.
    """
    warnings: list[str] = []
    own = {one.name for one in instances}
    wanted: dict[tuple[str, str], str] = {}
    for one in instances:
        name, problem = _asked(one)
        if problem:
            warnings.append(problem)
        elif name in own:
            warnings.append(f"{one.project}/{one.name}: {_keys.INVENTORY_NAME}: {name} is an instance's own name")
            name = one.name
        wanted[one.project, one.name] = name or one.name
    taken = set(RESERVED)
    for key in sorted(wanted, key=lambda key: (key[0] != "default", wanted[key] != key[1], key)):
        wanted[key] = next(name for name in _candidates(wanted[key], *key) if name not in taken)
        taken.add(wanted[key])
    return wanted, warnings


def _candidates(wanted: str, project: str, name: str) -> t.Iterator[str]:
    yield from (wanted, name, f"{name}.{project}")
    yield from (f"{name}.{project}.{number}" for number in itertools.count(2))


def _asked(instance: Instance) -> tuple[str, str]:
    """The name that an instance asks for, if it asks for another than its own, and why it does not get it."""
    decoded = _keys.decode(instance.config, _keys.INVENTORY_NAME, instance.project, instance.name)
    if decoded.problem:
        return "", decoded.problem
    if decoded.value in (None, instance.name):
        return "", ""
    if isinstance(decoded.value, str) and _HOST_NAME.fullmatch(decoded.value) and decoded.value not in RESERVED:
        return decoded.value, ""
    return "", f"{instance.project}/{instance.name}: {_keys.INVENTORY_NAME}: {NAME_RULE}"


def groups(instance: Instance) -> tuple[str, ...]:
    """The groups of an instance, sorted."""
    image = _image(instance)
    found = {
        ALL_GROUP,
        _group("status", instance.status.lower()),
        _group("type", instance.type.lower()),
        _group("project", instance.project),
        *(_group("profile", profile) for profile in instance.profiles),
        *(_group(key, image[key].lower()) for key in ("os", "release") if image.get(key)),
    }
    if instance.running and instance.type == "container" and is_declared(instance):
        found.add(DECLARED_GROUP)
    return tuple(sorted(found))


def is_declared(instance: Instance) -> bool:
    """Whether a provisioning list declared this very instance: a copy of one that was declared is not."""
    place = (instance.project, instance.name)
    if _keys.decode(instance.config, _keys.OWNER, *place).value == PROXY_OWNER:
        return False
    return _keys.decode(instance.config, _keys.MANAGED, *place).value is not None


def _group(prefix: str, value: str) -> str:
    return _NOT_IN_GROUPS.sub("_", f"{prefix}_{value}")


def _image(instance: Instance) -> dict[str, str]:
    """What the image said of itself: os, release, description and so on."""
    config = {**instance.expanded_config, **instance.config}
    return {key[len("image.") :]: str(value) for key, value in config.items() if key.startswith("image.")}


def variables(instance: Instance, addresses: t.Sequence[Address]) -> dict[str, t.Any]:
    """What is known of an instance."""
    return {
        "lxd_instance": instance.name,
        "lxd_project": instance.project,
        "lxd_status": instance.status,
        "lxd_type": instance.type,
        "lxd_location": instance.location,
        "lxd_description": instance.description,
        "lxd_profiles": list(instance.profiles),
        "lxd_image": _image(instance),
        "lxd_addresses": [one._asdict() for one in addresses],
        "lxd_ipv4": [one.address for one in addresses if one.family == 4],
        "lxd_ipv6": [one.address for one in addresses if one.family == 6],
    }


def connection(instance: Instance, endpoint: str) -> dict[str, str]:
    """How Ansible enters an instance, running or not: never as the controller itself."""
    return {
        "ansible_connection": CONNECTION,
        "ansible_user": "root",
        "ansible_lxd_instance": instance.name,
        "ansible_lxd_project": instance.project,
        "ansible_lxd_endpoint": endpoint,
    }
