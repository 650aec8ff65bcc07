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
from ansible_collections.mage.lxd.tests.integration import listener, nested, server, sshd, tls


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


def test_the_role_makes_a_list_true_in_there_and_publishes_nothing_out_here(
    doors: doors_module.Doors, nested_hosts: nested.Hosts, run_playbook: t.Any, tmp_path: Path
) -> None:
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n", encoding="utf-8")
    item = {"name": "by-role", "image": nested.BUSYBOX, "python": False}
    variables = {
        "lxd_provisioning_inventory": [item],
        "lxd_provisioning_endpoint": doors.way("nested")[1].endpoint,
        "lxd_provisioning_via": list(nested_hosts.one.via),
        "lxd_provisioning_hosts_file": str(tmp_path / "hosts"),
    }
    play = "- hosts: localhost\n  gather_facts: false\n  roles: [mage.lxd.lxd_provisioning]\n"
    play += "- hosts: lxd_containers\n  gather_facts: false\n  tasks: [{name: Ask, ansible.builtin.raw: hostname}]\n"
    try:
        made = run_playbook(play, extra_vars=variables)
        assert made.succeeded().result("Ask", "by-role")["stdout"].strip() == "by-role"
        assert made.task("Publish ports in the host's firewall").status == "skipped"
        assert (tmp_path / "hosts").read_text(encoding="utf-8") == "127.0.0.1 localhost\n"
        variables["lxd_provisioning_inventory"] = [{**item, "name": "refused", "nat": [{"extport": 39377}]}]
        told = run_playbook(play, extra_vars=variables).failed()
        assert f"via {nested_hosts.one.via[0]} is not this host" in told
        assert "refused" not in nested_hosts.one.run("lxc", "list", "-f", "csv", "-c", "n")
    finally:
        nested_hosts.one.delete("by-role")
    assert "39377" not in server.run("iptables-save", "-t", "nat")


def test_a_server_in_an_instance_of_a_host_is_one_more_step(nested_hosts: nested.Hosts, run_playbook: t.Any) -> None:
    """For the modules on the host, and for the controller, which enters the containers by SSH."""
    name, inner = server.own_prefix() + "-in", nested_hosts.one
    variables = {
        "lxd_provisioning_inventory": [{"name": name, "image": nested.BUSYBOX, "python": False}],
        "lxd_provisioning_endpoint": f"unix://{doors_module.LXD_SOCKET}",
        "lxd_provisioning_via": list(inner.via),
        "lxd_provisioning_timeout": 599,
        "lxd_provisioning_hosts_file": "",
    }
    play = "- hosts: remote\n  gather_facts: false\n  roles: [mage.lxd.lxd_provisioning]\n"
    ask = "{name: Ask, ansible.builtin.raw: hostname, changed_when: false}"
    say = "{name: Say, ansible.builtin.debug: {var: ansible_lxd_timeout}}"
    play += f"- hosts: lxd_containers\n  gather_facts: false\n  tasks: [{ask}, {say}]\n"
    try:
        with sshd.sshd() as host:
            run = run_playbook(play, inventory=host.inventory(), extra_vars=variables).succeeded()
        assert run.result("Ask", name)["stdout"].strip() == name
        assert run.result("Say", name)["ansible_lxd_timeout"] == 599
    finally:
        inner.delete(name)


