# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Instances as hosts of an inventory: their names and groups. Pure.

The inventory plugin, the modules and the roles all ask here, so that they give the same names to the same hosts.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
import typing as t

from . import _host_variables, _keys
from ._host_variables import DEFAULT_SHAPE, Shape
from ._server.options import ServerOptions
from ._server.snapshot import Instance, Raw, Snapshot
from ._values import Problems

# Project and name.
Key = tuple[str, str]

ALL_GROUP = "lxd_instances"
DECLARED_GROUP = "lxd_containers"
# A host of that name would be taken for the controller, or for a group.
RESERVED = frozenset({"localhost", "127.0.0.1", "::1", "all", "ungrouped", ALL_GROUP, DECLARED_GROUP})
# Groups that say what the server knows. An instance cannot name itself into them.
PREFIXES = ("status_", "type_", "project_", "server_", "location_", "profile_", "os_", "release_", "network_")
# The proxy serves the declared containers, and is none of them.
PROXY_OWNER = "mageproxy"
NAME_RULE = "must be a name of letters, digits, dots, hyphens and underscores, such as web_1"
MOST_GROUPS = 100

_HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}", re.ASCII)
_NOT_IN_HOSTS = re.compile(r"[^A-Za-z0-9_.-]", re.ASCII)
_GROUP_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,252}", re.ASCII)
# What Ansible replaces in names of groups: C.INVALID_VARIABLE_NAMES.
_NOT_IN_GROUPS = re.compile(r"^[\d\W]|[^\w]")


@dataclasses.dataclass(frozen=True)
class Host:
    """One instance as a host. ``variables`` hold what the server said: data, never templates."""

    name: str
    groups: tuple[str, ...]
    variables: t.Mapping[str, t.Any]


@dataclasses.dataclass(frozen=True)
class Place:
    """A server as an inventory calls it. ``allowed``: the restricted projects whose instances name groups and
    variables of their own."""

    name: str
    options: ServerOptions
    allowed: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Listing:
    """Hosts, sorted by project and instance, and what is wrong with what instances ask for."""

    hosts: tuple[Host, ...]
    warnings: tuple[str, ...] = ()


def hosts(
    snapshot: Snapshot,
    place: Place,
    wanted: t.Optional[t.Sequence[Instance]] = None,
    shape: Shape = DEFAULT_SHAPE,
    full: t.Optional[t.Mapping[Key, Raw]] = None,
    found: t.Optional[t.Mapping[Key, str]] = None,
) -> Listing:
    """Every instance of the snapshot as a host, or those that are wanted. ``full`` holds what was read of an instance
    besides: ``state`` and ``snapshots``. ``found`` are names that were made unique among those of several servers."""
    warnings: list[str] = []
    if found is None:
        found, warnings = names(snapshot.instances)
    made = []
    for one in snapshot.instances if wanted is None else wanted:
        trusted = snapshot.trusts(one) or one.project in place.allowed
        own = _host_variables.own(one, trusted)
        addresses = snapshot.addresses(one)
        variables = {
            **own.variables,
            **_host_variables.known(one, addresses, (full or {}).get((one.project, one.name), {})),
            **_host_variables.connection(one, place.options, addresses, shape),
            "lxd_server": place.name,
        }
        named, problems = _own_groups(one, trusted)
        warnings.extend((*own.warnings, *problems))
        groups_of_one = {*_known_groups(one), *named, _group("server", place.name)}
        made.append(Host(found[one.project, one.name], tuple(sorted(groups_of_one)), variables))
    return Listing(tuple(made), tuple(warnings))


def names_everywhere(servers: t.Sequence[tuple[str, t.Sequence[Instance]]]) -> tuple[list[dict[Key, str]], list[str]]:
    """The names of the instances of several servers, each with its name, and warnings.

    They are those of ``names``, but ``NAME.SERVER`` wherever two servers have NAME. Both are renamed, so that NAME is
    nobody else's while one of the servers cannot be reached.
    """
    found, warnings = [], []
    for _server, instances in servers:
        own, told = names(instances)
        found.append(own)
        warnings.extend(told)
    count = collections.Counter(name for own in found for name in own.values())
    taken = {name for name, times in count.items() if times == 1}
    for (server, _instances), own in zip(servers, found):
        for key, name in own.items():
            if count[name] > 1:
                own[key] = free_name(f"{name}.{server}", taken)
    return found, warnings


