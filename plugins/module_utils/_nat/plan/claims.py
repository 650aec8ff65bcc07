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
from ..render import Table, own_prefix, value
from ..spec import Desired, NatEntry, Policy, parse_entries
from .observed import Host, Observed, Rival


@dataclasses.dataclass(frozen=True)
class Claim:
    """A port that an instance asks for, with the address that it leads to. ``place`` is ``nat[0]``."""

    owner: Publisher
    place: str
    entry: NatEntry
    target: Address

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
    return tuple(_without_conflicts(free, observed.host, ledger))


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
    if policy.interfaces is not None and entry.extif not in policy.interfaces:
        theirs = {address for name in policy.interfaces for address in host.addresses(name)}
        if entry.extif or entry.extaddr not in theirs:
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
    """The addresses of the host that an entry is published at."""
    if entry.extaddr:
        return frozenset((entry.extaddr,))
    return frozenset(host.addresses(entry.extif)) if entry.extif else host.local


def foreign_rules(table: t.Optional[Table], flavor: str) -> tuple[Rival, ...]:
    """Who else leads ports of the host elsewhere, as the nat table says: the other server's chains, Docker, hand-made
    rules, and the server's own (a proxy device with nat=true, a network forward)."""
    found: list[Rival] = []
    for rule in table.rules if table else ():
        options = rule.options
        if rule.chain.startswith(own_prefix(flavor)) or rule.target not in ("DNAT", "REDIRECT"):
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


def _without_conflicts(asked: t.Sequence[Claim], host: Host, ledger: Ledger) -> list[Claim]:
    """Drop a claim that meets an earlier one (by instance, then place). With a declared one, it is an error instead."""
    kept: list[Claim] = []
    by_port: dict[tuple[str, int], list[Claim]] = {}
    for claim in asked:
        ports = [(claim.entry.proto, port) for port in range(claim.entry.extport.first, claim.entry.extport.last + 1)]
        near = (other for port in ports for other in by_port.get(port, ()))
        rival = next((other for other in near if _meet(claim.entry, other.entry, host)), None)
        if rival:
            hard = claim.owner.declared or rival.owner.declared
            ledger.refuse(
                claim.owner,
                f"{claim.place}: {claim.entry}",
                f"{rival.owner.label} has it already ({rival.place}: {rival.entry})",
                hard,
            )
            continue
        kept.append(claim)
        for port in ports:
            by_port.setdefault(port, []).append(claim)
    return kept


def _meet(one: NatEntry, other: NatEntry, host: Host) -> bool:
    if one.overlaps(other):
        return True
    same_port = one.proto == other.proto and one.extport.overlaps(other.extport)
    return same_port and bool(reach(one, host) & reach(other, host))
