# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is kept on an instance of its secrets, on LXD and on Incus."""

from __future__ import annotations

import json
import typing as t

import pytest

from ansible_collections.mage.lxd.plugins.module_utils._instances import update
from ansible_collections.mage.lxd.tests.integration import doors as doors_module
from ansible_collections.mage.lxd.tests.integration import server
from ansible_collections.mage.lxd.tests.integration.engine import Engine, converge

SECRETS = {
    "environment.TOKEN": "hunter2",
    "raw.lxc": "lxc.environment = TOKEN=hunter2",
    "user.meta-data": "hunter2",
}


def kept(engine: Engine, suffix: str) -> dict[str, t.Any]:
    return dict(json.loads(engine.get(suffix)["config"]["user.mage.managed"])["value"])


def test_the_record_of_a_secret_cannot_be_guessed_and_still_tells_what_is_ours(engine: Engine) -> None:
    item = engine.item("s", state="stopped")
    engine.good({**item, "config": SECRETS})
    record, uuid = kept(engine, "s"), engine.get("s")["config"]["volatile.uuid"]
    for key, value in SECRETS.items():
        assert record["config"][key] == update.guarded(value, key, uuid)
        assert record["config"][key] != update.digest(value, key)
    assert uuid not in json.dumps(record)
    assert not engine.good({**item, "config": SECRETS}).changed
    # The server has no other UUID for it when it has run.
    engine.good({**item, "config": SECRETS, "state": "started"})
    assert engine.get("s")["config"]["volatile.uuid"] == uuid
    assert not engine.good({**item, "config": SECRETS, "state": "started"}).changed
    engine.good({**item, "config": SECRETS})
    engine.patch("s", {"config": {"user.meta-data": "of somebody else"}})
    done = engine.good(item)
    config = engine.get("s")["config"]
    assert {key: config[key] for key in SECRETS if key in config} == {"user.meta-data": "of somebody else"}
    text = str(done.plan.diff()) + json.dumps(done.values)
    assert "hunter2" not in text
    # A copy is made of another one, and has a UUID and a record of its own.
    copy = {"name": engine.name("copy"), "copy_of": engine.name("s"), "state": "stopped", "config": SECRETS}
    engine.good(copy)
    uuid = engine.get("copy")["config"]["volatile.uuid"]
    assert kept(engine, "copy")["config"]["environment.TOKEN"] == update.guarded("hunter2", "environment.TOKEN", uuid)
    assert not engine.good(copy).changed


@pytest.mark.parametrize("door", ["cli-lxd", "cli-incus"])
def test_the_client_programs_make_it_the_same(doors: doors_module.Doors, door: str) -> None:
    asked, options = doors.way(door.partition("-")[2])
    engine = Engine(asked, options, server.own_prefix())
    driver: t.Any = doors.driver(door)
    try:
        item = engine.item("c", state="stopped", config=SECRETS)
        _plan, report, _values = converge(driver, options, item)
        assert report is not None
        assert report.failures == ()
        uuid = engine.get("c")["config"]["volatile.uuid"]
        assert kept(engine, "c")["config"]["raw.lxc"] == update.guarded(SECRETS["raw.lxc"], "raw.lxc", uuid)
        assert not engine.good(item).changed
    finally:
        driver.close()
        asked.delete(f"{engine.prefix}-")
