# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans of instances, as tables and properties. The server is played by ``carry_out``, which does what a plan says."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mage.lxd.plugins.module_utils import _keys
from ansible_collections.mage.lxd.plugins.module_utils._errors import InvalidInput
from ansible_collections.mage.lxd.plugins.module_utils._instances import (
    addresses,
    images,
    plan,
    present,
    spec,
    states,
    update,
)
from ansible_collections.mage.lxd.plugins.module_utils._plan import Plan
from ansible_collections.mage.lxd.plugins.module_utils._server.snapshot import (
    Instance,
    Lease,
    Network,
    Server,
    Snapshot,
)

SERVER = Server("lxd", "5.0.2", "host", False, frozenset(), ("x86_64",))
NIC = {"type": "nic", "name": "eth0", "network": "lxdbr0"}
PROFILES = {"default": {"eth0": NIC, "root": {"type": "disk", "path": "/", "pool": "default"}}}
NETWORK = Network("lxdbr0", "default", "bridge", True, {"ipv4.address": "10.97.0.1/29"})
# Where the search for a free address begins for web-1.
PIN = addresses.pick(NETWORK, (), "default/web-1") or ""
IMAGES = {"debian/bookworm": "a" * 64, "ubuntu/xenial/amd64": "b" * 64, "a" * 64: "a" * 64}
IMAGES.update({"alpine/amd64": "c" * 64, "alpine/arm64": "d" * 64, '{"os":"Debian"}': "a" * 64, '{"os":"None"}': ""})


def instance(name: str, status: str = "Running", **fields: t.Any) -> Instance:
    devices = fields.pop("devices", {})
    raw = {"name": name, "status": status, "project": "default", "profiles": ["default"], "devices": devices}
    raw.update(fields, expanded_devices={**PROFILES["default"], **devices})
    return Instance.from_api(raw)


def observed(*instances: Instance, leases: t.Sequence[Lease] = (), **fields: t.Any) -> plan.Observed:
    snapshot = Snapshot(SERVER, tuple(instances), leases=tuple(leases))
    values: dict[str, t.Any] = {"profiles": PROFILES, "networks": {"lxdbr0": NETWORK}, "images": IMAGES, **fields}
    return plan.Observed(snapshot, everywhere=tuple(instances), **values)


def desired(*items: dict[str, t.Any], declared: t.Sequence[dict[str, t.Any]] = ()) -> spec.Desired:
    values = {"instances": list(items), "defaults": {}, "concurrency": 4, "timeout": 600, "declared": declared}
    return spec.parse(values, "default")


def planned(seen: plan.Observed, *items: dict[str, t.Any], check_mode: bool = False) -> Plan:
    return plan.plan(desired(*items), seen, check_mode)


def carry_out(seen: plan.Observed, made: Plan) -> plan.Observed:
    """What the server says after a plan: the rules of PATCH, and of create, start, stop and delete."""
    now = {one.name: one for one in seen.snapshot.instances}
    for change in made.changes:
        assert isinstance(change, plan.InstanceChange)
        assert change.spec is not None
        name = change.spec.name
        for step in change.steps:
            if step == "create":
                kept = {
                    key: change.body[key]
                    for key in ("config", "devices", "description", "profiles", "type")
                    if key in change.body
                }
                now[name] = instance(name, "Stopped", **kept)
            elif step == "delete":
                del now[name]
            elif step in DOES:
                now[name] = dataclasses.replace(now[name], status=DOES[step])
            else:
                now[name] = _updated(now[name], change, step == "python")
    return observed(*now.values())


def _updated(one: Instance, change: plan.InstanceChange, python: bool) -> Instance:
    assert change.spec is not None
    target = update.desired_update(change.spec, one, change.pins, dataclasses.replace(change.notes, python=python))
    config = {key: value for key, value in {**one.config, **target.config}.items() if value}
    devices = {k: v for k, v in {**one.devices, **target.devices}.items() if k not in target.drop_devices}
    profiles = one.profiles if target.profiles is None else target.profiles
    description = one.description if target.description is None else target.description
    return instance(
        one.name, one.status, config=config, devices=devices, profiles=list(profiles), description=description
    )


