# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Who asks for which port, and who gets it."""

from __future__ import annotations

import dataclasses
import ipaddress
import typing as t

from ... import _keys
from ..._server.published import Publisher
from ..._server.snapshot import Address
from ..._values import PortRange, Problems, nearest
from ..render import Table, comment, own_prefix, value
from ..spec import Desired, NatEntry, Policy, parse_entries
from .observed import Host, Observed, Rival


@dataclasses.dataclass(frozen=True)
class Claim:
    """A port that an instance asks for, with the address that it leads to. ``place`` is ``nat[0]``.

    ``rank`` says what is published of it already: 0 just this, 1 some of its ports, 2 nothing.
    """

    owner: Publisher
    place: str
    entry: NatEntry
    target: Address
    rank: int = 2

    @property
    def order(self) -> tuple[t.Any, ...]:
        """Who has a port first: what is declared, what is trusted, what is published already, the alphabet."""
        return (not self.owner.declared, *self.owner.standing(self.rank))

    def __str__(self) -> str:
        """How messages begin: ``default/web-1: nat[0]: tcp port 8080``."""
        return f"{self.owner.label}: {self.place}: {self.entry}"


class LeftOut(t.NamedTuple):
    """A port that is not published, or the whole list of an instance."""

    instance: str
    entry: str
    reason: str


class Ledger:
    """Who was refused what. A mistake of what this run declared is a problem; another's is left out, with a warning."""

    def __init__(self) -> None:
        self.problems = Problems()
        self.warnings: list[str] = []
        self.left_out: list[LeftOut] = []

    def refuse(self, owner: Publisher, entry: str, reason: str, hard: t.Optional[bool] = None) -> None:
        """Refuse an entry (``nat[0]: tcp port 8080``) or all of an instance (empty). ``hard``: it is an error."""
        subject = f"{owner.label}: {entry}" if entry else owner.label
        if owner.declared if hard is None else hard:
            self.problems.add_text(f"{subject}: {reason}")
            return
        self.warnings.append(f"{subject}: {reason}: left out")
        self.left_out.append(LeftOut(owner.label, entry, reason))

    def warn(self, text: str) -> None:
        """Tell the user something once."""
        if text not in self.warnings:
            self.warnings.append(text)


def claims(desired: Desired, observed: Observed, ledger: Ledger) -> tuple[Claim, ...]:
    """The ports that will be published, sorted by instance. Everything refused is in the ledger."""
    asked = [
        claim
        for owner in sorted(observed.publishers, key=lambda one: (one.project, one.name))
        for claim in _asked(owner, desired.policy, ledger)
        if _allowed(claim, desired.policy, observed.host, ledger)
    ]
    rivals = (*observed.rivals, *foreign_rules(observed.tables.get("nat"), observed.flavor))
    free = [claim for claim in asked if _free(claim, observed.host, rivals, ledger)]
    published = _published(observed.tables.get("nat"), own_prefix(observed.flavor))
    ranked = [dataclasses.replace(claim, rank=_rank(claim, published)) for claim in free]
    return _without_conflicts(ranked, observed.host, ledger)


def _asked(owner: Publisher, policy: Policy, ledger: Ledger) -> t.Iterator[Claim]:
    decoded = owner.decode(_keys.NAT)
    if decoded.problem:
        ledger.warn(decoded.problem)
        ledger.left_out.append(LeftOut(owner.label, "", decoded.problem))
        return
    if not decoded.value:
        return
    problems = Problems()
    entries = parse_entries(decoded.value, "nat", problems)
    for text in problems.texts if owner.declared else problems.first():
        ledger.refuse(owner, "", text)
    if problems:
        return
    if owner.restricted and owner.project not in policy.projects:
        reason = f"project {owner.project} is restricted and not one of nat_policy.projects: it may publish nothing"
        ledger.refuse(owner, "", reason)
        return
    for index, entry in enumerate(entries):
        target = _target(owner, f"nat[{index}]: {entry}", entry, ledger)
        if target:
            yield Claim(owner, f"nat[{index}]", entry, target)


def _target(owner: Publisher, subject: str, entry: NatEntry, ledger: Ledger) -> t.Optional[Address]:
    """The address that an entry leads to: on ``intif`` if that was said, a pinned one if there is one."""
    there = [one for one in owner.addresses if entry.intif in (None, one.network, one.device)]
    found = sorted((one for one in there if one.family == 4), key=lambda one: (not one.pinned, one.device))
    if found:
        if not found[0].pinned:
            ledger.warn(
                f"{owner.label}: {found[0].address} on {found[0].network or found[0].device} is not pinned: its ports "
                "lead nowhere once the instance gets another address, until this task runs again"
            )
        return found[0]
    known = ", ".join(f"{one.address} on {one.network or one.device}" for one in owner.addresses)
    if there:
        reason = f"has only IPv6 addresses ({known}), and ports are published over IPv4 only"
    elif entry.intif and known:
        reason = f"has no address on intif {entry.intif} (it has {known})"
    else:
        reason = "has no pinned address" + (" and no lease yet" if owner.status == "Running" else " and does not run")
    ledger.refuse(owner, subject, reason, hard=owner.declared and (owner.status == "Running" or bool(known)))
    return None