def free_name(name: str, taken: set[str]) -> str:
    """The name, or NAME.2 and so on if it is taken. What it becomes is taken from then on."""
    candidates = itertools.chain([name], (f"{name}.{number}" for number in itertools.count(2)))
    found = next(one for one in candidates if one not in taken)
    taken.add(found)
    return found


def is_host_name(name: object) -> bool:
    """Whether a host may have that name."""
    return isinstance(name, str) and _HOST_NAME.fullmatch(name) is not None and name not in RESERVED


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
    # A server that lies may say anything, and to older versions of Ansible the name of a host is a template.
    wanted, project, name = (_NOT_IN_HOSTS.sub("_", one) for one in (wanted, project, name))
    yield from (wanted, name, f"{name}.{project}")
    yield from (f"{name}.{project}.{number}" for number in itertools.count(2))


def _asked(instance: Instance) -> tuple[str, str]:
    """The name that an instance asks for, if it asks for another than its own, and why it does not get it."""
    decoded = _keys.decode(instance.config, _keys.INVENTORY_NAME, instance.project, instance.name)
    if decoded.problem:
        return "", decoded.problem
    if decoded.value in (None, instance.name):
        return "", ""
    if is_host_name(decoded.value):
        return str(decoded.value), ""
    return "", f"{instance.project}/{instance.name}: {_keys.INVENTORY_NAME}: {NAME_RULE}"


def groups(instance: Instance, trusted: bool = True) -> tuple[str, ...]:
    """The groups of an instance, sorted: what is known of it, and those that it names itself, if it is trusted."""
    return tuple(sorted({*_known_groups(instance), *_own_groups(instance, trusted)[0]}))


def _known_groups(instance: Instance) -> set[str]:
    image = _host_variables.image(instance)
    found = {
        ALL_GROUP,
        _group("status", instance.status.lower()),
        _group("type", instance.type.lower()),
        _group("project", instance.project),
        *(_group("profile", profile) for profile in instance.profiles),
        *(_group("network", nic.network) for nic in instance.nics if nic.network),
        *(_group(key, image[key].lower()) for key in ("os", "release") if image.get(key)),
    }
    # A server that is in no cluster says none.
    if instance.location not in ("", "none"):
        found.add(_group("location", instance.location))
    if instance.running and instance.type == "container" and is_declared(instance):
        found.add(DECLARED_GROUP)
    return found


def _own_groups(instance: Instance, trusted: bool) -> tuple[list[str], list[str]]:
    """The groups in ``user.mage.groups``, a list in JSON or words between commas, and warnings."""
    label = f"{instance.project}/{instance.name}: {_keys.GROUPS}"
    if not instance.config.get(_keys.GROUPS):
        return [], []
    if not trusted:
        return [], [f"{label}: {_host_variables.NOT_TRUSTED}"]
    decoded = _keys.decode(instance.config, _keys.GROUPS, instance.project, instance.name)
    if decoded.problem:
        return [], [decoded.problem]
    raw = decoded.value.replace(",", " ").split() if isinstance(decoded.value, str) else decoded.value
    if not isinstance(raw, list) or len(raw) > MOST_GROUPS:
        return [], [f"{label}: must be a list of at most {MOST_GROUPS} names of groups"]
    problems = Problems()
    found = []
    for name in raw:
        if not isinstance(name, str) or not _GROUP_NAME.fullmatch(name):
            problems.add(label, name, "must be letters, digits and underscores, such as web_servers: left out")
        elif name in RESERVED or name.startswith(PREFIXES):
            problems.add(label, name, "only the server says who is in that group: left out")
        else:
            found.append(name)
    return found, list(problems.first())


def is_declared(instance: Instance) -> bool:
    """Whether a provisioning list declared this very instance: a copy of one that was declared is not."""
    place = (instance.project, instance.name)
    if _keys.decode(instance.config, _keys.OWNER, *place).value == PROXY_OWNER:
        return False
    return _keys.decode(instance.config, _keys.MANAGED, *place).value is not None


def _group(prefix: str, value: str) -> str:
    return _NOT_IN_GROUPS.sub("_", f"{prefix}_{value}")
