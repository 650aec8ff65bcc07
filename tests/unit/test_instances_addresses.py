# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses that are said: which are refused, which are waited for, and which were not had after all."""

from __future__ import annotations

import time
import typing as t

import pytest

from ansible_collections.mage.lxd.plugins.module_utils._errors import InvalidInput
from ansible_collections.mage.lxd.plugins.module_utils._instances import addresses, pins, plan, present, spec
from ansible_collections.mage.lxd.plugins.module_utils._server.snapshot import (
    Instance,
    Lease,
    Network,
    Server,
    Snapshot,
)
from ansible_collections.mage.lxd.tests.memory import convergence
from ansible_collections.mage.lxd.tests.memory.driver import MemoryDriver
from ansible_collections.mage.lxd.tests.memory.store import BRIDGE, Store

Raw = dict[str, t.Any]
NIC = {"type": "nic", "name": "eth0", "network": "br0"}
CONFIG = {"ipv4.address": "10.97.0.1/24", "ipv6.address": "fd42:1::1/64", "ipv6.dhcp.stateful": "true"}
SERVER = Server("lxd", "5.0.2", "host", False, frozenset(), ("x86_64",))
WEB = {"name": "web", "image": "busybox"}
MAC = "00:16:3e:00:00:0%d"


def instance(name: str, number: int = 1, status: str = "Running", nic: t.Optional[Raw] = None) -> Instance:
    raw = {"name": name, "status": status, "project": "default", "profiles": ["default"]}
    config, devices = {"volatile.eth0.hwaddr": MAC % number}, {"eth0": {**NIC, **(nic or {})}}
    return Instance.from_api({**raw, "config": config, "devices": devices, "expanded_devices": devices})


def lease(address: str, number: int = 1, hostname: str = "x", **more: str) -> Lease:
    return Lease("br0", "default", hostname, more.get("hwaddr", MAC % number), address, more.get("type", "dynamic"))


def seen(*instances: Instance, leases: t.Sequence[Lease] = (), config: t.Optional[Raw] = None) -> plan.Observed:
    network = Network("br0", "default", "bridge", True, {**CONFIG, **(config or {})})
    return plan.Observed(
        Snapshot(SERVER, instances, leases=tuple(leases)),
        everywhere=instances,
        profiles={"default": {"eth0": NIC}},
        networks={"br0": network},
        images={"busybox": "a" * 64},
    )


def desired(*items: Raw) -> spec.Desired:
    defaults = {name: option["default"] for name, option in spec.ARGUMENTS.items() if "default" in option}
    return spec.parse({**defaults, "timeout": 60, "instances": list(items)}, "default")


def problems(observed: plan.Observed, *items: Raw) -> list[str]:
    try:
        plan.plan(desired(*items), observed, False)
    except InvalidInput as error:
        return list(error.problems)
    return []


SIX = {**WEB, "address": "fd42:1::10"}
OTHER = {**SIX, "name": "other"}


