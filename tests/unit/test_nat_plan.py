# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who gets which port, and the rules that come of it."""

from __future__ import annotations

import contextlib
import dataclasses
import types
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mage.lxd.plugins.module_utils._errors import InvalidInput
from ansible_collections.mage.lxd.plugins.module_utils._nat import iptables
from ansible_collections.mage.lxd.plugins.module_utils._nat import plan as nat
from ansible_collections.mage.lxd.plugins.module_utils._nat.render import parse_save
from ansible_collections.mage.lxd.plugins.module_utils._nat.spec import Desired, Policy
from ansible_collections.mage.lxd.plugins.module_utils._server.options import ServerOptions
from ansible_collections.mage.lxd.plugins.module_utils._server.snapshot import Address, Instance, Network
from ansible_collections.mage.lxd.plugins.module_utils._values import PortRange
from ansible_collections.mage.lxd.tests.memory.driver import MemoryDriver
from ansible_collections.mage.lxd.tests.memory.store import Store
from ansible_collections.mage.lxd.tests.unit.nat_samples import EMPTY, HOST, instance, observed, restored

HERE = Desired()
WEB = "10.0.3.5"


def lines(made: nat.NatPlan, table: str = "nat") -> list[str]:
    """The rules that a plan leaves in a table, ours only."""
    (after,) = [change.after for change in made.changes if change.subject == f"table {table}"]
    return after.splitlines()


def problems(*publishers: t.Any, desired: Desired = HERE, **more: t.Any) -> list[str]:
    with pytest.raises(InvalidInput) as error:
        nat.plan(desired, observed(*publishers, **more))
    return list(error.value.problems)


def reasons(made: nat.NatPlan) -> list[str]:
    return [f"{one.instance}: {one.entry}: {one.reason}" for one in made.left_out]


LOCAL = "-m addrtype --dst-type LOCAL"
MARK = "-m comment --comment default/web-1 -j DNAT --to-destination"


@pytest.mark.parametrize(
    ("entry", "outside", "inside"),
    [
        (
            {"extport": 8080, "intport": 80},
            [f"-p tcp {LOCAL} -m tcp --dport 8080 {MARK} {WEB}:80"],
            [f"-p tcp {LOCAL} -m tcp --dport 8080 {MARK} {WEB}:80"],
        ),
        (
            {"extport": 53, "proto": "udp", "extaddr": "198.51.100.8"},
            [f"-d 198.51.100.8/32 -p udp {LOCAL} -m udp --dport 53 {MARK} {WEB}:53"],
            [f"-d 198.51.100.8/32 -p udp {LOCAL} -m udp --dport 53 {MARK} {WEB}:53"],
        ),
        (
            {"extport": 8080, "intport": 80, "extif": "eth0"},
            [
                f"-i eth0 -p tcp {LOCAL} --limit-iface-in -m tcp --dport 8080 {MARK} {WEB}:80",
                "-i lxdbr0 -j MAGE-LXD-OUT",
            ],
            [
                f"-d 198.51.100.7/32 -p tcp {LOCAL} -m tcp --dport 8080 {MARK} {WEB}:80",
                f"-d 198.51.100.8/32 -p tcp {LOCAL} -m tcp --dport 8080 {MARK} {WEB}:80",
            ],
        ),
        (
            {"extport": 8080, "extif": "eth0", "extaddr": "198.51.100.8"},
            [
                f"-d 198.51.100.8/32 -i eth0 -p tcp {LOCAL} -m tcp --dport 8080 {MARK} {WEB}:8080",
                "-i lxdbr0 -j MAGE-LXD-OUT",
            ],
            [f"-d 198.51.100.8/32 -p tcp {LOCAL} -m tcp --dport 8080 {MARK} {WEB}:8080"],
        ),
        (
            {"extport": "8000-8010"},
            [f"-p tcp {LOCAL} -m tcp --dport 8000:8010 {MARK} {WEB}"],
            [f"-p tcp {LOCAL} -m tcp --dport 8000:8010 {MARK} {WEB}"],
        ),
        (
            {"extport": "8000-8010", "intport": "9000-9010"},
            [f"-p tcp {LOCAL} -m tcp --dport 8000:8010 {MARK} {WEB}:9000-9010/8000"],
            [f"-p tcp {LOCAL} -m tcp --dport 8000:8010 {MARK} {WEB}:9000-9010/8000"],
        ),
    ],
)
def test_the_rules_of_an_entry(entry: dict[str, t.Any], outside: list[str], inside: list[str]) -> None:
    found = lines(nat.plan(HERE, observed(instance("web-1", [entry], WEB))))
    assert [line for line in found if line.startswith("-A MAGE-LXD-PRE ")] == [f"-A MAGE-LXD-PRE {x}" for x in outside]
    assert [line for line in found if line.startswith("-A MAGE-LXD-OUT ")] == [f"-A MAGE-LXD-OUT {x}" for x in inside]
    assert found[:3] == [
        "-A OUTPUT ! -d 127.0.0.0/8 -j MAGE-LXD-OUT",
        "-A POSTROUTING -j MAGE-LXD-POST",
        "-A PREROUTING -j MAGE-LXD-PRE",
    ]


