# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Instances as hosts: names, groups and variables; users of an instance."""

from __future__ import annotations

import dataclasses
import json
import typing as t

import pytest
from ansible.inventory.group import to_safe_group_name
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mage.lxd.plugins.module_utils import _host_variables, _inventory, _keys
from ansible_collections.mage.lxd.plugins.module_utils._server.options import ServerOptions
from ansible_collections.mage.lxd.plugins.module_utils._server.snapshot import (
    Address,
    Instance,
    Lease,
    Server,
    Snapshot,
)
from ansible_collections.mage.lxd.plugins.plugin_utils import _accounts

ENDPOINT = "unix:///socket"
PLACE = _inventory.Place("here", ServerOptions(ENDPOINT))
SERVER = Server.from_api({})
NIC = {"eth0": {"type": "nic", "network": "lxdbr0"}}


def instance(name: str, project: str = "default", status: str = "Running", **raw: t.Any) -> Instance:
    return Instance.from_api({"name": name, "project": project, "status": status, **raw})


def named(name: str, inventory_name: str, project: str = "default", marked_for: str = "") -> Instance:
    value = inventory_name
    if marked_for:
        value = _keys.encode(inventory_name, *marked_for.split("/"))
    return instance(name, project, config={_keys.INVENTORY_NAME: value})


def listing(*instances: Instance, leases: tuple[Lease, ...] = ()) -> _inventory.Listing:
    ordered = tuple(sorted(instances, key=lambda one: (one.project, one.name)))
    return _inventory.hosts(Snapshot(SERVER, ordered, leases=leases), PLACE)


def names(*instances: Instance) -> list[str]:
    return [host.name for host in listing(*instances).hosts]


@pytest.mark.parametrize(
    ("instances", "expected"),
    [
        ([instance("web-1")], ["web-1"]),
        ([named("ubu-test-1", "ubu_test_1")], ["ubu_test_1"]),
        ([named("ubu-test-1", "ubu_test_1", marked_for="default/ubu-test-1")], ["ubu_test_1"]),
        # What JSON takes for something else than a word.
        ([named("web-1", "123")], ["123"]),
        ([named("web-1", "007"), named("web-2", "1.50"), named("web-3", "true")], ["007", "1.50", "true"]),
        ([named("web-1", "123", marked_for="default/web-1")], ["123"]),
        ([named("web-1", '"123"'), named("web-2", "[1]")], ["123", "web-2"]),
        # A copy takes the key along, and the copy is somebody else.
        ([named("copy", "ubu_test_1", marked_for="default/ubu-test-1")], ["copy"]),
        ([named("web-1", "{{ lookup('pipe', 'id') }}")], ["web-1"]),
        ([named("web-1", "localhost")], ["web-1"]),
        ([named("web-1", "lxd_containers")], ["web-1"]),
        # To Ansible, the first is the controller.
        ([named("web-1", "127.0.0.1")], ["web-1"]),
        ([instance("localhost")], ["localhost.default"]),
        # No server has such names, unless it lies.
        ([instance("{{ lookup('pipe', 'id') }}", "{{ p }}")], ["___lookup__pipe____id_____"]),
        ([instance("a b", "a"), instance("a_b", "{{ p }}")], ["a_b", "a_b.___p___"]),
        ([instance("web", "a"), instance("web", "b")], ["web", "web.b"]),
        ([instance("web", "a"), instance("web", "default")], ["web.a", "web"]),
        ([named("a", "b"), instance("b")], ["a", "b"]),
        ([named("a", "b", "shop"), instance("b")], ["b", "a"]),
        ([named("a", "x"), named("b", "x")], ["x", "b"]),
    ],
)
def test_names(instances: list[Instance], expected: list[str]) -> None:
    assert names(*instances) == expected


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["default", "p", "q"]), st.sampled_from(["", "a", "x_1"])),
        unique_by=lambda one: one[:2],
    )
)
def test_every_instance_is_one_host_of_its_own(drawn: list[tuple[str, str, str]]) -> None:
    instances = [named(name, key, project) if key else instance(name, project) for name, project, key in drawn]
    found = names(*instances)
    assert len(found) == len(set(found)) == len(instances)
    assert names(*reversed(instances)) == found


def test_a_name_that_is_not_given_is_told() -> None:
    found = listing(named("web-1", "a b"), named("web-2", "web-1"))
    assert found.warnings == (
        f"default/web-1: {_keys.INVENTORY_NAME}: {_inventory.NAME_RULE}",
        f"default/web-2: {_keys.INVENTORY_NAME}: web-1 is an instance's own name",
    )


def test_groups() -> None:
    declared = {_keys.MANAGED: _keys.encode({}, "my-shop", "web-1")}
    image = {"image.os": "Debian", "image.release": "12.1"}
    one = instance("web-1", "my-shop", profiles=["default", "big one"], config={**image, **declared})
    assert _inventory.groups(one) == (
        "lxd_containers",
        "lxd_instances",
        "os_debian",
        "profile_big_one",
        "profile_default",
        "project_my_shop",
        "release_12_1",
        "status_running",
        "type_container",
    )


