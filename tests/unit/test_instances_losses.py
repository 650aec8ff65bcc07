# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing is deleted in doubt, and what failed once is not told as done."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _keys
from ansible_collections.mage.lxd.plugins.module_utils._instances import causes, folders, mounts, reading
from ansible_collections.mage.lxd.plugins.module_utils._server.driver import Response
from ansible_collections.mage.lxd.tests.memory import convergence
from ansible_collections.mage.lxd.tests.memory.driver import Fault, MemoryDriver
from ansible_collections.mage.lxd.tests.memory.store import BRIDGE, IMAGE, Raw, Store

A: Raw = {"name": "a", "image": IMAGE}
COPY: Raw = {"name": "c", "copy_of": "a"}
FAR = "https://images.example.org"
SLEEPS: Raw = {**A, "config": {"raw.lxc": "lxc.init.cmd = /bin/sleep 1000"}}
BROKEN: Raw = {**A, "config": {"raw.lxc": "lxc.init.cmd = /no/such/init"}}
FLAVORS = pytest.mark.parametrize("flavor", ["lxd", "incus"])


def run(store: Store, *items: Raw, **more: t.Any) -> convergence.Outcome:
    return convergence.run(MemoryDriver(store), items, **more)


def prepared(*items: Raw, flavor: str = "lxd") -> Store:
    store = Store(flavor)
    outcome = run(store, *items)
    assert outcome.ok, outcome
    return store


def actions(outcome: convergence.Outcome) -> list[str]:
    assert outcome.report is not None, outcome
    (value,) = outcome.report.values["instances"]
    return list(value["actions"])


def warnings(outcome: convergence.Outcome) -> str:
    return "\n".join(outcome.report.warnings) if outcome.report else ""


def precious(store: Store, name: str = "a") -> Raw:
    raw = store.find("default", name)
    raw["config"]["user.precious"] = "1"
    return raw


# --- what looks unfinished --------------------------------------------------------------------------------------------


@FLAVORS
def test_what_was_moved_to_another_pool_stays(flavor: str) -> None:
    store = prepared(A, flavor=flavor)
    assert run(store, {**A, "state": "stopped"}).ok
    raw = precious(store)
    store.move(raw)
    assert not run(store, {**A, "state": "stopped"}).changed
    assert actions(run(store, A)) == ["start"]
    assert store.find("default", "a")["config"]["user.precious"] == "1"


def unfinished(name: str = "a", **more: t.Any) -> Store:
    store = prepared({**A, "state": "stopped"}, *([{**COPY, "state": "stopped"}] if name == "c" else []))
    raw = precious(store, name)
    raw["config"].pop("volatile.apply_template")
    raw.update(more)
    return store


def test_what_an_earlier_run_has_begun_is_made_anew_if_nothing_is_in_it() -> None:
    store = unfinished(hollow=True)
    told = convergence.foreseen(MemoryDriver(store), [A])
    assert told[0]["actions"] == ["delete", "create", "start"]
    outcome = run(store, A)
    assert outcome.ok, outcome
    assert "default/a: its creation seems to have been interrupted" in warnings(outcome)
    assert "user.precious" not in store.find("default", "a")["config"]
    # What is to be a copy has the record of what it is a copy of, until it is finished.
    store = unfinished("c", hollow=True)
    raw = store.find("default", "c")
    raw["config"][_keys.MANAGED] = store.find("default", "a")["config"][_keys.MANAGED]
    assert run(store, COPY).ok
    assert "user.precious" not in store.find("default", "c")["config"]


def test_what_this_run_has_begun_itself_is_made_anew_whatever_is_in_it() -> None:
    """The server restarts while it unpacks the image."""
    probe = MemoryDriver()
    assert convergence.run(probe, [A]).ok
    number = probe.requests.index(("POST", "/1.0/instances"))

    def meanwhile(_number: int) -> None:
        store.instances.get(("default", "a"), {}).pop("hollow", None)

    store = Store()
    outcome = convergence.run(MemoryDriver(store, {number: Fault.HALF}, meanwhile), [A])
    assert outcome.ok, outcome
    assert "its creation seems to have been interrupted" in warnings(outcome)


