# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Instances as hosts: names, groups and variables; users of an instance."""

from __future__ import annotations

import typing as t

import pytest
from ansible.inventory.group import to_safe_group_name
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mage.lxd.plugins.module_utils import _inventory, _keys
from ansible_collections.mage.lxd.plugins.module_utils._server.snapshot import Instance, Lease, Server, Snapshot
from ansible_collections.mage.lxd.plugins.plugin_utils import _accounts

ENDPOINT = "unix:///socket"
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
    return _inventory.hosts(Snapshot(SERVER, ordered, leases=leases), ENDPOINT)


def names(*instances: Instance) -> list[str]:
    return [host.name for host in listing(*instances).hosts]


@pytest.mark.parametrize(
    ("instances", "expected"),
    [
        ([instance("web-1")], ["web-1"]),
        ([named("ubu-test-1", "ubu_test_1")], ["ubu_test_1"]),
        ([named("ubu-test-1", "ubu_test_1", marked_for="default/ubu-test-1")], ["ubu_test_1"]),
        # A copy takes the key along, and the copy is somebody else.
        ([named("copy", "ubu_test_1", marked_for="default/ubu-test-1")], ["copy"]),
        ([named("web-1", "{{ lookup('pipe', 'id') }}")], ["web-1"]),
        ([named("web-1", "localhost")], ["web-1"]),
        ([named("web-1", "lxd_containers")], ["web-1"]),
        ([instance("localhost")], ["localhost.default"]),
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