def test_only_neighbours_are_masqueraded_and_only_what_was_led_here_is_let_through() -> None:
    web = instance("web-1", [{"extport": "8000-8001", "intport": "80-81"}, {"extport": 53, "proto": "udp"}], WEB)
    made = nat.plan(HERE, observed(web))
    mark = "-m comment --comment default/web-1 -j"
    state = "-m conntrack --ctstate"
    assert [line for line in lines(made) if "-A MAGE-LXD-POST" in line] == [
        f"-A MAGE-LXD-POST -s 10.0.3.0/24 -d {WEB}/32 {state} DNAT {mark} MASQUERADE"
    ]
    assert lines(made, "filter") == [
        "-A FORWARD -j MAGE-LXD-FWD",
        f"-A MAGE-LXD-FWD -d {WEB}/32 -p tcp -m tcp --dport 80:81 {state} DNAT {mark} ACCEPT",
        f"-A MAGE-LXD-FWD -s {WEB}/32 -p tcp -m tcp --sport 80:81 {state} DNAT {mark} ACCEPT",
        f"-A MAGE-LXD-FWD -d {WEB}/32 -p icmp {state} RELATED {mark} ACCEPT",
        f"-A MAGE-LXD-FWD -d {WEB}/32 -p udp -m udp --dport 53 {state} DNAT {mark} ACCEPT",
        f"-A MAGE-LXD-FWD -s {WEB}/32 -p udp -m udp --sport 53 {state} DNAT {mark} ACCEPT",
    ]


@pytest.mark.parametrize(
    ("rules", "chain"),
    [
        (["-A FORWARD -j DOCKER-USER"], "DOCKER-USER"),
        (["-A FORWARD -i eth0 -j DROP", "-A FORWARD -j DOCKER-USER", "-A FORWARD -j DROP"], "DOCKER-USER"),
        (["-A FORWARD -j DOCKER-FORWARD", "-A FORWARD -j DOCKER-USER"], "DOCKER-USER"),
        ([], "FORWARD"),
        (["-A DOCKER-USER -j RETURN"], "FORWARD"),
        (["-A FORWARD -i docker0 -j DOCKER-USER"], "FORWARD"),
        (["-A FORWARD -j DOCKER-FORWARD", "-A DOCKER-FORWARD -j DOCKER-USER"], "FORWARD"),
        (["-A FORWARD -j DROP", "-A FORWARD -j DOCKER-USER"], "FORWARD"),
        (["-A INPUT -j DOCKER-USER"], "FORWARD"),
    ],
)
def test_docker_s_own_chain_for_others_is_used_where_packets_come_to_it(rules: list[str], chain: str) -> None:
    more = "".join(f":{name} - [0:0]\n" for name in ("DOCKER-USER", "DOCKER-FORWARD"))
    head, _commit, _rest = EMPTY.rpartition("COMMIT\n")
    tables = head + more + "".join(f"{rule}\n" for rule in rules) + "COMMIT\n"
    here = observed(instance("web-1", [{"extport": 80}]), tables=tables)
    made = nat.plan(HERE, here)
    assert lines(made, "filter")[0] == f"-A {chain} -j MAGE-LXD-FWD"
    assert not nat.plan(HERE, dataclasses.replace(here, tables=restored(here.tables, made.restores))).changed


def test_incus_has_chains_of_its_own() -> None:
    made = nat.plan(HERE, observed(instance("web-1", [{"extport": 80}]), flavor="incus"))
    assert {line.split()[1] for line in lines(made) if "MAGE" in line.split()[1]} == {
        "MAGE-INCUS-PRE",
        "MAGE-INCUS-OUT",
        "MAGE-INCUS-POST",
    }


def test_packets_are_let_through_before_they_are_led_anywhere() -> None:
    here = observed(instance("web-1", [{"extport": 80}]))
    made = nat.plan(HERE, here)
    assert [table for table, _text in made.restores] == ["filter", "nat"]
    after = restored(here.tables, made.restores)
    gone = nat.plan(dataclasses.replace(HERE, present=False), dataclasses.replace(here, tables=after))
    assert [table for table, _text in gone.restores] == ["nat", "filter"]
    assert restored(after, gone.restores) == here.tables


def test_nothing_published_leaves_nothing_behind() -> None:
    here = observed(instance("web-1", [{"extport": 80}]))
    after = restored(here.tables, nat.plan(HERE, here).restores)
    gone = nat.plan(HERE, dataclasses.replace(here, publishers=(), tables=after))
    assert restored(after, gone.restores) == here.tables
    assert not nat.plan(HERE, dataclasses.replace(here, publishers=())).changed


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        ("-A PREROUTING -j MAGE-LXD-PRE\n-A PREROUTING -j MAGE-LXD-PRE\n", "copies"),
        ("-A OUTPUT -j MAGE-LXD-OUT\n", "not as ours"),
        ("-A POSTROUTING -g MAGE-LXD-PRE\n", "of another chain"),
        ('-A INPUT -m comment --comment "not \\"ours\\"" -j MAGE-LXD-OUT\n', "with a comment"),
        (":MAGE-LXD-OLD - [0:0]\n-A MAGE-LXD-OLD -j MAGE-LXD-OUT\n-A PREROUTING -j MAGE-LXD-OLD\n", "an old chain"),
        ("-A MAGE-LXD-PRE -p tcp -m tcp --dport 22 -j ACCEPT\n", "a rule that is not ours in our chain"),
    ],
)
def test_what_is_wrong_is_put_right_and_the_rest_is_left(more: str, wrong: str) -> None:
    foreign = "-A PREROUTING -p tcp -m tcp --dport 99 -j ACCEPT\n-A POSTROUTING -s 10.0.3.0/24 -j MASQUERADE\n"
    head = EMPTY.replace("COMMIT\n*filter", foreign + "COMMIT\n*filter")
    here = observed(instance("web-1", [{"extport": 80}]), tables=head)
    right = restored(here.tables, nat.plan(HERE, here).restores)
    text = "".join(rule.line() + "\n" for rule in right["nat"].rules) + more
    chains = "".join(f":{chain} - [0:0]\n" for chain in sorted(right["nat"].chains))
    broken = {**right, **parse_save(f"*nat\n{chains}{text}")}
    assert broken != right, wrong
    made = nat.plan(HERE, dataclasses.replace(here, tables=broken))
    assert [table for table, _text in made.restores] == ["nat"]
    mended = restored(broken, made.restores)
    assert sorted(mended["nat"].rules) == sorted(right["nat"].rules)
    assert mended["nat"].chains == right["nat"].chains


