# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers in instances of servers, one and two deep: by the byte bridge, and by the client inside where there is none.

The contract of the drivers runs on both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._server import bridge, connect, lookup, operations
from ansible_collections.mage.lxd.plugins.module_utils._server import nested as nested_server
from ansible_collections.mage.lxd.plugins.module_utils._server.cli import CliDriver
from ansible_collections.mage.lxd.plugins.module_utils._server.core import CoreDriver
from ansible_collections.mage.lxd.plugins.module_utils._server.driver import api
from ansible_collections.mage.lxd.tests.integration import doors as doors_module
from ansible_collections.mage.lxd.tests.integration import nested, server


@pytest.fixture(scope="module")
def boxes(nested_hosts: nested.Hosts) -> t.Iterator[dict[str, nested.Host]]:
    """A running busybox container in each host: its name, and where it is."""
    found = {"in-one": nested_hosts.one, "in-two": nested_hosts.two}
    for name, host in found.items():
        host.launch(name)
    yield found
    for name, host in found.items():
        host.delete(name)


def test_containers_run_in_containers_of_containers(boxes: dict[str, nested.Host]) -> None:
    for name, host in boxes.items():
        assert host.run("lxc", "exec", name, "--", "hostname") == name


@pytest.mark.parametrize("way", ["nested", "nested2"])
def test_where_nothing_can_join_two_sockets_the_client_inside_is_run(
    way: str, doors: doors_module.Doors, boxes: dict[str, nested.Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = doors.way(way)[1]
    name = {"nested": "in-one", "nested2": "in-two"}[way]
    with contextlib.closing(connect.connect_core(where)) as driver:
        assert isinstance(driver, CoreDriver)
        assert driver.request("GET", api("instances", name)).metadata["name"] == name
    # As if the hosts had none of these programs. No bridge is left of the tests before.
    script = lookup.command(lookup.BRIDGE)[2]
    for program in ("command -v python3", "command -v socat", "nc -h"):
        assert program in script
        script = script.replace(program, "mage-no-such-program")
    monkeypatch.setattr(lookup, "_SCRIPT", script)
    monkeypatch.setattr(nested_server, "_bridges", bridge.Registry())
    for make in (connect.connect_core, connect.connect):
        with contextlib.closing(make(where)) as driver:
            assert isinstance(driver, CliDriver)
            assert driver.execute(name, ["hostname"]).stdout.decode() == f"{name}\n"
        with pytest.raises(_errors.NoBridge, match="neither python3, socat nor nc -U in"):
            make(dataclasses.replace(where, driver="rest")).request("GET", api())


@pytest.mark.parametrize("way", ["https", "ssh"])
def test_the_outermost_server_may_be_anywhere(
    way: str, doors: doors_module.Doors, boxes: dict[str, nested.Host]
) -> None:
    where = dataclasses.replace(doors.way(way)[1], via=boxes["in-two"].via)
    for driver, make in (("rest", connect.connect_core), ("cli", connect.connect_core), ("rest", connect.connect)):
        with contextlib.closing(make(dataclasses.replace(where, driver=driver))) as door:
            assert door.execute("in-two", ["hostname"]).stdout == b"in-two\n"
            door.push("in-two", "/root/file", b"\0\xff")
            assert door.pull("in-two", "/root/file") == b"\0\xff"


@pytest.mark.parametrize("way", ["nested", "nested2"])
def test_an_image_comes_from_a_file_by_the_client_inside(way: str, doors: doors_module.Doors, tmp_path: Path) -> None:
    path = tmp_path / "image"
    server.run("bash", str(Path(nested.__file__).with_name("busybox-image.sh")), str(path))
    # Zeros after the end make another image of it.
    path.write_bytes(path.read_bytes() + b"\0\0")
    fingerprint = server.run("sha256sum", str(path)).split()[0]
    host, where = doors.way(way)
    driver = connect.connect_core(dataclasses.replace(where, driver="cli"))
    with contextlib.closing(driver), path.open("rb") as file:
        operations.wait(driver, driver.request("POST", api("images"), body=file), "import")
    assert host.query(f"/1.0/images/{fingerprint}")["size"] == path.stat().st_size
    host.run("image", "delete", fingerprint)


def test_what_is_in_the_way_is_told(doors: doors_module.Doors, boxes: dict[str, nested.Host]) -> None:
    """By the bridge and by the client inside: no such instance, and one that has neither server nor client."""
    where = doors.way("nested")[1]
    outer, local = where.via[0], where.endpoint
    for driver, nothing in (
        ("rest", "there is no LXD or Incus on in-one (looked for /var/lib/lxd/unix.socket, /var/snap/lxd/common/lxd/"),
        ("cli", "neither lxc nor incus in in-one reaches a server there"),
    ):
        for via, words in (
            (("mt-none",), f"there is no instance mt-none on {local}"),
            ((outer, "mt-none"), f"there is no instance mt-none on {local} via {outer}"),
            ((outer, "in-one"), nothing),
        ):
            with pytest.raises(_errors.ServerUnreachable) as refused:
                connect.connect_core(dataclasses.replace(where, via=via, driver=driver)).request("GET", api())
            assert str(refused.value).startswith(f"Cannot reach the server at {' via '.join((local, *via))}: {words}")
