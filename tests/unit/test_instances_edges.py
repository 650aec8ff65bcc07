# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs that meet what changes under them, or what a second run must not do again."""

from __future__ import annotations

import json
import sys
import time
import typing as t

import pytest

from ansible_collections.mage.lxd.plugins.module_utils._errors import DeadlinePassed, ServerError
from ansible_collections.mage.lxd.plugins.module_utils._instances import folders, mounts
from ansible_collections.mage.lxd.plugins.module_utils._server.driver import Completed, Response
from ansible_collections.mage.lxd.tests.memory import convergence
from ansible_collections.mage.lxd.tests.memory.driver import Fault, MemoryDriver
from ansible_collections.mage.lxd.tests.memory.store import BRIDGE, IMAGE, Raw, Store

A: Raw = {"name": "a", "image": IMAGE}
B: Raw = {"name": "b", "image": IMAGE}
VM: Raw = {**A, "type": "virtual-machine"}
COPY: Raw = {"name": "c", "copy_of": "a"}
LIST = ("GET", "/1.0/instances")
OWNED: dict[str, t.Any] = {"owner": "site", "prune": True}


def run(store: Store, *items: Raw, **more: t.Any) -> convergence.Outcome:
    return convergence.run(MemoryDriver(store), items, **more)


def prepared(*items: Raw, **more: t.Any) -> Store:
    store = Store()
    outcome = run(store, *items, **more)
    assert outcome.ok, outcome
    return store


def actions(outcome: convergence.Outcome) -> dict[str, list[str]]:
    assert outcome.report is not None, outcome
    values = {one["name"]: one for one in outcome.report.values["instances"]}
    assert all(one["changed"] is bool(one["actions"]) for one in values.values())
    return {name: one["actions"] for name, one in values.items()}


def first(driver: MemoryDriver, method: str) -> int:
    return next(number for number, one in enumerate(driver.requests) if one[0] == method)


@pytest.mark.parametrize("fault", [Fault.LOST, Fault.UNDONE, Fault.HALF])
def test_what_comes_after_what_has_to_be_made_again_waits_for_it(fault: Fault) -> None:
    items = [A, {**B, "depends_on": ["a"]}, COPY]
    probe = MemoryDriver(Store())
    assert convergence.run(probe, items, concurrency=1).ok
    outcome = convergence.run(MemoryDriver(Store(), {first(probe, "POST"): fault}), items, concurrency=1)
    assert outcome.ok, outcome


def test_a_copy_needs_what_it_was_made_of_but_once() -> None:
    store = prepared(A, COPY)
    assert not run(store, A, COPY).changed
    assert run(store, {"name": "a", "state": "absent"}, COPY).ok
    again = run(store, COPY)
    assert again.ok
    assert not again.changed
    store = prepared(A)
    told = 'instances[1].copy_of: "a": is declared absent in instances[0]'
    assert run(store, {"name": "a", "state": "absent"}, COPY).error == told
    store = prepared(A, **OWNED)
    assert "declared no longer, and prune would remove it" in run(store, COPY, **OWNED).error
    assert ("default", "a") in store.instances


def test_what_others_depend_on_is_not_pruned() -> None:
    store = prepared(A, {**B, "depends_on": ["a"]}, **OWNED)
    told = 'instances[0].depends_on: "a": is declared no longer, and prune would remove it'
    assert run(store, {**B, "depends_on": ["a"]}, **OWNED).error == told
    assert len(store.instances) == 2


def test_an_ephemeral_instance_is_not_stopped_by_mistake() -> None:
    store = prepared({**A, "ephemeral": True})
    assert "a is ephemeral, and is deleted when it stops" in run(store, {"name": "a", "state": "stopped"}).error
    assert store.find("default", "a")["status"] == "Running"
    assert run(store, {"name": "a", "state": "stopped", "ephemeral": False}).ok
    assert store.find("default", "a")["status"] == "Stopped"


