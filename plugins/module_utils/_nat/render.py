# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""iptables rules as values: parsed from iptables-save, compared in one normal form, written for iptables-restore.

The only place that writes a line for iptables. Both backends (nft and legacy) print rules as they are written here.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import typing as t

Tokens = tuple[str, ...]
# An option of a rule: its flag, whether it is negated, its values.
Option = tuple[str, bool, Tokens]

_SAFE = re.compile(r"[A-Za-z0-9_.,:/+=@!-]+", re.ASCII)
# iptables keeps 255 characters of a comment; a longer one would never compare equal.
COMMENT_LIMIT = 255


class Rule(t.NamedTuple):
    """One rule: its chain, and the words after ``-A CHAIN``."""

    chain: str
    tokens: Tokens

    @property
    def target(self) -> str:
        """Where it jumps or goes to; empty if nowhere."""
        return value(self.options, "-j") or value(self.options, "-g")

    @property
    def options(self) -> tuple[Option, ...]:
        """Its options in normal form, so that rules that mean the same compare equal."""
        return tuple(sorted(_options(self.tokens)))

    def line(self, command: str = "-A") -> str:
        """The rule as a line for iptables-restore."""
        return " ".join((command, self.chain, *(_quoted(token) for token in self.tokens)))


@dataclasses.dataclass(frozen=True)
class Table:
    """What iptables-save said of one table."""

    name: str
    chains: frozenset[str] = frozenset()
    rules: tuple[Rule, ...] = ()

    def of(self, chain: str) -> tuple[Rule, ...]:
        """The rules of one chain, in order."""
        return tuple(rule for rule in self.rules if rule.chain == chain)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is to be ours in one table: the rules of own chains, and one jump to each from a chain that is not ours."""

    table: str
    chains: t.Mapping[str, tuple[Rule, ...]]
    jumps: tuple[Rule, ...]


def parse_save(text: str) -> dict[str, Table]:
    """Read the output of iptables-save. Lines that are no table, chain or rule are left out."""
    found: dict[str, tuple[set[str], list[Rule]]] = {}
    current: t.Optional[tuple[set[str], list[Rule]]] = None
    for line in text.splitlines():
        if line.startswith("*"):
            current = found.setdefault(line[1:].strip(), (set(), []))
        elif current is None:
            continue
        elif line.startswith(":"):
            current[0].add(line[1:].split()[0])
        elif line.startswith("-A "):
            words = _words(line)
            current[1].append(Rule(words[1], tuple(words[2:])))
    return {name: Table(name, frozenset(chains), tuple(rules)) for name, (chains, rules) in found.items()}


def value(options: t.Iterable[Option], flag: str) -> str:
    """The value of an option that is said once and not negated; empty if it is not."""
    for name, negated, values in options:
        if name == flag and not negated:
            return values[0] if values else ""
    return ""


def own_prefix(flavor: str) -> str:
    """What the names of our chains for one kind of server begin with: ``MAGE-LXD-``."""
    return f"MAGE-{flavor.upper()}-"


def own_rules(table: Table, prefix: str) -> tuple[Rule, ...]:
    """What is ours in a table: jumps to own chains, then the rules of own chains, sorted by chain."""
    jumps = [rule for rule in table.rules if _is_jump(rule, prefix)]
    inner = [rule for rule in table.rules if rule.chain.startswith(prefix)]
    return (*sorted(jumps), *sorted(inner, key=lambda rule: rule.chain))


def wanted_rules(wanted: Wanted) -> tuple[Rule, ...]:
    """What ``own_rules`` will say once a table is as wanted."""
    inner = [rule for chain in sorted(wanted.chains) for rule in wanted.chains[chain]]
    return (*sorted(wanted.jumps), *inner)


def restore_text(table: Table, wanted: Wanted, prefix: str) -> str:
    """The input of ``iptables-restore --noflush`` that brings a table from what it is to what is wanted.

    Empty if it is as wanted. Chains that are right are not touched, so they keep their counters. A chain that is named
    with a colon is emptied by iptables-restore before its rules are added.
    """
    stale = [chain for chain in sorted(wanted.chains) if _normal(table.of(chain)) != _normal(wanted.chains[chain])]
    stale += [chain for chain in sorted(wanted.chains) if chain not in table.chains and chain not in stale]
    surplus = sorted(chain for chain in table.chains if chain.startswith(prefix) and chain not in wanted.chains)
    removed, added = _jump_changes(table, wanted, prefix)
    if not (stale or surplus or removed or added):
        return ""
    lines = [f"*{wanted.table}"]
    lines += [f":{chain} - [0:0]" for chain in (*stale, *surplus)]
    lines += [rule.line() for chain in stale for rule in wanted.chains[chain]]
    lines += [rule.line("-D") for rule in removed]
    lines += [Rule(rule.chain, ("1", *rule.tokens)).line("-I") for rule in added]
    lines += [f"-X {chain}" for chain in surplus]
    return "\n".join([*lines, "COMMIT", ""])


def comment(label: str) -> str:
    """Text that is safe as a comment: what a name cannot hold becomes an underscore."""
    return re.sub(r"[^A-Za-z0-9_./-]", "_", label, flags=re.ASCII)[:COMMENT_LIMIT] or "_"


def _jump_changes(table: Table, wanted: Wanted, prefix: str) -> tuple[list[Rule], list[Rule]]:
    """Which jumps go, which come. A right jump stays where it is; copies of it, and all others, are removed."""
    present = [rule for rule in table.rules if _is_jump(rule, prefix)]
    removed: list[Rule] = []
    added: list[Rule] = []
    for rule in wanted.jumps:
        same = [one for one in present if (one.chain, one.options) == (rule.chain, rule.options)]
        removed += same[1:]
        added += [] if same else [rule]
    right = {(rule.chain, rule.options) for rule in wanted.jumps}
    removed += [rule for rule in present if (rule.chain, rule.options) not in right]
    return removed, added


def _is_jump(rule: Rule, prefix: str) -> bool:
    return rule.target.startswith(prefix) and not rule.chain.startswith(prefix)


def _normal(rules: t.Iterable[Rule]) -> list[tuple[Option, ...]]:
    return [rule.options for rule in rules]


def _options(tokens: Tokens) -> t.Iterator[Option]:
    """Split words into options. ``-m tcp`` and the like only name what the other options need."""
    flag, negated, follows = "", False, False
    values: list[str] = []
    for token in (*tokens, "--end"):
        if token == "!":
            follows = True
        elif token.startswith("-") and len(token) > 1 and not token[1].isdigit():
            if flag and flag != "-m":
                yield flag, negated, _normal_values(flag, values)
            flag, negated, values, follows = token, follows, [], False
        else:
            values.append(token)


def _normal_values(flag: str, values: list[str]) -> Tokens:
    if flag in ("-s", "-d"):
        return tuple(one.removesuffix("/32") for one in values)
    if flag == "--ctstate":
        return tuple(",".join(sorted(one.split(","))) for one in values)
    return tuple(values)


def _quoted(token: str) -> str:
    if _SAFE.fullmatch(token):
        return token
    return '"' + token.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:
        # A comment with a line break leaves an open quote.
        return line.split()


# The unit that restores our chains after a reboot

FOLDER = "/etc/mage-lxd"
UNITS = "/etc/systemd/system"

_UNIT = """\
# Written by mage.lxd.nat: changes are overwritten.
[Unit]
Description=Published ports of {server} instances
After=network.target lxd.service lxd-containers.service snap.lxd.daemon.service
After=incus.service incus-startup.service docker.service
After=netfilter-persistent.service nftables.service firewalld.service ufw.service
ConditionPathExists={rules}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={folder}/iptables-restore --noflush --wait=30 {rules}
{jumps}