def test_rules_that_mean_the_same_are_left_alone() -> None:
    """Another iptables may print a rule in another order, with other spellings."""
    here = observed(instance("web-1", [{"extport": 8080}], WEB))
    right = restored(here.tables, nat.plan(HERE, here).restores)
    text = "".join(rule.line() + "\n" for rule in right["nat"].rules)
    other = text.replace(f"-d {WEB}/32", f"-d {WEB}").replace("-m tcp --dport 8080", "--dport 8080")
    other = other.replace("--comment default/web-1", '--comment "default/web-1"')
    assert other != text
    chains = "".join(f":{chain} - [0:0]\n" for chain in sorted(right["nat"].chains))
    assert not nat.plan(
        HERE, dataclasses.replace(here, tables={**right, **parse_save(f"*nat\n{chains}{other}")})
    ).changed


SSHD = dataclasses.replace(HOST, listeners=(nat.Listener("tcp", "0.0.0.0", 22, "sshd (pid 7)"),))
DNSMASQ = dataclasses.replace(HOST, listeners=(nat.Listener("udp", "10.0.3.1", 53, "dnsmasq (pid 8)"),))
LOOPBACK = dataclasses.replace(HOST, listeners=(nat.Listener("tcp", "127.0.0.1", 80, "x"),))
ANY6 = dataclasses.replace(HOST, listeners=(nat.Listener("tcp", "::", 80, ""),))


@pytest.mark.parametrize(
    ("host", "entry", "reason"),
    [
        (SSHD, {"extport": 22}, "sshd (pid 7) listens on 0.0.0.0:22/tcp on this host"),
        (SSHD, {"extport": "20-30"}, "sshd (pid 7) listens on"),
        (SSHD, {"extport": 22, "extif": "eth1"}, "sshd (pid 7) listens on"),
        (SSHD, {"extport": 22, "proto": "udp"}, ""),
        (
            DNSMASQ,
            {"extport": 53, "proto": "udp"},
            "dnsmasq (pid 8) listens on 10.0.3.1:53/udp on this host; say another",
        ),
        (DNSMASQ, {"extport": 53, "proto": "udp", "extif": "eth0"}, ""),
        (DNSMASQ, {"extport": 53, "proto": "udp", "extaddr": "198.51.100.7"}, ""),
        (LOOPBACK, {"extport": 80}, ""),
        (ANY6, {"extport": 80}, "a process of the host listens on :::80/tcp"),
        (HOST, {"extport": 80, "extif": "eth9"}, "this host has no interface eth9 (did you mean"),
        (HOST, {"extport": 80, "extif": "enp3s0"}, "enp3s0 is a port of the bridge br9, where its packets come in"),
        (HOST, {"extport": 80, "intif": "lxdbr9"}, "has no address on intif lxdbr9 (it has"),
    ],
)
def test_what_the_host_does_not_allow(host: nat.Host, entry: dict[str, t.Any], reason: str) -> None:
    declared = instance("web-1", [entry], declared=True)
    if not reason:
        assert nat.plan(HERE, observed(declared, host=host)).claims
        return
    (problem,) = problems(declared, host=host)
    assert problem.startswith("default/web-1: nat[0]: ")
    assert reason in problem
    by_hand = nat.plan(HERE, observed(instance("web-1", [entry]), instance("b", [{"extport": 81}]), host=host))
    assert [claim.owner.name for claim in by_hand.claims] == ["b"]
    assert reason in by_hand.warnings[0]
    assert by_hand.warnings[0].endswith(": left out")


NAT_RULE = EMPTY.replace("COMMIT\n*filter", "{}\nCOMMIT\n*filter")
OTHER = (
    "-A MAGE-INCUS-PRE {} -p tcp -m tcp --dport 8080 -m comment --comment default/x -j DNAT --to-destination 10.9.0.2"
)


@pytest.mark.parametrize(
    ("rule", "entry", "taken"),
    [
        (OTHER.format("-m addrtype --dst-type LOCAL"), {"extport": 8080}, True),
        (OTHER.format("-m addrtype --dst-type LOCAL"), {"extport": "8079-8081"}, True),
        (OTHER.format("-m addrtype --dst-type LOCAL"), {"extport": 8080, "proto": "udp"}, False),
        (
            OTHER.format("-i eth0 -m addrtype --dst-type LOCAL --limit-iface-in"),
            {"extport": 8080, "extif": "eth0"},
            True,
        ),
        (
            OTHER.format("-i eth0 -m addrtype --dst-type LOCAL --limit-iface-in"),
            {"extport": 8080, "extif": "eth1"},
            False,
        ),
        (OTHER.format("-i eth0"), {"extport": 8080, "extaddr": "203.0.113.7"}, False),
        (OTHER.format("-i eth0"), {"extport": 8080, "extaddr": "198.51.100.8"}, True),
        (OTHER.format("-d 198.51.100.7/32"), {"extport": 8080, "extif": "eth0"}, True),
        (OTHER.format("-d 198.51.100.7/32"), {"extport": 8080, "extif": "eth1"}, False),
        (OTHER.format("-d 192.0.2.77/32"), {"extport": 8080}, False),
        (OTHER.format("-d 127.0.0.1/32"), {"extport": 8080}, False),
        (OTHER.format("-d 127.0.0.0/8"), {"extport": 8080}, False),
        (OTHER.format("-i lo"), {"extport": 8080}, False),
        (OTHER.format("! -d 127.0.0.0/8"), {"extport": 8080}, True),
        (
            "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80",
            {"extport": 8080},
            True,
        ),
        ("-A PREROUTING -p tcp -m multiport --dports 80,8000:8100 -j REDIRECT --to-ports 1", {"extport": 8080}, True),
        ("-A PREROUTING -p tcp -m tcp --dport 8080 -j ACCEPT", {"extport": 8080}, False),
        ("-A MAGE-LXD-PRE -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.0.3.9", {"extport": 8080}, False),
    ],
)
def test_ports_that_other_rules_have(rule: str, entry: dict[str, t.Any], taken: bool) -> None:
    tables = NAT_RULE.format(rule)
    made = nat.plan(HERE, observed(instance("web-1", [entry]), tables=tables))
    assert bool(made.claims) is not taken
    if taken:
        assert rule.split()[1] in made.warnings[0]
        assert "has it already" in problems(instance("web-1", [entry], declared=True), tables=tables)[0]