def test_an_ephemeral_instance_is_not_restarted_for_what_it_cannot_take() -> None:
    ephemeral = {**VM, "ephemeral": True}
    store = prepared(ephemeral)
    changed = {**ephemeral, "config": {"raw.qemu": "x"}}
    outcome = run(store, changed)
    assert actions(outcome) == {"a": ["update"]}
    assert not run(store, changed).changed


@pytest.mark.parametrize("then", [{}, {"config": {"raw.qemu": "-b"}}])
def test_what_was_held_back_is_done_when_it_may_be(then: Raw) -> None:
    store = prepared({**VM, "config": {"raw.qemu": "-a"}})
    assert run(store, {**VM, **then}, restart="never").ok
    assert not run(store, {**VM, **then}, restart="never").changed
    # It is still what we declared, so that it goes when nobody declares it.
    assert run(store, VM).ok
    assert "raw.qemu" not in store.find("default", "a")["config"]
    assert not run(store, VM).changed


@pytest.mark.parametrize("gone", [(), ({"name": "a", "state": "absent"},)])
def test_an_address_moves_to_another_instance_in_two_runs(gone: tuple[Raw, ...]) -> None:
    store = prepared({**A, "address": "10.99.0.64"}, **OWNED)
    moved = {**B, "address": "10.99.0.64"}
    told = "is the address of a already, which this run is to remove: let one run remove it first"
    assert run(store, moved, *gone, **OWNED).error.endswith(told)
    assert ("default", "a") in store.instances
    assert run(store, moved).error.endswith("is the address of a already")
    store.leased.clear()
    assert run(store, *gone, **OWNED).ok
    assert run(store, moved, **OWNED).ok
    assert list(store.instances) == [("default", "b")]


def test_what_comes_to_another_owner_meanwhile_is_not_pruned() -> None:
    store = prepared(A, B, **OWNED)
    mine = [False]

    def meanwhile(_number: int) -> None:
        if driver.requests and driver.requests[-1] == LIST and not mine[0]:
            mine[0] = True
            assert run(store, A, owner="other").ok
            store.find("default", "b")["config"]["security.protection.delete"] = "true"

    driver = MemoryDriver(store, meanwhile=meanwhile)
    outcome = convergence.run(driver, [], **OWNED)
    assert outcome.report is not None
    assert "default/a: has come to somebody else since it was read, and stays" in outcome.report.warnings
    assert len(outcome.failures) == 1
    assert outcome.failures[0].startswith("default/b: is protected")
    # Not even stopped.
    assert {raw["name"]: raw["status"] for raw in store.instances.values()} == {"a": "Running", "b": "Running"}


def test_one_that_cannot_be_asked_does_not_end_the_run() -> None:
    store = prepared(A, B)

    def meanwhile(_number: int) -> None:
        if driver.requests and driver.requests[-1] == LIST:
            store.find("default", "a")["status"] = "Frozen"

    driver = MemoryDriver(store, meanwhile=meanwhile)
    outcome = convergence.run(driver, [{**A, "python": True}, {**B, "description": "d"}])
    assert [failure.partition(":")[0] for failure in outcome.failures] == ["default/a"]
    assert store.find("default", "b")["description"] == "d"


def test_what_was_not_tried_is_not_told_as_done() -> None:
    probe = MemoryDriver(Store())
    items = [A, {**B, "depends_on": ["a"]}]
    assert convergence.run(probe, items, concurrency=1).ok
    outcome = convergence.run(MemoryDriver(Store(), {first(probe, "PUT"): Fault.REFUSED}), items, concurrency=1)
    assert len(outcome.failures) == 2
    assert actions(outcome) == {"a": ["create"], "b": []}