@pytest.mark.parametrize(
    "one",
    [
        instance("web-1"),
        instance("web-1", status="Stopped", config={_keys.MANAGED: "{}"}),
        instance("web-1", type="virtual-machine", config={_keys.MANAGED: "{}"}),
        instance("copy", config={_keys.MANAGED: _keys.encode({}, "default", "web-1")}),
    ],
)
def test_only_running_containers_that_were_declared_are_lxd_containers(one: Instance) -> None:
    assert "lxd_containers" not in _inventory.groups(one)
    assert "lxd_instances" in _inventory.groups(one)


@given(st.text(min_size=1, max_size=20))
def test_group_names_are_those_that_ansible_makes(profile: str) -> None:
    group = next(group for group in _inventory.groups(instance("a", profiles=[profile])) if group[:8] == "profile_")
    assert group == to_safe_group_name(f"profile_{profile}", force=True, silent=True)


def test_variables() -> None:
    config = {"volatile.eth0.hwaddr": "00:16:3e:00:00:01", "image.os": "Debian"}
    one = instance("web-1", config=config, expanded_devices=NIC)
    lease = Lease("lxdbr0", "default", "web-1", "00:16:3e:00:00:01", "10.64.0.2", "dynamic")
    variables = listing(one, leases=(lease,)).hosts[0].variables
    assert variables["lxd_ipv4"] == ["10.64.0.2"]
    assert variables["lxd_ipv6"] == []
    assert variables["lxd_addresses"][0]["network"] == "lxdbr0"
    assert variables["lxd_image"] == {"os": "Debian"}
    assert variables["ansible_lxd_endpoint"] == ENDPOINT


@pytest.mark.parametrize("status", ["Running", "Stopped", "Frozen", "Error"])
def test_no_instance_is_ever_the_controller(status: str) -> None:
    broken = Instance.from_api({"name": "web-1", "status": status})
    variables = listing(broken).hosts[0].variables
    assert variables["ansible_connection"] == "mage.lxd.lxd"
    assert variables["ansible_lxd_instance"] == "web-1"
    assert variables["lxd_ipv4"] == []


def test_groups_and_variables_that_an_instance_names_itself() -> None:
    keys = {
        _keys.GROUPS: json.dumps(["web", "eu_1", "all", "status_running", "a b", 5]),
        _keys.VARS: json.dumps({"port": 80, "text": "{{ 1 + 1 }}", "ansible_connection": "local", "a-b": 1}),
    }
    found = listing(instance("web-1", config=keys))
    host = found.hosts[0]
    assert {"web", "eu_1"} <= set(host.groups)
    assert not {"all", "a b"} & set(host.groups)
    assert (host.variables["port"], host.variables["text"]) == (80, "{{ 1 + 1 }}")
    assert host.variables["ansible_connection"] == "mage.lxd.lxd"
    assert "a-b" not in host.variables
    named = {"5", '"a b"', '"a-b"', '"all"', '"ansible_connection"', '"status_running"'}
    assert {warning.split(": ")[2] for warning in found.warnings} == named


@pytest.mark.parametrize("value", ["web, eu", '"web eu"', '["web", "eu"]'])
def test_groups_may_be_words(value: str) -> None:
    assert {"web", "eu"} <= set(_inventory.groups(instance("web-1", config={_keys.GROUPS: value})))


@pytest.mark.parametrize("name", ["hostvars", "lxd_status", "inventory_hostname", "ansible_host", "group_names"])
def test_an_instance_has_no_say_in_variables_that_mean_something(name: str) -> None:
    found = listing(instance("web-1", config={_keys.VARS: json.dumps({name: "x"})}))
    assert found.hosts[0].variables.get(name) != "x"
    assert len(found.warnings) == 1


def test_instances_of_a_restricted_project_name_nothing_unless_it_is_allowed() -> None:
    keys = {_keys.GROUPS: "web", _keys.VARS: '{"port": 80}'}
    seen = Snapshot(SERVER, (instance("a", "shop", config=keys),), restricted=frozenset({"shop"}))
    found = _inventory.hosts(seen, PLACE)
    assert "web" not in found.hosts[0].groups
    assert "port" not in found.hosts[0].variables
    assert len(found.warnings) == 2
    allowed = _inventory.hosts(seen, _inventory.Place("here", PLACE.options, frozenset({"shop"})))
    assert "web" in allowed.hosts[0].groups
    assert allowed.hosts[0].variables["port"] == 80


def test_groups_of_the_server_its_member_and_the_networks() -> None:
    nics = {"eth0": {"type": "nic", "network": "br-1"}, "eth1": {"type": "nic", "nictype": "macvlan", "parent": "lan"}}
    host = listing(instance("a", location="node-1", expanded_devices=nics)).hosts[0]
    assert {"server_here", "location_node_1", "network_br_1", "network_lan"} <= set(host.groups)
    assert not [group for group in listing(instance("a", location="none")).hosts[0].groups if "location" in group]


