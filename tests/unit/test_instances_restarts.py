# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a restart is due for is not forgotten, whatever comes between: addresses, what is waited for, and failures."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.mage.lxd.plugins.module_utils._errors import ServerUnreachable
from ansible_collections.mage.lxd.plugins.module_utils._server.driver import Completed, Response
from ansible_collections.mage.lxd.tests.memory import convergence
from ansible_collections.mage.lxd.tests.memory.driver import Fault, MemoryDriver
from ansible_collections.mage.lxd.tests.memory.store import BRIDGE, IMAGE, Raw, Refused, Store

A: Raw = {"name": "a", "image": IMAGE}
NAT: Raw = {"nat": [{"extport": 8080, "intport": 80}]}
NIC: Raw = {"type": "nic", "network": BRIDGE, "name": "eth0"}
FLAVORS = pytest.mark.parametrize("flavor", ["lxd", "incus"])


def run(store: Store, *items: Raw, **more: t.Any) -> convergence.Outcome:
    return convergence.run(MemoryDriver(store), items, **more)


def prepared(*items: Raw, flavor: str = "lxd", **more: t.Any) -> Store:
    store = Store(flavor)
    outcome = run(store, *items, **more)
    assert outcome.ok, outcome
    return store


def copied(store: Store) -> Store:
    found = Store(store.flavor)
    found.__dict__.update(convergence.copied(store))
    return found


def value(outcome: convergence.Outcome, name: str = "a") -> Raw:
    assert outcome.report is not None, outcome
    return next(one for one in outcome.report.values["instances"] if one["name"] == name)


def actions(outcome: convergence.Outcome, name: str = "a") -> list[str]:
    return list(value(outcome, name)["actions"])


def pin_and_lease(store: Store, name: str = "a") -> tuple[str, str]:
    nic = store.nics(store.find("default", name))["eth0"]
    return nic["ipv4.address"], store.leased[nic["hwaddr"]]


# --- addresses --------------------------------------------------------------------------------------------------------


@FLAVORS
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (NAT, {**NAT, "address": "10.99.0.64"}),
        (NAT, {**NAT, "address": "10.99.0.64/27"}),
        ({"address": "10.99.0.64"}, {"address": "10.99.0.65", "wait_for": ["address"]}),
        ({"address": "10.99.0.64"}, {"address": {"nic": "eth0", "ipv4": "10.99.0.65"}, "state": "frozen"}),
        (
            {"devices": {"eth0": {**NIC, "ipv4.address": "10.99.0.64"}}},
            {"devices": {"eth0": {**NIC, "ipv4.address": "10.99.0.65"}}},
        ),
    ],
)
def test_a_running_instance_takes_up_another_address_at_once(flavor: str, before: Raw, after: Raw) -> None:
    store = prepared({**A, **before}, flavor=flavor)
    old, _has = pin_and_lease(store)
    item = {**A, **after}
    (foreseen,) = convergence.foreseen(MemoryDriver(store), [item])
    outcome = run(store, item)
    assert outcome.ok, outcome
    assert actions(outcome)[:2] == foreseen["actions"][:2] == ["update", "restart"]
    pin, has = pin_and_lease(store)
    assert pin == has == value(outcome)["address"] != old
    again = MemoryDriver(store)
    assert not convergence.run(again, [item]).changed
    assert again.writes == []


def test_another_ipv6_address_is_taken_up_as_well() -> None:
    """The server in memory leases none: what is planned shows it."""
    first, second = ({**A, "devices": {"eth0": {**NIC, "ipv6.address": f"fd42::{n}"}}} for n in (1, 2))
    store = prepared(first)
    assert actions(run(store, {**first, "devices": {"eth0": {**NIC, "ipv6.address": "fd42:0::1"}}})) == ["update"]
    assert actions(run(store, second)) == ["update", "restart"]
    assert not run(store, second).changed


@pytest.mark.parametrize("address", ["10.99.0.64", "10.99.0.64/27"])
def test_another_address_that_may_not_be_taken_up_yet_waits(address: str) -> None:
    store = prepared({**A, **NAT})
    old, _has = pin_and_lease(store)
    item = {**A, **NAT, "address": address}
    (foreseen,) = convergence.foreseen(MemoryDriver(store), [item], restart="never")
    outcome = run(store, item, restart="never")
    assert outcome.ok, outcome
    for one in (foreseen, value(outcome)):
        assert (one["actions"], one["restart_required"]) == (["update"], ["devices.eth0"])
    pin, has = pin_and_lease(store)
    assert pin != has == old
    assert not run(store, item, restart="never").changed
    (foreseen,) = convergence.foreseen(MemoryDriver(store), [item], restart="never")
    assert foreseen["restart_required"] == ["devices.eth0"]
    outcome = run(store, item)
    assert (actions(outcome), value(outcome)["restart_required"]) == (["restart"], [])
    assert pin_and_lease(store) == (pin, pin)
    assert not run(store, item).changed


