# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may be said about published ports."""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mage.lxd.plugins.module_utils._errors import InvalidInput
from ansible_collections.mage.lxd.plugins.module_utils._nat import spec
from ansible_collections.mage.lxd.plugins.module_utils._values import PortRange, Problems


def parse(raw: object) -> tuple[list[dict[str, t.Any]], tuple[str, ...]]:
    problems = Problems()
    return [entry.to_json() for entry in spec.parse_entries(raw, "nat", problems)], problems.texts


@pytest.mark.parametrize(
    ("raw", "entries"),
    [
        (None, []),
        ([], []),
        ([{"extport": 8080}], [{"extport": 8080, "intport": 8080, "proto": "tcp"}]),
        ([{"extport": "8080", "intport": "80"}], [{"extport": 8080, "intport": 80, "proto": "tcp"}]),
        (
            [{"extif": "enp3s0", "intif": "lxdbr0", "extport": 8080, "intport": 8080}],
            [{"extif": "enp3s0", "extport": 8080, "intif": "lxdbr0", "intport": 8080, "proto": "tcp"}],
        ),
        (
            [{"extport": "8000-8010", "intport": "9000-9010", "proto": "udp"}],
            [{"extport": "8000-8010", "intport": "9000-9010", "proto": "udp"}],
        ),
        (
            [{"extport": 53, "proto": "both"}],
            [{"extport": 53, "intport": 53, "proto": "tcp"}, {"extport": 53, "intport": 53, "proto": "udp"}],
        ),
        ([{"extport": 80, "extaddr": "0.0.0.0"}], [{"extport": 80, "intport": 80, "proto": "tcp"}]),
        (
            [{"extport": 80, "extaddr": "192.0.2.10"}],
            [{"extaddr": "192.0.2.10", "extport": 80, "intport": 80, "proto": "tcp"}],
        ),
    ],
)
def test_what_is_meant(raw: object, entries: list[dict[str, t.Any]]) -> None:
    assert parse(raw) == (entries, ())


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ({"extport": 80}, 'nat: {"extport": 80}: must be a list, such as [{extport: 8080, intport: 80}]'),
        ([80], "nat[0]: 80: must be a mapping"),
        ([{}], "nat[0].extport: missing"),
        ([{"intport": 80}], "nat[0].extport: missing"),
        ([{"extport": 0}], "nat[0].extport: 0: must be a port"),
        ([{"extport": 65536}], "nat[0].extport: 65536"),
        ([{"extport": "80-"}], 'nat[0].extport: "80-"'),
        ([{"extport": "90-80"}], 'nat[0].extport: "90-80"'),
        ([{"extport": True}], "nat[0].extport: true"),
        ([{"extport": "80\n-A PREROUTING"}], "nat[0].extport"),
        ([{"extport": "8000-8010", "intport": 80}], 'nat[0].intport: "80": must be as many ports as extport'),
        ([{"extport": 80, "intport": "80-81"}], "nat[0].intport"),
        ([{"extport": 80, "proto": "icmp"}], 'nat[0].proto: "icmp": must be one of tcp, udp, both'),
        ([{"extport": 80, "extif": "eth0+"}], "nat[0].extif"),
        ([{"extport": 80, "extif": "a very long name of it"}], "nat[0].extif"),
        ([{"extport": 80, "extif": "$(id)"}], "nat[0].extif"),
        (
            [{"extport": 80, "extaddr": "192.0.2.1/24"}],
            'extaddr: "192.0.2.1/24": must be an IPv4 address without prefix length, such as 192.0.2.10',
        ),
        ([{"extport": 80, "extaddr": "2001:db8::1"}], 'nat[0].extaddr: "2001:db8::1": must be an IPv4 address'),
        ([{"extport": 80, "extaddr": "127.0.0.1"}], 'nat[0].extaddr: "127.0.0.1": must be an address that other'),
        ([{"extport": 80, "extaddr": "224.0.0.1"}], "nat[0].extaddr"),
        ([{"extport": 80, "extprt": 80}], "nat[0].extprt: unknown key (did you mean extport?)"),
        ([{"extport": 80}, {"extport": 80}], "nat[1].extport: tcp port 80: already published by nat[0]"),
        ([{"extport": "80-90"}, {"extport": 85, "extif": "eth0"}], "already published by nat[0] (tcp port 80-90)"),
        ([{"extport": 53, "proto": "both"}, {"extport": 53, "proto": "udp"}], "nat[1].extport: udp port 53"),
    ],
)
def test_what_cannot_be_meant(raw: object, problem: str) -> None:
    _entries, problems = parse(raw)
    assert len(problems) == 1
    assert problem in problems[0]