@pytest.mark.parametrize("state", ["started", "stopped"])
def test_what_has_content_is_not_deleted_in_doubt(state: str) -> None:
    store = unfinished()
    outcome = run(store, {**A, "state": state})
    assert "there is something in it, or the server cannot tell: nothing is deleted" in outcome.failures[0]
    assert actions(outcome) == []
    assert store.find("default", "a")["config"]["user.precious"] == "1"
    # As the message says.
    store.change_state(store.find("default", "a"), "start")
    assert run(store, A).ok
    assert store.find("default", "a")["config"]["user.precious"] == "1"


@pytest.mark.parametrize("record", ["", '{"for":"default/other","value":{"config":{}}}'])
def test_what_others_have_made_is_not_deleted(record: str) -> None:
    store = unfinished()
    store.find("default", "a")["config"][_keys.MANAGED] = record
    assert run(store, A).ok
    assert store.find("default", "a")["config"]["user.precious"] == "1"


def test_what_is_finished_between_reading_and_deleting_stays() -> None:
    store = unfinished(hollow=True)

    def meanwhile(_number: int) -> None:
        raw = store.find("default", "a")
        if ("GET", "/1.0/operations") in driver.requests and raw["status"] == "Stopped":
            raw.pop("hollow", None)
            store.change_state(raw, "start")

    driver = MemoryDriver(store, meanwhile=meanwhile)
    outcome = convergence.run(driver, [A])
    assert outcome.ok, outcome
    assert "DELETE" not in {method for method, _path in driver.requests}


def test_what_has_ended_does_not_keep_an_instance_busy() -> None:
    path = {"resources": {"instances": ["/1.0/instances/a?project=default"]}}

    class Asked(MemoryDriver):
        def request(self, *_args: t.Any, **_more: t.Any) -> Response:
            return Response(200, {}, body)

    for code, busy in ((103, True), (105, True), (200, False), (400, False)):
        body = b'{"metadata": {"any": [%s]}}' % str({**path, "status_code": code}).replace("'", '"').encode()
        assert reading._busy(Asked(), "default") == (frozenset("a") if busy else frozenset())


# --- what is made anew ------------------------------------------------------------------------------------------------


@FLAVORS
def test_nothing_is_deleted_before_the_next_image_is_there(flavor: str) -> None:
    store = prepared({**A, "state": "stopped"}, flavor=flavor)
    precious(store)
    anew: Raw = {"name": "a", "state": "stopped", "recreate": True, "image": {"alias": "x", "server": FAR}}
    outcome = run(store, anew)
    assert "image x from https://images.example.org: POST /1.0/images: Failed getting remote" in outcome.failures[0]
    assert store.find("default", "a")["config"]["user.precious"] == "1"
    store.remotes[FAR, "x"] = "f" * 64
    driver = MemoryDriver(store)
    assert actions(convergence.run(driver, [anew])) == ["delete", "create"]
    assert [one for one in driver.writes if one[0] != "PATCH"] == [
        ("POST", "/1.0/images"),
        ("DELETE", "/1.0/instances/a"),
        ("POST", "/1.0/instances"),
    ]
    assert store.find("default", "a")["config"]["volatile.base_image"] == "f" * 64


@pytest.mark.parametrize("fault", [Fault.LOST, Fault.UNANSWERED, Fault.RESTART, Fault.UNDONE])
def test_an_image_is_waited_for_over_a_restart_of_the_server(fault: Fault, tmp_path: Path) -> None:
    path = tmp_path / "image.tar.xz"
    path.write_bytes(b"image")
    item = {"name": "a", "image": {"file": str(path)}}
    probe = MemoryDriver()
    assert convergence.run(probe, [item]).ok
    number = probe.requests.index(("POST", "/1.0/images"))
    outcome = convergence.run(MemoryDriver(faults={number: fault}), [item])
    assert outcome.ok, outcome