def test_an_address_of_a_range_that_waits_for_a_restart_stays() -> None:
    """A second device without a pin makes every run look at the leases."""
    store = Store()
    store.profiles["more"] = {"eth1": {"type": "nic", "network": BRIDGE, "name": "eth1"}}
    item = {**A, **NAT, "profiles": ["default", "more"]}
    assert run(store, item).ok
    item["address"] = "10.99.0.64/27"
    assert run(store, item, restart="never").ok
    pin, has = pin_and_lease(store)
    assert pin != has
    for _run in range(2):
        assert not run(store, item, restart="never").changed
    # Stopped by hand, and started: it is another's, and the next one of the range is taken.
    store.leased["00:16:3e:99:99:99"] = pin
    for action in ("stop", "start"):
        store.change_state(store.find("default", "a"), action)
    assert actions(run(store, item)) == ["update", "restart"]
    assert pin_and_lease(store)[0] == pin_and_lease(store)[1] != pin
    assert not run(store, item).changed


def test_an_address_that_it_has_already_needs_no_restart() -> None:
    store = prepared(A)
    has = next(iter(store.leased.values()))
    item = {**A, "address": has}
    assert actions(run(store, item)) == ["update"]
    assert not run(store, item).changed
    assert run(store, {**A, "address": "10.99.0.64", "state": "stopped"}).ok
    assert actions(run(store, {**A, "address": "10.99.0.65", "state": "stopped"})) == ["update"]


class Late(Store):
    """Whose network has not read a pin yet when the instance asks for its address, so many times."""

    late = 0
    restarts = 0

    def change_state(self, raw: Raw, action: str) -> None:
        nic = self.nics(raw)["eth0"]
        before = self.leased.get(nic["hwaddr"], "")
        super().change_state(raw, action)
        self.restarts += action == "restart"
        if self.late and action == "restart":
            self.late -= 1
            self.leased[nic["hwaddr"]] = before


@pytest.mark.parametrize("late", [1, 2])
def test_an_address_that_the_network_did_not_know_yet_is_asked_for_once_more(late: int) -> None:
    store = Late("lxd")
    assert run(store, {**A, **NAT}).ok
    store.late = late
    outcome = run(store, {**A, **NAT, "address": "10.99.0.64"})
    assert store.restarts == 2
    if late == 1:
        assert outcome.ok, outcome
        assert actions(outcome) == ["update", "restart"]
        assert pin_and_lease(store) == ("10.99.0.64", "10.99.0.64")
    else:
        assert "instead of 10.99.0.64" in outcome.failures[0]


@pytest.mark.parametrize("restart", ["if_required", "never"])
def test_an_address_that_was_asked_for_just_before_the_pin_is_asked_for_again(restart: str) -> None:
    store = prepared({**A, **NAT})
    hwaddr = next(iter(store.leased))
    store.leased.clear()

    def meanwhile(number: int) -> None:
        if number == write:
            store.leased[hwaddr] = "10.99.0.120"

    item = {**A, **NAT, "address": "10.99.0.64"}
    probe = MemoryDriver(copied(store))
    convergence.run(probe, [item], timeout=1)
    write = [method for method, _path in probe.requests].index("PATCH")
    outcome = convergence.run(MemoryDriver(store, meanwhile=meanwhile), [item], restart=restart)
    assert outcome.ok, outcome
    if restart == "never":
        assert (actions(outcome), value(outcome)["restart_required"]) == (["update"], ["devices.eth0"])
    else:
        assert actions(outcome) == ["update", "restart"]
        assert pin_and_lease(store) == ("10.99.0.64", "10.99.0.64")
        assert not run(store, item).changed


def test_what_has_its_address_again_needs_no_restart() -> None:
    """Another had it for a while, and a run that wrote something else saw that."""
    store = prepared({**A, "address": "10.99.0.64"})
    (nic,) = store.nics(store.find("default", "a")).values()
    store.leased[nic["hwaddr"]] = "10.99.0.250"
    item = {**A, "address": "10.99.0.64", "description": "x"}
    outcome = run(store, item, restart="never")
    assert actions(outcome) == ["update"]
    store.leased[nic["hwaddr"]] = "10.99.0.64"
    assert not run(store, item).changed