def steps(made: Plan) -> dict[str, tuple[str, ...]]:
    return {c.spec.name: c.steps for c in made.changes if isinstance(c, plan.InstanceChange) and c.spec}


DOES = {**states.ENDS_IN, "kill": "Stopped"}
WEB = {"name": "web-1", "image": "debian/bookworm"}


@pytest.mark.parametrize(
    ("status", "state", "expected"),
    [
        (None, "started", ("create", "start")),
        (None, "stopped", ("create",)),
        (None, "absent", None),
        ("Stopped", "started", ("update", "start")),
        ("Stopped", "stopped", ("update",)),
        ("Stopped", "absent", ("delete",)),
        ("Running", "started", ("update",)),
        ("Running", "stopped", ("update", "stop")),
        ("Running", "absent", ("delete",)),
        ("Running", "frozen", ("update", "freeze")),
        ("Running", "restarted", ("update", "restart")),
        ("Frozen", "started", ("update", "unfreeze")),
        ("Frozen", "stopped", ("update", "unfreeze", "stop")),
        ("Frozen", "absent", ("delete",)),
        ("Error", "started", ("update", "kill", "start")),
        ("Error", "stopped", ("update", "kill")),
        ("Error", "absent", ("delete",)),
    ],
)
def test_from_every_state_to_every_state(status: str | None, state: str, expected: tuple[str, ...] | None) -> None:
    seen = observed(*([instance("web-1", status)] if status else []))
    made = planned(seen, {**WEB, "state": state})
    assert steps(made) == ({"web-1": expected} if expected else {})
    after = carry_out(seen, made)
    if state != "restarted":
        assert not planned(after, {**WEB, "state": state}).changed


@pytest.mark.parametrize(
    ("image", "source"),
    [
        ("debian/bookworm", {"type": "image", "alias": "debian/bookworm"}),
        ("debian/bookworm/amd64", {"type": "image", "alias": "debian/bookworm"}),
        ("ubuntu/xenial/amd64", {"type": "image", "alias": "ubuntu/xenial/amd64"}),
        ("ubuntu/xenial", {"type": "image", "alias": "ubuntu/xenial/amd64"}),
        ("ubuntu/xenial/arm64", None),
        ("alpine", None),
        ("a" * 12, {"type": "image", "fingerprint": "a" * 64}),
        ("a" * 11, None),
        ("debian/bookworm/default", None),
    ],
)
def test_an_image_is_found_by_alias_architecture_and_fingerprint(image: str, source: object) -> None:
    assert images.source(images.Image(alias=image), IMAGES) == source


def test_what_publishes_gets_a_free_address() -> None:
    taken = instance("a", devices={"eth0": {**NIC, "ipv4.address": PIN}})
    leased = [
        Lease("lxdbr0", "other", "b", f"00:16:3e:00:00:0{n}", f"10.97.0.{n}", "dynamic")
        for n in (2, 3, 4, 5)
        if f"10.97.0.{n}" != PIN
    ]
    made = planned(observed(taken, leases=leased), {**WEB, "nat": [{"extport": 80}]})
    (change,) = made.changes
    assert isinstance(change, plan.InstanceChange)
    assert change.pins == {"eth0": {**NIC, "ipv4.address": "10.97.0.6"}}


def test_every_name_has_a_place_of_its_own_to_begin_the_search() -> None:
    network = dataclasses.replace(NETWORK, config={"ipv4.address": "10.97.0.1/24"})
    found = [addresses.pick(network, (), f"default/web-{n}") for n in range(50)]
    assert len(set(found)) > 40
    assert found == [addresses.pick(network, (), f"default/web-{n}") for n in range(50)]
    assert not set(found) & {"10.97.0.0", "10.97.0.1", "10.97.0.255", None}


def test_what_an_earlier_call_planned_is_not_given_away() -> None:
    proxy = {"name": "mageproxy", "image": "debian/bookworm", "nat": [{"extport": 80}]}
    seen = observed()
    first = planned(seen, proxy, check_mode=True)
    assert isinstance(first.changes[0], plan.InstanceChange)
    declared = present.present(desired(proxy), seen.snapshot, first.changes, False, {})
    made = plan.plan(desired({**WEB, "hostnames": ["w"]}, declared=declared), seen, True)
    (change,) = made.changes
    assert isinstance(change, plan.InstanceChange)
    assert change.pins["eth0"]["ipv4.address"] not in ("", first.changes[0].pins["eth0"]["ipv4.address"])