def device(**options: str) -> Instance:
    raw = {"name": "p", "status": "Running", "expanded_devices": {"http": {"type": "proxy", **options}}}
    return Instance.from_api(raw)


@pytest.mark.parametrize(
    ("listen", "taken"),
    [
        ({"listen": "tcp:0.0.0.0:8080"}, True),
        ({"listen": "tcp:[::]:8080"}, True),
        ({"listen": "tcp::8080"}, True),
        ({"listen": "tcp:[2001:db8::1]:8080"}, False),
        ({"listen": "tcp:198.51.100.7:80,8000-8090"}, True),
        ({"listen": "tcp:192.0.2.77:8080"}, False),
        ({"listen": "udp:0.0.0.0:8080"}, False),
        ({"listen": "unix:/run/x"}, False),
        ({"listen": "tcp:0.0.0.0:8080", "bind": "instance"}, False),
        ({"listen": "tcp:127.0.0.1:8080"}, False),
    ],
)
def test_ports_that_a_proxy_device_has(listen: dict[str, str], taken: bool) -> None:
    rivals = nat.proxy_rivals([device(**listen)])
    made = nat.plan(HERE, observed(instance("web-1", [{"extport": 8080}]), rivals=rivals))
    assert bool(made.claims) is not taken
    if taken:
        assert "the proxy device http of default/p has it already" in made.warnings[0]


@pytest.mark.parametrize(
    ("forward", "taken"),
    [
        ({"listen_address": "198.51.100.8", "ports": [{"protocol": "tcp", "listen_port": "80,8080-8081"}]}, True),
        ({"listen_address": "198.51.100.8", "ports": [{"protocol": "udp", "listen_port": "8080"}]}, False),
        ({"listen_address": "198.51.100.8", "config": {"target_address": "10.0.3.9"}}, True),
        ({"listen_address": "192.0.2.77", "config": {"target_address": "10.0.3.9"}}, False),
    ],
)
def test_ports_that_a_network_forward_has(forward: dict[str, t.Any], taken: bool) -> None:
    rivals = nat.forward_rivals("lxdbr0", [forward])
    made = nat.plan(HERE, observed(instance("web-1", [{"extport": 8080}]), rivals=rivals))
    assert bool(made.claims) is not taken
    if taken:
        assert "the forward of 198.51.100.8 on network lxdbr0 has it already" in made.warnings[0]


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ({"extport": 80}, {"extport": 80}, True),
        ({"extport": 80}, {"extport": 80, "proto": "udp"}, False),
        ({"extport": "80-90"}, {"extport": "85-99"}, True),
        ({"extport": "80-300"}, {"extport": 200, "intport": 1}, True),
        ({"extport": 80, "intport": 1}, {"extport": "80-300"}, True),
        ({"extport": "80-300"}, {"extport": "290-400"}, True),
        ({"extport": "80-300"}, {"extport": "301-600"}, False),
        ({"extport": "80-300"}, {"extport": 301}, False),
        ({"extport": "80-300", "extaddr": "198.51.100.7"}, {"extport": 200, "extaddr": "198.51.100.8"}, False),
        ({"extport": "80-300"}, {"extport": "100-200", "proto": "udp"}, False),
        ({"extport": 80}, {"extport": 80, "extif": "enp9"}, True),
        ({"extport": 80, "extif": "eth0"}, {"extport": 80, "extif": "eth1"}, False),
        ({"extport": 80, "extif": "eth0"}, {"extport": 80, "extaddr": "198.51.100.8"}, True),
        ({"extport": 80, "extif": "eth1"}, {"extport": 80, "extaddr": "198.51.100.8"}, False),
        ({"extport": 80, "extaddr": "198.51.100.7"}, {"extport": 80, "extaddr": "198.51.100.8"}, False),
        ({"extport": 80}, {"extport": 80, "extaddr": "198.51.100.8"}, True),
    ],
)
def test_two_that_ask_for_one_port(one: dict[str, t.Any], other: dict[str, t.Any], meet: bool) -> None:
    host = dataclasses.replace(HOST, interfaces={**HOST.interfaces, "enp9": ()})
    by_hand = nat.plan(HERE, observed(instance("b", [other]), instance("a", [one]), host=host))
    assert [claim.owner.name for claim in by_hand.claims] == (["a"] if meet else ["a", "b"])
    for declared in ("a", "b", "ab"):
        found = [instance("a", [one], declared="a" in declared), instance("b", [other], declared="b" in declared)]
        if meet:
            (problem,) = problems(*found, host=host)
            told, holder = ("a", "b") if declared == "a" else ("b", "a")
            assert problem.startswith(f"default/{told}: nat[0]: ")
            assert f"default/{holder} has it already (nat[0]: tcp port " in problem
        else:
            assert not nat.plan(HERE, observed(*found, host=host)).warnings


