# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""The read-only twin: what is there, in the shape that a list has when it was made true."""

from __future__ import annotations

import dataclasses
import typing as t

from .. import _filters, _hosts, _inventory
from .._context import Context, Report
from .._filters import Filters
from .._plan import Plan
from .._server import snapshot, sockets
from .._server.published import publishers
from .._server.snapshot import Instance, Snapshot
from .._values import Problems
from .present import found

ARGUMENTS: dict[str, t.Any] = {
    "names": {"type": "list", "elements": "str"},
    "all_projects": {"type": "bool", "default": False},
    "filters": {
        "type": "dict",
        "options": {key: {"type": "list", "elements": "str"} for key in _filters.WORDS},
    },
    "declared": {"type": "list", "elements": "dict", "default": []},
    "hosts_policy": {
        "type": "dict",
        "apply_defaults": True,
        "options": {"projects": {"type": "list", "elements": "str", "default": []}},
    },
}


@dataclasses.dataclass(frozen=True)
class Query:
    """What is asked for. ``names`` None is everything; ``project`` None all projects; ``named`` are the restricted
    projects whose instances have names."""

    names: t.Optional[tuple[str, ...]]
    project: t.Optional[str]
    declared: tuple[t.Mapping[str, t.Any], ...]
    named: frozenset[str] = frozenset()
    filters: Filters = dataclasses.field(default_factory=Filters)

    def asks_for(self, one: Instance) -> bool:
        """Whether an instance is in the answer."""
        return (self.names is None or one.name in self.names) and self.filters.match(one)


def parse(params: t.Mapping[str, t.Any], project: str) -> Query:
    """The module's parameters."""
    names = params["names"]
    problems = Problems()
    filters = _filters.parse(params["filters"] or {}, "filters", problems)
    problems.raise_if_any()
    return Query(
        tuple(names) if names is not None else None,
        None if params["all_projects"] else project,
        tuple(params["declared"]),
        frozenset(params["hosts_policy"]["projects"]),
        filters,
    )


@dataclasses.dataclass(frozen=True)
class Seen:
    """What was read, and what resolves to what: in check mode, as planned by the call that ``declared`` comes from."""

    snapshot: Snapshot
    endpoint: str
    local: bool
    hosts: tuple[_hosts.HostsEntry, ...]
    warnings: tuple[str, ...]


def observe(query: Query, context: Context) -> Seen:
    """One read of the list, and the leases of the networks that the answer's instances are on."""
    read = snapshot.read(context.driver, query.project, query.asks_for, True)
    hosts, warnings = _hosts.entries(publishers(read, query.declared, context.check_mode), query.named)
    return Seen(read, context.server.endpoint, not sockets.elsewhere(context.server), hosts, warnings)


def plan(query: Query, seen: Seen, check_mode: bool) -> Plan:
    """Nothing is changed. Names that cannot resolve are told."""
    return Plan((), seen.warnings)


def apply(query: Query, seen: Seen, planned: Plan, context: Context) -> Report:
    """Nothing is changed."""
    return Report()


def result(query: Query, seen: Seen, planned: Plan, report: t.Optional[Report]) -> dict[str, t.Any]:
    """The instances, and the names that resolve to them."""
    wanted = [one for one in seen.snapshot.instances if query.asks_for(one)]
    server = seen.snapshot.server
    names, _warnings = _inventory.names(seen.snapshot.instances)
    return {
        "server": {
            "endpoint": seen.endpoint,
            "local": seen.local,
            "flavor": server.flavor,
            "version": server.version,
            "name": server.name,
            "fingerprint": server.fingerprint,
            "clustered": server.clustered,
        },
        "instances": [{**found(one, seen.snapshot), "inventory_name": names[one.project, one.name]} for one in wanted],
        "hosts": [{"address": entry.address, "names": list(entry.names)} for entry in seen.hosts],
    }
