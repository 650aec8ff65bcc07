# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the host's tools and files say, read; what is written for them, safe."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mage.lxd.plugins.module_utils._errors import CommandFailed, DeadlinePassed, MageError
from ansible_collections.mage.lxd.plugins.module_utils._nat import plan as nat
from ansible_collections.mage.lxd.plugins.module_utils._nat import render
from ansible_collections.mage.lxd.plugins.module_utils._nat.iptables import commands, host
from ansible_collections.mage.lxd.plugins.module_utils._nat.spec import Desired
from ansible_collections.mage.lxd.plugins.module_utils._values import PortRange
from ansible_collections.mage.lxd.tests.unit.nat_samples import EMPTY, instance, observed

ROW = "  {}: {} 00000000:0000 {} 00000000:00000000 00:00000000 00000000     0        0 {} 1 0 100 0 0 10 0\n"
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


@pytest.mark.parametrize(
    ("address", "state", "proto", "found"),
    [
        ("00000000:0016", "0A", "tcp", [("0.0.0.0", 22, "99")]),
        ("0100007F:1F90", "0A", "tcp", [("127.0.0.1", 8080, "99")]),
        ("0100610A:0035", "07", "udp", [("10.97.0.1", 53, "99")]),
        ("00000000:0016", "01", "tcp", []),
        ("00000000:0016", "01", "udp", []),
        ("00000000000000000000000000000000:0050", "0A", "tcp", [("::", 80, "99")]),
        ("0000000000000000FFFF00000100610A:0050", "0A", "tcp", [("10.97.0.1", 80, "99")]),
        ("B80D0120000000000000000001000000:0050", "0A", "tcp", []),
    ],
)
def test_sockets_that_wait(address: str, state: str, proto: str, found: list[tuple[str, int, str]]) -> None:
    assert host.parse_sockets(HEAD + ROW.format(0, address, state, 99), proto) == found


def test_the_listeners_of_this_machine_are_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as waiting:
        port = waiting.getsockname()[1]
        read = host.read_host("lxd", [PortRange(port, port)])
    assert [(one.proto, one.address, one.port) for one in read.listeners] == [("tcp", "127.0.0.1", port)]
    assert "127.0.0.1/8" in read.interfaces["lo"]


@given(st.text(max_size=400))
def test_a_comment_never_ends_a_line_nor_a_word(text: str) -> None:
    made = render.comment(text)
    assert 0 < len(made.encode()) <= 255
    rule = render.Rule("X", ("-m", "comment", "--comment", made, "-j", "ACCEPT"))
    assert render.parse_save(f"*nat\n{rule.line()}\n")["nat"].rules == (rule,)
    assert rule.line().split()[5] == made


WORDS = st.text(st.characters(blacklist_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1).filter(
    lambda word: len(word.splitlines()) == 1
)


@given(st.lists(WORDS, min_size=1, max_size=5).map(tuple))
def test_a_foreign_rule_is_written_as_it_was_read(tokens: tuple[str, ...]) -> None:
    rule = render.Rule("X", tokens)
    assert render.parse_save(f"*nat\n{rule.line()}\n")["nat"].rules == (rule,)


@given(st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=60))
def test_no_name_adds_a_line(project: str, name: str) -> None:
    made = nat.plan(Desired(), observed(instance(name, [{"extport": 80}], "10.0.3.5", project)))
    (_filter, _text), (_nat, text) = made.restores
    assert [line.split()[0] for line in text.splitlines()] == [
        "*nat",
        *(f":MAGE-LXD-{chain}" for chain in ("OUT", "POST", "PRE")),
        *["-A"] * 3,
        *["-I"] * 3,
        "COMMIT",
    ]


def test_an_open_quote_breaks_nothing() -> None:
    table = render.parse_save('*nat\n:X - [0:0]\n-A X -m comment --comment "two\nlines" -j ACCEPT\n-A X -j DROP\n')[
        "nat"
    ]
    assert [rule.target for rule in table.rules] == ["", "DROP"]


def test_nothing_to_restore_is_refused() -> None:
    with pytest.raises(MageError, match="nothing to restore"):
        commands.restore([" \n"])


def test_a_command_that_fails_says_so() -> None:
    with pytest.raises(CommandFailed, match="exit code 3: why"):
        commands.run(["sh", "-c", "echo why >&2; exit 3"])
    with pytest.raises(MageError, match="no-such-command is missing on this host"):
        commands.run(["no-such-command"])


def test_the_lock_is_held_by_one_and_waited_for(tmp_path: object) -> None:
    path = f"{tmp_path}/lock"
    held = pytest.raises(DeadlinePassed, match="another run has held this lock")
    with commands.lock(path), held, commands.lock(path, 0.1):
        pass
    with commands.lock(path, 0.1):
        pass


FLOW = (
    "udp      17 29 src=10.64.0.2 dst=10.64.0.1 sport=5555 dport=53 [UNREPLIED] "
    "src=10.97.0.2 dst=10.64.0.2 sport=7 dport=5555"
)


def test_where_a_flow_was_sent() -> None:
    assert commands.destination(FLOW) == ("10.64.0.1", 53)
    assert commands.destination("conntrack v1.4.7 (conntrack-tools): 1 flow entries have been shown.") is None


def test_a_table_that_is_not_shown_is_no_empty_table() -> None:
    assert sorted(render.parse_save(EMPTY)) == ["filter", "nat"]
    assert render.parse_save("# Table `nat' is incompatible, use 'nft' tool.\n") == {}
