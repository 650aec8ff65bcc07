# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Killed anywhere, the next run converges; a daemon that restarts in mid-run is waited for. On real servers."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
import typing as t

import pytest

from ansible_collections.mage.lxd.tests.integration.engine import Engine, Raw
from ansible_collections.mage.lxd.tests.integration.own_daemon import OwnDaemon, own_daemon

# One call after the other is killed before its write of that number, out of the dozen that the list takes.
KILLS = (3, 3, 2)
OWNED: dict[str, t.Any] = {"owner": "site", "prune": True}
BEFORE = dict.fromkeys(("changes", "restarts", "stops", "freezes", "goes", "pruned"), "Running")
AFTER = {
    "changes": "Running",
    "restarts": "Running",
    "stops": "Stopped",
    "freezes": "Frozen",
    "comes": "Running",
    "sleeps": "Stopped",
}
SLOW = {"raw.lxc": "lxc.environment = A=B"}


@dataclasses.dataclass(frozen=True)
class Own:
    """A daemon of one's own, and the instances' wing on it."""

    daemon: OwnDaemon
    engine: Engine


@pytest.fixture(scope="module", params=["lxd", "incus"])
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Own]:
    with own_daemon(request.param, tmp_path_factory.mktemp("own")) as made:
        yield Own(made, made.engine())


def lists(engine: Engine) -> tuple[list[Raw], list[Raw]]:
    """What is there, and what shall be: something is created, changed, restarted, stopped, frozen and removed."""
    nat = {"nat": [{"extport": 39401, "intport": 80}]}
    before = [engine.item(key) for key in BEFORE]
    before[4].update(nat)
    after = [
        engine.item("changes", config={"user.a": "1"}, hostnames=["changes.example.org"]),
        engine.item("restarts", config=SLOW),
        engine.item("stops", state="stopped"),
        engine.item("freezes", state="frozen"),
        engine.item("goes", state="absent"),
        engine.item("comes", **nat),
        engine.item("sleeps", state="stopped", config={"user.b": "1"}),
    ]
    return before, after


def check(engine: Engine, items: list[Raw], expected: dict[str, str], published: set[str]) -> None:
    """All is as declared, nothing is left over, and nothing is left to do. ``published`` are those with a pin."""
    found = {one["name"]: one for one in engine.server.query("/1.0/instances?recursion=1")}
    statuses = {name.replace(f"{engine.prefix}-", ""): one["status"] for name, one in found.items()}
    assert statuses == expected
    pins = {
        name.rpartition("-")[2]: one["devices"]["eth0"]["ipv4.address"]
        for name, one in found.items()
        if "eth0" in one["devices"]
    }
    assert set(pins) == published
    assert len(set(pins.values())) == len(pins)
    for suffix, pin in pins.items():
        assert engine.has_address(suffix, pin)
    assert not engine.good(*items, **OWNED).changed


def killed_at(number: int) -> t.Callable[[str, str], None]:
    """This process ends before its write of that number, with all that it has under way."""
    writes: list[str] = []

    def meddle(method: str, path: str) -> None:
        if method != "GET":
            writes.append(path)
            if len(writes) == number:
                os.kill(os.getpid(), signal.SIGKILL)

    return meddle


def run_until_killed(engine: Engine, items: list[Raw], number: int) -> None:
    child = os.fork()
    if child == 0:
        try:
            engine.run(*items, meddle=killed_at(number), **OWNED)
        finally:
            os._exit(3)
    _pid, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"it came to its end: {os.waitstatus_to_exitcode(status)}"


def test_callers_that_are_killed(own: Own) -> None:
    engine = own.engine
    before, after = lists(engine)
    engine.good(*before, **OWNED)
    for number in KILLS:
        run_until_killed(engine, after, number)
    engine.good(*after, **OWNED)
    check(engine, after, AFTER, {"changes", "comes"})
    assert engine.get("changes")["config"]["user.a"] == "1"
    assert "A=B" in engine.execute("restarts", "sh", "-c", "tr '\\0' '\\n' </proc/1/environ")


def test_a_daemon_that_restarts_in_mid_run(own: Own) -> None:
    """Once by SIGKILL, and once as its service would restart it; on the way back to the earlier list."""
    engine = own.engine
    before, after = lists(engine)
    engine.good(*after, **OWNED)
    writes: list[str] = []
    lock = threading.Lock()
    comebacks: list[threading.Thread] = []

    def meddle(method: str, path: str) -> None:
        if method == "GET":
            return
        with lock:
            writes.append(path)
            how = {3: signal.SIGKILL, 9: signal.SIGTERM}.get(len(writes))
            if how:
                own.daemon.end(how)
                comebacks.append(threading.Thread(target=own.daemon.start))
                comebacks[-1].start()

    done = engine.run(*before, meddle=meddle, **OWNED)
    for thread in comebacks:
        thread.join()
    assert len(comebacks) == 2
    assert done.failures == ()
    check(engine, before, BEFORE, {"goes"})
    assert "user.a" not in engine.get("changes")["config"]


def begin_and_kill_both(own: Own, body: Raw, after: float) -> None:
    """A caller begins to make an instance, and is killed together with the server."""
    child = os.fork()
    if child == 0:
        try:
            own.engine.run(body, meddle=lambda method, _path: _strike(own, after) if method == "POST" else None)
        finally:
            os._exit(3)
    os.waitpid(child, 0)
    assert own.daemon.process is not None
    own.daemon.process.wait(60)
    own.daemon.start()


def _strike(own: Own, after: float) -> None:
    def strike() -> None:
        time.sleep(after)
        own.daemon.machine.run("sh", "-c", "kill -9 $(cat /run/own.pid)")
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=strike).start()


def has_content(engine: Engine, name: str) -> bool:
    """Whether the server finds a file in an instance."""
    try:
        return bool(engine.server.query(f"/1.0/instances/{engine.name(name)}/files?path=/"))
    except RuntimeError as error:
        if not any(words in str(error) for words in ("no such file or directory", "Instance storage pool not found")):
            raise
        return False


def test_what_was_only_begun_is_made_anew(own: Own) -> None:
    """Both were killed in the middle: there is a record of the instance, and nothing in it. Where there is something,
    nothing is deleted."""
    engine = own.engine
    item = engine.item("begun")
    for after in (0.02, 0.04, 0.0, 0.06, 0.08, 0.1) * 3:
        begin_and_kill_both(own, item, after)
        if engine.status("begun") == "Stopped" and "volatile.apply_template" not in engine.get("begun")["config"]:
            if not has_content(engine, "begun"):
                break
            assert "nothing is deleted" in "".join(engine.run(item).failures)
        engine.good({**item, "state": "absent"})
    else:
        pytest.fail("it was never caught in the middle")
    done = engine.good(item)
    assert done.one["actions"] == ["delete", "create", "start"]
    assert "its creation seems to have been interrupted" in "".join(done.warnings)
    assert not engine.good(item).changed
