# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""From what the servers say to hosts in an inventory: filters, names by template, and a fast way in."""

from __future__ import annotations

import collections
import dataclasses
import typing as t

from ansible.errors import AnsibleError

from ansible_collections.mage.lxd.plugins.module_utils import _errors, _inventory
from ansible_collections.mage.lxd.plugins.module_utils._inventory import Host, Listing
from ansible_collections.mage.lxd.plugins.module_utils._server.snapshot import Instance
from ansible_collections.mage.lxd.plugins.plugin_utils import _trust
from ansible_collections.mage.lxd.plugins.plugin_utils._inventory_file import COSTLY, Settings
from ansible_collections.mage.lxd.plugins.plugin_utils._inventory_read import Answer, Reader, Wanted

Evaluate = t.Callable[[str, t.Mapping[str, t.Any]], t.Any]


class Builder:
    """Makes the hosts that a file asks for. ``evaluate`` gives the value of a Jinja2 expression."""

    def __init__(self, settings: Settings, evaluate: Evaluate, strict: bool) -> None:
        self._settings = settings
        self._evaluate = evaluate
        self._strict = strict
        self._warnings: list[str] = []
        # How often an expression was evaluated, and why it failed, as long as it never worked.
        self._tried: dict[tuple[str, str], tuple[int, str]] = {}

    def build(self, reader: Reader) -> Listing:
        """Read the servers and make the hosts of what the filters leave."""
        answers = reader.lists()
        # Names do not depend on the filters: a container that is stopped hands its name to nobody.
        everywhere = [(answer.server.name, answer.snapshot.instances) for answer in answers]
        names, warnings = _inventory.names_everywhere(everywhere)
        self._warnings.extend(warnings)
        named = {answer.server.name: own for answer, own in zip(answers, names)}
        late = tuple(text for text in self._settings.filters.expressions if _is_costly(text))
        early = tuple(text for text in self._settings.filters.expressions if text not in late)
        wanted: list[Wanted] = []
        for answer in answers:
            left = [one for one in answer.snapshot.instances if self._settings.filters.match(one)]
            if early:
                listing = self._listing(answer, left, named)
                left = [one for one, host in zip(left, listing.hosts) if self._holds(early, host)]
            wanted.append((answer, left))
        found: list[Host] = []
        for answer, kept in reader.rest(wanted):
            listing = self._listing(answer, kept, named)
            self._warnings.extend(listing.warnings)
            found.extend(host for host in listing.hosts if self._holds(late, host))
        hosts = self._renamed(found) if self._settings.hostnames else found
        for (path, _expression), (tried, why) in self._tried.items():
            if why:
                self._warnings.append(f"{path}: it failed for every one of {tried} hosts: {why}")
        return Listing(tuple(hosts), tuple(self._warnings))

    def _listing(
        self, answer: Answer, left: t.Sequence[Instance], named: t.Mapping[str, dict[tuple[str, str], str]]
    ) -> Listing:
        server = answer.server
        place = _inventory.Place(server.name, server.options, self._settings.restricted_projects)
        return _inventory.hosts(
            answer.snapshot, place, left, self._settings.shape, answer.full, found=named[server.name]
        )

    def _holds(self, expressions: t.Sequence[str], host: Host) -> bool:
        """Whether every expression holds. One that fails does not, unless the file is strict."""
        return all(bool(self._value(text, "filters.expression", host, _trust.as_condition)) for text in expressions)

    def _value(
        self, expression: str, path: str, host: Host, meant: t.Callable[[str], str] = _trust.as_expression
    ) -> t.Any:
        variables = {**host.variables, "inventory_hostname": host.name, "group_names": list(host.groups)}
        tried, failed = self._tried.get((path, expression), (0, ""))
        try:
            value = self._evaluate(meant(expression), _trust.as_data(variables))
        except AnsibleError as e:
            if self._strict:
                raise _errors.InvalidInput([f"{path}: {host.name}: {e}"]) from None
            # One that works for some hosts is meant for these.
            self._tried[path, expression] = (tried + 1, str(e) if failed or not tried else "")
            return None
        self._tried[path, expression] = (tried + 1, "")
        return value

    def _renamed(self, hosts: t.Sequence[Host]) -> list[Host]:
        """Hosts with the names that the file's templates make. What two of them would have, neither has."""
        wanted = [self._templated(host) for host in hosts]
        count = collections.Counter(name for name in wanted if name)
        taken = {name for name, times in count.items() if times == 1}
        found = []
        for host, name in zip(hosts, wanted):
            if count[name] > 1:
                self._warnings.append(f"hostnames: {host.name}: {name} is the name of another host, too: not taken")
            found.append(name if count[name] == 1 else _inventory.free_name(host.name, taken))
        return [dataclasses.replace(host, name=name) for host, name in zip(hosts, found)]

    def _templated(self, host: Host) -> str:
        """The first name that an expression gives and that a host may have."""
        for index, text in enumerate(self._settings.hostnames):
            name = self._value(text, f"hostnames[{index}]", host)
            if _inventory.is_host_name(name):
                return str(name)
        return ""


def _is_costly(expression: str) -> bool:
    return any(pattern.search(expression) for pattern in COSTLY.values())


def add(inventory: t.Any, hosts: t.Iterable[t.Mapping[str, t.Any]]) -> list[str]:
    """Put hosts into Ansible's inventory. Returns their names.

    A host that is new gets all variables at once: ``set_variable`` takes longer than all the rest, for a thousand of
    them. What another source says of a host already is merged by Ansible's rules.
    """
    names = []
    for one in hosts:
        name = str(one["name"])
        is_new = name not in inventory.hosts
        inventory.add_host(name)
        host = inventory.hosts[name]
        variables = _trust.as_data(one["variables"])
        if is_new:
            host.vars.update(variables)
        else:
            for key, value in variables.items():
                host.set_variable(key, value)
        for group in one["groups"]:
            if group not in inventory.groups:
                inventory.add_group(group)
            inventory.groups[group].add_host(host)
        names.append(name)
    return names