def test_hosts_get_all_options_of_their_server_but_its_token() -> None:
    server = ServerOptions("https://x", via=("outer",), server_fingerprint="f", trust_token="secret", timeout=30)
    found = _host_variables.connection(instance("a", "shop"), server, (), _host_variables.DEFAULT_SHAPE)
    assert found == {
        "ansible_connection": "mage.lxd.lxd",
        "ansible_user": "root",
        "ansible_lxd_instance": "a",
        "ansible_lxd_project": "shop",
        "ansible_lxd_endpoint": "https://x",
        "ansible_lxd_via": ["outer"],
        "ansible_lxd_driver": "auto",
        "ansible_lxd_insecure_skip_verify": False,
        "ansible_lxd_ssh_args": "",
        "ansible_lxd_server_fingerprint": "f",
        "ansible_lxd_timeout": 30,
    }


ADDRESSES = (
    Address("eth0", "lxdbr0", 4, "10.64.0.2", False),
    Address("eth0", "lxdbr0", 6, "fd42::2", False),
    Address("eth1", "lan", 4, "10.65.0.2", True),
)


@pytest.mark.parametrize(
    ("prefer", "expected"),
    [
        ({}, "10.64.0.2"),
        ({"family": 6}, "fd42::2"),
        ({"nic": "eth1"}, "10.65.0.2"),
        ({"network": "10.65.0.0/16"}, "10.65.0.2"),
        ({"network": "fd42::/16"}, "fd42::2"),
        ({"family": 6, "nic": "eth1"}, None),
    ],
)
def test_the_preferred_address(prefer: dict[str, t.Any], expected: str | None) -> None:
    shape = _host_variables.Shape(prefer=_host_variables.Prefer(**prefer))
    found = _host_variables.connection(instance("a"), PLACE.options, ADDRESSES, shape)
    assert found.get("ansible_host") == expected
    assert found["ansible_connection"] == "mage.lxd.lxd"
    ssh = _host_variables.connection(
        instance("a"), PLACE.options, ADDRESSES, dataclasses.replace(shape, connection="ssh")
    )
    assert ssh["ansible_host"] == (expected or "a.invalid")
    assert ssh["ansible_connection"] == "ssh"
    assert "ansible_user" not in ssh


def test_what_an_instance_has_and_publishes() -> None:
    config = {
        "limits.memory": "512MiB",
        "user.team": "shop",
        "cloud-init.user-data": "password: x",
        "volatile.eth0.hwaddr": "00:16:3e:00:00:01",
        _keys.NAT: _keys.encode([{"extport": 8080}], "default", "web-1"),
        _keys.PROXY: '{"name": "shop.example.org"}',
    }
    one = instance("web-1", config=config, expanded_devices=NIC)
    variables = _host_variables.known(one, (Address("eth0", "lxdbr0", 4, "10.64.0.2", True),), {})
    assert variables["lxd_config"] == {"limits.memory": "512MiB", "user.team": "shop"}
    assert variables["lxd_limits"] == {"memory": "512MiB"}
    assert variables["lxd_devices"] == NIC
    assert variables["lxd_nat"] == [{"extport": 8080}]
    assert variables["lxd_proxy"] == [{"name": "shop.example.org"}]
    assert variables["lxd_nics"] == {
        "eth0": {"network": "lxdbr0", "hwaddr": "00:16:3e:00:00:01", "ipv4": ["10.64.0.2"], "ipv6": []}
    }
    assert "lxd_state" not in variables
    copy = instance("copy", config=config)
    assert _host_variables.known(copy, (), {})["lxd_nat"] == []
    full = _host_variables.known(one, (), {"state": None, "snapshots": [{"name": "s", "config": {}}]})
    assert full["lxd_state"] == {}
    assert full["lxd_snapshots"][0]["name"] == "s"


def test_a_name_that_two_servers_have_is_neithers() -> None:
    here, there = [instance("web"), instance("a")], [instance("web"), instance("b"), instance("web", "shop")]
    found, _warnings = _inventory.names_everywhere([("here", here), ("there", there)])
    assert [sorted(own.values()) for own in found] == [["a", "web.here"], ["b", "web.shop", "web.there"]]


PASSWD = "root:x:0:0:root:/root:/bin/sh\nbob:x:1000:1001:Bob:/home/bob:/bin/bash\nodd:x:x:1::/:/bin/sh\nshort:x\n"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("bob", (1000, 1001, "/home/bob", "bob")),
        ("1000", (1000, 1001, "/home/bob", "bob")),
        ("4711", (4711, 4711, "/", "4711")),
        ("odd", None),
        ("eve", None),
        ("", None),
    ],
)
def test_users_are_found_by_name_and_number(user: str, expected: tuple[int, int, str, str] | None) -> None:
    assert _accounts.find(PASSWD, user) == expected
