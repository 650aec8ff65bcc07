# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is told and kept of config that may hold a secret."""

from __future__ import annotations

import json
import typing as t

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _keys
from ansible_collections.mage.lxd.plugins.module_utils._errors import InvalidInput
from ansible_collections.mage.lxd.plugins.module_utils._instances import config, shown, spec, update
from ansible_collections.mage.lxd.plugins.module_utils._server.snapshot import Instance
from ansible_collections.mage.lxd.tests.memory import convergence
from ansible_collections.mage.lxd.tests.memory.driver import MemoryDriver
from ansible_collections.mage.lxd.tests.memory.store import Store

ITEM: dict[str, t.Any] = {"name": "a", "image": "busybox", "wait_for": []}
SECRETS = {
    "environment.TOKEN": "canary",
    "raw.lxc": "lxc.environment = TOKEN=canary",
    "user.meta-data": "canary",
    "user.user-data": "canary",
}
KEYS = sorted(SECRETS)


def record(store: Store) -> dict[str, t.Any]:
    return dict(json.loads(store.instances["default", "a"]["config"][_keys.MANAGED])["value"])


def run(store: Store, said: t.Mapping[str, str], **more: t.Any) -> convergence.Outcome:
    outcome = convergence.run(MemoryDriver(store), [{**ITEM, "config": said, **more}])
    assert outcome.ok, outcome
    return outcome


@pytest.mark.parametrize("key", KEYS)
def test_a_change_shows_that_it_is_one_and_nothing_else(key: str) -> None:
    old = Instance.from_api({"name": "a", "config": {key: "canary"}})
    target = update.Update({key: "other canary"}, {})
    assert shown.difference(old, target) == ({"config": {key: "(hidden)"}}, {"config": {key: "(hidden, changed)"}})
    gone = update.Update({key: ""}, {})
    assert shown.difference(old, gone) == ({"config": {key: "(hidden)"}}, {"config": {}})
    come = Instance.from_api({"name": "a", "config": {}})
    assert shown.difference(come, target) == ({"config": {}}, {"config": {key: "(hidden)"}})


@pytest.mark.parametrize("key", KEYS)
def test_what_is_kept_of_a_secret_cannot_be_guessed_by_a_guest(key: str) -> None:
    """A guest reads the record. With all that stands in it, and the right password, it does not get the hash."""
    kept = []
    for _twice in range(2):
        store = Store()
        run(store, SECRETS)
        found = record(store)
        uuid = store.instances["default", "a"]["config"]["volatile.uuid"]
        assert found["config"][key] == update.guarded(SECRETS[key], key, uuid)
        assert uuid not in json.dumps(found)
        for known in ("", found["uuid"], "default/a", "a"):
            assert found["config"][key] not in (update.digest(SECRETS[key], key), update.guarded("canary", key, known))
        assert not run(store, SECRETS).changed
        kept.append(found["config"][key])
    assert kept[0] != kept[1]
    assert config.is_secret(key)


@pytest.mark.parametrize("key", KEYS)
def test_a_secret_goes_if_it_is_as_it_was_left(key: str) -> None:
    store = Store()
    run(store, SECRETS)
    rest = {other: value for other, value in SECRETS.items() if other != key}
    run(store, rest)
    assert key not in store.instances["default", "a"]["config"]
    run(store, SECRETS)
    store.instances["default", "a"]["config"][key] = "of somebody else"
    run(store, rest)
    assert store.instances["default", "a"]["config"][key] == "of somebody else"


@pytest.mark.parametrize("key", KEYS)
def test_records_of_earlier_releases_are_understood(key: str) -> None:
    """They had the UUID and the plain hash. The hash goes with the next run; the key goes where it is dropped."""
    for dropped in (False, True):
        store = Store()
        run(store, {})
        raw = store.instances["default", "a"]["config"]
        old = {**record(store), "uuid": raw["volatile.uuid"]}
        old["config"] = {key: update.digest(SECRETS[key], key)}
        raw.update({key: SECRETS[key], _keys.MANAGED: _keys.encode(old, "default", "a")})
        assert run(store, {} if dropped else {key: SECRETS[key]}).changed
        assert (key in store.instances["default", "a"]["config"]) is not dropped
        assert update.digest(SECRETS[key], key) not in json.dumps(record(store))
        assert not run(store, {} if dropped else {key: SECRETS[key]}).changed


