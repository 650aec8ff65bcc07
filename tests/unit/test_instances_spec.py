# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user may say of instances, and what the refusals say back."""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mage.lxd.plugins.module_utils._errors import InvalidInput
from ansible_collections.mage.lxd.plugins.module_utils._instances import spec


def parse(*items: t.Any, **params: t.Any) -> spec.Desired:
    values = {"instances": list(items), "defaults": {}, "concurrency": 4, "timeout": 600, "owner": "", **params}
    return spec.parse(values, "default")


def problems(*items: t.Any, **params: t.Any) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        parse(*items, **params)
    return list(caught.value.problems)


def test_an_item_of_every_key() -> None:
    item = parse(
        {
            "name": "web-1",
            "state": "stopped",
            "type": "virtual-machine",
            "image": "debian/bookworm",
            "description": "The shop",
            "profiles": ["default", "big"],
            "config": {"limits.cpu": 2, "security.nesting": True, "limits.memory": "512MiB"},
            "devices": {"data": {"type": "disk", "source": "/srv", "path": "/srv", "readonly": True}},
            "mounts": ["/a:/b:ro", {"source": "/c", "path": "/d"}],
            "nat": [{"extport": 8080, "intport": 80}],
            "proxy": [{"name": "shop.example.org"}],
            "hostnames": ["Shop.Example.org"],
            "python": True,
        }
    ).items[0]
    assert (item.state, item.type, item.description) == ("stopped", "virtual-machine", "The shop")
    assert item.config == {"limits.cpu": "2", "security.nesting": "true", "limits.memory": "512MiB"}
    assert item.devices == {
        "data": {"type": "disk", "source": "/srv", "path": "/srv", "readonly": "true"},
    }
    assert {mount.device: mount.options for mount in item.mounts} == {
        "mount-b": {"type": "disk", "source": "/a", "path": "/b", "readonly": "true"},
        "mount-d": {"type": "disk", "source": "/c", "path": "/d"},
    }
    assert item.hostnames == ("shop.example.org",)
    assert item.python
    assert item.publishes


def test_defaults_are_for_those_who_do_not_say_otherwise() -> None:
    one, two = parse({"name": "a"}, {"name": "b", "image": "x"}, defaults={"image": "debian/bookworm"}).items
    assert (str(one.image), str(two.image)) == ("debian/bookworm", "x")


def test_underscores_become_hyphens_and_the_inventory_keeps_the_name() -> None:
    desired = parse({"name": "ubu_test_1"})
    assert (desired.items[0].name, desired.items[0].inventory_name) == ("ubu-test-1", "ubu_test_1")
    assert desired.warnings == (
        'instances[0].name: "ubu_test_1": servers take no underscores: the instance is called ubu-test-1',
    )


def test_names_that_collide_are_refused() -> None:
    assert problems({"name": "ubu_1"}, {"name": "ubu-1"}) == [
        'instances[1].name: "ubu-1": already declared as instances[0].name (ubu_1 becomes ubu-1)'
    ]


def test_a_mount_under_proxy_is_taken_as_a_mount() -> None:
    desired = parse({"name": "a", "proxy": ["/sys/fs/cgroup:/sys/fs/cgroup:ro", {"name": "x.example.org"}]})
    assert [(one.device, one.readonly) for one in desired.items[0].mounts] == [("mount-sys-fs-cgroup", True)]
    assert [route.name for route in desired.items[0].proxy] == ["x.example.org"]
    assert "its key is mounts" in desired.warnings[0]


@pytest.mark.parametrize(
    "name", ["", "-x", "1abc", "a.b", "a-", "a/b", "a\nb", "$(id)", "a" * 64, "ä", "a b", 7, True, [], "x\n"]
)
def test_names_that_servers_refuse(name: object) -> None:
    (problem,) = problems({"name": name})
    assert problem.startswith("instances[0].name: ")
    assert "1 to 63 letters, digits and hyphens, starting with a letter, not ending in a hyphen" in problem


