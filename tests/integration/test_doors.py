# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole life of an instance through every door, and the table of what was done through which."""

from __future__ import annotations

import concurrent.futures
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._context import Report
from ansible_collections.mage.lxd.plugins.module_utils._server.driver import api
from ansible_collections.mage.lxd.plugins.module_utils._server.options import ServerOptions
from ansible_collections.mage.lxd.tests.integration import server, table
from ansible_collections.mage.lxd.tests.integration.doors import DOORS, Doors, Driver, Server
from ansible_collections.mage.lxd.tests.integration.engine import Raw, converge
from ansible_collections.mage.lxd.tests.integration.playbook import ROOT

# Its PID 1 does not know this signal: it cannot be asked to stop.
DEAF = {"raw.lxc": "lxc.signal.halt = SIGUSR2"}


def status(host: Server, name: str) -> str:
    """As the server's own client says it."""
    return str(host.query(f"/1.0/instances/{name}")["status"])


class Life:
    """One instance through one door: made true by the module's engine, and entered by the driver."""

    def __init__(self, driver: Driver, way: ServerOptions, host: Server, name: str) -> None:
        self.driver = driver
        self.way = way
        self.name = name
        self.image = host.image

    def converge(self, timeout: int = 60, **fields: t.Any) -> tuple[Report, Raw]:
        """Make the instance what ``fields`` say: the report, and what is told of it."""
        item = {"name": self.name, "image": self.image, "wait_for": [], **fields}
        planned, report, (value,) = converge(self.driver, self.way, item, timeout=timeout)
        assert report, f"{fields}: nothing was to be done; {planned}"
        return report, value

    def become(self, **fields: t.Any) -> Raw:
        """The same where nothing may go wrong, or need force."""
        report, value = self.converge(**fields)
        assert (report.failures, report.warnings) == ((), ())
        return value


def life(one: Life, host: Server, folder: Path, done: t.Callable[[str], None]) -> None:
    """Each operation, read back by the server's own client or by the instance itself."""
    driver, name = one.driver, one.name
    one.become(state="stopped", config=DEAF)
    assert status(host, name) == "Stopped"
    done("create")
    fields: Raw = {"config": {**DEAF, "user.a": "ä b"}, "description": "of the doors"}
    one.become(state="stopped", **fields)
    found = host.query(f"/1.0/instances/{name}")
    assert (found["config"]["user.a"], found["description"]) == ("ä b", "of the doors")
    done("update")
    one.become(**fields)
    assert status(host, name) == "Running"
    done("start")
    state = driver.request("GET", api("instances", name, "state")).metadata
    assert (state["status"], state["pid"] > 0) == ("Running", True)
    done("state")
    found = driver.request("GET", api("instances", name)).metadata
    assert (found["config"]["user.a"], found["config"]["raw.lxc"]) == ("ä b", DEAF["raw.lxc"])
    done("configuration")
    address = one.become(wait_for=["address"], **fields)["address"]
    said = driver.execute(name, ["ip", "-o", "-4", "address", "show", "dev", "eth0"]).stdout.decode()
    assert f"inet {address}/" in said
    done("wait for address")
    driver.push(name, "/usr/bin/cloud-init", b"#!/bin/sh\ncat /root/said\n", mode=0o755)
    driver.push(name, "/root/said", b"status: error\ndetail: no luck\n")
    failed, _value = one.converge(wait_for=["cloud-init"], **fields)
    assert "cloud-init failed: no luck" in "".join(failed.failures)
    driver.push(name, "/root/said", b"status: done\n")
    one.become(wait_for=["cloud-init"], **fields)
    done("wait for cloud-init")
    assert driver.execute(name, ["sh", "-c", "cat; echo no >&2; exit 3"], stdin=b"\0\xff") == (3, b"\0\xff", b"no\n")
    done("execute")
    driver.push(name, "/root/file", b"\0\xff", mode=0o640, uid=1, gid=2)
    assert driver.execute(name, ["stat", "-c", "%a %u %g %s", "/root/file"]).stdout == b"640 1 2 2\n"
    done("write file")
    assert driver.pull(name, "/root/file") == b"\0\xff"
    with pytest.raises(_errors.NotFound):
        driver.pull(name, "/root/none")
    done("read file")
    here, back = folder / "here", folder / "back"
    (here / "sub dir").mkdir(parents=True)
    back.mkdir()
    (here / "sub dir" / "ümläut\n").write_bytes(b"\0\xff")
    (here / "sub dir" / "run").write_text("#!/bin/sh\n")
    (here / "sub dir" / "run").chmod(0o755)
    (here / "link").symlink_to("sub dir/run")
    driver.push_folder(name, "/root/there/deep", str(here))
    there = driver.execute(name, ["sh", "-c", "cd /root/there/deep; stat -c '%a %u' 'sub dir/run'; readlink link"])
    assert there.stdout.decode().splitlines() == ["755 0", "sub dir/run"]
    done("push folder")
    driver.pull_folder(name, "/root/there/deep", str(back))
    assert server.run("diff", "-r", str(here), str(back)) == ""
    assert (back / "sub dir" / "run").stat().st_mode & 0o777 == 0o755
    done("pull folder")
    patient = {"timeout": 1, "attempts": 2}
    kept, _value = one.converge(state="stopped", stop={**patient, "force": False}, **fields)
    assert "did not shut down in 1 s each time" in "".join(kept.failures)
    assert status(host, name) == "Running"
    done("stop, with retries")
    forced, _value = one.converge(state="stopped", stop=patient, **fields)
    assert "did not shut down in 1 s each time" in "".join(forced.warnings)
    assert (forced.failures, status(host, name)) == ((), "Stopped")
    done("stop, forced")
    del fields["config"]["raw.lxc"]
    one.become(**fields)
    one.become(state="stopped", **fields)
    assert status(host, name) == "Stopped"
    done("stop, graceful")
    one.become(state="absent")
    with pytest.raises(RuntimeError, match="not found"):
        status(host, name)
    done("delete")


COMPARED = "test_the_table_in_the_documentation_is_what_came_out"


@pytest.fixture(scope="module")
def lives(
    request: pytest.FixtureRequest, doors: Doors, tmp_path_factory: pytest.TempPathFactory
) -> t.Iterator[dict[str, concurrent.futures.Future[None]]]:
    """All lives that are wanted, four at a time: most of a life is waiting."""
    names = {item.name for item in request.session.items}
    wanted = [door for door in DOORS if {f"test_a_life_through_a_door[{door}]", COMPARED} & names]
    # Ways are opened one after another.
    ways = {door: doors.way(DOORS[door][1]) for door in wanted}
    folder = tmp_path_factory.mktemp("lives")

    def live(door: str) -> None:
        own, name = folder / door, server.own_prefix()
        own.mkdir()
        host, way = ways[door]
        driver = doors.driver(door)
        try:
            life(Life(driver, way, host, name), host, own, lambda operation: table.note(door, operation))
        finally:
            driver.close()
            host.delete(name)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        yield {door: pool.submit(live, door) for door in wanted}


@pytest.mark.parametrize("door", DOORS)
def test_a_life_through_a_door(door: str, lives: dict[str, concurrent.futures.Future[None]]) -> None:
    lives[door].result()


def test_the_table_in_the_documentation_is_what_came_out(lives: dict[str, concurrent.futures.Future[None]]) -> None:
    concurrent.futures.wait(lives.values())
    assert "\n".join(table.lines()) in (ROOT / "docs" / "servers.md").read_text(encoding="utf-8")