def test_reads_that_fail_in_the_end_do_not_hide_the_items() -> None:
    """Whichever of the reads after the first write: each failure is told of an item, never of the run."""
    items = [{**A, "hostnames": ["a.example.org"]}, {**B, "config": {"nope": "1"}}]
    probe = MemoryDriver(Store())
    convergence.run(probe, items, concurrency=1)
    start = first(probe, "POST")
    reads = [number for number, one in enumerate(probe.requests) if number > start and one[0] == "GET"]
    assert len(reads) > 5
    for number in reads:
        outcome = convergence.run(MemoryDriver(Store(), {number: Fault.REFUSED}), items, concurrency=1)
        assert outcome.report is not None, (number, outcome)
        assert [one for one in outcome.failures if one.startswith("default/b: ")], (number, outcome)


def test_an_address_that_stays_shared_is_an_error() -> None:
    """Somebody else takes whatever address we pick, whenever we have picked it."""
    store = prepared({**A, "state": "stopped"})
    other = store.find("default", "a")

    def meanwhile(_number: int) -> None:
        web = store.instances.get(("default", "web"))
        pin = web and web["devices"].get("eth0", {}).get("ipv4.address")
        if pin:
            other["devices"]["eth0"] = {"type": "nic", "network": BRIDGE, "name": "eth0", "ipv4.address": pin}

    web = {"name": "web", "image": IMAGE, "state": "stopped", "hostnames": ["web.example.org"]}
    outcome = convergence.run(MemoryDriver(store, meanwhile=meanwhile), [web])
    pins = convergence.pins(store)
    assert len(set(pins)) < len(pins)
    assert "another instance is pinned to its address, too" in outcome.failures[0]


def test_a_command_that_hangs_does_not_outlive_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def hang(_self: MemoryDriver, _instance: str, argv: t.Sequence[str], **more: t.Any) -> Completed:
        limits.append(more["timeout"])
        time.sleep(more["timeout"])
        raise DeadlinePassed(f"{argv[0]}: not done")

    monkeypatch.setattr(MemoryDriver, "execute", hang)
    outcome = run(Store(), {**A, "wait_for": [{"exec": ["hangs"]}]}, timeout=100)
    assert "exec: hangs: not so after 100 s" in outcome.failures[0]
    assert sum(limits) <= 102


def test_what_was_made_just_now_is_not_restarted() -> None:
    """Somebody takes its address in the same moment, so that it gets another one."""
    store = prepared({**A, "state": "stopped"})
    taken: list[str] = []

    def meanwhile(_number: int) -> None:
        web = store.instances.get(("default", "web"))
        if web and web["status"] == "Running" and not taken:
            taken.append(web["devices"]["eth0"]["ipv4.address"])
            store.find("default", "a").update(status="Running", devices={"eth0": dict(web["devices"]["eth0"])})

    web = {"name": "web", "image": IMAGE, "state": "restarted", "hostnames": ["web.example.org"]}
    outcome = convergence.run(MemoryDriver(store, meanwhile=meanwhile), [web])
    assert outcome.ok, outcome
    assert actions(outcome) == {"web": ["create", "start", "update"]}
    assert len(set(convergence.pins(store))) == 2


def test_a_long_list_has_time_left_for_what_was_raced() -> None:
    """The deadline is one for what is tried again, not for the list."""
    slow = [0.0]

    def meanwhile(number: int) -> None:
        if number > start and not slow[0]:
            slow[0] = 1.0
            time.sleep(1000)

    probe = MemoryDriver(Store())
    assert convergence.run(probe, [A]).ok
    start = first(probe, "POST") - 1
    driver = MemoryDriver(Store(), {start + 1: Fault.LOST}, meanwhile)
    assert convergence.run(driver, [A], timeout=60).ok


