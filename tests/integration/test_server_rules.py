# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules that the server in memory keeps are those of the real ones: the same questions to each."""

from __future__ import annotations

import contextlib
import time
import typing as t

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._server import operations, snapshot
from ansible_collections.mage.lxd.plugins.module_utils._server.driver import Driver, api
from ansible_collections.mage.lxd.tests.integration import doors as doors_module
from ansible_collections.mage.lxd.tests.integration import server
from ansible_collections.mage.lxd.tests.memory import store
from ansible_collections.mage.lxd.tests.memory.driver import MemoryDriver

REAL = [way for way in ("lxd", "incus") if way in doors_module.WAYS]


class Bench:
    """One server under question. Names of instances start with ``prefix``."""

    def __init__(self, driver: Driver, prefix: str, image: str, bridge: str, incus: bool) -> None:
        self.driver = driver
        self.prefix = prefix
        self.image = image
        self.bridge = bridge
        self.incus = incus
        # Of an operation, where it says nothing better.
        self.failed = 500 if incus else 400

    def run(self, method: str, path: str, body: t.Any = None, **headers: str) -> t.Any:
        return operations.run(self.driver, method, path, None, body, {**headers})

    def create(self, name: str, **more: t.Any) -> str:
        source = {"type": "image", "alias": self.image}
        self.run("POST", api("instances"), {"name": self.prefix + name, "source": source, **more})
        return api("instances", self.prefix + name)

    def get(self, path: str) -> dict[str, t.Any]:
        return dict(self.driver.request("GET", path).metadata)

    def refused(self, method: str, path: str, body: t.Any = None, **headers: str) -> tuple[int, str]:
        with pytest.raises(_errors.ServerError) as caught:
            self.run(method, path, body, **headers)
        return caught.value.status, caught.value.message

    def state(self, path: str, action: str, **more: t.Any) -> None:
        self.run("PUT", path + "/state", {"action": action, "timeout": 10, "force": True, **more})

    def refused_state(self, path: str, action: str) -> tuple[int, str]:
        return self.refused("PUT", path + "/state", {"action": action, "timeout": 10, "force": True})

    def pin(self, address: str) -> dict[str, t.Any]:
        return {"eth0": {"type": "nic", "name": "eth0", "network": self.bridge, "ipv4.address": address}}

    def free_address(self, *taken: str) -> str:
        """One that nobody has, in the middle of the subnet: the tests beside take theirs from its end."""
        (network,) = [one for one in snapshot.read_networks(self.driver) if one.name == self.bridge]
        taken += tuple(lease.address for lease in snapshot.read_leases(self.driver, self.bridge))
        start = network.config["ipv4.address"].rpartition(".")[0]
        return next(address for last in range(150, 200) if (address := f"{start}.{last}") not in taken)

    def wait_for_address(self, path: str) -> str:
        deadline = time.monotonic() + 90
        while True:
            found = (self.get(path + "/state").get("network") or {}).get("eth0", {}).get("addresses") or []
            ipv4 = [one["address"] for one in found if one["family"] == "inet" and one["scope"] == "global"]
            if ipv4:
                return str(ipv4[0])
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.fixture(params=["memory-lxd", "memory-incus", *REAL])
def bench(request: pytest.FixtureRequest, doors: doors_module.Doors) -> t.Iterator[Bench]:
    kind, _dash, flavor = request.param.partition("-")
    if flavor:
        yield Bench(MemoryDriver(store.Store(flavor)), "", store.IMAGE, store.BRIDGE, flavor == "incus")
        return
    real, _options = doors.way(kind)
    driver = doors.driver(f"core-{kind}")
    nic = driver.request("GET", api("profiles", "default")).metadata["devices"]["eth0"]
    made = Bench(driver, server.own_prefix() + "-", real.image, nic["network"], kind == "incus")
    with contextlib.closing(driver):
        yield made
        real.delete(made.prefix)


