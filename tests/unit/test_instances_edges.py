# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs that meet what changes under them, or what a second run must not do again."""

from __future__ import annotations

import time
import typing as t

import pytest

from ansible_collections.mage.lxd.plugins.module_utils._errors import DeadlinePassed
from ansible_collections.mage.lxd.plugins.module_utils._server.driver import Completed
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
