# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What the instances publish, against what the proxy serves: what changes. Pure."""

from __future__ import annotations

import dataclasses
import re
import typing as t

from .. import _values
from .._errors import InvalidInput, MageError
from .._plan import Change, Plan
from .._server.published import Publisher
from .._values import Problems
from . import render
from .render import Facts, Vhost
from .routes import LeftOut, Notes, wanted
from .spec import Desired

# The names that nginx's folder has for what lies in the current generation.
LINKS = {name: f"mage/current/{name}" for name in (render.UPSTREAMS, render.VHOSTS, render.GENERATION, render.MAIN)}
# Follow from the rest: shown only where nothing else changes.
_DERIVED = (render.GENERATION, render.PROBES, render.REFUSED)
_WORDS = re.compile(r" \[[a-z]+\] (?:[0-9]+#[0-9]+: )?(.*?)(?: in /\S+:[0-9]+)?$", re.MULTILINE)
_BLAMED = re.compile(rf" in \S*/({render.VHOSTS}/[^/\s:]+\.conf):([0-9]+)")


@dataclasses.dataclass(frozen=True)
class Live:
    """What is in the proxy's instance. ``serving`` is the generation that nginx answers a probe with, ``current`` the
    folder of the one that it is to serve."""

    exists: bool = False
    facts: Facts = dataclasses.field(default_factory=Facts)
    running: bool = False
    serving: str = ""
    current: str = ""
    links: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    files: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    hosts: str = ""


@dataclasses.dataclass(frozen=True)
class Observed:
    """What was read: who publishes, the networks that the proxy is on, and what it serves."""

    publishers: tuple[Publisher, ...]
    networks: frozenset[str]
    live: Live