def test_check_mode_tells_what_will_be() -> None:
    store = prepared({**A, "hostnames": ["a.example.org"]}, B)
    items = [{**A}, {"name": "b", "state": "absent"}, {**VM, "name": "d"}, {**A, "name": "e", "state": "stopped"}]
    told = convergence.foreseen(MemoryDriver(store), items)
    outcome = run(store, *items)
    assert outcome.report is not None
    for before, after in zip(told, outcome.report.values["instances"]):
        same = ("name", "status", "type", "keys", "changed", "actions", "restart_required", "error")
        pins = [[one for one in value["addresses"] if one["pinned"]] for value in (before, after)]
        # Its image and its networks are known when it is there.
        groups = [
            {one for one in value["groups"] if not one.startswith(("os", "network"))} for value in (before, after)
        ]
        if before["name"] == "a":
            assert before["address"] == after["address"]
        assert ({key: before[key] for key in same}, pins[0], groups[0]) == (
            {key: after[key] for key in same},
            pins[1],
            groups[1],
        )


def values(outcome: convergence.Outcome) -> dict[str, Raw]:
    assert outcome.report is not None, outcome
    return {one["name"]: one for one in outcome.report.values["instances"]}


def test_what_a_restart_has_taken_up_waits_for_none() -> None:
    """What it is to wait for is noted after the restart."""
    store = prepared(A)
    item = {**A, "privileged": True, "wait_for": ["address"]}
    outcome = run(store, item)
    assert actions(outcome) == {"a": ["update", "restart", "wait"]}
    assert values(outcome)["a"]["restart_required"] == []
    assert not run(store, item).changed


def pin_of(store: Store, name: str) -> str:
    return str(store.find("default", name)["devices"]["eth0"]["ipv4.address"])


def taking(store: Store, hwaddr: str) -> t.Callable[[int], None]:
    """Somebody else gets the address of ``a`` by DHCP between its creation and its start."""

    def meanwhile(_number: int) -> None:
        raw = store.instances.get(("default", "a"))
        if raw and raw["status"] == "Stopped" and not store.leased:
            store.leased[hwaddr] = raw["devices"]["eth0"]["ipv4.address"]

    return meanwhile


@pytest.mark.parametrize("known", [True, False])
def test_of_a_range_another_address_is_as_good(known: bool) -> None:
    """Whether the server knows who has it, or only dnsmasq does."""
    store = prepared(B) if known else Store()
    hwaddr = next(iter(store.nics(store.find("default", "b")).values()))["hwaddr"] if known else "00:16:3e:99:99:99"
    store.leased.clear()
    item = {**A, "address": "10.99.0.0/27", "nat": [{"extport": 8080}]}
    outcome = convergence.run(MemoryDriver(store, meanwhile=taking(store, hwaddr)), [item])
    assert outcome.ok, outcome
    assert actions(outcome) == {"a": ["create", "start", "update", "restart"]}
    (lost,) = (address for mac, address in store.leased.items() if mac == hwaddr)
    assert values(outcome)["a"]["address"] == pin_of(store, "a") != lost
    assert not run(store, item).changed


def test_where_only_a_restart_would_help_and_none_is_allowed_it_fails() -> None:
    store = Store()
    item = {**A, "address": "10.99.0.0/27", "nat": [{"extport": 8080}]}
    driver = MemoryDriver(store, meanwhile=taking(store, "00:16:3e:99:99:99"))
    (failure,) = convergence.run(driver, [item], restart="never").failures
    assert failure.startswith("default/a: ")
    assert store.find("default", "a")["devices"]["eth0"]["ipv4.address"] in failure


@pytest.mark.parametrize("state", ["started", "stopped"])
def test_no_item_gets_the_address_that_another_says_in_its_devices(state: str) -> None:
    first_one = {**B, "hostnames": ["b.example.org"], "state": state}
    pin = pin_of(prepared(first_one), "b")
    nic = {"type": "nic", "network": BRIDGE, "name": "eth0", "ipv4.address": pin}
    second = {**A, "name": "z", "devices": {"eth0": nic}, "state": state}
    store = prepared(first_one, second, concurrency=1)
    assert pin_of(store, "z") == pin != pin_of(store, "b")
    assert not run(store, first_one, second).changed