def test_what_runs_keeps_the_address_that_it_has() -> None:
    running = instance("web-1", config={"volatile.eth0.hwaddr": "00:16:3E:00:00:07"})
    lease = Lease("lxdbr0", "default", "web-1", "00:16:3e:00:00:07", "10.97.0.6", "dynamic")
    made = planned(observed(running, leases=[lease]), {**WEB, "hostnames": ["a.example.org"]})
    assert isinstance(made.changes[0], plan.InstanceChange)
    assert made.changes[0].pins["eth0"]["ipv4.address"] == "10.97.0.6"


def displaced(**devices: t.Any) -> plan.Observed:
    """web-1, which we pinned to an address, and which runs with another address."""
    seen = carry_out(observed(), planned(observed(), {**WEB, **devices, "nat": [{"extport": 80}]}))
    (web,) = seen.snapshot.instances
    web = dataclasses.replace(web, config={**web.config, "volatile.eth0.hwaddr": "00:16:3e:00:00:07"})
    lease = Lease("lxdbr0", "default", "*", "00:16:3e:00:00:07", "10.97.0.6", "dynamic")
    static = dataclasses.replace(lease, address=PIN, type="static")
    return observed(web, leases=[static, lease])


def test_what_got_another_address_than_its_pin_is_pinned_to_that() -> None:
    item = {**WEB, "nat": [{"extport": 80}]}
    made = planned(displaced(), item)
    assert steps(made) == {"web-1": ("update",)}
    assert f"leased it 10.97.0.6 instead of {PIN}" in made.warnings[0]
    (after,) = carry_out(displaced(), made).snapshot.instances
    assert after.devices["eth0"]["ipv4.address"] == "10.97.0.6"


@pytest.mark.parametrize("said", [{"devices": {"eth0": {**NIC, "ipv4.address": PIN}}}, {"address": PIN}])
def test_a_pin_of_the_user_stays_whatever_was_leased(said: dict[str, t.Any]) -> None:
    item = {**WEB, **said, "nat": [{"extport": 80}]}
    made = planned(displaced(**said), item)
    assert steps(made) == {"web-1": ("restart",)}
    assert '"restart_required": [\n    "devices.eth0"\n  ]' in made.diff()[0]["after"]
    held = displaced(**said)
    another = instance("web-2", config={"volatile.eth0.hwaddr": "00:16:3e:00:00:08"})
    lease = Lease("lxdbr0", "default", "web-2", "00:16:3e:00:00:08", PIN, "dynamic")
    made = planned(observed(*held.snapshot.instances, another, leases=[*held.snapshot.leases, lease]), item)
    assert not made.changed
    assert made.warnings == (f"default/web-1: eth0 has 10.97.0.6 instead of {PIN}, which web-2 has leased",)


def test_a_full_network_is_told() -> None:
    items = [{"name": f"w{n}", "image": "debian/bookworm", "nat": [{"extport": 8000 + n}]} for n in range(6)]
    made = planned(observed(), *items)
    pins = [c.pins["eth0"]["ipv4.address"] for c in made.changes if isinstance(c, plan.InstanceChange) and c.pins]
    assert sorted(pins) == [f"10.97.0.{n}" for n in range(2, 7)]
    assert "no addresses to pin" in made.warnings[0]


def test_a_pin_of_somebody_else_is_left_to_them() -> None:
    pinned = instance("web-1", devices={"eth0": {**NIC, "ipv4.address": "10.97.0.5"}})
    item = {**WEB, "nat": [{"extport": 80}]}
    seen = observed(pinned)
    after = carry_out(seen, planned(seen, item))
    assert after.snapshot.instances[0].devices == pinned.devices
    assert carry_out(after, planned(after, WEB)).snapshot.instances[0].devices == pinned.devices