# --- mounts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("restart", "state"), [("if_required", "started"), ("never", "started"), ("never", "restarted")]
)
def test_a_mount_comes_to_what_runs_where_the_kernel_shifts_none(
    restart: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = prepared(A)
    store.features, store.shifts = {"idmapped_mounts": "true"}, False
    folder = mounts.Folder("ext4", 1000, 1000, True)
    monkeypatch.setattr(folders, "read", lambda *_args: {"/srv/a": folder, "/srv/b": folder})
    for last in (False, True):
        item = {**A, "mounts": ["/srv/a:/a", *(["/srv/b:/b"] if last else [])], "state": state}
        used = store.find("default", "a")["last_used_at"]
        outcome = run(store, item, restart=restart)
        assert outcome.ok, outcome
        again = not last and restart == "if_required"
        assert actions(outcome) == ["update", *(["restart"] if state == "restarted" or again else [])]
        raw = store.find("default", "a")
        assert {one["path"]: one.get("shift") for one in raw["devices"].values()} == (
            {"/a": None, "/b": None} if last else {"/a": None}
        )
        assert raw["config"]["raw.idmap"] == "both 1000 1000"
        assert (raw["last_used_at"] != used) is ("restart" in actions(outcome))
        assert outcome.report is not None
        waits = restart == "never" and state == "started"
        assert outcome.report.values["instances"][0]["restart_required"] == (["config.raw.idmap"] if waits else [])
    if state == "started":
        assert not run(store, item, restart=restart).changed


# --- what is told -----------------------------------------------------------------------------------------------------


def test_an_address_that_never_came_is_missed_again() -> None:
    store = Store()
    outcome = run(store, SLEEPS)
    assert "address of eth0: not so after 60 s" in outcome.failures[0]
    # It was made and started, whatever came of it.
    assert actions(outcome) == ["create", "start"]
    again = run(store, SLEEPS)
    assert "address of eth0: not so after 60 s" in again.failures[0]
    assert actions(again) == []
    assert run(store, {**SLEEPS, "wait_for": []}).ok
    (nic,) = store.nics(store.find("default", "a")).values()
    store._lease(nic)
    assert not run(store, SLEEPS).changed


@FLAVORS
def test_a_restart_that_does_not_start_is_not_forced(flavor: str) -> None:
    store = prepared(A, flavor=flavor)
    driver = MemoryDriver(store)
    outcome = convergence.run(driver, [BROKEN])
    assert "exit status 1. Its console says nothing." in outcome.failures[0]
    assert "forced" not in warnings(outcome)
    assert driver.writes.count(("PUT", "/1.0/instances/a/state")) == 1
    assert actions(outcome) == ["update", "stop"]
    assert store.find("default", "a")["status"] == "Stopped"
    assert run(store, A).ok


@FLAVORS
def test_a_copy_takes_no_address_of_what_it_is_a_copy_of(flavor: str) -> None:
    nic = {
        "type": "nic",
        "network": BRIDGE,
        "name": "eth0",
        "ipv4.address": "10.99.0.77",
        "hwaddr": "00:16:3e:00:99:01",
    }
    source: Raw = {**A, "devices": {"eth0": nic}}
    store = prepared(source, flavor=flavor)
    store.take_snapshot(store.find("default", "a"), "s")
    for item in (COPY, {**COPY, "copy_of": "a/s", "name": "d"}):
        outcome = run(store, item)
        assert outcome.ok, outcome
        (made,) = store.nics(store.find("default", item["name"])).values()
        assert "ipv4.address" not in made
        assert made["hwaddr"] != nic["hwaddr"]
        assert not run(store, item).changed
    # Made in the same run.
    assert run(Store(flavor), source, COPY).ok
    outcome = run(store, {**COPY, "copy_of": "a/t", "name": "e"}, {**A, "name": "new"})
    assert outcome.error == 'instances[0].copy_of: "a/t": a has no such snapshot; there are s'
    assert ("default", "new") not in store.instances


def test_the_noise_of_asking_is_not_the_end_of_a_log() -> None:
    line = "lxc a 20261126103146.630 {}     {} - ../src/lxc/{}.c:f:1 - {}"
    told = [
        ("ERROR", "start", "Failed to exec /no/such/init"),
        ("WARN", "conf", "something else"),
        *[("WARN", "attach", "No security context received")] * 3,
        ("WARN", "cgfsng", "No such file or directory"),
        ("ERROR", "af_unix", "Connection reset by peer"),
    ]
    lines = [line.format(level, name, name, text) for level, name, text in told]
    assert causes.last_lines("\n".join(lines).encode()) == lines[:1]
    assert causes.last_lines("\n".join(lines[1:]).encode()) == lines[1:2]
    assert causes.last_lines("\n".join(lines[2:]).encode()) == []