class Slow(MemoryDriver):
    """A server whose guest takes 90 seconds to end."""

    given = 0

    def request(
        self,
        method: str,
        path: str,
        query: t.Any = None,
        body: t.Any = None,
        headers: t.Any = None,
        timeout: t.Optional[float] = None,
    ) -> Response:
        if method == "PUT" and path.endswith("/state") and body["action"] == "stop" and not body.get("force"):
            self.given = body["timeout"]
            return Response(202, {}, b'{"type": "async", "operation": "/1.0/operations/slow"}')
        if path.endswith("/operations/slow/wait"):
            state: Raw = {"status_code": 103, "status": "Running", "description": "Stopping instance"}
            if int(query["timeout"]) >= 90:
                state = {"status_code": 400, "err": "Failed shutting down instance: context deadline exceeded"}
                if self.given >= 90:
                    self.store.change_state(self.store.find("default", "a"), "stop")
                    state = {"status_code": 200}
            return Response(200, {}, json.dumps({"metadata": state}).encode())
        return super().request(method, path, query, body, headers, timeout)


@pytest.mark.parametrize("given", [120, 50])
def test_what_is_given_time_to_stop_has_it_whatever_the_task_has(given: int) -> None:
    """And is forced, if it asks for that, only after it."""
    store = prepared(A)
    driver = Slow(store)
    item = {**A, "state": "stopped", "stop": {"timeout": given, "force": given < 90}}
    outcome = convergence.run(driver, [item], timeout=60)
    assert outcome.ok, outcome
    assert driver.given == given
    assert store.find("default", "a")["status"] == "Stopped"


def test_check_mode_of_what_is_made_anew_shows_nothing_of_the_old_one() -> None:
    store = prepared({**A, "state": "stopped"})
    raw = store.find("default", "a")
    raw["config"]["user.mage.nat"] = '[{"extport":8080}]'
    raw["devices"]["eth0"] = {"type": "nic", "network": BRIDGE, "name": "eth0", "ipv4.address": "10.99.0.9"}
    item = {**VM, "state": "stopped", "recreate": True}
    (foreseen,) = convergence.foreseen(MemoryDriver(store), [item])
    made = values(run(store, item))["a"]
    for key in ("type", "status", "keys", "addresses"):
        assert foreseen[key] == made[key], key


def test_a_copy_publishes_nothing_that_was_written_onto_its_source_by_hand() -> None:
    store = prepared({**A, "state": "stopped"})
    store.find("default", "a")["config"]["user.mage.nat"] = '[{"extport":8080}]'
    item = {**COPY, "state": "stopped"}
    driver = MemoryDriver(store)
    assert convergence.run(driver, [item]).ok
    assert "user.mage.nat" not in store.find("default", "c")["config"]
    assert store.find("default", "a")["config"]["user.mage.nat"] == '[{"extport":8080}]'
    assert not run(store, item).changed


def test_a_copy_that_is_cut_off_publishes_nothing_either() -> None:
    store = prepared({**A, "state": "stopped"})
    store.find("default", "a")["config"]["user.mage.nat"] = '[{"extport":8080}]'
    probe = MemoryDriver(store)
    number = first(probe, "POST") if convergence.run(probe, [COPY]).ok else -1
    del store.instances["default", "c"]
    assert convergence.run(MemoryDriver(store, {number: Fault.KILLED_AFTER}), [COPY]).killed
    assert "default/a" in store.find("default", "c")["config"]["user.mage.nat"]


def test_a_mount_of_what_its_profile_makes_privileged_is_as_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "read", lambda *_args: {"/srv": mounts.Folder("ext4", 1000, 1000, True)})
    store = Store()
    store.features = {"idmapped_mounts": "true"}
    store.profiles["priv"] = {}
    store.profile_config["priv"] = {"security.privileged": "true"}
    item = {**A, "profiles": ["default", "priv"], "mounts": ["/srv:/srv"]}
    assert run(store, item).ok
    assert "shift" not in store.find("default", "a")["devices"]["mount-srv"]
    assert not run(store, item).changed


