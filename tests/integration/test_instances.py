# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""mage.lxd.instances on the real server: what it does is read back through the server's own client."""

from __future__ import annotations

import re
import socket
import threading
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.tests.integration import namespace, server
from ansible_collections.mage.lxd.tests.integration.playbook import PlaybookRun

SOCKET = "/var/lib/lxd/unix.socket"
BUSYBOX = "mage-test/busybox"
PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    - name: Make it true
      mage.lxd.instances:
        instances: "{{ items }}"
        endpoint: "{{ endpoint | default(omit) }}"
        concurrency: 4
        timeout: 60
"""

Run = t.Callable[..., PlaybookRun]
Query = t.Callable[..., t.Any]
Unique = t.Callable[[str], str]


def item(name: str, **fields: t.Any) -> dict[str, t.Any]:
    return {"name": name, "image": BUSYBOX, **fields}


@pytest.fixture
def bridge() -> t.Iterator[dict[str, t.Any]]:
    """An item's devices on a bridge where nothing has been leased yet: the server does not tell of what deleted
    instances have left with dnsmasq. Ask for it before unique_name, so that it outlives the instances."""
    name, network = server.own_bridge_name(), namespace.free_network(24)
    server.run("lxc", "network", "create", name, f"ipv4.address={network[1]}/24", "ipv6.address=none")
    yield {"devices": {"eth0": {"type": "nic", "name": "eth0", "network": name}}}
    server.run("lxc", "network", "delete", name)


def apply(run_playbook: Run, *items: dict[str, t.Any], **options: t.Any) -> PlaybookRun:
    variables = {"items": list(items), **options.pop("extra", {})}
    return run_playbook(PLAY, extra_vars=variables, **options)


def result(done: PlaybookRun) -> dict[str, t.Any]:
    return done.succeeded().result("Make it true")


def by_name(done: PlaybookRun) -> dict[str, dict[str, t.Any]]:
    return {one["name"]: one for one in result(done)["instances"]}


class CountingSocket:
    """Stands before the server's socket and writes down every request line that goes through."""

    def __init__(self, path: Path) -> None:
        self.requests: list[str] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _address = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(SOCKET)
            threading.Thread(target=self._copy, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._copy, args=(server, client, False), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, count: bool) -> None:
        while data := source.recv(65536):
            if count:
                found = re.findall(rb"^([A-Z]+ /\S*) HTTP/1\.1\r$", data, re.MULTILINE)
                self.requests += [line.decode() for line in found]
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listener.close()


def test_twenty_containers_in_one_call_and_again(run_playbook: Run, unique_name: Unique, tmp_path: Path) -> None:
    items = [item(unique_name(f"n{number}")) for number in range(20)]
    first = by_name(apply(run_playbook, *items))
    assert {one["status"] for one in first.values()} == {"Running"}
    addresses = {one["address"] for one in first.values()}
    assert len(addresses) == 20
    assert "" not in addresses

    counting = CountingSocket(tmp_path / "counting.socket")
    again = apply(run_playbook, *items, extra={"endpoint": f"unix://{tmp_path}/counting.socket"})
    counting.close()
    assert result(again)["changed"] is False
    assert [line.split()[0] for line in counting.requests if not line.startswith("GET ")] == []
    lists = [line for line in counting.requests if line.startswith("GET /1.0/instances")]
    assert len(lists) == 1, counting.requests
    assert len(counting.requests) <= 4, counting.requests


def test_check_then_apply_then_apply(
    bridge: dict[str, t.Any], run_playbook: Run, unique_name: Unique, lxd_query: Query
) -> None:
    items = [
        item(unique_name("a"), **bridge, nat=[{"extport": 39001}], config={"limits.memory": "64MiB"}),
        item(unique_name("b"), **bridge, state="stopped", hostnames=["b.example.org"]),
    ]
    before = server.contents()
    checked = apply(run_playbook, *items, check=True, diff=True)
    assert server.contents() == before
    planned = by_name(checked)
    first = by_name(apply(run_playbook, *items))
    again = apply(run_playbook, *items)
    assert (result(checked)["changed"], result(again)["changed"]) == (True, False)
    for name, one in first.items():
        for key in ("status", "keys", "addresses", "actions", "changed"):
            assert planned[name][key] == one[key], (name, key)
        device = lxd_query(f"/1.0/instances/{name}")["devices"]["eth0"]
        assert device["ipv4.address"] == one["address"]
    diff = "\n".join(part["after"] for part in result(checked)["diff"])
    assert "limits.memory" in diff
    assert "volatile" not in diff