@pytest.fixture
def second_pool(bench: Bench) -> t.Iterator[str]:
    """Another pool than the one that instances come to."""
    name = f"{bench.prefix}pool"
    if isinstance(bench.driver, MemoryDriver):
        yield name
        return
    bench.run("POST", api("storage-pools"), {"name": name, "driver": "dir", "config": {}})
    yield name
    for path in bench.driver.request("GET", api("instances")).metadata:
        if path.rpartition("/")[2].startswith(bench.prefix):
            bench.run("DELETE", path)
    bench.run("DELETE", api("storage-pools", name))


def test_what_is_refused_before_anything_starts(bench: Bench) -> None:
    source = {"type": "image", "alias": bench.image}
    for name in ("a_b", "a.b", "-a", "a-", *(() if bench.incus else ("1a",))):
        status, message = bench.refused("POST", api("instances"), {"name": name, "source": source})
        assert status == 400, name
        assert message.startswith("Invalid instance name: ")
    no_image = (500, "Image not provided") if bench.incus else (404, "not found")
    for body, expected, words in (
        ({"source": {"type": "image", "alias": "mt-none"}}, *no_image),
        ({}, 400, "Unknown source type"),
        ({"source": source, "profiles": ["mt-none"]}, 500, 'Requested profile "mt-none" doesn\'t exist'),
        ({"source": source, "config": {"user.a": 1}}, 400, "cannot unmarshal number into Go struct field"),
        ({"source": {"type": "copy", "source": "mt-none"}}, 404, "Instance not found"),
    ):
        status, message = bench.refused("POST", api("instances"), {"name": bench.prefix + "x", **body})
        assert (status, words in message) == (expected, True), message


def test_what_fails_in_the_background(bench: Bench) -> None:
    bench.create("a")
    for more, words in (
        ({}, "UNIQUE constraint failed: instances." if bench.incus else 'This "instances" entry already exists'),
        ({"config": {"nope": "1"}}, "Unknown configuration key: nope"),
        ({"config": {"limits.memory": "xx"}}, "Invalid value"),
        ({"devices": {"x": {"type": "nope"}}}, "nope"),
    ):
        with pytest.raises(_errors.ServerError) as caught:
            bench.create("b" if more else "a", **more)
        assert caught.value.status == bench.failed
        assert words in caught.value.message
    assert bench.refused("GET", api("instances", bench.prefix + "b"))[0] == 404


def test_writing(bench: Bench) -> None:
    path = bench.create("a", description="d", config={"user.a": "1", "user.b": "1"})
    answer = bench.driver.request("GET", path)
    etag = answer.headers["etag"]
    assert bench.refused("PATCH", path, {"config": {"user.c": "1"}}, **{"If-Match": "no"})[0] == 412
    disk = {"type": "disk", "source": "/srv", "path": "/m"}
    bench.run("PATCH", path, {"config": {"user.a": "", "user.none": ""}, "devices": {"m": disk}}, **{"If-Match": etag})
    now = bench.get(path)
    # What a PATCH leaves out stays, except for the description.
    assert {key: value for key, value in now["config"].items() if key.startswith("user.")} == {"user.b": "1"}
    assert (now["devices"], now["profiles"], now["description"]) == ({"m": disk}, ["default"], "")
    assert bench.refused("PUT", path, {"config": {}}, **{"If-Match": etag})[0] == 412
    for body, status, words in (
        ({"profiles": ["mt-none"]}, 404, "Profile not found"),
        ({"config": {"user.b": 1}}, 400, "cannot unmarshal number into Go struct field"),
        ({"config": {"nope": "1"}}, 500, "Invalid config: Unknown configuration key: nope"),
        ({"devices": {"m": {"type": "disk", "path": "/m"}}}, 500, "Invalid devices: "),
        ({"devices": bench.pin("9.9.9.9")}, 500, "not within network"),
    ):
        refused, message = bench.refused("PATCH", path, body)
        assert (refused, words in message) == (status, True), message
    wanted = {"config": {"user.z": "1"}, "devices": {}, "profiles": ["default"]}
    assert bench.refused("PUT", path, wanted) == (bench.failed, "Volatile idmap keys can't be deleted by the user")
    kept = {key: value for key, value in now["config"].items() if key.startswith(("volatile.", "image."))}
    bench.run("PUT", path, {**wanted, "config": {**kept, "user.z": "1"}})
    now = bench.get(path)
    assert (now["devices"], now["config"].get("user.b"), now["config"]["user.z"]) == ({}, None, "1")
    # No profiles are none.
    bench.run("PATCH", path, {"profiles": [], "devices": {"root": now["expanded_devices"]["root"]}})
    assert bench.get(path)["profiles"] == []
    # The description is in no ETag.
    etag = bench.driver.request("GET", path).headers["etag"]
    bench.run("PATCH", path, {"description": "other"}, **{"If-Match": etag})
    assert bench.driver.request("GET", path).headers["etag"] == etag


