# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Who serves which path of which name, and where that is. Pure."""

from __future__ import annotations

import dataclasses
import typing as t

from .. import _hosts, _keys, _values
from .._server.published import Publisher
from .._values import Problems
from .render import Facts, Location, Target, Vhost
from .spec import DEFAULT_PORTS, Backend, Policy, Route, parse_entries


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """What an instance asks for and does not get."""

    instance: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Claim:
    """A route that an instance asks for."""

    owner: Publisher
    route: Route

    @property
    def order(self) -> tuple[t.Any, ...]:
        """Who has a name first: what is declared, what is trusted, the default project, the alphabet."""
        owner = self.owner
        return (not owner.declared, owner.restricted, owner.project != "default", owner.project, owner.name)


class Notes:
    """What goes wrong: errors where this run declared it, else left out with a warning."""

    def __init__(self) -> None:
        self.problems = Problems()
        self.left_out: list[LeftOut] = []
        self.warnings: list[str] = []

    def add(self, owner: Publisher, reason: str) -> None:
        """Note that something of an instance cannot be published."""
        if owner.declared:
            self.problems.add_text(f"{owner.label}: {reason}")
            return
        self.left_out.append(LeftOut(owner.label, reason))
        self.warnings.append(f"left out: {owner.label}: {reason}")


def wanted(
    policy: Policy, publishers: t.Sequence[Publisher], networks: t.Collection[str], facts: Facts, notes: Notes
) -> tuple[tuple[Vhost, ...], dict[str, str]]:
    """The vhosts, sorted by name, and the addresses by name for a hosts file. ``networks`` are those of the proxy."""
    trusted = [one for one in publishers if _may_publish(one, policy, notes)]
    addresses = {one.label: address(one, networks) for one in trusted}
    names = _names(trusted, addresses, notes)
    claims = [claim for one in trusted for claim in _claims(one, policy, notes)]
    locations: dict[str, list[Location]] = {}
    for (name, path), group in _settled(claims, notes).items():
        target = _target(group, addresses, names, facts, notes)
        owners = tuple(sorted(claim.owner.label for claim in group))
        locations.setdefault(name, []).append(Location(path, target, owners, group[0].route.raw))
    vhosts = tuple(
        Vhost(name, tuple(sorted(found, key=lambda one: one.path))) for name, found in sorted(locations.items())
    )
    return vhosts, {name: known for name, known in names.items() if known}


def _may_publish(owner: Publisher, policy: Policy, notes: Notes) -> bool:
    if not owner.restricted or owner.project in policy.projects:
        return True
    if any(owner.config.get(key) for key in (_keys.PROXY, _keys.HOSTNAMES)):
        notes.add(owner, f"project {owner.project} is restricted and proxy_policy.projects does not name it")
    return False


def _claims(owner: Publisher, policy: Policy, notes: Notes) -> t.Iterator[Claim]:
    decoded = owner.decode(_keys.PROXY)
    if decoded.problem:
        notes.add(owner, decoded.problem)
    problems = Problems()
    routes = parse_entries(decoded.value, _keys.PROXY, problems)
    for text in problems.texts if owner.declared else problems.first():
        notes.add(owner, text)
    for route in routes:
        reason = _forbidden(owner, route, policy)
        if reason:
            notes.add(owner, f"{route.name}{route.path}: {reason}")
        else:
            yield Claim(owner, route)


def _forbidden(owner: Publisher, route: Route, policy: Policy) -> str:
    if route.name == "invalid" or route.name.endswith(".invalid"):
        return "names under .invalid are nobody's: by one of them nginx is asked what it serves"
    if route.raw and not policy.allow_raw:
        return "raw directives are only taken with proxy_policy.allow_raw"
    if owner.restricted and (route.raw or route.backend):
        return "an instance of a restricted project publishes itself only, without pass and raw"
    return ""


