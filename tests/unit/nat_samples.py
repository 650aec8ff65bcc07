# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of NAT plans start from, and what iptables-restore does with a plan, in pure Python."""

from __future__ import annotations

import typing as t

from ansible_collections.mage.lxd.plugins.module_utils import _keys
from ansible_collections.mage.lxd.plugins.module_utils._nat import plan
from ansible_collections.mage.lxd.plugins.module_utils._nat.render import Rule, Table, parse_save
from ansible_collections.mage.lxd.plugins.module_utils._server.published import Publisher
from ansible_collections.mage.lxd.plugins.module_utils._server.snapshot import Address

EMPTY = """\
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
COMMIT
"""

HOST = plan.Host(
    interfaces={
        "lo": ("127.0.0.1/8",),
        "eth0": ("198.51.100.7/24", "198.51.100.8/24"),
        "eth1": ("203.0.113.7/24",),
        "lxdbr0": ("10.0.3.1/24",),
        "enp3s0": (),
        "br9": ("192.0.2.9/24",),
    },
    masters={"enp3s0": "br9"},
)


def instance(name: str, nat: object, address: str = "", project: str = "default", **more: t.Any) -> Publisher:
    """An instance with this ``nat`` list, at a pinned address on lxdbr0 (10.0.3.x, by its name)."""
    place = address or f"10.0.3.{10 + sum(name.encode()) % 200}"
    values: dict[str, t.Any] = {
        "project": project,
        "name": name,
        "status": "Running",
        "location": "none",
        "config": {_keys.NAT: _keys.encode(nat, project, name)},
        "addresses": (Address("eth0", "lxdbr0", 4, place, True),),
        **more,
    }
    return Publisher(**values)


def observed(*publishers: Publisher, tables: str = EMPTY, host: plan.Host = HOST, **more: t.Any) -> plan.Observed:
    """A host with these instances."""
    values: dict[str, t.Any] = {"flavor": "lxd", "instance_networks": ("lxdbr0",), **more}
    return plan.Observed(tables=parse_save(tables), host=host, publishers=publishers, **values)


def restored(tables: t.Mapping[str, Table], restores: t.Iterable[tuple[str, str]]) -> dict[str, Table]:
    """The tables after iptables-restore --noflush. Raises ValueError where iptables would refuse."""
    found = dict(tables)
    for name, text in restores:
        lines = text.splitlines()
        if lines[0] != f"*{name}" or lines[-1] != "COMMIT":
            raise ValueError(f"not one table: {text}")
        chains, rules = set(found[name].chains), list(found[name].rules)
        for line in lines[1:-1]:
            chains, rules = _step(line, chains, rules)
        found[name] = Table(name, frozenset(chains), tuple(rules))
    return found


def _step(line: str, chains: set[str], rules: list[Rule]) -> tuple[set[str], list[Rule]]:
    if line.startswith(":"):
        chain = line[1:].split()[0]
        return chains | {chain}, [rule for rule in rules if rule.chain != chain]
    if line.startswith("-X "):
        chain = line[3:]
        if any(chain in (rule.chain, rule.target) for rule in rules):
            raise ValueError(f"{chain} is in use")
        return chains - {chain}, rules
    command = line[:2]
    (rule,) = parse_save(f"*x\n-A{line[2:]}\n")["x"].rules
    if command == "-I":
        rule = Rule(rule.chain, rule.tokens[1:])
    if rule.chain not in chains or (rule.target.startswith("MAGE-") and rule.target not in chains):
        raise ValueError(f"no such chain: {line}")
    if command == "-D":
        rules = list(rules)
        rules.remove(rule)
        return chains, rules
    return chains, [rule, *rules] if command == "-I" else [*rules, rule]