def test_the_role_makes_a_list_true_on_a_server_elsewhere(
    nested_hosts: nested.Hosts, run_playbook: t.Any, tmp_path: Path
) -> None:
    """By HTTPS from a host that publishes nothing of it."""
    host, prefix = nested_hosts.one, server.own_prefix()
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n", encoding="utf-8")
    cert, key = tls.make_certificate(tmp_path, prefix)
    address, length = server.late_address(skip=64), server.bridge_subnet().rpartition("/")[2]
    # So that nobody beside is given it.
    server.run("lxc", "config", "device", "override", host.via[0], "eth0", f"ipv4.address={address}")
    host.run("ip", "link", "set", "eth0", "up")
    host.run("ip", "address", "add", f"{address}/{length}", "dev", "eth0")
    # Another may have had the address a moment ago.
    server.run("ip", "neighbour", "flush", "to", address)
    host.run("lxc", "config", "set", "core.https_address", f"{address}:8443")
    name = f"{prefix}-far"
    item = {"name": name, "image": nested.BUSYBOX, "python": False}
    variables = {
        "lxd_provisioning_inventory": [item],
        "lxd_provisioning_endpoint": f"https://{address}:8443",
        "lxd_provisioning_client_cert": cert,
        "lxd_provisioning_client_key": key,
        "lxd_provisioning_trust_token": host.run("lxc", "config", "trust", "add", "--name", prefix).split()[-1],
        "lxd_provisioning_hosts_file": str(tmp_path / "hosts"),
    }
    play = "- hosts: localhost\n  gather_facts: false\n  roles: [mage.lxd.lxd_provisioning]\n"
    task = "{name: Ask, ansible.builtin.raw: hostname, changed_when: false}"
    play += f"- hosts: lxd_containers\n  gather_facts: false\n  tasks: [{task}]\n"
    try:
        made = run_playbook(play, extra_vars=variables).succeeded()
        assert made.result("Ask", name)["stdout"].strip() == name
        assert not made.task("Publish ports in the host's firewall").changed
        assert (tmp_path / "hosts").read_text(encoding="utf-8") == "127.0.0.1 localhost\n"
        run_playbook(play, extra_vars=variables).unchanged()
        variables["lxd_provisioning_inventory"] = [{**item, "nat": [{"extport": 39378}]}]
        told = run_playbook(play, extra_vars=variables).failed()
        assert f"endpoint: {address} is not this host" in told
    finally:
        host.delete(name)
        host.run("lxc", "config", "unset", "core.https_address")
        listener.forget(lambda *argv: host.run("lxc", *argv), cert)
        host.run("ip", "address", "del", f"{address}/{length}", "dev", "eth0")
        server.run("lxc", "config", "device", "remove", host.via[0], "eth0")
    assert "39378" not in server.run("iptables-save", "-t", "nat")


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


def test_of_both_servers_in_an_instance_its_environment_says_which_one(
    doors: doors_module.Doors, boxes: dict[str, nested.Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = doors.way("nested")[1]
    inside = boxes["in-one"]
    sockets = {name: f"/var/lib/{name}/unix.socket" for name in ("lxd", "incus")}
    # The second server is the first one under another name.
    start = 'mkdir -p "${1%/*}"; setsid socat "UNIX-LISTEN:$1,fork" "UNIX-CONNECT:$2" >&- 2>&- & pid=$!'
    start += '; until [ -S "$1" ]; do sleep 0.05; done; echo $pid'
    pid = inside.run("sh", "-c", start, "sh", sockets["incus"], sockets["lxd"])
    ways = " or ".join(f"environment.{name.upper()}_SOCKET={path}" for name, path in sorted(sockets.items()))
    told = f"LXD and Incus are both in {where.via[0]}: say which one by the setting of that instance, {ways}"

    def host_name(driver: str) -> str:
        monkeypatch.setattr(nested_server, "_bridges", bridge.Registry())
        with contextlib.closing(connect.connect_core(dataclasses.replace(where, driver=driver))) as door:
            return door.execute("in-one", ["hostname"]).stdout.decode().strip()

    try:
        for driver in ("rest", "cli"):
            with pytest.raises(_errors.ServerUnreachable) as refused:
                host_name(driver)
            assert str(refused.value).endswith(f": {told}")
        for name, path in sockets.items():
            key = f"environment.{name.upper()}_SOCKET"
            server.run("lxc", "config", "set", where.via[0], f"{key}={path}")
            assert [host_name(driver) for driver in ("rest", "cli")] == ["in-one", "in-one"]
            server.run("lxc", "config", "unset", where.via[0], key)
    finally:
        inside.run("sh", "-c", 'kill "$1"; rm -f "$2"', "sh", pid, sockets["incus"])


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