def test_an_instance_is_told_from_its_copy_by_old_and_new_records() -> None:
    one = Instance.from_api({"name": "a", "config": {"volatile.uuid": "11111111-2222-4333-8444-555555555555"}})
    for kept in ("11111111-2222-4333-8444-555555555555", update.digest("11111111-2222-4333-8444-555555555555")):
        assert update.is_its_uuid(kept, one)
        assert not update.is_its_uuid(kept, Instance.from_api({"name": "a", "config": {"volatile.uuid": "other"}}))
    assert not update.is_its_uuid(update.digest(""), Instance.from_api({"name": "a"}))


MISTYPED: list[t.Any] = [
    {"cloudinit": {"user_data": "canary"}},
    {"cloud_init": {"userdata": "canary"}},
    {"environment": {"DB_PASSWORD": "canary"}},
    {"environment.DB": "canary"},
    {"config": [{"environment.DB": "canary"}]},
    {"config": {"environment": {"DB": "canary"}}},
    {"config": {"environment": "DB=canary"}},
    {"config": {"enviroment.DB": "canary"}},
    {"config": {"environment DB": "canary"}},
    {"config": {"user.x": ["canary"]}},
    {"config": {"user.x": "plain", "env.DB": "canary"}},
    {"config": "environment.DB=canary"},
    {"image": {"alias": "busybox", "sercet": "canary"}},
    {"image": 7, "cloud-init.user-data": "canary"},
    {"limits": {"memory": "1GiB", "environment.DB": "canary"}},
    {"limits": {"cloud_init": {"user_data": "canary"}}},
    {"limits": {"config": {"environment.DB": "canary"}}},
    {"devices": {"environment.DB": "canary"}},
    {"devices": {"eth0": {"environment.DB": "canary"}}},
    {"devices": {"environment": {"DB": "canary"}}},
    {"devices": {"eth0": {"type": "nic", "environment": {"DB": "canary"}}}},
    {"depends_on": {"environment.DB": "canary"}},
    {"mounts": [{"source": "/a", "path": "/a", "environment.DB": "canary"}]},
]


@pytest.mark.parametrize("mistyped", MISTYPED)
def test_a_secret_under_a_mistyped_key_is_not_told(mistyped: dict[str, t.Any]) -> None:
    item = {"name": "a-1", **mistyped}
    for params in ({"instances": [item]}, {"instances": [], "defaults": mistyped}):
        call = {"defaults": {}, "concurrency": 4, "timeout": 600, **params}
        told = spec.hidden(call)
        assert "canary" in str(call)
        assert "canary" not in str(told)
        assert not params["instances"] or told["instances"][0]["name"] == "a-1"
        assert "canary" not in said_of(call)


def said_of(call: dict[str, t.Any]) -> str:
    """Its problems, or the config that a diff shows: only the server knows whether it has a key."""
    try:
        desired = spec.parse(call, "default")
    except InvalidInput as error:
        return str(error)
    return str([shown.readable(one.config, "default", one.name) for one in desired.items])


def test_a_list_that_was_given_as_text_is_not_told() -> None:
    """Ansible splits it at its commas, wherever they are."""
    text = json.dumps([{"name": "a", "config": {"environment.DB": "x,canary,y"}}])
    for items in (text.split(","), [[{"name": "a", "environment": "canary"}]]):
        params: dict[str, t.Any] = {"instances": items, "defaults": {}, "concurrency": 4, "timeout": 600}
        with pytest.raises(InvalidInput) as caught:
            spec.parse(params, "default")
        assert "canary" not in str(spec.hidden(params)) + str(caught.value)
        kind = "text" if isinstance(items[0], str) else "a list"
        assert caught.value.problems[0].startswith(
            f"instances[0]: is {kind}: must be a mapping with the keys address, "
        )


def test_what_is_no_secret_is_told() -> None:
    item = {"name": "a", "image": "busybox", "config": {"user.x": "plain", "limits.cpu": 2}, "nat": [{"extport": 1}]}
    assert spec.hidden({"instances": [item, None]})["instances"] == [item, None]
