# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever goes wrong at whatever call, the next run ends in the declared state and leaves nothing behind."""

from __future__ import annotations

import functools
import typing as t

import pytest

from ansible_collections.mage.lxd.tests.memory import convergence
from ansible_collections.mage.lxd.tests.memory.driver import Fault, MemoryDriver
from ansible_collections.mage.lxd.tests.memory.store import IMAGE, Raw, Store

BEFORE: list[Raw] = [
    {"name": "changes", "image": IMAGE, "config": {"user.a": "1", "user.gone": "1"}},
    {"name": "stops", "image": IMAGE},
    {"name": "goes", "image": IMAGE, "nat": [{"extport": 8083, "intport": 80}]},
    {"name": "loses", "image": IMAGE, "mounts": ["/srv:/srv"], "hostnames": ["loses.example.org"]},
    {"name": "starts", "image": IMAGE, "state": "stopped"},
    {"name": "stays", "image": IMAGE, "nat": [{"extport": 8084, "intport": 80}]},
    {"name": "restarts", "image": IMAGE},
    {"name": "freezes", "image": IMAGE},
    {"name": "pruned", "image": IMAGE, "depends_on": ["stays"]},
]
AFTER: list[Raw] = [
    {"name": "changes", "image": IMAGE, "config": {"user.a": "2"}, "nat": [{"extport": 8081, "intport": 80}]},
    {"name": "stops", "image": IMAGE, "state": "stopped"},
    {"name": "goes", "image": IMAGE, "state": "absent"},
    {"name": "loses", "image": IMAGE},
    {"name": "starts", "image": IMAGE, "hostnames": ["starts.example.org"]},
    {"name": "stays", "image": IMAGE, "nat": [{"extport": 8084, "intport": 80}]},
    {"name": "comes", "image": IMAGE, "nat": [{"extport": 8082, "intport": 80}], "description": "new"},
    {"name": "sleeps", "image": IMAGE, "state": "stopped", "config": {"user.b": "1"}},
    {"name": "restarts", "image": IMAGE, "config": {"security.privileged": "true"}, "depends_on": ["comes"]},
    {"name": "freezes", "image": IMAGE, "state": "frozen"},
    {"name": "twin", "copy_of": "stays", "hostnames": ["twin.example.org"]},
]
OWNED: dict[str, t.Any] = {"owner": "site", "prune": True}


def prepared(flavor: str = "lxd") -> Store:
    """A server where the earlier list is true, beside what somebody else has made."""
    store = Store(flavor)
    store.__dict__.update(convergence.copied(_prepared(flavor)))
    return store


@functools.cache
def _prepared(flavor: str) -> Store:
    store = Store(flavor)
    body: Raw = {"name": "foreign", "source": {"type": "image", "alias": IMAGE}, "config": {"user.theirs": "1"}}
    store.create("default", body)
    store.change_state(store.find("default", "foreign"), "start")
    outcome = convergence.run(MemoryDriver(store), BEFORE, **OWNED)
    assert outcome.ok, outcome
    return store


def clean_run(flavor: str = "lxd") -> tuple[Store, int]:
    store = prepared(flavor)
    driver = MemoryDriver(store)
    outcome = convergence.run(driver, AFTER, concurrency=1, **OWNED)
    assert outcome.ok, outcome
    return store, len(driver.requests)


def test_the_list_has_work_of_every_kind() -> None:
    store, _count = clean_run()
    driver = MemoryDriver(prepared())
    outcome = convergence.run(driver, AFTER, concurrency=1, **OWNED)
    assert outcome.plan is not None
    assert sorted(change.action for change in outcome.plan.changes) == [
        "create",
        "create, start",
        "create, update, start",
        "delete",
        "delete",
        "freeze",
        "stop",
        "update",
        "update",
        "update, restart",
        "update, start",
    ]
    assert {method for method, _path in driver.writes} == {"POST", "PUT", "PATCH", "DELETE"}
    found = convergence.seen(store)
    assert found["default/foreign"]["config"] == {"image.os": IMAGE, "user.theirs": "1"}
    assert "user.gone" not in found["default/changes"]["config"]
    assert found["default/loses"]["devices"] == {}
    assert found["default/freezes"]["status"] == "Frozen"
    assert not {"default/goes", "default/pruned"} & set(found)


@pytest.mark.parametrize(
    ("fault", "concurrency", "flavor"),
    [
        *((fault, 1, "lxd") for fault in Fault),
        (Fault.KILLED, 4, "incus"),
        (Fault.UNANSWERED, 1, "incus"),
    ],
)
def test_a_fault_at_any_call(fault: Fault, concurrency: int, flavor: str) -> None:
    wanted, count = clean_run(flavor)
    for number in range(count):
        store = prepared(flavor)
        convergence.run(MemoryDriver(store, {number: fault}), AFTER, concurrency=concurrency, **OWNED)
        again = convergence.run(MemoryDriver(store), AFTER, concurrency=concurrency, **OWNED)
        assert again.ok, (number, again)
        assert convergence.seen(store) == convergence.seen(wanted), number
        assert len(set(convergence.pins(store))) == len(convergence.pins(store)) == 5, number
        third = MemoryDriver(store)
        assert convergence.run(third, AFTER, **OWNED).ok
        assert third.writes == [], number


