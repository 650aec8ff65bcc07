# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for every list, whatever the server has: tried with lists that nobody would think of."""

from __future__ import annotations

import typing as t

from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.mage.lxd.tests.memory import convergence
from ansible_collections.mage.lxd.tests.memory.driver import MemoryDriver
from ansible_collections.mage.lxd.tests.memory.store import IMAGE, Raw, Store

# Each case is whole runs on a server: a third of what others draw by default, and as many in the nightly profile.
CASES = settings(max_examples={300: 100}.get(settings().max_examples, settings().max_examples))
NAMES = ["a", "b-1", "c", "d"]
VALUES = st.sampled_from(["1", "true", "ä b", ""])
# What somebody may do by hand.
HANDS = {"Running": ["stop", "freeze", "restart"], "Frozen": ["unfreeze", "stop"], "Stopped": ["start"]}
STATUS = {"stopped": "Stopped", "frozen": "Frozen"}
PORTS = {name: 8000 + 10 * index for index, name in enumerate(NAMES)}


@st.composite
def an_item(draw: st.DrawFn, name: str) -> Raw:
    item: Raw = {"name": name, "image": IMAGE}
    optional: dict[str, st.SearchStrategy[t.Any]] = {
        "state": st.sampled_from(["started", "stopped", "frozen", "absent"]),
        "config": st.dictionaries(st.sampled_from(["user.a", "user.b", "environment.C"]), VALUES),
        "privileged": st.booleans(),
        "devices": st.sampled_from([{}, {"none": {"type": "none"}}]),
        "type": st.just("container"),
        "description": st.sampled_from(["", "text"]),
        "mounts": st.sets(st.sampled_from(["/srv:/srv", "/opt:/opt:ro"])).map(sorted),
        "profiles": st.sampled_from([["default"], ["default", "other"], ["other", "default"]]),
        "nat": st.lists(st.integers(0, 9), unique=True, max_size=2).map(
            lambda offsets: [{"extport": PORTS[name] + offset, "intport": 80} for offset in offsets]
        ),
        "hostnames": st.sampled_from([[], [f"{name}.example.org"]]),
    }
    for key, values in optional.items():
        if draw(st.booleans()):
            item[key] = draw(values)
    return item


@st.composite
def a_list(draw: st.DrawFn) -> list[Raw]:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True))
    return [draw(an_item(name)) for name in names]


@st.composite
def a_server(draw: st.DrawFn) -> Store:
    """A server that this collection has used before, and others too."""
    store = Store(draw(st.sampled_from(["lxd", "incus"])))
    store.profiles["other"] = {}
    foreign: Raw = {"name": "foreign", "source": {"type": "image", "alias": IMAGE}, "config": {"user.a": "theirs"}}
    store.create("default", foreign)
    # One at a time: what is drawn next must not depend on which thread was first.
    assert convergence.run(MemoryDriver(store), draw(a_list()), concurrency=1).ok
    for (_project, name), raw in sorted(store.instances.items()):
        if draw(st.booleans()):
            # Somebody sets something by hand, starts and stops.
            raw["config"].update(draw(st.dictionaries(st.sampled_from(["user.a", "user.hand"]), VALUES.filter(bool))))
        if name != "foreign" and draw(st.booleans()):
            store.change_state(raw, draw(st.sampled_from(HANDS[raw["status"]])))
    return store


def is_nothing_left(store: Store, items: list[Raw]) -> bool:
    again = MemoryDriver(store)
    outcome = convergence.run(again, items)
    return outcome.ok and not outcome.changed and not again.writes


@CASES
@given(a_server(), a_list())
def test_what_was_carried_out_leaves_nothing_to_do(store: Store, items: list[Raw]) -> None:
    foreign = convergence.seen(store)["default/foreign"]
    others = {raw["name"] for raw in store.instances.values()} - {item["name"] for item in items}
    before = {name: convergence.seen(store)[f"default/{name}"] for name in others}
    assert convergence.run(MemoryDriver(store), items).ok
    assert is_nothing_left(store, items)
    found = convergence.seen(store)
    assert found["default/foreign"] == foreign
    # What is not in the list stays as it was, and what is in it is there if it should be.
    assert {name: found[f"default/{name}"] for name in others} == before
    there = {item["name"] for item in items if item.get("state") != "absent"}
    assert {raw["name"] for raw in store.instances.values()} == there | others
    for item in items:
        if item["name"] in there:
            raw = found[f"default/{item['name']}"]
            assert raw["status"] == STATUS.get(item.get("state", ""), "Running")
            for key, value in item.get("config", {}).items():
                assert raw["config"].get(key, "") == value
    assert len(set(convergence.pins(store))) == len(convergence.pins(store))


@CASES
@given(a_server(), a_list(), st.randoms())
def test_neither_order_nor_concurrency_shows_in_the_result(store: Store, items: list[Raw], rng: t.Any) -> None:
    other = Store()
    other.__dict__.update(convergence.copied(store))
    shuffled = list(items)
    rng.shuffle(shuffled)
    assert convergence.run(MemoryDriver(store), items, concurrency=1).ok
    assert convergence.run(MemoryDriver(other), shuffled, concurrency=4).ok
    assert convergence.seen(store) == convergence.seen(other)


@CASES
@given(a_server(), a_list())
def test_what_somebody_else_set_stays(store: Store, items: list[Raw]) -> None:
    by_hand = {
        raw["name"]: raw["config"]["user.hand"] for raw in store.instances.values() if "user.hand" in raw["config"]
    }
    assert convergence.run(MemoryDriver(store), items).ok
    for raw in store.instances.values():
        if raw["name"] in by_hand:
            assert raw["config"]["user.hand"] == by_hand[raw["name"]]


@CASES
@given(a_server(), a_list(), a_list())
def test_what_its_owner_declares_no_longer_goes_and_nothing_else(
    store: Store, first: list[Raw], then: list[Raw]
) -> None:
    others = {raw["name"] for raw in store.instances.values()} - {item["name"] for item in first}
    for items in (first, then):
        assert convergence.run(MemoryDriver(store), items, owner="site", prune=True).ok
    there = {item["name"] for item in then if item.get("state") != "absent"}
    gone = {item["name"] for item in then if item.get("state") == "absent"}
    assert {raw["name"] for raw in store.instances.values()} == there | (others - gone)
    again = MemoryDriver(store)
    assert convergence.run(again, then, owner="site", prune=True).ok
    assert again.writes == []


@CASES
@given(a_server(), a_list())
def test_check_mode_tells_what_the_run_does(store: Store, items: list[Raw]) -> None:
    asked = MemoryDriver(store)
    told = convergence.foreseen(asked, items)
    assert asked.writes == []
    outcome = convergence.run(MemoryDriver(store), items)
    assert outcome.ok
    if outcome.report is None:
        return
    same = ("name", "inventory_name", "status", "type", "changed", "actions", "restart_required", "error", "keys")
    for before, after in zip(told, outcome.report.values["instances"]):
        # Some of the record is known only when it is there.
        before["keys"].pop("user.mage.managed", None)
        after["keys"].pop("user.mage.managed", None)
        assert {key: before[key] for key in same} == {key: after[key] for key in same}
        pins = [[one for one in value["addresses"] if one["pinned"]] for value in (before, after)]
        assert pins[0] == pins[1]
