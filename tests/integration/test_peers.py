# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What went wrong with other collections on a real server: each defect, and that it is none of this one's."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._instances import states
from ansible_collections.mage.lxd.plugins.module_utils._server import options
from ansible_collections.mage.lxd.plugins.module_utils._server.rest import RestDriver
from ansible_collections.mage.lxd.tests.integration import doors, listener, server, tls
from ansible_collections.mage.lxd.tests.integration.engine import Engine

SOCKETS = {"lxd": doors.LXD_SOCKET, "incus": doors.INCUS_SOCKET}
INVENTORY = """
plugin: mage.lxd.lxd
endpoint: unix://SOCKET
filters: {name: PREFIX-*}
"""


def test_a_change_of_configuration_changes_nothing_else(engine: Engine) -> None:
    """Elsewhere it wiped devices and the description, and it started a stopped container and failed then with
    "Volatile idmap keys can't be deleted by the user"; numbers were never equal to what the server says of them."""
    item = engine.item("a", state="stopped", devices={})
    engine.good(item)
    engine.patch("a", {"description": "by hand", "devices": {"hand": {"type": "none"}}})
    engine.good({**item, "devices": {"ours": {"type": "none"}}})
    before = engine.get("a")
    declared = {**item, "config": {"limits.cpu": 2, "boot.autostart": False, "limits.memory": "512MiB"}}
    assert engine.good(declared).one["actions"] == ["update"]
    after = engine.get("a")
    assert (after["status"], after["description"], after["devices"]) == (
        "Stopped",
        "by hand",
        {"hand": {"type": "none"}},
    )
    assert after["last_used_at"] == before["last_used_at"]
    ours = {"limits.cpu": "2", "boot.autostart": "false", "limits.memory": "512MiB"}
    assert {key: value for key, value in after["config"].items() if key != "user.mage.managed"} == {
        **{key: value for key, value in before["config"].items() if key != "user.mage.managed"},
        **ours,
    }
    assert not engine.good(declared).changed


def test_configuration_is_there_at_the_start_and_frozen_stays_frozen(engine: Engine) -> None:
    """Elsewhere it was written after the start, and what was frozen changed in every run."""
    item = engine.item("b", state="frozen", config={"environment.WORD": "told", "raw.lxc": "lxc.environment = A=B"})
    made = engine.good(item)
    writes = [(method, path.rpartition("/")[2]) for method, path in made.requests if method != "GET"]
    assert writes == [("POST", "instances"), ("PUT", "state"), ("PUT", "state")]
    assert not engine.good(item).changed
    engine.server.run(
        "query", "--wait", "-X", "PUT", f"/1.0/instances/{item['name']}/state", "-d", '{"action":"unfreeze"}'
    )
    words = engine.execute("b", "sh", "-c", "tr '\\0' '\\n' </proc/1/environ").split()
    assert {"WORD=told", "A=B"} <= set(words)
    # Where it has to stop for a change, the change is there before it starts again.
    started = {**item, "state": "started"}
    stopped = {**item, "state": "stopped"}
    engine.good(stopped)
    again = engine.good({**started, "config": {"environment.WORD": "new"}})
    assert [method for method, path in again.requests if method != "GET"] == ["PATCH", "PUT"]
    assert "WORD=new" in engine.execute("b", "sh", "-c", "tr '\\0' '\\n' </proc/1/environ").split()


def test_what_does_not_come_in_time_is_a_failure(engine: Engine) -> None:
    """Elsewhere a timeout was a success."""
    nic = {"eth0": {"type": "nic", "nictype": "p2p", "name": "eth0"}}
    item = engine.item("c", devices=nic, wait_for=[{"address": {"nic": "eth0"}}])
    engine.good({**item, "wait_for": []})
    (failure,) = engine.run(item, timeout=1).failures
    assert "address of eth0: not so after 1 s; last state: Running" in failure


def hold(engine: Engine, suffix: str) -> int:
    """Hold the monitor of a container: the server cannot ask it then, and says Error. Returns the process."""
    monitor = int(server.run("pgrep", "-f", rf"^\[lxc monitor\] \S+ {engine.name(suffix)}$"))
    os.kill(monitor, signal.SIGSTOP)
    return monitor