def test_what_is_dropped_goes_if_it_is_as_we_left_it() -> None:
    first = {**WEB, "config": {"limits.cpu": 1, "limits.memory": "1GiB"}, "nat": [{"extport": 80}]}
    seen = carry_out(observed(), planned(observed(), first))
    (web,) = seen.snapshot.instances
    touched = dataclasses.replace(web, config={**web.config, "limits.memory": "2GiB", "user.theirs": "x"})
    seen = observed(touched)
    (after,) = carry_out(seen, planned(seen, WEB)).snapshot.instances
    assert {k: v for k, v in after.config.items() if k != _keys.MANAGED} == {
        "limits.memory": "2GiB",
        "user.theirs": "x",
    }
    assert after.devices == {}


def test_a_copy_forgets_what_it_was_copied_from() -> None:
    seen = carry_out(observed(), planned(observed(), {**WEB, "config": {"limits.cpu": 1}}))
    copy = instance("web-2", config=dict(seen.snapshot.instances[0].config))
    (after,) = carry_out(observed(copy), planned(observed(copy), {**WEB, "name": "web-2"})).snapshot.instances
    assert after.config["limits.cpu"] == "1"


@pytest.mark.parametrize(
    ("seen", "item", "problem"),
    [
        (observed(), {"name": "a"}, "instances[0].image: missing: a does not exist"),
        (observed(), {"name": "a", "image": "debian/bokworm"}, "(did you mean debian/bookworm?)"),
        (observed(), {**WEB, "profiles": ["defualt"]}, "there is no such profile (did you mean default?)"),
        (observed(instance("web-1")), {**WEB, "type": "virtual-machine"}, "web-1 is a container: delete it first"),
        (
            observed(),
            {**WEB, "nat": [{"extport": 80, "intif": "br1"}]},
            'nat[0].intif: "br1": no NIC of web-1 is on it',
        ),
    ],
)
def test_what_cannot_be_done_is_refused(seen: plan.Observed, item: dict[str, t.Any], problem: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        planned(seen, item)
    assert problem in str(caught.value)


def test_in_check_mode_an_image_may_be_yet_to_come() -> None:
    made = planned(observed(images={}), WEB, check_mode=True)
    assert steps(made) == {"web-1": ("create", "start")}
    assert "no image on the server has this alias" in made.missing[0]


def test_secrets_stay_out_of_the_diff() -> None:
    item = {**WEB, "config": {"environment.TOKEN": "canary", "cloud-init.user-data": "canary"}}
    made = planned(observed(), item)
    assert "canary" not in str(made.diff())
    seen = carry_out(observed(), made)
    changed = planned(seen, {**item, "config": {"environment.TOKEN": "canary2"}})
    assert changed.changed
    assert "canary" not in str(changed.diff())


@pytest.mark.parametrize(
    ("probe", "expected"),
    [("usable", ("update",)), ("missing", ("update", "python")), ("old", ("update", "python"))],
)
def test_python_is_brought_where_it_is_missing_and_asked_for_once(probe: str, expected: tuple[str, ...]) -> None:
    item = {**WEB, "python": True}
    running = instance("web-1")
    assert plan.needs(desired(item), Snapshot(SERVER, (running,))).python == ("web-1",)
    seen = observed(running, python={"web-1": probe})
    made = planned(seen, item)
    assert steps(made) == {"web-1": expected}
    target = update.desired_update(desired(item).items[0], running, {}, update.Notes(python=True))
    done = dataclasses.replace(running, config={**running.config, **target.config})
    assert plan.needs(desired(item), Snapshot(SERVER, (done,))).python == ()
    assert not planned(observed(done), item).changed


def test_a_true_list_needs_no_further_read() -> None:
    items: list[dict[str, t.Any]] = [
        {**WEB, "nat": [{"extport": 80}]},
        {"name": "db-1", "image": "debian/bookworm", "profiles": ["default"]},
    ]
    seen = carry_out(observed(), planned(observed(), *items))
    assert plan.needs(desired(*items), seen.snapshot) == plan.Needs(silent=("db-1",))
    has = dataclasses.replace(seen.snapshot, states={("default", "db-1", "eth0"): ("10.8.0.50",)})
    assert plan.needs(desired(*items), has) == plan.Needs()


NAMES = st.sampled_from(["a", "b", "c", "d"])
ITEMS = st.fixed_dictionaries(
    {"name": NAMES, "image": st.just("debian/bookworm")},
    optional={
        "state": st.sampled_from(["started", "stopped", "absent"]),
        "config": st.dictionaries(st.sampled_from(["limits.cpu", "limits.memory", "user.x"]), st.integers(1, 3)),
        "devices": st.dictionaries(st.just("d"), st.just({"type": "none"})),
        "description": st.text("xy", max_size=3),
        "hostnames": st.lists(st.sampled_from(["x.example.org", "y.example.org"]), unique=True),
        "python": st.booleans(),
    },
)
LISTS = st.lists(ITEMS, unique_by=lambda item: item["name"])


@given(LISTS, LISTS)
def test_a_plan_that_was_carried_out_leaves_nothing_to_do(
    first: list[dict[str, t.Any]], second: list[dict[str, t.Any]]
) -> None:
    seen = carry_out(observed(), planned(observed(), *first))
    seen = carry_out(seen, planned(seen, *second))
    again = planned(seen, *second)
    assert not again.changed
    assert again.diff() == []


@given(LISTS, st.randoms(use_true_random=False))
def test_the_order_of_the_list_does_not_matter(items: list[dict[str, t.Any]], random: t.Any) -> None:
    shuffled = [{**item, "hostnames": []} for item in items]
    ordered = planned(observed(), *shuffled)
    random.shuffle(shuffled)
    assert planned(observed(), *shuffled).diff() == ordered.diff()


@given(LISTS)
def test_what_nobody_declared_is_not_touched(items: list[dict[str, t.Any]]) -> None:
    theirs = instance("z", config={"user.x": "1"})
    seen = observed(theirs)
    after = carry_out(seen, planned(seen, *items))
    assert [one for one in after.snapshot.instances if one.name == "z"] == [theirs]


# --- what an instance will be like, not what it is like -----------------------------------------------------------

NAT = {"extport": 8080, "intport": 80}
OTHER_NIC = {"type": "nic", "name": "eth0", "network": "br1"}
OTHER = Network("br1", "default", "bridge", True, {"ipv4.address": "10.98.0.1/29"})
OTHER_PIN = addresses.pick(OTHER, (), "default/web-1") or ""
MORE: dict[str, t.Any] = {
    "profiles": {**PROFILES, "other": {"eth0": OTHER_NIC}},
    "networks": {"lxdbr0": NETWORK, "br1": OTHER},
}


def pins_of(made: Plan) -> t.Mapping[str, t.Mapping[str, str]]:
    (change,) = made.changes
    assert isinstance(change, plan.InstanceChange)
    return change.pins


def made_true(*items: dict[str, t.Any]) -> plan.Observed:
    seen = observed()
    seen = carry_out(seen, planned(seen, *items))
    return dataclasses.replace(seen, **MORE)


@pytest.mark.parametrize("before", [{}, {"nat": [NAT]}], ids=["not pinned yet", "pinned"])
def test_a_pin_follows_the_profiles_that_are_declared(before: dict[str, t.Any]) -> None:
    seen = made_true({**WEB, **before})
    item = {**WEB, "profiles": ["other"], "nat": [{**NAT, "intif": "br1"}]}
    assert plan.needs(desired(item), seen.snapshot).profiles
    assert pins_of(planned(seen, item)) == {"eth0": {**OTHER_NIC, "ipv4.address": OTHER_PIN}}


def test_a_pin_outlasts_a_change_of_profiles_that_keeps_its_network() -> None:
    seen = made_true({**WEB, "nat": [NAT]})
    assert pins_of(planned(seen, {**WEB, "profiles": ["default", "default"], "nat": [NAT]})) == {
        "eth0": {**NIC, "ipv4.address": PIN}
    }


def test_a_nic_that_is_declared_no_longer_goes_and_its_pin_stays() -> None:
    seen = made_true({**WEB, "nat": [NAT], "devices": {"eth0": {**NIC, "mtu": 1400}}})
    item = {**WEB, "nat": [NAT]}
    assert plan.needs(desired(item), seen.snapshot).profiles
    made = planned(seen, item)
    assert pins_of(made) == {"eth0": {**NIC, "ipv4.address": PIN}}
    assert not planned(carry_out(seen, made), item).changed


def test_a_port_is_led_to_a_nic_that_is_declared_with_it() -> None:
    seen = made_true(WEB)
    eth1 = {**OTHER_NIC, "name": "eth1"}
    item = {**WEB, "devices": {"eth1": eth1}, "nat": [{**NAT, "intif": "br1"}]}
    assert pins_of(planned(seen, item)) == {"eth1": {**eth1, "ipv4.address": OTHER_PIN}}


def test_intif_names_a_network_or_a_device() -> None:
    item = {**WEB, "nat": [{**NAT, "intif": "eth0"}]}
    assert pins_of(planned(observed(), item)) == {"eth0": {**NIC, "ipv4.address": PIN}}


def test_of_two_with_one_address_the_one_that_stands_still_moves() -> None:
    items = ({**WEB, "name": "a", "nat": [NAT]}, {**WEB, "name": "b", "nat": [{**NAT, "extport": 81}]})
    seen = made_true(*items)
    b = seen.snapshot.instances[1]
    shared = seen.snapshot.instances[0].devices["eth0"]["ipv4.address"]
    pin = {"eth0": {**NIC, "ipv4.address": shared}}
    raced = instance("b", "Running", config=dict(b.config), devices=pin)
    for status, moved in (("Running", "b"), ("Stopped", "a")):
        first = dataclasses.replace(seen.snapshot.instances[0], status=status)
        again = observed(first, raced)
        assert plan.needs(desired(*items), again.snapshot).pins
        pins = {
            one.spec.name: one.pins["eth0"]["ipv4.address"]
            for one in planned(again, *items).changes
            if isinstance(one, plan.InstanceChange) and one.spec
        }
        assert pins[moved] != shared
        assert shared in {"a": shared, "b": shared, **pins}.values()


@pytest.mark.parametrize(
    "fields", [{"config": {"user.x": ""}}, {"devices": {"eth0": {**NIC, "hwaddr": ""}}}], ids=["config", "devices"]
)
def test_what_is_empty_is_nothing_to_a_server(fields: dict[str, t.Any]) -> None:
    seen = made_true({**WEB, **fields})
    kept = {key: value for key, value in seen.snapshot.instances[0].config.items() if value}
    stored = dataclasses.replace(seen.snapshot.instances[0], config=kept)
    assert all(all(options.values()) for options in stored.devices.values())
    assert not planned(observed(stored), {**WEB, **fields}).changed


@pytest.mark.parametrize("value", [5, "x", [], {"devices": 5, "config": [1], "pins": {"a": 1}}, {"pins": [{}, 1]}])
def test_a_record_that_somebody_else_wrote_is_no_record(value: object) -> None:
    config = {_keys.MANAGED: _keys.encode(value, "default", "web-1")}
    assert planned(observed(instance("web-1", config=config)), {**WEB, "nat": [NAT]}).changed


@pytest.mark.parametrize("nat", [[NAT], []])
def test_the_pin_of_a_copy_is_no_use_to_it(nat: list[dict[str, t.Any]]) -> None:
    (first,) = made_true({**WEB, "nat": [NAT]}).snapshot.instances
    copy = dataclasses.replace(
        instance("a-copy", "Stopped", config=dict(first.config), devices=dict(first.devices)), profiles=first.profiles
    )
    seen = observed(copy, dataclasses.replace(first, status="Stopped"))
    item = {"name": "a-copy", "nat": nat}
    after = carry_out(seen, planned(seen, item)).snapshot.find("default", "a-copy")
    assert after is not None
    assert after.devices.get("eth0", {}).get("ipv4.address") != PIN
    assert ("eth0" in after.devices) is (nat != [])
    assert (_keys.NAT in after.config) is (nat != [])


def test_a_renamed_instance_keeps_its_pin() -> None:
    (first,) = made_true({**WEB, "nat": [NAT]}).snapshot.instances
    seen = observed(dataclasses.replace(first, name="web-2"))
    after = carry_out(seen, planned(seen, {"name": "web-2", "nat": [NAT]})).snapshot.instances[0]
    assert after.devices == first.devices