@pytest.mark.parametrize(
    "raw",
    [
        [{"extport": 80}, {"extport": 80, "proto": "udp"}],
        [{"extport": 80, "extif": "eth0"}, {"extport": 80, "extif": "eth1"}],
        [{"extport": 80, "extaddr": "192.0.2.1"}, {"extport": 80, "extaddr": "192.0.2.2"}],
        # Whether eth0 has that address is only known on the host.
        [{"extport": 80, "extif": "eth0"}, {"extport": 80, "extaddr": "192.0.2.2"}],
    ],
)
def test_what_may_stand_side_by_side(raw: object) -> None:
    assert parse(raw)[1] == ()


def test_every_problem_is_told_at_once() -> None:
    _entries, problems = parse([{"extport": 0, "intport": 0, "proto": "x", "extif": "", "intif": "/", "extaddr": "x"}])
    assert [text.split(":")[0] for text in problems] == [
        "nat[0].extport",
        "nat[0].intport",
        "nat[0].proto",
        "nat[0].extif",
        "nat[0].intif",
        "nat[0].extaddr",
    ]


PORTS = st.integers(1, 65535)


@given(
    st.builds(
        spec.NatEntry,
        st.builds(lambda one: PortRange(one, one), PORTS),
        st.builds(lambda one: PortRange(one, one), PORTS),
        st.sampled_from(spec.PROTOCOLS),
        st.sampled_from([None, "eth0"]),
        st.sampled_from([None, "192.0.2.10"]),
        st.sampled_from([None, "lxdbr0"]),
    )
)
def test_what_is_written_reads_back(entry: spec.NatEntry) -> None:
    problems = Problems()
    assert spec.parse_entries([entry.to_json()], "nat", problems) == (entry,)
    assert not problems


def test_the_parameters() -> None:
    raw = {
        "declared": [{"project": "default", "name": "web-1", "status": "Running"}],
        "nat_policy": {"projects": ["a"], "ports": ["80", "8000-8010"], "interfaces": ["eth0"]},
        "persist": "true",
        "state": "absent",
    }
    desired = spec.parse(raw, "default")
    assert desired.policy == spec.Policy(frozenset({"a"}), (PortRange(80, 80), PortRange(8000, 8010)), ("eth0",))
    assert (desired.persist, desired.present) == (True, False)
    assert spec.parse({"persist": "auto", "state": "present"}, "default") == spec.Desired()


@pytest.mark.parametrize(
    ("policy", "problems"),
    [
        (None, []),
        ({}, []),
        ({"ports": [80, "443"], "interfaces": [], "projects": None}, []),
        ([], ["nat_policy: []: must be a mapping with the keys interfaces, ports, projects"]),
        (
            {"projcts": ["a"], "ports": "80", "interfaces": [7], "projects": "a"},
            [
                "nat_policy.projcts: unknown key (did you mean projects?)",
                'nat_policy.projects: "a": must be a list, such as [customer-a]',
                'nat_policy.ports: "80": must be a list, such as [80, 8000-8999]',
                "nat_policy.interfaces[0]: 7: must be the name of a network interface, such as enp3s0",
            ],
        ),
        ({"projects": [1]}, ["nat_policy.projects[0]: 1: must be text of one line, at most 4096 characters"]),
    ],
)
def test_all_mistakes_in_the_policy_come_together(policy: object, problems: list[str]) -> None:
    raw = {"nat_policy": policy, "declared": [{"project": "default", "name": 1, "status": ""}]}
    with pytest.raises(InvalidInput) as error:
        spec.parse(raw, "default")
    assert list(error.value.problems[1:]) == problems


def test_bad_parameters_are_told_with_their_path() -> None:
    raw = {"declared": [{"name": "web-1"}], "nat_policy": {"ports": ["0"], "interfaces": ["a b"]}}
    with pytest.raises(InvalidInput) as error:
        spec.parse(raw, "default")
    assert [text.split(": ")[0] for text in error.value.problems] == [
        "declared[0].project",
        "declared[0].status",
        "nat_policy.ports[0]",
        "nat_policy.interfaces[0]",
    ]