def test_states(bench: Bench) -> None:
    path = bench.create("a")
    for action, expected, words in (
        ("stop", 400, "The instance is already stopped"),
        ("restart", 400, "The instance is already stopped"),
        ("freeze", bench.failed, "isn't running"),
        ("unfreeze", bench.failed, "isn't running"),
    ):
        status, message = bench.refused_state(path, action)
        assert (status, words in message) == (expected, True), f"{action}: {message}"
    assert bench.refused_state(path, "jump") == (400, "Unknown action: 'jump'")
    bench.state(path, "start")
    assert bench.get(path)["status"] == "Running"
    assert bench.refused_state(path, "start") == (bench.failed, "The instance is already running")
    assert bench.refused("DELETE", path) == (400, "Instance is running")
    bench.state(path, "freeze")
    assert bench.get(path)["status"] == "Frozen"
    assert "already frozen" in bench.refused_state(path, "freeze")[1]
    assert bench.refused_state(path, "start") == (bench.failed, "The instance is already running")
    bench.state(path, "unfreeze")
    bench.state(path, "restart")
    assert bench.get(path)["status"] == "Running"
    bench.state(path, "stop")
    bench.run("PATCH", path, {"config": {"security.protection.delete": "true"}})
    status, message = bench.refused("DELETE", path)
    assert (status, "protected" in message) == (bench.failed, True)
    # An ephemeral one is gone when it stops.
    now = bench.get(path)
    bench.run("PUT", path, {**now, "config": {**now["config"], "security.protection.delete": ""}, "ephemeral": True})
    bench.state(path, "start")
    bench.state(path, "stop")
    assert bench.refused("GET", path)[0] == 404
    for method, where in (("GET", path), ("PATCH", path), ("PUT", path + "/state"), ("DELETE", path)):
        status, message = bench.refused(method, where, {"action": "stop"})
        assert (status, message.endswith("Instance not found")) == (404, True)
    assert bench.refused("GET", api("operations", "0b3c8d5e-0000-4000-8000-000000000000", "wait"))[0] == 404


def test_addresses(bench: Bench) -> None:
    address = bench.free_address()
    a = bench.create("a", devices=bench.pin(address))
    # Neither creating nor what another project does is compared with what is pinned already.
    b = bench.create("b", devices=bench.pin(address))
    c = bench.create("c")
    taken = f'IP address "{address}" already defined on another NIC'
    status, message = bench.refused("PATCH", c, {"devices": bench.pin(address)})
    assert (status, taken in message) == (409, True), message
    status, message = bench.refused_state(a, "start")
    assert (status, taken in message) == (409 if bench.incus else 400, True), message
    bench.run("DELETE", b)
    bench.state(a, "start")
    assert bench.wait_for_address(a) == address
    bench.state(c, "start")
    dynamic = bench.wait_for_address(c)
    leases = {(one.hwaddr, one.address, one.type) for one in snapshot.read_leases(bench.driver, bench.bridge)}
    macs = {path: bench.get(path)["config"]["volatile.eth0.hwaddr"] for path in (a, c)}
    assert {(macs[a], address, "static"), (macs[c], dynamic, "dynamic")} <= leases
    # A pin does not move what runs. A copy of which no profiles are said has those of the other, or none.
    bench.run("PATCH", a, {"devices": bench.pin(bench.free_address(address))})
    assert bench.wait_for_address(a) == address
    d = bench.prefix + "d"
    copy = {"name": d, "source": {"type": "copy", "source": bench.prefix + "c"}}
    if bench.incus:
        bench.run("POST", api("instances"), copy)
        assert bench.get(api("instances", d))["profiles"] == ["default"]
    else:
        status, message = bench.refused("POST", api("instances"), copy)
        assert (status, "No root device could be found" in message) == (400, True), message