ANYWHERE = {"extport": 8080}
GUESTS = dataclasses.replace(HERE, policy=Policy(frozenset({"guests"})))


def published(*publishers: t.Any) -> nat.Observed:
    """The host when these have their ports already."""
    here = observed(*publishers)
    return dataclasses.replace(here, tables=restored(here.tables, nat.plan(GUESTS, here).restores))


def guest(name: str, *entries: dict[str, t.Any], **more: t.Any) -> t.Any:
    return instance(name, list(entries), project="guests", restricted=True, **more)


def web(*entries: dict[str, t.Any], **more: t.Any) -> t.Any:
    return instance("web-1", list(entries), **more)


def new(*entries: dict[str, t.Any], **more: t.Any) -> t.Any:
    return instance("aaa", list(entries), **more)


SPAN = {"extport": "8079-8081"}
NOT_THERE = "default/aaa: nat[0]: tcp port 8080: default/web-1 has it already (nat[0]: tcp port 8080)"


@pytest.mark.parametrize(
    ("before", "after", "holder"),
    [
        ([web(ANYWHERE)], [web(ANYWHERE), new(ANYWHERE)], "web-1"),
        ([web(ANYWHERE)], [web(ANYWHERE), new(SPAN)], "web-1"),
        ([web(ANYWHERE)], [web({**ANYWHERE, "intport": 81}, address="10.0.3.77"), new(ANYWHERE)], "web-1"),
        ([web(SPAN)], [web(SPAN), new(ANYWHERE)], "web-1"),
        # A list that was changed by hand keeps what it has, and gets no more of others.
        ([web(SPAN)], [web(ANYWHERE), new(ANYWHERE)], "web-1"),
        ([web(ANYWHERE), new({"extport": 8081})], [web(ANYWHERE), new(SPAN)], "web-1"),
        (
            [web({**ANYWHERE, "extaddr": "198.51.100.8"}), new({**ANYWHERE, "extaddr": "198.51.100.7"})],
            [web({**ANYWHERE, "extaddr": "198.51.100.8"}), new(ANYWHERE)],
            "web-1",
        ),
        ([guest("zzz", ANYWHERE)], [guest("zzz", ANYWHERE), guest("aaa", ANYWHERE)], "zzz"),
        # Whoever is trusted goes first, and so a guest keeps nothing that others want.
        ([guest("zzz", ANYWHERE)], [guest("zzz", ANYWHERE), new(ANYWHERE)], "aaa"),
        ([web(ANYWHERE)], [web(ANYWHERE), guest("aaa", ANYWHERE)], "web-1"),
        ([], [web(ANYWHERE), guest("aaa", ANYWHERE)], "web-1"),
        # Nobody has it: the default project, then the alphabet.
        ([], [web(ANYWHERE), instance("aaa", [ANYWHERE], project="another")], "web-1"),
        ([], [web(ANYWHERE), new(ANYWHERE)], "aaa"),
        # What a run declares goes before what it does not, unless that is published.
        ([web(ANYWHERE, declared=True)], [web(ANYWHERE, declared=True), new(ANYWHERE)], "web-1"),
        ([], [web(ANYWHERE, declared=True), guest("aaa", ANYWHERE)], "web-1"),
        ([guest("zzz", ANYWHERE)], [guest("zzz", ANYWHERE, declared=True), new(ANYWHERE)], "zzz"),
    ],
)
def test_a_key_that_was_set_by_hand_takes_no_port_that_is_published(
    before: list[t.Any], after: list[t.Any], holder: str
) -> None:
    here = dataclasses.replace(published(*before), publishers=tuple(after))
    made = nat.plan(GUESTS, here)
    assert [claim.owner.name for claim in made.claims] == [holder]
    assert len(made.left_out) == 1
    assert f"/{holder} has it already" in made.left_out[0].reason
    backwards = dataclasses.replace(here, publishers=tuple(reversed(after)))
    assert nat.plan(GUESTS, backwards) == made
    again = nat.plan(GUESTS, dataclasses.replace(here, tables=restored(here.tables, made.restores)))
    assert (again.changed, again.left_out) == (False, made.left_out)


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ([web(ANYWHERE)], [web(ANYWHERE), new(ANYWHERE, declared=True)], NOT_THERE),
        ([web(ANYWHERE)], [web(ANYWHERE, declared=True), new(ANYWHERE, declared=True)], NOT_THERE),
        ([new({"extport": 99}), web(ANYWHERE)], [web(ANYWHERE), new(ANYWHERE, declared=True)], NOT_THERE),
        ([], [web(ANYWHERE), new(ANYWHERE, declared=True)], NOT_THERE),
        (
            [guest("zzz", ANYWHERE)],
            [guest("zzz", ANYWHERE), web(ANYWHERE, declared=True)],
            "default/web-1: nat[0]: tcp port 8080: guests/zzz has it already (nat[0]: tcp port 8080)",
        ),
        (
            [],
            [guest("zzz", ANYWHERE, declared=True), web(ANYWHERE)],
            "guests/zzz: nat[0]: tcp port 8080: default/web-1 has it already (nat[0]: tcp port 8080)",
        ),
    ],
)
def test_what_is_declared_and_would_take_a_port_from_another_is_an_error_that_names_both(
    before: list[t.Any], after: list[t.Any], problem: str
) -> None:
    here = dataclasses.replace(published(*before), publishers=())
    for publishers in (after, after[::-1]):
        with pytest.raises(InvalidInput) as error:
            nat.plan(GUESTS, dataclasses.replace(here, publishers=tuple(publishers)))
        assert error.value.problems == (problem,)


