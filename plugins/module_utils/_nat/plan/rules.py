# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Published ports → the rules of own chains."""

from __future__ import annotations

import typing as t

from ..render import Rule, Table, Wanted, comment, own_prefix
from .claims import Claim
from .observed import Host, Observed

# An address that the host has not, or no longer, is somebody else's: nothing on its way there is led astray.
_FOR_THE_HOST = ("-m", "addrtype", "--dst-type", "LOCAL")
# After these, no rule of the chain is looked at.
_ENDS = ("ACCEPT", "DROP", "QUEUE", "REJECT", "RETURN")


class Chains(t.NamedTuple):
    """The names of own chains. ``pre`` is for packets that come in, ``out`` for those of the host and of instances."""

    pre: str
    out: str
    post: str
    forward: str


def chains(flavor: str) -> Chains:
    """The chains for one kind of server (lxd, incus)."""
    prefix = own_prefix(flavor)
    return Chains(prefix + "PRE", prefix + "OUT", prefix + "POST", prefix + "FWD")


def wanted(claims: t.Sequence[Claim], observed: Observed) -> dict[str, Wanted]:
    """What is to be ours in the tables nat and filter. Chains that would be empty are left out, with their jumps."""
    names = chains(observed.flavor)
    nat = {
        names.pre: _pre(claims, observed, names),
        names.out: _out(claims, observed.host, names),
        names.post: _post(claims, observed.host, names),
    }
    return {
        "filter": _table("filter", {names.forward: _forward(claims, names)}, _filter_jumps(observed, names)),
        "nat": _table("nat", nat, _nat_jumps(names)),
    }


def _table(name: str, rules: t.Mapping[str, t.Sequence[Rule]], jumps: t.Sequence[Rule]) -> Wanted:
    filled = {chain: tuple(of) for chain, of in rules.items() if of}
    return Wanted(name, filled, tuple(rule for rule in jumps if rule.target in filled))


def _nat_jumps(names: Chains) -> tuple[Rule, ...]:
    return (
        Rule("PREROUTING", ("-j", names.pre)),
        # A service of the host's own on 127.0.0.1 stays where it is.
        Rule("OUTPUT", ("!", "-d", "127.0.0.0/8", "-j", names.out)),
        Rule("POSTROUTING", ("-j", names.post)),
    )


def _filter_jumps(observed: Observed, names: Chains) -> tuple[Rule, ...]:
    """Docker drops what it does not know, and leaves a chain for others to go first. A chain that no packet comes to
    (Docker is gone, or FORWARD was flushed) lets nothing through."""
    docker = _comes_to(observed.tables.get("filter", Table("filter")), "DOCKER-USER")
    return (Rule("DOCKER-USER" if docker else "FORWARD", ("-j", names.forward)),)


def _comes_to(table: Table, chain: str) -> bool:
    """Whether every packet that is forwarded comes to a chain, by a jump without conditions before any end."""
    plain = [rule.target for rule in table.of("FORWARD") if all(option[0] in ("-j", "-g") for option in rule.options)]
    before = plain[: plain.index(chain)] if chain in plain else ["RETURN"]
    return not any(target in _ENDS for target in before)


def _pre(claims: t.Sequence[Claim], observed: Observed, names: Chains) -> list[Rule]:
    """From outside. By interface, the packet must come in there and be for one of its addresses; instances reach such
    a port as the host does, by the addresses of the interface."""
    rules = []
    for claim in claims:
        entry = claim.entry
        match = ["-d", f"{entry.extaddr}/32"] if entry.extaddr else []
        match += ["-i", entry.extif] if entry.extif else []
        kind = [*_FOR_THE_HOST, "--limit-iface-in"] if entry.extif and not entry.extaddr else _FOR_THE_HOST
        rules.append(_dnat(names.pre, claim, match, kind))
    if any(claim.entry.extif for claim in claims):
        inside = {claim.target.network for claim in claims} | set(observed.instance_networks)
        bridges = sorted(inside & set(observed.host.interfaces))
        rules += [Rule(names.pre, ("-i", bridge, "-j", names.out)) for bridge in bridges]
    return rules


def _out(claims: t.Sequence[Claim], host: Host, names: Chains) -> list[Rule]:
    """From the host itself: a packet to its own address has no interface that it came in by."""
    rules = []
    for claim in claims:
        entry = claim.entry
        if entry.extaddr or entry.extif:
            known = [entry.extaddr] if entry.extaddr else host.addresses(entry.extif or "")
            rules += [_dnat(names.out, claim, ["-d", f"{address}/32"], _FOR_THE_HOST) for address in known]
        else:
            rules.append(_dnat(names.out, claim, [], _FOR_THE_HOST))
    return rules


def _dnat(chain: str, claim: Claim, match: t.Sequence[str], kind: t.Sequence[str]) -> Rule:
    entry = claim.entry
    target = claim.target.address
    if entry.extport.size == 1:
        target += f":{entry.intport}"
    elif entry.extport != entry.intport:
        # The part after the slash keeps the order of the ports; without it, any of them may be picked.
        target += f":{entry.intport}/{entry.extport.first}"
    proto = ["-p", entry.proto]
    port = ["-m", entry.proto, "--dport", _span(entry.extport.first, entry.extport.last)]
    return Rule(chain, (*match, *proto, *kind, *port, *_comment(claim), "-j", "DNAT", "--to-destination", target))


def _post(claims: t.Sequence[Claim], host: Host, names: Chains) -> list[Rule]:
    """An instance answers a neighbour on its own network directly, past the translation: so those are masqueraded.
    Whoever comes from elsewhere keeps their address."""
    rules: dict[str, Rule] = {}
    for claim in claims:
        address, subnet = claim.target.address, host.subnet(claim.target.address)
        if subnet and address not in rules:
            match = ("-s", subnet, "-d", f"{address}/32", "-m", "conntrack", "--ctstate", "DNAT")
            rules[address] = Rule(names.post, (*match, *_comment(claim), "-j", "MASQUERADE"))
    return list(rules.values())


def _forward(claims: t.Sequence[Claim], names: Chains) -> list[Rule]:
    """Let through what was led here, its answers, and the errors that tell of it (a packet that is too big)."""
    rules: dict[Rule, None] = {}
    for claim in claims:
        entry, host = claim.entry, f"{claim.target.address}/32"
        span = _span(entry.intport.first, entry.intport.last)
        for side, port in (("-d", "--dport"), ("-s", "--sport")):
            match = (side, host, "-p", entry.proto, "-m", entry.proto, port, span)
            state = ("-m", "conntrack", "--ctstate", "DNAT")
            rules[Rule(names.forward, (*match, *state, *_comment(claim), "-j", "ACCEPT"))] = None
        errors = ("-d", host, "-p", "icmp", "-m", "conntrack", "--ctstate", "RELATED")
        rules[Rule(names.forward, (*errors, *_comment(claim), "-j", "ACCEPT"))] = None
    return list(rules)


def _comment(claim: Claim) -> tuple[str, ...]:
    return ("-m", "comment", "--comment", comment(claim.owner.label))


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}:{last}"