def test_one_that_fails_does_not_stop_the_others() -> None:
    """The server has an error of its own at a write: every other instance is as declared after that very run."""
    wanted, _count = clean_run()
    driver = MemoryDriver(prepared())
    convergence.run(driver, AFTER, concurrency=1, **OWNED)
    failed = set()
    for number, (method, path) in enumerate(driver.requests):
        if method == "GET":
            continue
        store = prepared()
        outcome = convergence.run(MemoryDriver(store, {number: Fault.REFUSED}), AFTER, concurrency=1, **OWNED)
        named = {failure.partition(":")[0] for failure in outcome.failures}
        tried = {failure for failure in outcome.failures if "not tried, since it comes after" not in failure}
        # What is asked to end is asked twice.
        twice = path in ("/1.0/instances/stops/state", "/1.0/instances/restarts/state")
        assert len(tried) == (not twice), (number, outcome)
        failed |= named
        found, expected = convergence.seen(store), convergence.seen(wanted)
        for one in {*found, *expected} - named:
            assert found.get(one) == expected.get(one), (number, named, one)
    assert len(failed) == 10


STATES = ("started", "restarted", "stopped", "frozen", "absent")


def in_error(flavor: str) -> Store:
    store = Store(flavor)
    items = [{"name": state, "image": IMAGE} for state in STATES]
    assert convergence.run(MemoryDriver(store), items).ok
    for raw in store.instances.values():
        raw["status"] = "Error"
    return store


@pytest.mark.parametrize("flavor", ["lxd", "incus"])
def test_from_error_to_every_state(flavor: str) -> None:
    """A server changes no state of what it cannot ask: that is told. It deletes it."""
    store = in_error(flavor)
    outcome = convergence.run(
        MemoryDriver(store), [{"name": state, "image": IMAGE, "state": state} for state in STATES]
    )
    told = dict(failure.split(": ", 1) for failure in outcome.failures)
    assert set(told) == {f"default/{state}" for state in STATES[:-1]}
    for text in told.values():
        assert text.startswith("its status is Error, and the server does not stop it (The instance is already stopped)")
    assert ("default", "absent") not in store.instances
    assert outcome.report is not None
    assert "processes of it may be left on the host" in "".join(outcome.report.warnings)


@pytest.mark.parametrize("flavor", ["lxd", "incus"])
def test_what_a_busy_server_could_not_ask_is_not_ended_for_that(flavor: str) -> None:
    store = in_error(flavor)
    started = store.find("default", "started")["last_used_at"]

    def meanwhile(_number: int) -> None:
        if driver.requests and driver.requests[-1] == ("GET", "/1.0/instances"):
            for raw in store.instances.values():
                raw["status"] = raw["status"].replace("Error", "Running")

    items = [{"name": state, "image": IMAGE, "state": state} for state in STATES]
    driver = MemoryDriver(store, meanwhile=meanwhile)
    outcome = convergence.run(driver, items)
    assert outcome.ok, outcome.failures
    expected = dict(zip(STATES, ("Running", "Running", "Stopped", "Frozen")))
    assert {raw["name"]: raw["status"] for raw in store.instances.values()} == expected
    assert store.find("default", "started")["last_used_at"] == started
    assert store.find("default", "restarted")["last_used_at"] > started


@pytest.mark.parametrize("flavor", ["lxd", "incus"])
def test_virtual_machines_are_planned_like_containers(flavor: str) -> None:
    """One that runs is stopped for what it would refuse, where that is allowed; else the rest is written."""
    store = Store(flavor)
    item: Raw = {"name": "vm", "image": IMAGE, "type": "virtual-machine", "limits": {"memory": "1GiB"}}
    assert convergence.run(MemoryDriver(store), [item]).ok
    raw = store.find("default", "vm")
    assert (raw["type"], raw["status"]) == ("virtual-machine", "Running")
    held = {**item, "limits": {"memory": "2GiB"}, "config": {"raw.qemu": "-smbios x", "user.a": "1"}}
    outcome = convergence.run(MemoryDriver(store), [held], restart="never")
    assert outcome.ok, outcome
    assert outcome.report is not None
    (value,) = outcome.report.values["instances"]
    assert (value["actions"], value["restart_required"]) == (["update"], ["config.raw.qemu"])
    config = store.find("default", "vm")["config"]
    assert (config["limits.memory"], config["user.a"], config.get("raw.qemu")) == ("2GiB", "1", None)
    outcome = convergence.run(MemoryDriver(store), [held])
    assert outcome.report is not None
    assert outcome.report.values["instances"][0]["actions"] == ["stop", "update", "start"]
    assert store.find("default", "vm")["config"]["raw.qemu"] == "-smbios x"
    assert not convergence.run(MemoryDriver(store), [held]).changed
    assert convergence.run(MemoryDriver(store), [{"name": "vm", "state": "absent"}]).ok
    assert not store.instances