@pytest.mark.parametrize(
    ("observed", "items", "told"),
    [
        # Leased to another, of whatever project, up or not; or to somebody who is no instance.
        (seen(instance("db", 2), leases=[lease("10.97.0.9", 2)]), [{**WEB, "address": "10.97.0.9"}], "leased to db"),
        (
            seen(instance("db", 2, "Stopped"), leases=[lease("10.97.0.9", 2)]),
            [{**WEB, "address": "10.97.0.9"}],
            "leased to db",
        ),
        (seen(leases=[lease("10.97.0.9", 7, "printer")]), [{**WEB, "address": "10.97.0.9"}], "leased to printer"),
        # Its own: it runs with it, or did before it is made anew.
        (seen(instance("web", 1), leases=[lease("10.97.0.9")]), [{**WEB, "address": "10.97.0.9"}], ""),
        (
            seen(instance("web", 1), leases=[lease("10.97.0.9")]),
            [{**WEB, "address": "10.97.0.9", "type": "virtual-machine", "recreate": True}],
            "",
        ),
        (seen(leases=[lease("10.97.0.1", type="gateway", hwaddr="")]), [{**WEB, "address": "10.97.0.9"}], ""),
        # IPv6: in the subnet, not the server's own, leased by the network, and of one instance only.
        (seen(), [SIX], ""),
        (seen(), [SIX, OTHER], "is the address of web already"),
        (seen(instance("db", 2, nic={"ipv6.address": "FD42:1:0::10"})), [SIX], "is the address of db already"),
        (seen(), [{**WEB, "address": "fd42:2::10"}], "is none that an instance can have on br0 (fd42:1::1/64)"),
        (seen(), [{**WEB, "address": "fd42:1::1"}], "is none that an instance can have"),
        (seen(), [{**WEB, "address": "fd42:1::"}], "is none that an instance can have"),
        (seen(config={"ipv6.address": "none"}), [SIX], "is none that an instance can have on br0 (it has no IPv6)"),
        (seen(config={"ipv6.dhcp.stateful": "false"}), [SIX], "leases no IPv6 addresses: set its ipv6.dhcp.stateful"),
        (seen(instance("db", 2), leases=[lease("fd42:1::10", hostname="db", hwaddr="")]), [SIX], "is leased to db now"),
        # A name is all that a server knows of these leases: of one that does not run any more, it says nothing.
        (seen(instance("db", 2, "Stopped"), leases=[lease("fd42:1::10", hostname="db", hwaddr="")]), [SIX], ""),
        (seen(instance("web"), leases=[lease("fd42:1::10", hostname="web", hwaddr="")]), [SIX], ""),
    ],
)
def test_addresses_that_are_anothers_or_nobodys_are_refused(
    observed: plan.Observed, items: list[Raw], told: str
) -> None:
    found = problems(observed, *items)
    assert len(found) == bool(told), found
    assert told in "".join(found)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ("fd42::/64", 'address: "fd42::/64": must be one IPv6 address, such as 2001:db8::10: ranges are for IPv4 only'),
        ({"ipv6": "fd42::/64"}, 'address.ipv6: "fd42::/64": must be one IPv6 address'),
        ("0.0.0.0", 'address: "0.0.0.0": is none that an instance can have'),
        ("127.0.0.1", 'address: "127.0.0.1": is none that an instance can have'),
        ("224.0.0.1", 'address: "224.0.0.1": is none that an instance can have'),
        ({"ipv6": "::"}, 'address.ipv6: "::": is none that an instance can have'),
        ("ff02::1", 'address: "ff02::1": is none that an instance can have'),
    ],
)
def test_what_no_instance_can_have_is_refused_at_once(raw: object, told: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        desired({**WEB, "address": raw})
    (problem,) = caught.value.problems
    assert problem.startswith("instances[0]." + told)


def test_check_mode_shows_addresses_of_both_families() -> None:
    for address, expected in (
        ("fd42:1::10", [("fd42:1::10", 6, True)]),
        ({"ipv4": "10.97.0.9", "ipv6": "fd42:1::10"}, [("10.97.0.9", 4, True), ("fd42:1::10", 6, True)]),
    ):
        asked, observed = desired({**WEB, "address": address}), seen()
        (value,) = present.present(asked, observed.snapshot, plan.plan(asked, observed, True).changes, False, {})
        assert [(one["address"], one["family"], one["pinned"]) for one in value["addresses"]] == expected
        assert value["address"] == (expected[0][0] if expected[0][1] == 4 else "")


def test_a_pin_of_one_family_leaves_the_other_as_it_is() -> None:
    running = instance("web")
    asked, observed = desired(SIX), seen(running, leases=[lease("10.97.0.9")])
    (value,) = present.present(asked, observed.snapshot, plan.plan(asked, observed, True).changes, False, {})
    found = [(one["address"], one["pinned"]) for one in value["addresses"]]
    assert found == [("10.97.0.9", False), ("fd42:1::10", True)]


@pytest.mark.parametrize(
    ("said", "has", "moved", "told"),
    [
        ({"address": "10.97.0.9"}, ["10.97.0.9"], {}, ""),
        ({"address": "10.97.0.9"}, ["10.97.0.70", "10.97.0.9"], {}, ""),
        ({"address": "10.97.0.9"}, ["10.97.0.70"], {}, "eth0 has 10.97.0.70 instead of 10.97.0.9"),
        ({"devices": {"eth0": {**NIC, "ipv4.address": "10.97.0.9"}}}, ["10.97.0.70"], {}, "instead of 10.97.0.9"),
        ({"address": "10.97.0.0/26"}, ["10.97.0.7"], {"eth0": "10.97.0.7"}, ""),
        ({"address": "10.97.0.0/26"}, ["10.97.0.70"], {}, "instead of 10.97.0.9"),
        ({"hostnames": ["a.example.org"]}, ["10.97.0.70"], {"eth0": "10.97.0.70"}, ""),
        ({"address": "10.97.0.9"}, [], {}, ""),
    ],
)
def test_what_was_not_had_after_the_start_is_an_error(
    said: Raw, has: list[str], moved: dict[str, str], told: str
) -> None:
    (item,) = desired({**WEB, **said}).items
    now = instance("web", nic={"ipv4.address": "10.97.0.9"})
    found = pins.followed(item, now, {"eth0": now.devices["eth0"]}, {"eth0": tuple(has)})
    assert found == moved
    missed = pins.missed(item, now, {"eth0": tuple(has)}, found)
    assert bool(missed) == bool(told)
    assert told in missed


def test_what_another_has_leased_is_told_before_and_after() -> None:
    """In the plan, where it is known; after the start, where it is not: a lease of what is gone."""
    store = Store()
    assert convergence.run(MemoryDriver(store), [{**WEB, "name": "db"}]).ok
    mac = next(iter(store.leased))
    has = store.leased[mac]
    item = {**WEB, "address": has}
    assert "is leased to db now" in convergence.run(MemoryDriver(store), [item]).error
    assert [name for _project, name in store.instances] == ["db"]
    assert convergence.run(MemoryDriver(store), [{"name": "db", "state": "absent"}]).ok
    for _run in range(2):
        (failure,) = convergence.run(MemoryDriver(store), [item]).failures
        assert f" instead of {has}: another has that address, or had it a moment ago" in failure
    del store.leased[mac]
    assert convergence.run(MemoryDriver(store), [item]).ok
    assert set(store.leased.values()) == {has}
    assert not convergence.run(MemoryDriver(store), [item]).changed


@pytest.mark.parametrize(
    ("subnet", "wish"),
    [("10.0.0.1/8", "10.0.5.0/28"), ("10.0.0.1/8", "10.0.0.0/8"), ("10.0.0.1/8", ""), ("10.0.0.1/16", "10.0.0.0/9")],
)
def test_a_free_address_of_a_large_network_is_found_in_no_time(subnet: str, wish: str) -> None:
    network = Network("br0", "default", "bridge", True, {"ipv4.address": subnet, "ipv4.routes": "10.0.128.0/17"})
    begun = time.process_time()
    found = {addresses.pick(network, (), f"default/web-{number}", wish) for number in range(20)}
    assert time.process_time() - begun < 0.5
    assert None not in found
    assert len(found) > 5


def test_a_range_that_is_full_is_found_out_in_no_time() -> None:
    network = Network("br0", "default", "bridge", True, {"ipv4.address": "10.0.0.1/8", "ipv4.routes": "10.64.0.0/10"})
    begun = time.process_time()
    used = {f"10.0.5.{number}" for number in range(16)}
    assert addresses.pick(network, used, "default/web", "10.0.5.0/28") is None
    assert addresses.pick(network, (), "default/web", "10.64.0.0/12") is None
    assert addresses.pick(network, (), "default/web", "192.0.2.0/28") is None
    assert time.process_time() - begun < 0.2


def test_every_address_that_can_be_had_is_found_once() -> None:
    network = Network("br0", "default", "bridge", True, {"ipv4.address": "10.0.0.1/27", "ipv4.routes": "10.0.0.8/30"})
    for whose in ("default/a", "default/b", "default/c"):
        found = list(addresses.usable(network, whose))
        assert sorted(found) == sorted(f"10.0.0.{n}" for n in range(2, 31) if n not in range(8, 12))
        assert set(addresses.usable(network, whose, "10.0.0.0/28")) == set(found) & {f"10.0.0.{n}" for n in range(16)}


def test_leases_are_read_of_what_is_pinned_on_and_of_who_is_there() -> None:
    store = Store()
    for project in ("here", "there", "nowhere"):
        store.projects[project] = {}
    for project in ("here", "there"):
        source = {"type": "image", "alias": "busybox"}
        store.create(project, {"name": f"in-{project}", "source": source})
    store.instances["there", "in-there"]["devices"]["eth0"] = {"type": "none"}
    driver = MemoryDriver(store)
    assert convergence.run(driver, [{**WEB, "nat": [{"extport": 80}]}]).ok
    before_the_first_write = driver.requests[: driver.requests.index(driver.writes[0])]
    leases = [path for _method, path in before_the_first_write if path.endswith("/leases")]
    # Of the two that are there only one is on the bridge.
    assert leases == [f"/1.0/networks/{BRIDGE}/leases"]