def _allowed(claim: Claim, policy: Policy, host: Host, ledger: Ledger) -> bool:
    reason = _against_policy(claim.entry, policy, host) or _against_host(claim.entry, host)
    if reason:
        ledger.refuse(claim.owner, f"{claim.place}: {claim.entry}", reason)
    elif claim.entry.extaddr and claim.entry.extaddr not in host.local:
        ledger.warn(f"{claim}: no interface of this host has {claim.entry.extaddr}: the port works once it comes here")
    return not reason


def _against_policy(entry: NatEntry, policy: Policy, host: Host) -> str:
    if policy.ports is not None and not any(
        one.first <= entry.extport.first and entry.extport.last <= one.last for one in policy.ports
    ):
        known = ", ".join(str(one) for one in policy.ports) or "none"
        return f"not one of the ports of nat_policy ({known})"
    if policy.interfaces is not None:
        theirs = {address for name in policy.interfaces for address in host.addresses(name)}
        named = entry.extif in policy.interfaces if entry.extif else entry.extaddr in theirs
        # The host and its instances come to an address by no interface.
        if not named or entry.extaddr in host.local - theirs:
            known = ", ".join(policy.interfaces) or "none"
            return f"nat_policy lets ports be published on these interfaces only: {known}; say one of them as extif"
    return ""


def _against_host(entry: NatEntry, host: Host) -> str:
    if entry.extif is None:
        return ""
    if entry.extif not in host.interfaces:
        hint = nearest(entry.extif, host.interfaces) or f"; it has {', '.join(sorted(host.interfaces))}"
        return f"this host has no interface {entry.extif}{hint}"
    if entry.extif in host.masters:
        bridge = host.masters[entry.extif]
        return f"{entry.extif} is a port of the bridge {bridge}, where its packets come in: say {bridge} as extif"
    return ""


def reach(entry: NatEntry, host: Host) -> frozenset[str]:
    """The addresses of the host that an entry is published at. What is led from 127.0.0.1 meets none of it."""
    if entry.extaddr:
        return frozenset((entry.extaddr,))
    found = host.addresses(entry.extif) if entry.extif else host.local
    return frozenset(one for one in found if not _is_loopback(one))


def _is_loopback(address: str) -> bool:
    """Whether an address, or a network, of a rule is one of the host's for itself alone."""
    try:
        return ipaddress.ip_network(address, strict=False).is_loopback
    except ValueError:
        return False


def foreign_rules(table: t.Optional[Table], flavor: str) -> tuple[Rival, ...]:
    """Who else leads ports of the host elsewhere, as the nat table says: the other server's chains, Docker, hand-made
    rules, and the server's own (a proxy device with nat=true, a network forward)."""
    found: list[Rival] = []
    for rule in table.rules if table else ():
        options = rule.options
        if rule.chain.startswith(own_prefix(flavor)) or rule.target not in ("DNAT", "REDIRECT"):
            continue
        if _is_loopback(value(options, "-d")):
            continue
        ports = value(options, "--dport") or value(options, "--dports")
        proto, address = value(options, "-p"), value(options, "-d")
        owner = f"the rule {rule.line()}"
        for one in ports.split(",") if ports and proto in ("tcp", "udp") else ():
            first, _colon, last = one.partition(":")
            if first.isdigit() and (last or first).isdigit():
                span = PortRange(int(first), int(last or first))
                single = address if address and "/" not in address else None
                found.append(Rival(owner, proto, span, single, value(options, "-i") or None))
    return tuple(found)


def _free(claim: Claim, host: Host, rivals: t.Sequence[Rival], ledger: Ledger) -> bool:
    """Whether nobody but instances has the port. The first who has it is told."""
    reason = _taken_by_rival(claim.entry, host, rivals) or _taken_by_listener(claim.entry, host)
    if reason:
        ledger.refuse(claim.owner, f"{claim.place}: {claim.entry}", reason)
    return not reason


def _taken_by_rival(entry: NatEntry, host: Host, rivals: t.Sequence[Rival]) -> str:
    addresses = reach(entry, host)
    for rival in rivals:
        if rival.proto != entry.proto or (rival.ports is not None and not rival.ports.overlaps(entry.extport)):
            continue
        if rival.interface and (
            entry.extif not in (None, rival.interface) or not addresses & set(host.addresses(rival.interface))
        ):
            continue
        if rival.address is None or rival.address in addresses:
            return f"{rival.owner} has it already"
    return ""