@pytest.mark.parametrize(
    ("item", "start"),
    [
        ("web-1", "instances[0]: is text: must be a mapping"),
        ({}, "instances[0].name: missing"),
        ({"name": "a", "imgae": "x"}, "instances[0].imgae: unknown key (did you mean image?)"),
        (
            {"name": "a", "state": "up"},
            'instances[0].state: "up": must be one of started, stopped, frozen, restarted, absent',
        ),
        ({"name": "a", "type": "vm"}, 'instances[0].type: "vm": must be one of container, virtual-machine'),
        ({"name": "a", "config": []}, "instances[0].config: []: must be a mapping"),
        ({"name": "a", "config": {"a": {}}}, "instances[0].config.a: {}: must be text"),
        ({"name": "a", "config": {"a b": "1"}}, 'instances[0].config: "a b": is not a key'),
        ({"name": "a", "config": {"user.mage.nat": "[]"}}, "instances[0].config.user.mage.nat: is the collection's"),
        ({"name": "a", "config": {"volatile.x": "1"}}, "instances[0].config.volatile.x: is the collection's"),
        ({"name": "a", "devices": {"d": {"path": "/"}}}, "instances[0].devices.d: "),
        ({"name": "a", "mounts": ["/a"]}, 'instances[0].mounts[0]: "/a": must be "/source:/path"'),
        (
            {"name": "a", "mounts": ["relative:/x"]},
            'instances[0].mounts[0]: "relative:/x": its source must be an absolute path, such as "/srv/data:/data"',
        ),
        ({"name": "a", "mounts": ["/a:x:ro"]}, 'instances[0].mounts[0]: "/a:x:ro": its path must be an absolute path'),
        ({"name": "a", "mounts": ["/a:/x:rx"]}, 'instances[0].mounts[0]: "/a:/x:rx": must be "/source:/path"'),
        (
            {"name": "a", "mounts": [{"source": "a", "path": "/b"}]},
            'instances[0].mounts[0].source: "a": must be an abs',
        ),
        ({"name": "a", "mounts": ["/a:/b", "/c:/b"]}, 'instances[0].mounts[1]: "/c:/b": there is a device or mount'),
        ({"name": "a", "hostnames": ["a b"]}, 'instances[0].hostnames[0]: "a b": must be a hostname'),
        ({"name": "a", "python": "maybe"}, 'instances[0].python: "maybe": must be true or false'),
        ({"name": "a", "nat": [{"extport": 0}]}, "instances[0].nat[0].extport: 0: must be "),
        ({"name": "a", "nat": {"extport": 80}}, "instances[0].nat: "),
        ({"name": "a", "proxy": [{"name": "a;b"}]}, 'instances[0].proxy[0].name: "a;b": must be a hostname'),
        ({"name": "a", "proxy": ["/a"]}, 'instances[0].proxy[0]: "/a": must be a mapping'),
        ({"name": "a", "description": "a\nb"}, 'instances[0].description: "a\\nb": must be text of one line'),
        (
            {"name": "a", "profiles": "default"},
            'instances[0].profiles: "default": must be a list, such as [default]',
        ),
        ({"name": "a", "profiles": [""]}, 'instances[0].profiles[0]: "": must be the name of a profile'),
        ({"name": "a", "profiles": ["a", ""]}, 'instances[0].profiles[1]: "": must be the name of a profile'),
        ({"name": "a", "hostnames": [""]}, 'instances[0].hostnames[0]: "": must be a hostname'),
        ({"name": "a", "depends_on": [""]}, 'instances[0].depends_on[0]: "": 1 to 63 letters'),
        ({"name": "a", "mounts": [""]}, 'instances[0].mounts[0]: "": must be "/source:/path"'),
        ({"name": "a", "wait_for": [""]}, 'instances[0].wait_for[0]: "": must be '),
        ({"name": "a", "nat": [""]}, 'instances[0].nat[0]: "": must be '),
        ({"name": "a", "proxy": [""]}, 'instances[0].proxy[0]: "": must be '),
    ],
)
def test_what_is_refused_names_its_field(item: object, start: str) -> None:
    (problem,) = problems(item)
    assert problem.startswith(start)


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ({"extport": 80}, {"extport": 80}, True),
        ({"extport": "8000-8010", "intport": "8000-8010"}, {"extport": 8005}, True),
        ({"extport": 80}, {"extport": 80, "proto": "udp"}, False),
        ({"extport": 80, "extaddr": "192.0.2.1"}, {"extport": 80, "extaddr": "192.0.2.2"}, False),
        ({"extport": 80, "extif": "eth0"}, {"extport": 80}, True),
    ],
)
def test_two_items_cannot_have_one_port(one: dict[str, t.Any], other: dict[str, t.Any], told: bool) -> None:
    items = [{"name": "a", "nat": [{"extport": 1}, one]}, {"name": "b", "nat": [other]}]
    if told:
        (problem,) = problems(*items)
        assert "nat[" in problem.split(": ")[0]
        assert ("a claims tcp port" in problem) != ("b claims tcp port" in problem)
    else:
        assert len(parse(*items).items) == 2
    items[1]["state"] = "absent"
    assert len(parse(*items).items) == 2


def test_every_problem_is_told_at_once() -> None:
    found = problems({"name": "a."}, {"name": "b", "state": "x", "nat": [{"extport": 0}]}, concurrency=0)
    assert [one.split(": ")[0] for one in found] == [
        "instances[0].name",
        "instances[1].state",
        "instances[1].nat[0].extport",
        "concurrency",
    ]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda x: st.lists(x) | st.dictionaries(st.sampled_from(spec.ITEM_KEYS), x),
    )
)
def test_nothing_that_yaml_can_hold_breaks_the_parser(raw: t.Any) -> None:
    told: t.Sequence[str] = ()
    try:
        parse(raw)
    except InvalidInput as error:
        told = error.problems
    good = isinstance(raw, dict) and isinstance(raw.get("name"), str)
    assert told or good


def test_secrets_are_not_told() -> None:
    config = {"environment.TOKEN": "canary", "cloud-init.user-data": ["canary"], "user.x": "told"}
    params = {"instances": [{"name": "web-1", "config": config}, "odd"], "defaults": {"config": config}}
    hidden = spec.hidden(params)
    assert "canary" not in str(hidden)
    assert "told" in str(hidden)
    assert "canary" in str(params)
    with pytest.raises(InvalidInput) as raised:
        spec.parse({**params, "concurrency": 4, "timeout": 600}, "default")
    assert "canary" not in str(raised.value)