def test_a_declared_port_that_two_others_have_names_both() -> None:
    here = published(web({"extport": 80}), instance("web-2", [{"extport": 82}]))
    found = dataclasses.replace(here, publishers=(*here.publishers, new({"extport": "80-82"}, declared=True)))
    with pytest.raises(InvalidInput) as error:
        nat.plan(HERE, found)
    assert [text.partition(" has it already")[0].split()[-1] for text in error.value.problems] == [
        "default/web-1",
        "default/web-2",
    ]


@pytest.mark.parametrize(
    ("policy", "publisher", "reason"),
    [
        (Policy(), instance("a", [ANYWHERE], project="guests", restricted=True), "project guests is restricted"),
        (Policy(frozenset({"guests"})), instance("a", [ANYWHERE], project="guests", restricted=True), ""),
        (Policy(), instance("a", [ANYWHERE], project="other"), ""),
        (Policy(ports=(PortRange(8000, 8099),)), instance("a", [ANYWHERE]), ""),
        (
            Policy(ports=(PortRange(80, 80), PortRange(443, 443))),
            instance("a", [ANYWHERE]),
            "not one of the ports of nat_policy (80, 443)",
        ),
        (Policy(ports=(PortRange(8000, 8009),)), instance("a", [{"extport": "8005-8010"}]), "not one of the ports"),
        (Policy(ports=()), instance("a", [ANYWHERE]), "not one of the ports of nat_policy (none)"),
        (Policy(interfaces=("eth1",)), instance("a", [{**ANYWHERE, "extif": "eth1"}]), ""),
        (Policy(interfaces=("eth1",)), instance("a", [{**ANYWHERE, "extaddr": "203.0.113.7"}]), ""),
        (
            Policy(interfaces=("eth1",)),
            instance("a", [{**ANYWHERE, "extaddr": "198.51.100.7"}]),
            "these interfaces only: eth1",
        ),
        (Policy(interfaces=("eth1",)), instance("a", [{**ANYWHERE, "extif": "eth0"}]), "these interfaces only: eth1"),
        (
            Policy(interfaces=("eth1",)),
            instance("a", [{**ANYWHERE, "extif": "eth1", "extaddr": "198.51.100.7"}]),
            "these interfaces only: eth1",
        ),
        (Policy(interfaces=("eth1",)), instance("a", [{**ANYWHERE, "extif": "eth1", "extaddr": "203.0.113.7"}]), ""),
        (Policy(interfaces=("eth1",)), instance("a", [ANYWHERE]), "these interfaces only: eth1"),
    ],
)
def test_the_policy(policy: Policy, publisher: t.Any, reason: str) -> None:
    desired = dataclasses.replace(HERE, policy=policy)
    made = nat.plan(desired, observed(publisher))
    assert bool(made.claims) is not bool(reason)
    if reason:
        assert reason in reasons(made)[0]
        declared = dataclasses.replace(publisher, declared=True)
        assert reason in problems(declared, desired=desired)[0]


def test_a_bad_key_blocks_nobody_else() -> None:
    bad = instance("a", None, config={"user.mage.nat": '[{"extport":0},{"extport":"x"}]'})
    copy = instance("b", None, config={"user.mage.nat": '{"for":"default/c","value":[{"extport":81}]}'})
    words = instance("d", None, config={"user.mage.nat": "8080"})
    broken = instance("e", None, config={"user.mage.nat": "{"})
    made = nat.plan(HERE, observed(bad, copy, words, broken, instance("web-1", [{"extport": 80}])))
    assert [claim.owner.name for claim in made.claims] == ["web-1"]
    assert sorted({one.instance for one in made.left_out}) == ["default/a", "default/b", "default/d", "default/e"]
    assert "default/a: nat[0].extport: 0: must be a port" in made.warnings[0]
    assert any("user.mage.nat was written for default/c: ignored until declared" in text for text in made.warnings)
    assert "default/e: user.mage.nat is not JSON" in made.warnings[-1]


def test_every_problem_of_what_was_declared_is_told_at_once() -> None:
    web = instance("a", [{"extport": 22}, {"extport": 80, "extif": "eth7"}], declared=True)
    other = instance("b", [{"extport": 22}, {"extport": 90}], declared=True)
    found = problems(web, other, instance("c", [{"extport": 90}]), host=SSHD)
    assert len(found) == 4


@pytest.mark.parametrize(
    ("status", "addresses", "declared", "outcome"),
    [
        ("Running", (Address("eth0", "lxdbr0", 4, WEB, True),), False, "published"),
        ("Stopped", (Address("eth0", "lxdbr0", 4, WEB, True),), False, "published"),
        ("Running", (Address("eth0", "lxdbr0", 4, WEB, False),), True, "is not pinned"),
        ("Running", (), False, "has no pinned address and no lease yet"),
        ("Running", (), True, "error"),
        ("Stopped", (), True, "has no pinned address and does not run"),
        ("Running", (Address("eth0", "lxdbr0", 6, "2001:db8::5", True),), False, "only IPv6 addresses (2001:db8::5 on"),
    ],
)
def test_where_a_port_leads(status: str, addresses: tuple[Address, ...], declared: bool, outcome: str) -> None:
    web = instance("web-1", [{"extport": 80}], status=status, addresses=addresses, declared=declared)
    if outcome == "error":
        assert "has no pinned address" in problems(web)[0]
        return
    made = nat.plan(HERE, observed(web))
    assert bool(made.claims) is (outcome in ("published", "is not pinned"))
    assert outcome == "published" or outcome in made.warnings[0]