[Install]
WantedBy=multi-user.target
"""


class Persistence(t.NamedTuple):
    """The files that keep the chains over a reboot, by path, and the unit's name."""

    unit: str
    files: t.Mapping[str, str]


def unit_name(flavor: str) -> str:
    """The unit's name for one kind of server."""
    return f"mage-lxd-nat-{flavor}.service"


def paths(flavor: str) -> tuple[str, str]:
    """Where the rules and the unit of one kind of server lie."""
    return f"{FOLDER}/nat-{flavor}.rules", f"{UNITS}/{unit_name(flavor)}"


def persistence(flavor: str, tables: t.Sequence[Wanted], folder: str) -> Persistence:
    """The files for these tables. ``folder`` is where the host has iptables-restore (``/usr/sbin``)."""
    rules_path, unit_path = paths(flavor)
    texts = [restore_text(Table(one.table), dataclasses.replace(one, jumps=()), own_prefix(flavor)) for one in tables]
    jumps = [_jump_command(one.table, rule, folder) for one in tables for rule in one.jumps]
    server = {"lxd": "LXD", "incus": "Incus"}.get(flavor, flavor)
    unit = _UNIT.format(server=server, rules=rules_path, folder=folder, jumps="\n".join(jumps))
    return Persistence(unit_name(flavor), {rules_path: "".join(texts), unit_path: unit})


def _jump_command(table: str, rule: Rule, folder: str) -> str:
    """One jump, made unless it is there. Docker makes its chain when it starts, which may be later."""
    tool = f"{folder}/iptables --wait 30 -t {table}"

    def made(one: Rule) -> str:
        there = f"{tool} {one.line('-C')} 2>/dev/null"
        return f"{{ {there} || {tool} {Rule(one.chain, ('1', *one.tokens)).line('-I')}; }}"

    tries = made(rule)
    if table == "filter" and rule.chain != "FORWARD":
        comes_there = f"{tool} {Rule('FORWARD', ('-j', rule.chain)).line('-C')} 2>/dev/null"
        tries = f"{comes_there} && {tries} || {made(rule._replace(chain='FORWARD'))}"
    return f"ExecStart=/bin/sh -c '{tries}'"