def test_what_means_the_same_restarts_nothing() -> None:
    store = prepared(A)
    started = store.find("default", "a")["last_used_at"]
    for item in ({**A, "privileged": False}, A):
        assert actions(run(store, item)) == {"a": ["update"]}
        assert not run(store, item).changed
    assert store.find("default", "a")["last_used_at"] == started


@pytest.mark.parametrize("owner", [1000, 0])
@pytest.mark.parametrize("then", [{}, {"privileged": False}, {"privileged": False, "state": "stopped"}])
@pytest.mark.parametrize("before", [{}, {"state": "stopped"}])
def test_mounts_of_what_is_no_longer_privileged_are_as_if_it_had_never_been(
    monkeypatch: pytest.MonkeyPatch, before: Raw, then: Raw, owner: int
) -> None:
    """A running container that is privileged cannot take what is shifted: it is stopped for it."""
    monkeypatch.setattr(folders, "read", lambda *_args: {"/srv": mounts.Folder("ext4", owner, owner, False)})
    store, fresh = Store(), Store()
    item = {**A, "mounts": ["/srv:/srv"]}
    for one in (store, fresh):
        one.features = {"idmapped_mounts": "true"}
    assert run(fresh, {**item, **then}).ok
    assert run(store, {**item, "privileged": True, **before}).ok
    assert "shift" not in store.find("default", "a")["devices"]["mount-srv"]
    changed = run(store, {**item, **then})
    assert changed.ok, changed
    assert changed.plan is not None
    assert not changed.plan.warnings
    assert convergence.seen(store) == convergence.seen(fresh)
    assert store.find("default", "a")["devices"]["mount-srv"]["shift"] == "true"
    if not before and "state" not in then:
        assert actions(changed) == {"a": ["stop", "update", "start"]}
    again = run(store, {**item, **then})
    assert again.ok, again
    assert not again.changed


def test_mounts_of_what_is_no_longer_privileged_wait_for_it_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "read", lambda *_args: {"/srv": mounts.Folder("ext4", 1000, 1000, False)})
    store = Store()
    store.features = {"idmapped_mounts": "true"}
    item = {**A, "mounts": ["/srv:/srv"]}
    assert run(store, {**item, "privileged": True}).ok
    for changes in (True, False):
        held = run(store, item, restart="never")
        assert (held.ok, held.changed) == (True, changes), held
        assert store.find("default", "a")["config"]["security.privileged"] == "true"
        (seen,) = convergence.foreseen(MemoryDriver(store), [item], restart="never")
        assert seen["restart_required"] == ["config.security.privileged", "devices.mount-srv"]
    store.change_state(store.find("default", "a"), "stop")
    assert run(store, item, restart="never").ok
    raw = store.find("default", "a")
    assert ("security.privileged" in raw["config"], raw["devices"]["mount-srv"]["shift"]) == (False, "true")
    assert not run(store, item, restart="never").changed


def test_a_mount_of_what_waits_to_be_unprivileged_waits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "read", lambda *_args: {"/srv": mounts.Folder("ext4", 1000, 1000, False)})
    store = Store()
    store.features = {"idmapped_mounts": "true"}
    assert run(store, {**A, "privileged": True}).ok
    assert run(store, A, restart="never").ok
    item = {**A, "mounts": ["/srv:/srv"]}
    assert run(store, item, restart="never").ok
    assert "mount-srv" not in store.find("default", "a")["devices"]
    assert run(store, item).ok
    assert store.find("default", "a")["devices"]["mount-srv"]["shift"] == "true"