def test_the_nic_that_is_meant() -> None:
    addresses = (
        Address("eth0", "lxdbr0", 4, "10.0.3.5", False),
        Address("eth1", "br9", 4, "192.0.2.50", True),
        Address("eth2", "lxdbr0", 4, "10.0.3.6", True),
    )
    for intif, address in ((None, "192.0.2.50"), ("lxdbr0", "10.0.3.6"), ("br9", "192.0.2.50"), ("eth0", "10.0.3.5")):
        entry = {"extport": 80, **({"intif": intif} if intif else {})}
        made = nat.plan(HERE, observed(instance("web-1", [entry], addresses=addresses)))
        assert [claim.target.address for claim in made.claims] == [address]


def test_flows_of_udp_that_lead_elsewhere_are_forgotten() -> None:
    entries = [
        {"extport": 53, "proto": "udp"},
        {"extport": 54, "proto": "udp", "extaddr": "198.51.100.7"},
        {"extport": 55},
    ]
    here = observed(instance("a", entries, WEB))
    every = ("10.0.3.1", "127.0.0.1", "192.0.2.9", "198.51.100.7", "198.51.100.8", "203.0.113.7")
    first = nat.plan(HERE, here)
    assert first.stale == (nat.Stale(PortRange(53, 53), every), nat.Stale(PortRange(54, 54), ("198.51.100.7",)))
    after = restored(here.tables, first.restores)
    moved = observed(instance("a", entries[1:], WEB), instance("b", entries[:1], "10.0.3.6"))
    second = nat.plan(HERE, dataclasses.replace(moved, tables=after))
    assert [one.ports for one in second.stale] == [PortRange(53, 53)]


def test_hairpin_mode_is_only_turned_on_where_the_bridge_translates() -> None:
    ports = {
        ("default", "a", "lxdbr0"): "vethA",
        ("default", "b", "lxdbr0"): "vethB",
        ("default", "z", "lxdbr0"): "vethZ",
    }
    host = dataclasses.replace(HOST, hairpin={"vethA": False, "vethB": True, "vethZ": False}, bridge_netfilter=True)
    both = (instance("a", [{"extport": 80}]), instance("b", [{"extport": 81}]))
    assert nat.plan(HERE, observed(*both, host=host, ports=ports)).hairpin == ("vethA",)
    host = dataclasses.replace(host, bridge_netfilter=False)
    assert nat.plan(HERE, observed(*both, host=host, ports=ports)).hairpin == ()


def test_two_kinds_of_iptables_are_refused() -> None:
    both = {"iptables-nft": 3, "iptables-legacy": 2}
    (problem,) = problems(instance("a", [{"extport": 80}]), backends=both)
    assert "iptables-legacy (2 rules) and iptables-nft (3 rules)" in problem
    assert not nat.plan(HERE, observed(backends=both)).changed


def test_a_host_without_iptables_is_refused() -> None:
    here = dataclasses.replace(observed(instance("a", [{"extport": 80}])), tables={})
    with pytest.raises(InvalidInput, match="is iptables installed"):
        nat.plan(HERE, here)
    assert not nat.plan(HERE, dataclasses.replace(here, publishers=())).changed


def test_a_server_elsewhere_publishes_nothing_here_and_undoes_nothing() -> None:
    here = observed(instance("a", [{"extport": 80}]))
    published = restored(here.tables, nat.plan(HERE, here).restores)

    def there(*publishers: t.Any) -> nat.Observed:
        return dataclasses.replace(observed(*publishers, remote="lxd-1.example.org"), tables=published)

    told = "endpoint: lxd-1.example.org is not this host"
    for desired, one in ((HERE, instance("a", [{"extport": 80}], declared=True)), (Desired(present=False), None)):
        with pytest.raises(InvalidInput, match=told):
            nat.plan(desired, there(*[one] if one else []))
    asked = nat.plan(HERE, there(instance("b", [{"extport": 80}])))
    assert asked.warnings[0].startswith(told)
    idle = nat.plan(HERE, there(instance("b", [], declared=True)))
    assert not asked.changed
    assert (idle.changed, idle.warnings) == (False, ())