def _settled(claims: t.Sequence[Claim], notes: Notes) -> dict[tuple[str, str], list[Claim]]:
    """Who serves which path of which name: the first, and those that stand beside it."""
    holders: dict[str, Claim] = {}
    settled: dict[tuple[str, str], list[Claim]] = {}
    for claim in sorted(claims, key=lambda one: one.order):
        route, owner = claim.route, claim.owner
        holder = holders.setdefault(route.name, claim).owner
        if holder.project != owner.project and (holder.restricted or owner.restricted):
            notes.add(owner, f"{route.name}: project {holder.project} publishes that name, with {holder.label}")
            continue
        group = settled.setdefault((route.name, route.path), [])
        if group and (group[0].route != route or group[0].owner.project != owner.project):
            rule = "instances share a route only in one project and with the same port, pass and raw"
            notes.add(owner, f"{route.name}{route.path}: {group[0].owner.label} has it already: {rule}")
            continue
        if group and group[0].owner.declared and not owner.declared:
            told = f"{owner.label} serves it too, and this run does not declare that"
            notes.warnings.append(f"{route.name}{route.path} ({group[0].owner.label}): {told}")
        group.append(claim)
    return settled


def _target(
    group: t.Sequence[Claim],
    addresses: t.Mapping[str, str],
    names: t.Mapping[str, str],
    facts: Facts,
    notes: Notes,
) -> Target:
    route = group[0].route
    if route.backend is not None:
        target = _backend_target(route.backend, names, facts)
    else:
        known = filter(None, (addresses[claim.owner.label] for claim in group))
        target = Target(servers=tuple(sorted(_joined(one, route.port) for one in known)))
    if not target.servers and not target.dynamic:
        owners = ", ".join(claim.owner.label for claim in group)
        cause = "no nameserver or address is known for its pass" if route.backend else "no address is known"
        notes.warnings.append(f"{route.name}{route.path} ({owners}) answers 502: {cause}")
    return target


def _backend_target(backend: Backend, names: t.Mapping[str, str], facts: Facts) -> Target:
    if backend.is_address:
        return Target(backend.scheme, (backend.netloc,), path=backend.path)
    if backend.host in names:
        known = names[backend.host]
        return Target(backend.scheme, (_joined(known, backend.port),) if known else (), path=backend.path)
    if not facts.resolvers:
        return Target(backend.scheme, path=backend.path)
    host = backend.host if backend.port == DEFAULT_PORTS[backend.scheme] else backend.netloc
    return Target(backend.scheme, (), backend.netloc, host, backend.path)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def address(owner: Publisher, networks: t.Collection[str]) -> str:
    """The address by which the proxy reaches an instance: on a network of its own first, IPv4 first, pinned first."""
    ranked = sorted(owner.addresses, key=lambda one: (one.network not in networks, one.family, not one.pinned))
    return ranked[0].address if ranked else ""


def _names(publishers: t.Sequence[Publisher], addresses: t.Mapping[str, str], notes: Notes) -> dict[str, str]:
    """Addresses by name: of instances, and those that they ask for. A name has one address, that of the first."""
    names: dict[str, str] = {}
    ordered = sorted(publishers, key=lambda one: Claim(one, Route("")).order[1:])
    for owner in ordered:
        if not _hosts.is_reserved(owner.name.lower()):
            names.setdefault(owner.name.lower(), addresses[owner.label])
    holders: dict[str, Publisher] = {}
    for owner in sorted(ordered, key=lambda one: not one.declared):
        for name in _hostnames(owner, notes):
            holder = holders.setdefault(name, owner)
            if _hosts.is_reserved(name):
                notes.add(owner, f"hostname {name} is reserved")
            elif holder.label != owner.label:
                notes.add(owner, f"hostname {name} is that of {holder.label}")
            elif names.setdefault(name, addresses[owner.label]) != addresses[owner.label]:
                notes.add(owner, f"hostname {name} is the name of an instance")
    return names


def _hostnames(owner: Publisher, notes: Notes) -> list[str]:
    decoded = owner.decode(_keys.HOSTNAMES)
    if decoded.problem:
        notes.add(owner, decoded.problem)
    problems = Problems()
    raw = _values.sequence(decoded.value, _keys.HOSTNAMES, problems)
    found = [_values.hostname(one, f"{_keys.HOSTNAMES}[{index}]", problems) for index, one in enumerate(raw)]
    for text in problems.texts if owner.declared else problems.first():
        notes.add(owner, text)
    return [one for one in found if one]