def _taken_by_listener(entry: NatEntry, host: Host) -> str:
    addresses = reach(entry, host)
    for one in host.listeners:
        if one.proto != entry.proto or not entry.extport.first <= one.port <= entry.extport.last:
            continue
        address = ipaddress.ip_address(one.address)
        if address.is_unspecified:
            return f"{one} on this host"
        if not address.is_loopback and one.address in addresses:
            return f"{one} on this host; say another extaddr or extif to leave that address to it"
    return ""


# A range of more ports is compared as a whole.
_NARROW = 64
# What our own chains lead to an instance, by its name in their comments and by protocol: ports, address, interface.
_Published = t.Mapping[tuple[str, str], t.Sequence[tuple[PortRange, str, str]]]


def _published(table: t.Optional[Table], prefix: str) -> _Published:
    found: dict[tuple[str, str], list[tuple[PortRange, str, str]]] = {}
    for rule in table.of(prefix + "PRE") if table else ():
        options = rule.options
        first, _colon, last = value(options, "--dport").partition(":")
        if rule.target == "DNAT" and first.isdigit() and (last or first).isdigit():
            owner = (value(options, "--comment"), value(options, "-p"))
            place = (PortRange(int(first), int(last or first)), value(options, "-d"), value(options, "-i"))
            found.setdefault(owner, []).append(place)
    return found


def _rank(claim: Claim, published: _Published) -> int:
    entry = claim.entry
    own = published.get((comment(claim.owner.label), entry.proto), ())
    if (entry.extport, entry.extaddr or "", entry.extif or "") in own:
        return 0
    return 1 if any(ports.overlaps(entry.extport) for ports, _address, _interface in own) else 2


class _Kept:
    """Claims that met none before. Long lists are of narrow ones; a wide one is not to cost a step for each port."""

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._all: dict[str, list[Claim]] = {}
        self._wide: dict[str, list[Claim]] = {}
        self._by_port: dict[tuple[str, int], list[Claim]] = {}

    def __contains__(self, claim: Claim) -> bool:
        return id(claim) in self._known

    def add(self, claim: Claim) -> None:
        """Take one more in."""
        proto, ports = claim.entry.proto, claim.entry.extport
        self._known.add(id(claim))
        self._all.setdefault(proto, []).append(claim)
        if ports.size > _NARROW:
            self._wide.setdefault(proto, []).append(claim)
            return
        for port in range(ports.first, ports.last + 1):
            self._by_port.setdefault((proto, port), []).append(claim)

    def near(self, claim: Claim) -> list[Claim]:
        """Those with a port of this one, at whatever address."""
        proto, ports = claim.entry.proto, claim.entry.extport
        if ports.size > _NARROW:
            return [other for other in self._all.get(proto, ()) if other.entry.extport.overlaps(ports)]
        spans = (self._by_port.get((proto, port), ()) for port in range(ports.first, ports.last + 1))
        found = {id(other): other for span in spans for other in span}
        return [*found.values(), *(one for one in self._wide.get(proto, ()) if one.entry.extport.overlaps(ports))]


def _without_conflicts(asked: t.Sequence[Claim], host: Host, ledger: Ledger) -> tuple[Claim, ...]:
    """Drop a claim that meets one which goes first. Where one of both is declared, that may be an error instead."""
    kept = _Kept()
    for claim in sorted(asked, key=lambda one: one.order):
        rivals = [other for other in kept.near(claim) if _meet(claim.entry, other.entry, host)]
        for rival in rivals:
            _refuse(*((rival, claim) if _is_owed(rival, claim) else (claim, rival)), ledger)
        if not rivals:
            kept.add(claim)
    return tuple(claim for claim in asked if claim in kept)


def _refuse(claim: Claim, holder: Claim, ledger: Ledger) -> None:
    reason = f"{holder.owner.label} has it already ({holder.place}: {holder.entry})"
    ledger.refuse(claim.owner, f"{claim.place}: {claim.entry}", reason)


def _is_owed(declared: Claim, other: Claim) -> bool:
    """Whether what a run declares would take a port from somebody else: only its user knows who is to lose it."""
    if not declared.owner.declared or other.owner.declared or declared.rank < other.rank:
        return False
    return other.rank < 2 or other.owner.restricted <= declared.owner.restricted


def _meet(one: NatEntry, other: NatEntry, host: Host) -> bool:
    if one.overlaps(other):
        return True
    same_port = one.proto == other.proto and one.extport.overlaps(other.extport)
    return same_port and bool(reach(one, host) & reach(other, host))