@pytest.mark.parametrize("present", [True, False])
def test_for_a_server_elsewhere_this_hosts_firewall_is_not_read(present: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise PermissionError

    monkeypatch.setattr(iptables.commands, "read_tables", refused)
    store = Store()
    for endpoint, read in (("https://198.51.100.99:8443", False), ("unix:///socket", True)):
        context: t.Any = types.SimpleNamespace(
            driver=MemoryDriver(store), server=ServerOptions(endpoint), check_mode=False
        )
        with pytest.raises(PermissionError) if read else contextlib.nullcontext():
            assert iptables.observe(Desired(present=present), context).remote == "198.51.100.99"


def test_warnings_of_the_host() -> None:
    bridge = Network("lxdbr0", "default", "bridge", True, {"ipv4.address": "10.0.3.1/24", "ipv4.nat": "true"})
    host = dataclasses.replace(HOST, ip_forward=False)
    web = instance("a", [{"extport": 80}])
    made = nat.plan(HERE, observed(web, host=host, networks=(bridge,), server_firewall="xtables"))
    assert "net.ipv4.ip_forward is 0" in made.warnings[0]
    assert "network lxdbr0: the server's own masquerade rule is not in the firewall" in made.warnings[1]
    rule = "-A POSTROUTING -s 10.0.3.0/24 ! -d 10.0.3.0/24 -j MASQUERADE"
    tables = NAT_RULE.format(rule)
    assert not nat.plan(HERE, observed(web, networks=(bridge,), server_firewall="xtables", tables=tables)).warnings
    assert not nat.plan(HERE, observed(web, networks=(bridge,), server_firewall="nftables")).warnings


SYSTEMD = dataclasses.replace(HOST, systemd=True)


def test_a_unit_keeps_the_rules_where_there_is_systemd() -> None:
    web = instance("web-1", [{"extport": 80}], WEB)
    made = nat.plan(HERE, observed(web, host=SYSTEMD))
    assert (made.unit, made.enable_unit) == ("mage-lxd-nat-lxd.service", True)
    files = {path: text for path, text in made.files.items() if text is not None}
    assert sorted(files) == ["/etc/mage-lxd/nat-lxd.rules", "/etc/systemd/system/mage-lxd-nat-lxd.service"]
    rules = parse_save(files["/etc/mage-lxd/nat-lxd.rules"])
    assert {rule.chain for table in rules.values() for rule in table.rules} == {
        "MAGE-LXD-PRE",
        "MAGE-LXD-OUT",
        "MAGE-LXD-POST",
        "MAGE-LXD-FWD",
    }
    kept = dataclasses.replace(SYSTEMD, files=files, unit_enabled=True)
    after = restored(parse_save(EMPTY), made.restores)
    here = dataclasses.replace(observed(web, host=kept), tables=after)
    assert not nat.plan(HERE, here).changed
    for gone in (
        nat.plan(dataclasses.replace(HERE, persist=False), here),
        nat.plan(HERE, dataclasses.replace(here, publishers=())),
        nat.plan(dataclasses.replace(HERE, present=False), here),
    ):
        assert gone.enable_unit is False
        assert dict(gone.files) == dict.fromkeys(files)


def test_persistence_can_be_asked_for() -> None:
    web = instance("web-1", [{"extport": 80}])
    assert not nat.plan(HERE, observed(web)).files
    assert "init is not systemd" in problems(web, desired=dataclasses.replace(HERE, persist=True))[0]


ENTRIES = st.lists(
    st.fixed_dictionaries(
        {"extport": st.integers(80, 90)},
        optional={
            "proto": st.sampled_from(["tcp", "udp", "both"]),
            "extif": st.sampled_from(["eth0", "eth1"]),
            "extaddr": st.sampled_from(["198.51.100.7", "203.0.113.7"]),
            "intport": st.integers(1, 65535),
        },
    ),
    max_size=4,
)
FOREIGN = st.sampled_from(
    [
        "-A PREROUTING -p tcp -m tcp --dport 85 -j DNAT --to-destination 172.17.0.2:80",
        "-A PREROUTING -j DOCKER",
        "-A POSTROUTING -s 10.0.3.0/24 ! -d 10.0.3.0/24 -j MASQUERADE",
        "-A PREROUTING -j MAGE-LXD-PRE",
        "-A OUTPUT -j MAGE-LXD-PRE",
        "-A MAGE-LXD-PRE -p tcp -j ACCEPT",
        "-A MAGE-LXD-OLD -p tcp -j MAGE-LXD-PRE",
        "-A MAGE-INCUS-PRE -p udp -m udp --dport 81 -j DNAT --to-destination 10.9.0.2",
    ]
)
CHAINS = "".join(f":{name} - [0:0]\n" for name in ("DOCKER", "MAGE-LXD-PRE", "MAGE-LXD-OLD", "MAGE-INCUS-PRE"))


def foreign(tables: t.Mapping[str, t.Any]) -> list[t.Any]:
    return [
        rule
        for name in sorted(tables)
        for rule in tables[name].rules
        if "MAGE-LXD-" not in rule.chain and "MAGE-LXD-" not in rule.target
    ]


@given(st.lists(ENTRIES, max_size=5), st.lists(FOREIGN, max_size=6), st.randoms(use_true_random=False))
def test_any_firewall_converges_in_any_order_and_loses_nothing(
    published: list[list[t.Any]], rules: list[str], order: t.Any
) -> None:
    tables = EMPTY.replace("COMMIT\n*filter", CHAINS + "".join(f"{rule}\n" for rule in rules) + "COMMIT\n*filter")
    publishers = [instance(f"c{index}", entries) for index, entries in enumerate(published)]
    here = observed(*publishers, tables=tables)
    made = nat.plan(HERE, here)
    shuffled = list(publishers)
    order.shuffle(shuffled)
    assert nat.plan(HERE, dataclasses.replace(here, publishers=tuple(shuffled))) == made
    after = restored(here.tables, made.restores)
    assert foreign(after) == foreign(here.tables)
    assert not nat.plan(HERE, dataclasses.replace(here, tables=after)).changed
    gone = restored(after, nat.plan(Desired(present=False), dataclasses.replace(here, tables=after)).restores)
    assert foreign(gone) == foreign(here.tables)
    assert not any("MAGE-LXD-" in chain for table in gone.values() for chain in table.chains)


def test_the_return_values() -> None:
    here = observed(instance("web-1", [{"extport": "8000-8001", "extif": "eth0"}, {"extport": 22}], WEB), host=SSHD)
    values = nat.present(HERE, here, nat.plan(HERE, here), None)
    assert values["rules"] == [
        {
            "project": "default",
            "instance": "web-1",
            "proto": "tcp",
            "external": "eth0:8000-8001",
            "address": WEB,
            "port": "8000-8001",
        }
    ]
    assert values["chains"] == {"filter": ["MAGE-LXD-FWD"], "nat": ["MAGE-LXD-OUT", "MAGE-LXD-POST", "MAGE-LXD-PRE"]}
    assert values["left_out"] == [
        {
            "instance": "default/web-1",
            "entry": "nat[1]: tcp port 22",
            "reason": "sshd (pid 7) listens on 0.0.0.0:22/tcp on this host",
        }
    ]