def test_one_fails_and_the_others_go_on(run_playbook: Run, unique_name: Unique, lxd_query: Query) -> None:
    good, bad = unique_name("good"), unique_name("bad")
    items = [item(bad, devices={"d": {"type": "disk", "source": "/nowhere/at/all", "path": "/d"}}), item(good)]
    done = apply(run_playbook, *items)
    message = done.failed()
    assert bad in message
    assert "/nowhere/at/all" in message
    assert good not in message
    values = {one["name"]: one for one in done.result("Make it true")["instances"]}
    assert (values[good]["status"], values[good]["error"]) == ("Running", "")
    assert values[bad]["error"]
    items[0].pop("devices")
    again = by_name(apply(run_playbook, *items))
    assert (again[good]["changed"], again[bad]["changed"]) == (False, True)


def test_every_mistake_is_told_and_nothing_is_done(run_playbook: Run, unique_name: Unique, lxd_query: Query) -> None:
    name = unique_name("x")
    done = apply(
        run_playbook,
        item(name),
        {"name": "a.b", "image": BUSYBOX},
        item(unique_name("y"), nat=[{"extport": 0}], imagee="x"),
    )
    message = done.failed()
    assert 'instances[1].name: "a.b": 1 to 63 letters, digits and hyphens' in message
    assert "instances[2].nat[0].extport: 0: must be " in message
    assert "instances[2].imagee: unknown key (did you mean image?)" in message
    assert name not in [one["name"] for one in lxd_query("/1.0/instances?recursion=1")]
    message = apply(run_playbook, item(name, image="mage-test/bussybox"), item(name + "z", profiles=["none"])).failed()
    assert "did you mean mage-test/busybox?" in message
    assert 'instances[1].profiles[0]: "none": there is no such profile' in message
    assert name not in [one["name"] for one in lxd_query("/1.0/instances?recursion=1")]


@pytest.mark.parametrize("endpoint", ["unix:///nowhere/unix.socket", "https://127.0.0.1:1"])
def test_a_server_out_of_reach_is_one_sentence(run_playbook: Run, endpoint: str) -> None:
    message = apply(run_playbook, item("a"), extra={"endpoint": endpoint}).failed()
    assert endpoint in message or "client_cert" in message
    assert "Traceback" not in message
    assert len(message.splitlines()) == 1


def test_secrets_are_in_no_output(run_playbook: Run, unique_name: Unique) -> None:
    config = {"environment.TOKEN": "canary-1", "cloud-init.user-data": "canary-2", "user.plain": "told"}
    done = apply(run_playbook, item(unique_name("s"), state="stopped", config=config), diff=True)
    assert result(done)["invocation"]["module_args"]["instances"][0]["config"]["user.plain"] == "told"
    assert "canary" not in str(result(done))


def test_a_pin_that_the_network_refuses_follows_what_it_leased(
    run_playbook: Run, unique_name: Unique, lxd_query: Query, tmp_path: Path
) -> None:
    """dnsmasq keeps an address for whom it leased it to, and the server does not tell of leases of no instance."""
    one = item(unique_name("moved"), nat=[{"extport": 39004}])
    wanted = by_name(apply(run_playbook, one, check=True))[one["name"]]["address"]
    space, end = unique_name("ns"), "mtv" + str(tmp_path.stat().st_ino)[-8:]
    server.run("ip", "netns", "add", space)
    try:
        server.run("ip", "link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", space)
        server.run("ip", "link", "set", end, "master", "lxdbr0", "up")
        server.run("ip", "-n", space, "link", "set", "eth0", "up")
        client = ["busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-r", wanted, "-s", "/bin/true"]
        server.run("ip", "netns", "exec", space, *client)
        made = apply(run_playbook, one)
        now = by_name(made)[one["name"]]["address"]
        assert now != wanted
        assert f"the network has leased it {now} instead of {wanted}" in made.output
        assert lxd_query(f"/1.0/instances/{one['name']}")["devices"]["eth0"]["ipv4.address"] == now
        assert now in server.run("lxc", "exec", one["name"], "--", *server.LINGER, "ip", "addr", "show", "eth0")
        assert result(apply(run_playbook, one))["changed"] is False
    finally:
        server.run("ip", "netns", "delete", space)
