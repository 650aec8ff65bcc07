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
from .render import Facts, Location, Served, Target, Vhost, label
from .spec import DEFAULT_PORTS, Backend, Policy, Route, parse_entries


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """What an instance asks for and does not get."""

    instance: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Claim:
    """A route that an instance asks for. ``rank`` says what is served of it already: 0 just this, 1 its name and path
    with something else behind them, 2 nothing."""

    owner: Publisher
    route: Route
    rank: int = 2

    @property
    def order(self) -> tuple[t.Any, ...]:
        """Who has a route first: what is declared, what is trusted, what is served already, the alphabet."""
        return (not self.owner.declared, *self.owner.standing(self.rank))


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
    policy: Policy,
    publishers: t.Sequence[Publisher],
    networks: t.Collection[str],
    facts: Facts,
    notes: Notes,
    now: t.Optional[t.Mapping[tuple[str, str], Served]] = None,
) -> tuple[tuple[Vhost, ...], dict[str, str]]:
    """The vhosts, sorted by name, and the addresses by name for a hosts file. ``networks`` are those of the proxy,
    ``now`` is what it serves."""
    trusted = [one for one in publishers if _may_publish(one, policy, notes)]
    addresses = {one.label: address(one, networks) for one in trusted}
    names, backends = _names(trusted, addresses, notes)
    claims = [
        dataclasses.replace(claim, rank=_rank(claim, now or {}))
        for one in trusted
        for claim in _claims(one, policy, notes)
    ]
    locations: dict[str, list[Location]] = {}
    for (name, path), group in _settled(claims, notes).items():
        target = _target(group, addresses, backends, facts, notes)
        owners = tuple(sorted(claim.owner.label for claim in group))
        first = group[0].route
        locations.setdefault(name, []).append(Location(path, target, owners, first.raw, first.mark))
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


def _rank(claim: Claim, now: t.Mapping[tuple[str, str], Served]) -> int:
    found = now.get((claim.route.name, claim.route.path))
    if found is None or label(claim.owner.label) not in found.owners:
        return 2
    return 0 if found.mark == claim.route.mark else 1


def _patterns(name: str) -> list[str]:
    """The names with an asterisk that a name falls under, itself left out."""
    labels = name.split(".")
    return ["*." + ".".join(labels[start:]) for start in range(1 + name.startswith("*."), len(labels))]


class _Holders:
    """Who publishes a name first. With an asterisk, it is a name of all that falls under it."""

    def __init__(self) -> None:
        self._by_name: dict[str, Claim] = {}
        self._under: dict[str, list[Claim]] = {}

    def add(self, claim: Claim) -> None:
        """Take one in that nothing stands against."""
        name = claim.route.name
        if name not in self._by_name:
            self._by_name[name] = claim
            for pattern in _patterns(name):
                self._under.setdefault(pattern, []).append(claim)

    def against(self, claim: Claim) -> t.Optional[Claim]:
        """The first of another project that has the name, where one of both is restricted."""
        name, owner = claim.route.name, claim.owner
        there = (self._by_name.get(one) for one in (name, *_patterns(name)))
        for other in (*(one for one in there if one), *self._under.get(name, ())):
            if other.owner.project != owner.project and (other.owner.restricted or owner.restricted):
                return other
        return None


def _that(name: str, holder: str) -> str:
    return "that name" if name == holder else holder


def _settled(claims: t.Sequence[Claim], notes: Notes) -> dict[tuple[str, str], list[Claim]]:
    """Who serves which path of which name: the first, and those that stand beside it."""
    holders = _Holders()
    settled: dict[tuple[str, str], list[Claim]] = {}
    for claim in sorted(claims, key=lambda one: one.order):
        route, owner = claim.route, claim.owner
        holder = holders.against(claim)
        if holder:
            loser, winner = (holder, claim) if _is_owed(holder, claim) else (claim, holder)
            told = f"project {winner.owner.project} publishes {_that(route.name, holder.route.name)}"
            notes.add(loser.owner, f"{route.name}: {told}, with {winner.owner.label}")
            continue
        holders.add(claim)
        group = settled.setdefault((route.name, route.path), [])
        if group and (group[0].route != route or group[0].owner.project != owner.project):
            rule = "instances share a route only in one project and with the same port, pass and raw"
            loser, winner = (group[0], claim) if _is_owed(group[0], claim) else (claim, group[0])
            notes.add(loser.owner, f"{route.name}{route.path}: {winner.owner.label} has it already: {rule}")
            continue
        if group and group[0].owner.declared and not owner.declared:
            told = f"{owner.label} serves it too, and this run does not declare that"
            notes.warnings.append(f"{route.name}{route.path} ({group[0].owner.label}): {told}")
        group.append(claim)
    return settled


def _is_owed(declared: Claim, other: Claim) -> bool:
    """Whether what a run declares would take a route from somebody as trusted: only its user knows who loses it."""
    if not declared.owner.declared or other.owner.declared or declared.rank < other.rank:
        return False
    return other.owner.restricted <= declared.owner.restricted


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


def _names(
    publishers: t.Sequence[Publisher], addresses: t.Mapping[str, str], notes: Notes
) -> tuple[dict[str, str], dict[str, str]]:
    """Addresses by name: of instances, and those that they ask for. A name has one address, that of the first; who is
    first does not depend on whose run this is, as in the host's own hosts file.

    Also those of them that a ``pass`` may mean: no restricted project decides where another's route leads.
    """
    names: dict[str, str] = {}
    holders: dict[str, Publisher] = {}
    ordered = sorted(publishers, key=lambda one: one.standing())
    for owner in ordered:
        name = owner.name.lower()
        if not _hosts.is_reserved(name) and name not in names:
            names[name], holders[name] = addresses[owner.label], owner
    asked: dict[str, Publisher] = {}
    for owner in ordered:
        for name in _hostnames(owner, notes):
            holder = asked.setdefault(name, owner)
            if _hosts.is_reserved(name):
                notes.add(owner, f"hostname {name} is reserved")
            elif holder.label != owner.label:
                notes.add(owner, f"hostname {name} is that of {holder.label}")
            elif names.setdefault(name, addresses[owner.label]) != addresses[owner.label]:
                notes.add(owner, f"hostname {name} is the name of an instance")
            else:
                holders.setdefault(name, owner)
    return names, {name: known for name, known in names.items() if not holders[name].restricted}


def _hostnames(owner: Publisher, notes: Notes) -> list[str]:
    decoded = owner.decode(_keys.HOSTNAMES)
    if decoded.problem:
        notes.add(owner, decoded.problem)
    problems = Problems()
    raw = _values.sequence(decoded.value, _keys.HOSTNAMES, problems, "[db.example.org]")
    found = [_values.hostname(one, f"{_keys.HOSTNAMES}[{index}]", problems) for index, one in enumerate(raw)]
    for text in problems.texts if owner.declared else problems.first():
        notes.add(owner, text)
    return [one for one in found if one]