@dataclasses.dataclass(frozen=True)
class ProxyPlan(Plan):
    """The changes, and the whole of what is to be there: files by path, the hosts file, the vhosts."""

    files: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    hosts: str = ""
    vhosts: tuple[Vhost, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    def stale(self, live: Live) -> bool:
        """Whether nginx has to be brought to the files."""
        linked = all(live.links.get(name) == target for name, target in LINKS.items())
        served = live.running and live.serving == render.generation(self.files)
        return not (linked and served and live.files == self.files)


def plan(
    desired: Desired, observed: Observed, check_mode: bool, refused: t.Optional[t.Mapping[str, str]] = None
) -> ProxyPlan:
    """What brings the proxy to what the instances publish.

    ``refused`` are fingerprints of locations that nginx has just refused, each with its words. Raises InvalidInput for
    what is declared wrongly, MageError where there is no proxy.
    """
    live = observed.live
    notes = Notes()
    now = render.served(live.files)
    vhosts, names = wanted(desired.policy, observed.publishers, observed.networks, live.facts, notes, now)
    known = {**render.refused_from(live.files.get(render.REFUSED, "")), **(refused or {})}
    vhosts, still = _without(vhosts, known, live.facts, observed.publishers, notes)
    notes.problems.raise_if_any()
    if not (live.exists or (check_mode and _is_planned(desired))):
        return _unserved(desired, vhosts, observed, notes, check_mode)
    if not live.facts.version and not desired.install:
        raise MageError(f"{_label(desired)}: nginx is not installed, and install is false")
    files = render.tree(vhosts, live.facts, still)
    names.pop(desired.instance.lower(), None)
    hosts = render.hosts(live.hosts, names)
    return ProxyPlan(
        changes=tuple(_changes(desired, live, files, hosts)),
        warnings=tuple(notes.warnings),
        files=files,
        hosts=hosts,
        vhosts=vhosts,
        left_out=tuple(notes.left_out),
    )


def live_from(facts: str, files: t.Mapping[str, str], hosts: str) -> Live:
    """What the script OBSERVE tells, as a value."""
    told: dict[str, list[str]] = {}
    for line in facts.splitlines():
        key, _blank, value = line.partition(" ")
        told.setdefault(key, []).append(value)
    first = {key: values[0] for key, values in told.items()}
    known = Facts()
    if "version" in first:
        resolvers = tuple(one for one in told.get("resolver", []) if _usable(one))
        known = Facts(first.get("user", "nobody"), resolvers, first["version"])
    links = dict(one.split(" ", 1) for one in told.get("link", []))
    serving = first.get("serving", "").partition("default ")[2].strip()
    return Live(True, known, "running" in first, serving, first.get("current", ""), links, files, hosts)


def _usable(resolver: str) -> bool:
    """Whether nginx can ask a nameserver: it knows no zones of link-local addresses."""
    problems = Problems()
    found = _values.address(resolver.strip(), "", problems)
    return found is not None and not found.is_link_local


def _label(desired: Desired) -> str:
    return f"{desired.project}/{desired.instance}"


def _is_planned(desired: Desired) -> bool:
    wanted = (desired.project, desired.instance, "Running")
    return any((one["project"], one["name"], one["status"]) == wanted for one in desired.declared)


def _unserved(
    desired: Desired, vhosts: tuple[Vhost, ...], observed: Observed, notes: Notes, check_mode: bool
) -> ProxyPlan:
    """There is no proxy. That is wrong if this run publishes a route; what others publish is told."""
    declared = {one.label for one in observed.publishers if one.declared}
    told = f"{_label(desired)} does not run: the role mage.lxd.mageproxy sets the proxy up"
    if not check_mode and any(declared & set(location.owners) for vhost in vhosts for location in vhost.locations):
        raise MageError(told)
    if vhosts:
        notes.warnings.append(f"routes are not served, {', '.join(vhost.name for vhost in vhosts)}: {told}")
    return ProxyPlan(warnings=tuple(notes.warnings), left_out=tuple(notes.left_out))


def blamed(output: str, current: ProxyPlan, observed: Observed) -> dict[str, str]:
    """The fingerprints of the locations that nginx's own words name, and those words.

    Raises InvalidInput if one of them is declared by this run, MageError if the words name none.
    """
    told = " ".join(_WORDS.findall(output) or output.split())
    found: dict[str, str] = {}
    declared = {one.label for one in observed.publishers if one.declared}
    by_file = {render.vhost_file(vhost.name): vhost for vhost in current.vhosts}
    for file, line in _BLAMED.findall(output):
        vhost = by_file.get(file)
        path = render.path_at(current.files.get(file, ""), int(line))
        for location in vhost.locations if vhost else ():
            if vhost is None or location.path != path:
                continue
            if declared & set(location.owners):
                owners = ", ".join(location.owners)
                raise InvalidInput([f"{vhost.name}{path} ({owners}): nginx refuses it: {told}"])
            found[render.fingerprint(vhost.name, location, observed.live.facts)] = told
    if not found:
        raise MageError(f"nginx refuses the configuration, and nothing was changed: {told}")
    return found


def present(current: ProxyPlan) -> dict[str, t.Any]:
    """The return values: what is published, and what is not."""
    return {
        "vhosts": [
            {
                "name": vhost.name,
                "path": location.path,
                "servers": list(location.target.servers or filter(None, [location.target.dynamic])),
                "instances": list(location.owners),
            }
            for vhost in current.vhosts
            for location in vhost.locations
        ],
        "left_out": [dataclasses.asdict(one) for one in current.left_out],
    }


def _without(
    vhosts: t.Sequence[Vhost],
    refused: t.Mapping[str, str],
    facts: Facts,
    publishers: t.Sequence[Publisher],
    notes: Notes,
) -> tuple[tuple[Vhost, ...], dict[str, str]]:
    """The vhosts without what nginx is known to refuse. What this run declares is tried again."""
    owners = {one.label: one for one in publishers}
    still: dict[str, str] = {}
    kept = []
    for vhost in vhosts:
        good = []
        for location in vhost.locations:
            mark = render.fingerprint(vhost.name, location, facts)
            if mark not in refused or any(owners[one].declared for one in location.owners):
                good.append(location)
                continue
            still[mark] = refused[mark]
            notes.add(owners[location.owners[0]], f"{vhost.name}{location.path}: nginx refuses it: {refused[mark]}")
        if good:
            kept.append(Vhost(vhost.name, tuple(good)))
    return tuple(kept), still


def _changes(desired: Desired, live: Live, files: t.Mapping[str, str], hosts: str) -> t.Iterator[Change]:
    server = f"nginx in {_label(desired)}"
    if not live.facts.version:
        yield Change(server, "installed", after="installed")
    differing = [path for path in sorted({*live.files, *files}) if live.files.get(path) != files.get(path)]
    for path in [one for one in differing if one not in _DERIVED] or differing:
        before, after = live.files.get(path), files.get(path)
        action = "created" if before is None else "deleted" if after is None else "changed"
        yield Change(f"{desired.instance}:{desired.config_dir}/{path}", action, before or "", after or "")
    links = [] if differing else [name for name in LINKS if live.links.get(name) != LINKS[name]]
    for name in links:
        yield Change(f"{desired.instance}:{desired.config_dir}/{name}", "linked", live.links.get(name, ""), LINKS[name])
    if live.facts.version and not live.running:
        yield Change(server, "started", "stopped", "running")
    elif not differing and not links and live.serving != render.generation(files):
        yield Change(server, "reloaded", live.serving, render.generation(files))
    if live.hosts != hosts:
        yield Change(f"{desired.instance}:/etc/hosts", "changed", live.hosts, hosts)