@pytest.mark.parametrize("nat", [{}, NAT])
def test_what_is_frozen_takes_up_another_address_as_it_thaws(nat: Raw) -> None:
    store = prepared({**A, **nat})
    hand(store, "freeze")
    item = {**A, **nat, "address": "10.99.0.64"}
    outcome = run(store, {**item, "state": "frozen"}, restart="never")
    assert (actions(outcome), value(outcome)["restart_required"]) == (["update"], ["devices.eth0"])
    outcome = run(store, item)
    assert set(actions(outcome)) == {"unfreeze", "restart"}
    assert pin_and_lease(store) == ("10.99.0.64", "10.99.0.64")
    assert not run(store, item).changed


# --- what is waited for -----------------------------------------------------------------------------------------------


class Sick(MemoryDriver):
    """What is asked of a guest is not so; ``lost`` is how often the line drops over it."""

    lost = 0

    def execute(self, instance: str, argv: t.Sequence[str], *args: t.Any, **more: t.Any) -> Completed:
        super().execute(instance, argv, *args, **more)
        if self.lost:
            self.lost -= 1
            raise ServerUnreachable(self.endpoint, "the connection was lost before the whole answer came")
        return Completed(2, b"", b"no response")


SERVES: Raw = {**A, "wait_for": [{"exec": ["pg_isready"]}]}
TOLD = "exec: pg_isready: not so after 60 s"


def hand(store: Store, *actions: str) -> None:
    for action in actions:
        store.change_state(store.find("default", "a"), action)


@FLAVORS
@pytest.mark.parametrize(
    ("by_hand", "then", "steps"),
    [
        ([], {"config": {"raw.lxc": "lxc.x = 1"}}, ["update", "restart"]),
        ([], {"state": "restarted"}, ["restart"]),
        (["stop"], {}, ["start"]),
        (["stop"], {"config": {"user.a": "1"}}, ["update", "start"]),
        (["freeze"], {"config": {"raw.lxc": "lxc.x = 1"}}, ["unfreeze", "update", "restart"]),
    ],
)
def test_what_does_not_come_true_after_a_start_is_waited_for_again(
    flavor: str, by_hand: list[str], then: Raw, steps: list[str]
) -> None:
    store = prepared(SERVES, flavor=flavor)
    hand(store, *by_hand)
    item = {**SERVES, **then}
    outcome = convergence.run(Sick(store), [item])
    assert TOLD in outcome.failures[0]
    assert actions(outcome) == steps
    item["state"] = "started"
    web: Raw = {**A, "name": "web", "depends_on": ["a"]}
    used = store.find("default", "a")["last_used_at"]
    for _run in range(2):
        outcome = convergence.run(Sick(store), [item, web])
        assert TOLD in outcome.failures[0]
        assert "default/web: not tried" in outcome.failures[1]
    outcome = run(store, item)
    assert outcome.ok, outcome
    assert actions(outcome) == ["wait"]
    assert store.find("default", "a")["last_used_at"] == used
    again = MemoryDriver(store)
    assert not convergence.run(again, [item]).changed
    assert not again.executed


@pytest.mark.parametrize("state", ["started", "restarted"])
def test_a_line_that_drops_while_it_is_waited_for_does_not_end_the_wait(state: str) -> None:
    store = prepared(SERVES)
    driver = Sick(store)
    driver.lost = 1
    outcome = convergence.run(driver, [{**SERVES, "config": {"raw.lxc": "lxc.x = 1"}, "state": state}])
    assert TOLD in outcome.failures[0]


@pytest.mark.parametrize("fault", [Fault.KILLED, Fault.KILLED_AFTER])
@pytest.mark.parametrize("then", [{"config": {"raw.lxc": "lxc.x = 1"}}, {"state": "restarted"}])
def test_whenever_a_run_ends_the_next_one_knows_what_to_wait_for(fault: Fault, then: Raw) -> None:
    origin = prepared(SERVES)
    used = origin.find("default", "a")["last_used_at"]
    item, number, asked_in_vain, killed = {**SERVES, **then}, 0, 0, True
    while killed:
        store = copied(origin)
        driver = MemoryDriver(store, {number: fault})
        killed = convergence.run(driver, [item]).killed
        if store.find("default", "a")["last_used_at"] != used and not driver.executed:
            outcome = convergence.run(Sick(store), [{**item, "state": "started"}])
            assert TOLD in outcome.failures[0], number
            asked_in_vain += 1
        number += 1
    assert asked_in_vain > 1