def test_a_mount_of_what_its_profile_keeps_privileged_is_as_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so itself no longer, its profile still does."""
    monkeypatch.setattr(folders, "read", lambda *_args: {"/srv": mounts.Folder("ext4", 1000, 1000, False)})
    store = Store()
    store.features = {"idmapped_mounts": "true"}
    store.profile_config["default"] = {"security.privileged": "true"}
    item = {**A, "mounts": ["/srv:/srv"]}
    assert run(store, {**item, "privileged": True}).ok
    for changes in (True, False):
        outcome = run(store, item)
        assert (outcome.ok, outcome.changed) == (True, changes), outcome
        assert outcome.plan is not None
        assert [change.action for change in outcome.plan.changes] == (["update"] if changes else [])
        assert "shift" not in store.find("default", "a")["devices"]["mount-srv"]


def nic(address: str, family: int = 4) -> Raw:
    return {"eth0": {"type": "nic", "network": BRIDGE, f"ipv{family}.address": address}}


@pytest.mark.parametrize(
    ("devices", "address"),
    [
        (nic("10.99.0.51"), "10.99.0.64"),
        (nic("10.99.0.51"), "10.99.0.64/27"),
        (nic("none"), "10.99.0.64"),
        (nic("10.99.0.51"), {"nic": "eth0", "ipv4": "10.99.0.64"}),
        (nic("fd42::51", 6), "fd42::64"),
        (nic("fd42::51", 6), {"nic": "eth0", "ipv4": "10.99.0.64", "ipv6": "fd42::64"}),
    ],
)
def test_two_addresses_for_one_nic_are_refused_in_every_run(devices: Raw, address: object) -> None:
    """Also where the list does not say of which NIC it speaks, and whatever else the run has to read."""
    item = {**A, "devices": devices, "address": address}
    for store in (Store(), prepared(A), prepared({**A, "devices": devices})):
        for more in ((), ({**B, "nat": [{"extport": 8080}]},)):
            outcome = run(store, item, *more)
            assert outcome.error.endswith("one of them is enough"), outcome
            assert outcome.error.startswith("instances[0].address: devices.eth0 has an ipv"), outcome


@pytest.mark.parametrize("address", ["10.99.0.64", "10.99.0.64/27"])
def test_one_address_may_be_said_twice(address: str) -> None:
    item = {**A, "devices": nic("10.99.0.64"), "address": address}
    store = prepared(item)
    assert store.find("default", "a")["devices"]["eth0"]["ipv4.address"] == "10.99.0.64"
    assert not run(store, item).changed


LONG = "/srv/" + "a" * 58


@pytest.mark.parametrize(("first_path", "second_path"), [("/data/a", "/data-a"), (LONG + "/one", LONG + "/two")])
@pytest.mark.parametrize("turned", [False, True])
def test_mounts_whose_names_would_be_the_same_have_two(first_path: str, second_path: str, turned: bool) -> None:
    """Whatever comes, goes or moves in the list, a device that is there keeps its name."""
    alone, other = f"/host/one:{first_path}", f"/host/two:{second_path}"
    store = prepared({**A, "mounts": [alone]})

    def devices() -> dict[str, str]:
        found = store.find("default", "a")["devices"]
        return {options["path"]: name for name, options in found.items() if options["type"] == "disk"}

    (name,) = devices().values()
    assert name == f"mount-{first_path.strip('/').replace('/', '-')}"[:64]
    both = [other, alone] if turned else [alone, other]
    assert run(store, {**A, "mounts": both}).ok
    assert devices()[first_path] == name
    second = devices()[second_path]
    assert (second != name, len(second) <= 64, second.startswith("mount-")) == (True, True, True)
    for mounted in (both, both[::-1]):
        assert not run(store, {**A, "mounts": mounted}).changed
    outcome = run(store, {**A, "mounts": [other]})
    assert outcome.ok, outcome
    assert devices() == {second_path: second}
    assert not run(store, {**A, "mounts": [other]}).changed
    assert run(store, {**A, "mounts": both}).ok
    assert devices() == {first_path: name, second_path: second}


def test_a_mount_beside_a_device_of_its_name() -> None:
    device = {"mount-data-a": {"type": "disk", "source": "/host/one", "path": "/data-a"}}
    item = {**A, "devices": device, "mounts": ["/host/two:/data/a"]}
    store = prepared(item)
    found = store.find("default", "a")["devices"]
    assert sorted(found[name]["path"] for name in found if name.startswith("mount-")) == ["/data-a", "/data/a"]
    assert found["mount-data-a"]["path"] == "/data-a"
    assert not run(store, item).changed


def test_the_kernel_shifts_no_owners_of_mounts_whose_names_would_be_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {f"/host/{one}": mounts.Folder("ext4", 1000, 1000, True) for one in ("one", "two")}
    monkeypatch.setattr(folders, "read", lambda *_args: known)
    store = Store()
    store.features = {"idmapped_mounts": "true"}
    store.shifts = False
    assert run(store, {**A, "mounts": ["/host/one:/data/a"]}).ok
    item = {**A, "mounts": [{"source": "/host/two", "path": "/data-a"}, "/host/one:/data/a"]}
    assert run(store, item).ok
    assert not any("shift" in options for options in store.find("default", "a")["devices"].values())
    assert not run(store, item).changed


def test_a_nic_with_several_addresses_is_an_error_in_words() -> None:
    nic = {"type": "nic", "nictype": "routed", "parent": "br9", "ipv4.address": "198.51.100.5,198.51.100.6"}
    outcome = run(Store(), {**A, "devices": {"eth0": nic}, "address": "198.51.100.5"})
    assert outcome.error.startswith('instances[0].address: "198.51.100.5": eth0 is on br9')


def test_an_image_that_is_to_be_there_is_not_downloaded() -> None:
    image = {"alias": IMAGE, "server": "https://images.example.org", "mode": "local", "auto_update": True}
    outcome = run(Store(), {"name": "a", "state": "stopped", "image": image})
    assert actions(outcome) == {"a": ["create"]}


def test_a_missing_netaddr_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "netaddr", None)
    outcome = run(Store(), {**A, "nat": [{"extport": 8080}]})
    assert outcome.error.startswith("The Python package netaddr is missing for ")


class HalfAnIndex(MemoryDriver):
    """Does not find the image for those of these names, ``times`` times each."""

    def __init__(self, names: t.Container[str], times: int, words: str) -> None:
        super().__init__(Store())
        self.store.images["debian"] = "d" * 64
        self.asked: list[str] = []
        self._names, self._times, self._words = names, times, words

    def request(self, method: str, path: str, *args: t.Any, **more: t.Any) -> Response:
        name = (more.get("body") or {}).get("name", "")
        if method == "POST" and path == "/1.0/instances":
            self.asked.append(name)
            if name in self._names and self.asked.count(name) <= self._times:
                raise ServerError(500, f"Failed getting remote image info: {self._words}")
        return super().request(method, path, *args, **more)


@pytest.mark.parametrize(
    "words", ["Failed getting image: The requested image couldn't be found", "unexpected end of JSON input"]
)
def test_an_image_that_was_found_for_another_is_looked_for_again(words: str) -> None:
    items = [{"name": name, "image": IMAGE} for name in ("a", "b", "c")]
    driver = HalfAnIndex(("b",), 2, words)
    assert convergence.run(driver, items).ok
    assert sorted(driver.asked) == ["a", "b", "b", "b", "c"]
    # One that nobody has found is not there; another image says nothing of it.
    for others in ([], [{"name": "d", "image": "debian"}]):
        driver = HalfAnIndex(("a", "b", "c"), 9, words)
        outcome = convergence.run(driver, [*items, *others])
        assert [failure.partition(":")[0] for failure in outcome.failures] == ["default/a", "default/b", "default/c"]
        assert sorted(driver.asked) == ["a", "b", "c", *(other["name"] for other in others)]
