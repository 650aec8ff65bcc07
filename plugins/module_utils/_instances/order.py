# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""In which order the changes of a list are carried out: what others depend on comes first, and goes last. Pure."""

from __future__ import annotations

import typing as t

from .._values import Problems
from .spec import InstanceSpec

# States that an instance is brought down to.
DOWN = ("stopped", "absent")


def after(items: t.Iterable[InstanceSpec], recorded: t.Mapping[str, t.Sequence[str]]) -> dict[str, set[str]]:
    """For each item, the items of this list that have to be done before it.

    What comes up comes after all that it depends on; what goes down goes after all that depend on it and go down too. A
    copy comes after what it is a copy of, also where neither is to run.
    ``recorded`` says what instances depend on that are no longer declared.
    """
    by_name = {item.name: item for item in items}
    found: dict[str, set[str]] = {name: set() for name in by_name}
    for item in by_name.values():
        for name in dependencies(item, recorded):
            other = by_name.get(name)
            if other is None or other is item:
                continue
            if item.state not in DOWN or _is_source(item, other):
                found[item.name].add(name)
            elif other.state in DOWN:
                found[name].add(item.name)
    return found


def _is_source(item: InstanceSpec, other: InstanceSpec) -> bool:
    copied = item.copy_of is not None and item.copy_of.name == other.name
    return copied and "absent" not in (item.state, other.state)


def dependencies(item: InstanceSpec, recorded: t.Mapping[str, t.Sequence[str]]) -> tuple[str, ...]:
    """The names that an item depends on, as declared, else as an earlier run has recorded; and what it is a copy of."""
    names = item.depends_on or (tuple(recorded.get(item.name, ())) if item.state == "absent" else ())
    source = (item.copy_of.name,) if item.copy_of and item.state != "absent" else ()
    return tuple(dict.fromkeys((*names, *source)))


def check(
    items: t.Sequence[InstanceSpec], known: t.Container[str], problems: Problems, pruned: t.Container[str] = ()
) -> None:
    """Refuse cycles, what depends on nothing that there is, and what depends on what is to go."""
    by_name = {item.name: item for item in items}
    for item in items:
        if item.state == "absent":
            continue
        for name in item.depends_on:
            other = by_name.get(name)
            if other is None and name not in known:
                problems.add(f"{item.path}.depends_on", name, "there is no such instance, and none is declared")
            elif other is not None and other.state == "absent":
                problems.add(f"{item.path}.depends_on", name, f"is declared absent in {other.path}")
            elif name in pruned:
                problems.add(f"{item.path}.depends_on", name, "is declared no longer, and prune would remove it")
    cycle = _cycle({item.name: dependencies(item, {}) for item in items})
    if cycle:
        path = by_name[cycle[0]].path
        problems.add_text(
            f"{path}.depends_on: {' → '.join((*cycle, cycle[0]))}: a cycle: none of them can be the first"
        )


def check_sources(
    created: t.Iterable[InstanceSpec], items: t.Iterable[InstanceSpec], problems: Problems, pruned: t.Container[str]
) -> None:
    """Refuse new copies of what is to go."""
    absent = {item.name: item.path for item in items if item.state == "absent"}
    for item in created:
        source = item.copy_of.name if item.copy_of else ""
        if source in absent:
            problems.add(f"{item.path}.copy_of", str(item.copy_of), f"is declared absent in {absent[source]}")
        elif source in pruned:
            problems.add(f"{item.path}.copy_of", str(item.copy_of), "is declared no longer, and prune would remove it")


def _cycle(graph: t.Mapping[str, t.Sequence[str]]) -> tuple[str, ...]:
    """The names of one cycle, or nothing. Without recursion: a chain may be a thousand long."""
    done: set[str] = set()
    for start in graph:
        trail: list[str] = []
        stack: list[tuple[str, bool]] = [(start, False)]
        while stack:
            name, leaving = stack.pop()
            if leaving:
                trail.pop()
                done.add(name)
            elif name in trail:
                return tuple(trail[trail.index(name) :])
            elif name in graph and name not in done:
                trail.append(name)
                stack.append((name, True))
                stack.extend((other, False) for other in graph[name])
    return ()