def test_an_update_carries_along_that_it_is_not_ready() -> None:
    """Where nothing else is written, that is one write; what waits for nothing is spared even that."""
    store = prepared(SERVES, {**A, "name": "b"})
    path = "/1.0/instances/a"
    for item, expected in (
        ({**SERVES, "config": {"raw.lxc": "lxc.x = 1"}}, ["PATCH", "PUT", "PATCH"]),
        ({**SERVES, "config": {"raw.lxc": "lxc.x = 1"}, "state": "restarted"}, ["PATCH", "PUT", "PATCH"]),
        ({**A, "name": "b", "state": "restarted"}, ["PUT"]),
    ):
        driver = MemoryDriver(store)
        assert convergence.run(driver, [item]).ok
        assert [method for method, _path in driver.writes] == expected
        assert {one for method, one in driver.writes if method == "PATCH"} <= {path}


# --- after every change -----------------------------------------------------------------------------------------------


class Stubborn(MemoryDriver):
    """What runs in it does not end."""

    def _below(self, method: str, raw: Raw, rest: list[str], body: Raw) -> Response:
        if method == "PUT" and body.get("action") == "restart":
            raise Refused(400, 'Failed shutting down instance, status is "Running": context deadline exceeded')
        return super()._below(method, raw, rest, body)


class Dawdler(MemoryDriver):
    """What runs in it ends after the server has given up, and before the ``late``-th request that follows."""

    def __init__(self, store: Store, late: int) -> None:
        self.left = -1
        super().__init__(store, meanwhile=lambda number: self._end())
        self._late = late

    def _end(self) -> None:
        self.left -= self.left > 0
        raw = self.store.find("default", "a")
        if self.left == 0 and raw["status"] == "Running":
            self.store.change_state(raw, "stop")
            self.left = -2

    def _below(self, method: str, raw: Raw, rest: list[str], body: Raw) -> Response:
        if method == "PUT" and body.get("action") == "restart" and self.left == -1:
            self.left = self._late
            raise Refused(400, 'Failed shutting down instance, status is "Running": context deadline exceeded')
        return super()._below(method, raw, rest, body)


@pytest.mark.parametrize("late", [1, 2, 3, 4])
def test_what_ends_too_late_is_started_all_the_same(late: int) -> None:
    """Before each of the requests: is it as wanted, does it run on, when was it last started, restart it."""
    store = prepared(A)
    driver = Dawdler(store, late)
    outcome = convergence.run(driver, [{**A, "state": "restarted"}])
    assert outcome.ok, outcome
    assert driver.left == -2
    assert store.find("default", "a")["status"] == "Running"


PATIENT: Raw = {**A, "stop": {"force": False}}
CHANGES: list[Raw] = [
    {"config": {"environment.A": "1"}},
    {"config": {"user.a": "2"}},
    {"config": {}},
    {"config": {"user.a": "1", "raw.lxc": "lxc.x = 1"}},
    {"devices": {"none": {"type": "none"}}},
    {"devices": {}},
    {"profiles": ["default", "other"]},
    {"description": "new"},
    {"depends_on": ["b"]},
]


def changeable() -> tuple[Store, Raw]:
    store = Store()
    store.profiles["other"] = {}
    item = {**PATIENT, "config": {"user.a": "1"}, "devices": {"gone": {"type": "none"}}}
    assert run(store, item, {**A, "name": "b"}).ok
    return store, item


@pytest.mark.parametrize("change", CHANGES)
def test_a_restart_after_every_change_is_made_up_for_where_it_failed(change: Raw) -> None:
    store, item = changeable()
    used = store.find("default", "a")["last_used_at"]
    item.update(change)
    for steps in (["update"], []):
        outcome = convergence.run(Stubborn(store), [item], restart="always")
        assert "did not restart in 15 s each time" in outcome.failures[0]
        assert actions(outcome) == steps
        waits = value(outcome)["restart_required"]
        assert waits
        assert ("config.user.mage.managed" in waits) is ("depends_on" in change)
    outcome = run(store, item, restart="always")
    assert (actions(outcome), value(outcome)["restart_required"]) == (["restart"], [])
    assert store.find("default", "a")["last_used_at"] != used
    again = MemoryDriver(store)
    assert not convergence.run(again, [item], restart="always").changed
    assert again.writes == []