def unlike(raw: dict[str, t.Any]) -> tuple[str, str, bool]:
    """What tells an instance that was made from one that a server has only begun to make."""
    config = raw["config"]
    power = config.get("volatile.last_state.power", "")
    return config.get("volatile.apply_template", ""), power, raw["last_used_at"].startswith("1970")


def test_what_was_moved_to_another_pool(bench: Bench, second_pool: str) -> None:
    """It is a copy that was never started; it has still been, or it has a template."""
    new, old = bench.create("new"), bench.create("old")
    assert unlike(bench.get(new)) == ("create", "", True)
    bench.state(old, "start")
    assert unlike(bench.get(old)) == ("", "RUNNING", False)
    bench.state(old, "stop")
    for path, expected in ((new, ("create", "", True)), (old, ("copy" if bench.incus else "", "STOPPED", True))):
        name = path.rpartition("/")[2]
        bench.run("POST", path, {"name": name, "pool": second_pool, "migration": True})
        assert unlike(bench.get(path)) == expected
        files = bench.driver.request("GET", path + "/files", query={"path": "/"}).metadata
        assert {"bin", "etc", "root"} <= set(files)


def test_a_restart_that_does_not_start(bench: Bench) -> None:
    path = bench.create("a")
    bench.state(path, "start")
    bench.run("PATCH", path, {"config": {"raw.lxc": "lxc.init.cmd = /no/such/init"}})
    status, message = bench.refused_state(path, "restart")
    assert (status, "forkstart" in message) == (bench.failed, True)
    assert bench.get(path)["status"] == "Stopped"


def test_what_a_copy_brings_along(bench: Bench) -> None:
    """All devices, addresses too, as far as the request names no others of these names."""
    address = bench.free_address()
    path = bench.create("a", devices=bench.pin(address))
    bench.run("POST", path + "/snapshots", {"name": "s"})
    found = bench.driver.request("GET", path + "/snapshots", query={"recursion": "1"}).metadata
    assert [one["name"].rpartition("/")[2] for one in found] == ["s"]
    for name, source in (("b", "a"), ("c", "a/s")):
        body = {"name": bench.prefix + name, "source": {"type": "copy", "source": bench.prefix + source}}
        bench.run("POST", api("instances"), {**body, "profiles": ["default"]})
        copy = api("instances", bench.prefix + name)
        assert bench.get(copy)["devices"] == bench.pin(address)
        bench.run("DELETE", copy)
        plain = {"eth0": {key: value for key, value in bench.pin("")["eth0"].items() if value}}
        bench.run("POST", api("instances"), {**body, "profiles": ["default"], "devices": plain})
        assert bench.get(copy)["devices"] == plain
    body = {"name": bench.prefix + "d", "source": {"type": "copy", "source": bench.prefix + "a/none"}}
    assert bench.refused("POST", api("instances"), body)[0] == 404


def test_images_from_elsewhere(bench: Bench) -> None:
    nowhere = {"type": "image", "mode": "pull", "protocol": "simplestreams", "server": "https://127.0.0.1:9"}
    for path, body in (
        (api("images"), {"source": {**nowhere, "alias": "x"}}),
        (api("instances"), {"name": bench.prefix + "x", "source": {**nowhere, "alias": "x"}}),
    ):
        status, message = bench.refused("POST", path, body)
        assert (status, message.startswith("Failed getting remote image info: ")) == (bench.failed, True)