@pytest.mark.parametrize("state", states.STATUS)
def test_a_status_of_error_is_a_status(engine: Engine, state: str) -> None:
    """Elsewhere it was a KeyError. Here, the server finds its monitor again as soon as it is to do something."""
    item = engine.item("d", wait_for=[])
    engine.good(item)
    used = engine.get("d")["last_used_at"]
    monitor = hold(engine, "d")

    def meddle(_method: str, path: str) -> None:
        if path.startswith("/1.0/instances/"):
            os.kill(monitor, signal.SIGCONT)
            # It is itself again in a moment.
            time.sleep(0.5 if not asked else 0)
            asked.append(path)

    asked: list[str] = []
    try:
        done = engine.good({**item, "state": state}, meddle=meddle)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(monitor, signal.SIGCONT)
    assert tuple(done.one["actions"]) == states.steps("Error", state)
    assert engine.status("d") == states.STATUS[state]
    if state in ("started", "frozen"):
        # It was but held, and is not ended for that.
        assert engine.get("d")["last_used_at"] == used
    elif state == "restarted":
        assert engine.get("d")["last_used_at"] != used


def test_a_status_of_error_that_stays(engine: Engine) -> None:
    """A server deletes what it cannot ask, and does nothing else with it: the message says what to do on the host."""
    items = {state: engine.item(state, wait_for=[]) for state in states.STATUS}
    engine.good(*items.values())
    monitors = {state: hold(engine, state) for state in items}
    inside = server.run("pgrep", "-P", str(monitors["absent"])).split()
    try:
        done = engine.run(*({**items[state], "state": state} for state in items), concurrency=len(items))
    finally:
        for monitor in monitors.values():
            os.kill(monitor, signal.SIGCONT)
        # Nobody knows of them any more.
        for process in inside if engine.status("absent") == "Absent" else ():
            os.kill(int(process), signal.SIGKILL)
    assert engine.status("absent") == "Absent"
    assert "absent: its status was Error" in "".join(done.warnings)
    assert "processes of it may be left on the host" in "".join(done.warnings)
    assert len(done.failures) == len(items) - 1
    for failure in done.failures:
        assert "its status is Error, and the server does not stop it" in failure
        assert "end the process that watches over it on the host" in failure
    for state in items:
        if state != "absent":
            assert (done.steps(engine.name(state)), engine.status(state)) == ([], "Running")


def test_a_stopped_container_is_never_the_controller(engine: Engine, tmp_path: Path) -> None:
    """Elsewhere the inventory gave it ``ansible_connection: local``."""
    item = engine.item("e", state="stopped")
    engine.good(item)
    engine.patch("e", {"config": {"user.mage.vars": '{"ansible_connection": "local"}'}})
    path = tmp_path / "inventory.lxd.yml"
    text = INVENTORY.replace("SOCKET", SOCKETS[engine.server.name]).replace("PREFIX", engine.prefix)
    path.write_text(text, encoding="utf-8")
    said = json.loads(server.run("ansible-inventory", "-i", str(path), "--list"))
    assert set(said["_meta"]["hostvars"]) == {item["name"]}
    host = json.dumps(said["_meta"]["hostvars"][item["name"]])
    assert '"ansible_connection": {"__ansible_unsafe": "mage.lxd.lxd"}' in host
    assert '"local"' not in host


def test_a_file_that_does_not_arrive_is_an_error(engine: Engine) -> None:
    """Elsewhere nobody looked."""
    engine.good(engine.item("f", wait_for=[]))
    with contextlib.closing(RestDriver(engine.options)) as driver:
        driver.push(engine.name("f"), "/tmp/there", b"x" * 100_000)
        assert driver.pull(engine.name("f"), "/tmp/there") == b"x" * 100_000
        for path in ("/no/such/folder/file", "/proc/version", "/tmp"):
            with pytest.raises(_errors.MageError, match=path):
                driver.push(engine.name("f"), path, b"x")
        with pytest.raises(_errors.NotFound):
            driver.pull(engine.name("f"), "/no/such/file")


def test_a_server_that_signs_its_own_certificate(engine: Engine, tmp_path: Path) -> None:
    """Elsewhere it could not be reached: here its fingerprint, which a token tells, says that it is the right one."""
    cert, key = tls.make_certificate(tmp_path, "peer")
    with listener.listening(engine.server.run) as endpoint:
        asked: dict[str, t.Any] = {"endpoint": endpoint, "client_cert": cert, "client_key": key}
        asked["trust_token"] = listener.make_token(engine.server.run)
        remote = Engine(engine.server, options.parse(asked, {}), engine.prefix)
        try:
            item = remote.item("g", state="stopped")
            assert remote.good(item).changed
            assert not remote.good(item).changed
        finally:
            listener.forget(engine.server.run, cert)
