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
from ansible_collections.mage.lxd.plugins.module_utils._server import lifecycle, operations
from ansible_collections.mage.lxd.plugins.module_utils._server.driver import api
from ansible_collections.mage.lxd.tests.integration import server, table
from ansible_collections.mage.lxd.tests.integration.doors import DOORS, Doors, Driver, Server
from ansible_collections.mage.lxd.tests.integration.playbook import ROOT

# Its PID 1 does not know this signal: it cannot be asked to stop.
DEAF = {"raw.lxc": "lxc.signal.halt = SIGUSR2"}


def status(host: Server, name: str) -> str:
    """As the server's own client says it."""
    return str(host.query(f"/1.0/instances/{name}")["status"])


def life(driver: Driver, host: Server, name: str, folder: Path, done: t.Callable[[str], None]) -> None:
    """Each operation, read back by the server's own client or by the instance itself."""
    source = {"type": "image", "alias": host.image}
    operations.run(driver, "POST", api("instances"), body={"name": name, "source": source, "config": DEAF})
    assert status(host, name) == "Stopped"
    done("create")
    lifecycle.update(driver, name, {"config": {"user.a": "ä b"}, "description": "of the doors"})
    found = host.query(f"/1.0/instances/{name}")
    assert (found["config"]["user.a"], found["description"]) == ("ä b", "of the doors")
    done("update")
    lifecycle.start(driver, name)
    assert status(host, name) == "Running"
    done("start")
    assert lifecycle.state(driver, name)["status"] == "Running"
    done("state")
    found = driver.request("GET", api("instances", name)).metadata
    assert (found["config"]["user.a"], found["config"]["raw.lxc"]) == ("ä b", DEAF["raw.lxc"])
    done("configuration")
    address = lifecycle.wait_for_address(driver, name, timeout=40)
    said = driver.execute(name, ["ip", "-o", "-4", "address", "show", "dev", "eth0"]).stdout.decode()
    assert f"inet {address}/" in said
    done("wait for address")
    assert lifecycle.wait_for_cloud_init(driver, name) is False
    driver.push(
        name, "/usr/bin/cloud-init", b'#!/bin/sh\n[ "$*" = "status --wait" ] && exit $(cat /root/rc)', mode=0o755
    )
    for rc in ("0", "2"):
        driver.push(name, "/root/rc", rc.encode())
        assert lifecycle.wait_for_cloud_init(driver, name) is True
    driver.push(name, "/root/rc", b"1")
    with pytest.raises(_errors.CommandFailed):
        lifecycle.wait_for_cloud_init(driver, name)
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
    lifecycle.push_folder(driver, name, str(here), "/root/there/deep")
    there = driver.execute(name, ["sh", "-c", "cd /root/there/deep; stat -c '%a %u' 'sub dir/run'; readlink link"])
    assert there.stdout.decode().splitlines() == ["755 0", "sub dir/run"]
    done("push folder")
    lifecycle.pull_folder(driver, name, "/root/there/deep", str(back))
    assert server.run("diff", "-r", str(here), str(back)) == ""
    assert (back / "sub dir" / "run").stat().st_mode & 0o777 == 0o755
    done("pull folder")
    with pytest.raises(_errors.DeadlinePassed, match="not stopped after asked 2 times, 1 s each; last state: Running"):
        lifecycle.stop(driver, name, timeout=1, retries=1)
    lifecycle.stop(driver, name, force=True)
    assert status(host, name) == "Stopped"
    done("stop, forced")
    lifecycle.update(driver, name, {"config": {"raw.lxc": ""}})
    lifecycle.start(driver, name)
    lifecycle.stop(driver, name, timeout=20, retries=1)
    assert status(host, name) == "Stopped"
    done("stop, graceful")
    lifecycle.delete(driver, name)
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
    hosts = {door: doors.way(DOORS[door][1])[0] for door in wanted}
    folder = tmp_path_factory.mktemp("lives")

    def live(door: str) -> None:
        own, name = folder / door, server.own_prefix()
        own.mkdir()
        driver = doors.driver(door)
        try:
            life(driver, hosts[door], name, own, lambda operation: table.note(door, operation))
        finally:
            driver.close()
            hosts[door].delete(name)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        yield {door: pool.submit(live, door) for door in wanted}


@pytest.mark.parametrize("door", DOORS)
def test_a_life_through_a_door(door: str, lives: dict[str, concurrent.futures.Future[None]]) -> None:
    lives[door].result()


def test_the_table_in_the_documentation_is_what_came_out(lives: dict[str, concurrent.futures.Future[None]]) -> None:
    concurrent.futures.wait(lives.values())
    assert "\n".join(table.lines()) in (ROOT / "docs" / "servers.md").read_text(encoding="utf-8")
