# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Instances' ports and the host, turned into what to restore. The same input gives the same plan, in any order."""

from __future__ import annotations

import dataclasses
import ipaddress
import typing as t

from ... import _keys, _plan
from ..._errors import InvalidInput
from ..._values import PortRange
from .. import render
from ..render import Rule, Table, Wanted, own_prefix, own_rules, restore_text, value, wanted_rules
from ..spec import Desired
from .claims import Claim, Ledger, LeftOut, claims
from .observed import Host, Listener, Observed, Rival
from .rivals import forward_rivals, proxy_rivals
from .rules import wanted

if t.TYPE_CHECKING:
    from ..._context import Report

__all__ = [
    "Host",
    "Listener",
    "NatPlan",
    "Observed",
    "Rival",
    "Stale",
    "forward_rivals",
    "plan",
    "present",
    "proxy_rivals",
]


class Stale(t.NamedTuple):
    """UDP flows that the kernel would keep sending to where they went before."""

    ports: PortRange
    addresses: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class NatPlan(_plan.Plan):
    """What to do, in order: ``restores`` (table, input of iptables-restore), ``hairpin`` bridge ports, ``files`` to
    write (None: remove) and the ``unit`` to enable or not. ``stale`` are flows to forget when the rules are there."""

    claims: tuple[Claim, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    restores: tuple[tuple[str, str], ...] = ()
    stale: tuple[Stale, ...] = ()
    hairpin: tuple[str, ...] = ()
    files: t.Mapping[str, t.Optional[str]] = dataclasses.field(default_factory=dict)
    unit: str = ""
    enable_unit: t.Optional[bool] = None


def plan(desired: Desired, observed: Observed, check_mode: bool = False) -> NatPlan:
    """Decide. Raises InvalidInput with every problem of what this run declared, before anything is changed."""
    if observed.remote:
        return _elsewhere(desired, observed)
    ledger = Ledger()
    accepted = claims(desired, observed, ledger) if desired.present else ()
    tables = wanted(accepted, observed)
    _check_backends(observed, ledger, bool(accepted))
    files, enable = _persistence(desired, observed, tables, ledger)
    ledger.problems.raise_if_any()
    _host_warnings(accepted, observed, ledger)
    restores, changes, stale = _tables(tables, observed)
    hairpin = _hairpin(accepted, observed)
    changes += [_plan.Change(f"bridge port {port}", "turn hairpin mode on", "off", "on") for port in hairpin]
    changes += [
        _plan.Change(
            f"file {path}", "remove" if text is None else "write", observed.host.files.get(path, ""), text or ""
        )
        for path, text in sorted(files.items())
    ]
    unit = render.unit_name(observed.flavor)
    if enable is not None:
        changes.append(_plan.Change(f"unit {unit}", "enable" if enable else "disable"))
    return NatPlan(
        changes=tuple(changes),
        warnings=tuple(ledger.warnings),
        claims=accepted,
        left_out=tuple(ledger.left_out),
        restores=restores,
        stale=stale,
        hairpin=hairpin,
        files=files,
        unit=unit,
        enable_unit=enable,
    )


def present(desired: Desired, observed: Observed, made: NatPlan, report: t.Optional[Report]) -> t.Mapping[str, t.Any]:
    """The return values of ``mage.lxd.nat``: as carried out, or as planned."""
    if report:
        return report.values
    tables = wanted(made.claims, observed)
    return {
        "rules": [
            {
                "instance": claim.owner.name,
                "project": claim.owner.project,
                "proto": claim.entry.proto,
                "external": f"{claim.entry.extaddr or claim.entry.extif or '*'}:{claim.entry.extport}",
                "address": claim.target.address,
                "port": str(claim.entry.intport),
            }
            for claim in made.claims
        ],
        "chains": {name: sorted(table.chains) for name, table in tables.items() if table.chains},
        "left_out": [one._asdict() for one in made.left_out],
    }


def _elsewhere(desired: Desired, observed: Observed) -> NatPlan:
    """The server of another machine publishes nothing here, and what another server has published stays."""
    asking = [one for one in observed.publishers if one.decode(_keys.NAT).value]
    told = (
        f"endpoint: {observed.remote} is not this host: ports are published on the host that this module runs on, "
        "so run it on the server's own host, over its socket (an instance is a host, too, with "
        "ansible_connection: mage.lxd.lxd)"
    )
    if not desired.present or any(one.declared for one in asking):
        raise InvalidInput([told])
    return NatPlan(warnings=(told,) if asking else ())


def _check_backends(observed: Observed, ledger: Ledger, publishes: bool) -> None:
    prefix = own_prefix(observed.flavor)
    ours = any(own_rules(table, prefix) for table in observed.tables.values())
    if len(observed.backends) > 1 and (publishes or ours):
        both = " and ".join(f"{name} ({count} rules)" for name, count in sorted(observed.backends.items()))
        ledger.problems.add_text(
            f"firewall: this host has rules in two kinds of iptables, {both}: packets pass both, so rules in one of "
            "them can be undone in the other. Move the rules of one to the other, and run this again"
        )
    if publishes and not {"nat", "filter"} <= set(observed.tables):
        ledger.problems.add_text("firewall: iptables-save shows no tables nat and filter: is iptables installed?")


def _tables(
    tables: t.Mapping[str, Wanted], observed: Observed
) -> tuple[tuple[tuple[str, str], ...], list[_plan.Change], tuple[Stale, ...]]:
    """What to restore: packets are let through before they are led anywhere, and the other way round on removal."""
    prefix = own_prefix(observed.flavor)
    order = ("filter", "nat") if tables["nat"].chains else ("nat", "filter")
    restores, changes = [], []
    stale: tuple[Stale, ...] = ()
    for name in order:
        table = observed.tables.get(name, Table(name))
        text = restore_text(table, tables[name], prefix)
        if not text:
            continue
        before, after = own_rules(table, prefix), wanted_rules(tables[name])
        restores.append((name, text))
        changes.append(_plan.Change(f"table {name}", "restore", _lines(before), _lines(after)))
        if name == "nat":
            stale = _stale(before, after, observed.host)
    return tuple(restores), changes, stale


def _lines(rules: t.Iterable[Rule]) -> str:
    return "\n".join(rule.line() for rule in rules)


def _stale(before: t.Sequence[Rule], after: t.Sequence[Rule], host: Host) -> tuple[Stale, ...]:
    """The UDP ports that lead elsewhere than before. Flows of TCP end by themselves."""
    was = {rule.options: rule for rule in before}
    will = {rule.options: rule for rule in after}
    found: set[Stale] = set()
    for options in set(was) ^ set(will):
        first, _colon, last = value(options, "--dport").partition(":")
        if value(options, "-p") != "udp" or value(options, "-j") != "DNAT" or not (first + last).isdigit():
            continue
        said = value(options, "-d")
        addresses = (said,) if said else tuple(sorted(host.local, key=ipaddress.ip_address))
        found.add(Stale(PortRange(int(first), int(last or first)), addresses))
    return tuple(sorted(found))


def _hairpin(accepted: t.Sequence[Claim], observed: Observed) -> tuple[str, ...]:
    """Bridge ports by which an instance is to reach its own published port. Only needed where the bridge itself
    translates; otherwise the packet comes back by the host's routing."""
    if not observed.host.bridge_netfilter:
        return ()
    wanted_ports = {
        observed.ports.get((claim.owner.project, claim.owner.name, claim.target.network), "") for claim in accepted
    }
    return tuple(sorted(port for port in wanted_ports if observed.host.hairpin.get(port) is False))


def _persistence(
    desired: Desired, observed: Observed, tables: t.Mapping[str, Wanted], ledger: Ledger
) -> tuple[dict[str, t.Optional[str]], t.Optional[bool]]:
    """Files to write or remove, and whether the unit has to be enabled or disabled."""
    host = observed.host
    publishes = bool(tables["nat"].chains)
    if desired.persist and publishes and not host.systemd:
        ledger.problems.add_text("persist: true: this host's init is not systemd; only systemd can run the unit")
    if publishes and host.systemd and desired.persist is not False:
        kept = render.persistence(observed.flavor, [tables["filter"], tables["nat"]], host.tools)
        files = {path: text for path, text in kept.files.items() if host.files.get(path) != text}
        return dict(files), None if host.unit_enabled else True
    gone: dict[str, t.Optional[str]] = {path: None for path in render.paths(observed.flavor) if path in host.files}
    return gone, False if host.unit_enabled and host.systemd else None


def _host_warnings(accepted: t.Sequence[Claim], observed: Observed, ledger: Ledger) -> None:
    host = observed.host
    if accepted and not host.ip_forward:
        ledger.warn("net.ipv4.ip_forward is 0: the host forwards nothing, so published ports lead nowhere")
    for claim in accepted:
        if host.subnet(claim.target.address) is None:
            ledger.warn(
                f"{claim.owner.label}: this host has no address in the network of {claim.target.address}: "
                "published ports only work if packets are routed there and back"
            )
    published = {claim.target.network for claim in accepted}
    for network in observed.networks:
        if network.name in published and observed.server_firewall == "xtables" and _unmasked(network, observed):
            ledger.warn(
                f"network {network.name}: the server's own masquerade rule is not in the firewall, so instances "
                "cannot reach other hosts: restart the server to get it back"
            )


def _unmasked(network: t.Any, observed: Observed) -> bool:
    subnet = network.config.get("ipv4.address", "")
    if network.config.get("ipv4.nat") != "true" or "/" not in subnet or network.type != "bridge":
        return False
    source = str(ipaddress.ip_interface(subnet).network)
    rules = observed.tables["nat"].rules if "nat" in observed.tables else ()
    return not any(
        value(rule.options, "-s") == source and rule.target in ("MASQUERADE", "SNAT") and rule.chain == "POSTROUTING"
        for rule in rules
    )
