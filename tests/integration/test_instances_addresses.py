# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses that are said, on LXD and on Incus: had after all, or told."""

from __future__ import annotations

import ipaddress
import os
import time
import typing as t

import pytest

from ansible_collections.mage.lxd.plugins.module_utils._errors import InvalidInput
from ansible_collections.mage.lxd.tests.integration import namespace
from ansible_collections.mage.lxd.tests.integration.engine import Engine

Bridge = t.Callable[..., str]


def _other(network: ipaddress.IPv4Network, *taken: str) -> str:
    """An address of the network that is none of these."""
    return next(str(one) for one in network if int(one) & 255 >= 200 and str(one) not in taken)


def test_a_fixed_address_that_another_has_is_not_told_as_had(engine: Engine, bridge: Bridge) -> None:
    network = namespace.free_network(24)
    name = bridge(f"ipv4.address={network[1]}/24", "ipv6.address=none")
    devices = {"eth0": {"type": "nic", "name": "eth0", "network": name}}
    holder = engine.item("holder", devices=devices)
    has = engine.good(holder).one["address"]
    want = engine.item("want", devices=devices, address=has)
    for check in (True, False):
        with pytest.raises(InvalidInput, match=f"is leased to {engine.name('holder')} now"):
            engine.run(want, check=check)
    assert engine.status("want") == "Absent"
    # Its hardware address is another one now: the server knows nothing of the lease, and dnsmasq still does.
    engine.good({**holder, "state": "stopped"})
    engine.server.run("config", "set", engine.name("holder"), "volatile.eth0.hwaddr", "00:16:3e:6d:61:01")
    for steps in (["create", "start"], ["restart"]):
        done = engine.run(want)
        (failure,) = done.failures
        assert f" instead of {has}: another has that address, or had it a moment ago" in failure
        assert done.one["actions"] in (steps, steps[:-1])
    free = _other(network, has)
    done = engine.good({**want, "address": free})
    # An instance that has not asked yet since its last start asks for the new one.
    assert done.one["actions"] in (["update", "restart"], ["update"])
    assert done.one["address"] == free
    assert engine.has_address("want", free)
    assert not engine.good({**want, "address": free}).changed


def test_another_address_of_what_runs_is_had_at_once_or_told(engine: Engine, bridge: Bridge) -> None:
    network = namespace.free_network(24)
    name = bridge(f"ipv4.address={network[1]}/24", "ipv6.address=none")
    devices = {"eth0": {"type": "nic", "name": "eth0", "network": name}}
    item = engine.item("moves", devices=devices, nat=[{"extport": 39341}])
    first = engine.good(item).one["address"]
    second = _other(network, first)
    third = _other(network, first, second)
    done = engine.good({**item, "address": second})
    assert (done.one["actions"], done.one["address"]) == (["update", "restart"], second)
    assert engine.has_address("moves", second)
    assert not engine.good({**item, "address": second}).changed
    # Without a restart it is told, and stays as it is.
    wished = f"{network[64]}/27"
    assert first != second
    for check in (True, False):
        done = engine.run({**item, "address": wished}, check=check, restart="never")
        assert (done.one["actions"], done.one["restart_required"]) == (["update"], ["devices.eth0"])
    pin = engine.get("moves")["devices"]["eth0"]["ipv4.address"]
    assert engine.has_address("moves", second)
    again = engine.good({**item, "address": wished}, restart="never")
    assert (again.changed, again.one["restart_required"]) == (False, ["devices.eth0"])
    done = engine.good({**item, "address": wished})
    assert (done.one["actions"], done.one["address"], done.one["restart_required"]) == (["restart"], pin, [])
    assert engine.has_address("moves", pin)
    # Said as the device itself.
    said = {**item, "devices": {"eth0": {**devices["eth0"], "ipv4.address": third}}, "wait_for": ["address"]}
    done = engine.good(said)
    assert (done.one["actions"], done.one["address"]) == (["update", "restart", "wait"], third)
    assert engine.has_address("moves", third)
    assert not engine.good(said).changed