@pytest.mark.parametrize("fault", [Fault.KILLED, Fault.KILLED_AFTER])
@pytest.mark.parametrize("change", CHANGES)
def test_a_restart_after_every_change_is_made_up_for_whenever_a_run_ends(fault: Fault, change: Raw) -> None:
    origin, item = changeable()
    used = origin.find("default", "a")["last_used_at"]
    item.update(change)
    number, killed = 0, True
    while killed:
        store = copied(origin)
        killed = convergence.run(MemoryDriver(store, {number: fault}), [item], restart="always").killed
        restarted = store.find("default", "a")["last_used_at"]
        assert run(store, item, restart="always").ok
        assert store.find("default", "a")["last_used_at"] != used, number
        assert restarted in (used, store.find("default", "a")["last_used_at"]), number
        assert not run(store, item, restart="always").changed, number
        number += 1
    assert number > 5


def test_a_line_that_drops_over_the_write_does_not_spare_the_restart() -> None:
    """The write is done, and what is planned again finds nothing to write."""
    origin, item = changeable()
    item["config"] = {"user.a": "2"}
    probe = MemoryDriver(copied(origin))
    assert convergence.run(probe, [item], restart="always").ok
    number = probe.requests.index(("PATCH", "/1.0/instances/a"))
    store = copied(origin)
    outcome = convergence.run(MemoryDriver(store, {number: Fault.UNANSWERED}), [item], restart="always")
    assert outcome.ok, outcome
    assert store.find("default", "a")["last_used_at"] != origin.find("default", "a")["last_used_at"]


def test_what_is_stopped_has_nothing_to_make_up_for() -> None:
    store, item = changeable()
    item.update({"config": {"user.a": "2"}, "state": "stopped"})
    outcome = run(store, item, restart="always")
    assert (actions(outcome), value(outcome)["restart_required"]) == (["update", "stop"], [])
    assert "restart" not in store.find("default", "a")["config"]["user.mage.managed"]


# --- what comes after what is tried again -----------------------------------------------------------------------------


class Refusing(MemoryDriver):
    """Some requests on an instance are refused in these words, so often."""

    def __init__(self, store: Store, name: str, method: str, words: str, times: int) -> None:
        super().__init__(store)
        self.refused = (name, method)
        self.words, self.times = words, times

    def _instances(self, method: str, rest: list[str], query: Raw, body: Raw, headers: Raw) -> Response:
        if (rest[:1], method) == ([self.refused[0]], self.refused[1]) and self.times:
            self.times -= 1
            raise Refused(400, self.words)
        return super()._instances(method, rest, query, body, headers)


BUSY = 'Failed to start: Instance is busy running a "create" operation'
CHAIN: list[Raw] = [
    {**A, "depends_on": ["b"]},
    {**A, "name": "b", "depends_on": ["c"]},
    {**A, "name": "c", "wait_for": []},
]


@pytest.mark.parametrize("concurrency", [1, 4])
def test_what_comes_after_a_busy_one_waits_as_long_as_that_is_waited_for(concurrency: int) -> None:
    store = prepared(*({**item, "state": "stopped"} for item in CHAIN))
    driver = Refusing(store, "c", "PUT", BUSY, 9)
    outcome = convergence.run(driver, CHAIN, concurrency=concurrency)
    assert outcome.ok, outcome
    assert driver.times == 0
    assert {raw["status"] for raw in store.instances.values()} == {"Running"}


def test_what_comes_after_one_that_is_given_up_is_given_up_with_it() -> None:
    """And is not done without it: what others depend on goes last, or not at all."""
    store = prepared(*CHAIN)
    gone = [{"name": item["name"], "state": "absent"} for item in CHAIN]
    driver = Refusing(store, "a", "DELETE", "Instance is running", 99)
    outcome = convergence.run(driver, gone)
    assert [one.partition(":")[0] for one in outcome.failures] == ["default/a", "default/b", "default/c"]
    assert "not tried, since it comes after a, which failed" in outcome.failures[1]
    assert 99 - driver.times == 5
    assert len(store.instances) == 3
    # Busy for good: all end when the time has passed.
    driver = Refusing(store, "a", "DELETE", BUSY, 999)
    outcome = convergence.run(driver, gone)
    assert [one.partition(":")[0] for one in outcome.failures] == ["default/a", "default/b", "default/c"]
    assert driver.times > 0
    assert len(store.instances) == 3