def test_an_ipv6_address_is_checked_shown_and_waited_for(engine: Engine, bridge: Bridge) -> None:
    now = int(time.time()) & 0xFFFF
    prefix, another = (f"fd00:6d61:{os.getpid() & 0xFFFF:x}:{number:x}" for number in (now, now ^ 0x8000))
    # LXD 5.0.2 leaves rules of its firewall for IPv6 behind.
    quiet = "ipv4.address=none", "ipv6.firewall=false", "ipv6.nat=false"
    name = bridge(*quiet, f"ipv6.address={prefix}::1/64", "ipv6.dhcp.stateful=true")
    devices = {"eth0": {"type": "nic", "name": "eth0", "network": name}}
    item = engine.item("six", devices=devices, address=f"{prefix}::10")
    pinned = [{"device": "eth0", "network": name, "family": 6, "address": f"{prefix}::10", "pinned": True}]
    assert engine.run(item, check=True).one["addresses"] == pinned
    given: list[str] = []

    def meddle(method: str, path: str) -> None:
        # The image asks for no IPv6 address: it is given one, as a client inside would.
        if method == "GET" and path.endswith("/state") and not given:
            given.append(path)
            engine.execute("six", "ip", "-6", "addr", "add", f"{prefix}::10/64", "dev", "eth0")

    begun = time.monotonic()
    assert engine.good(item, meddle=meddle).one["addresses"] == pinned
    assert time.monotonic() - begun < 120
    assert given
    assert not engine.good(item).changed
    stopped: dict[str, t.Any] = {"devices": devices, "state": "stopped"}
    with pytest.raises(InvalidInput) as caught:
        engine.run(
            engine.item("twin", **stopped, address=f"{prefix}::10"),
            engine.item("outside", **stopped, address="fd00:6d61::10"),
            engine.item("one", **stopped, address=f"{prefix}::11"),
            engine.item("two", **stopped, address=f"{prefix}::11"),
        )
    told = caught.value.problems
    assert len(told) == 3
    assert f"is the address of {engine.name('six')} already" in told[0]
    assert f"is none that an instance can have on {name} ({prefix}::1/64)" in told[1]
    assert f"is the address of {engine.name('one')} already" in told[2]
    assert [engine.status(suffix) for suffix in ("twin", "outside", "one", "two")] == ["Absent"] * 4
    plain = bridge(*quiet, f"ipv6.address={another}::1/64")
    nic = {"eth0": {**devices["eth0"], "network": plain}}
    with pytest.raises(InvalidInput, match=r"leases no IPv6 addresses: set its ipv6\.dhcp\.stateful to true"):
        engine.run(engine.item("plain", state="stopped", devices=nic, address=f"{another}::10"))


def test_leases_are_read_of_the_network_and_the_projects_that_count(engine: Engine, bridge: Bridge) -> None:
    """Three bridges and three projects, and one of each is pinned on."""
    network = namespace.free_network(24)
    name = bridge(f"ipv4.address={network[1]}/24", "ipv6.address=none")
    for _more in range(2):
        bridge("ipv4.address=none", "ipv6.address=none")
    projects = [engine.name("here"), engine.name("there")]
    shared = ("images", "profiles", "storage.volumes")
    nic = {"type": "nic", "name": "eth0", "network": name}
    try:
        for project in projects:
            options = [part for kind in shared for part in ("-c", f"features.{kind}=false")]
            engine.server.run("project", "create", project, *options)
        engine.server.run("init", engine.server.image, engine.name("there"), "--project", projects[1])
        item = engine.item("nat", state="stopped", devices={"eth0": nic}, nat=[{"extport": 39340}])
        engine.server.run("init", engine.server.image, engine.name("here"), "--project", projects[0], "-n", name)
        checked = engine.run(item, check=True)
        leases = [path for _method, path in checked.requests if path.endswith("/leases")]
        assert leases == [f"/1.0/networks/{name}/leases"]
        assert engine.good(item).one["address"]
    finally:
        for suffix, project in zip(("here", "there"), projects):
            engine.server.run("delete", "--force", engine.name(suffix), "--project", project)
            engine.server.run("project", "delete", project)
