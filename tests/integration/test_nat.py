# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Published ports on a real firewall: reached from everywhere, healed after any flush, never torn."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils._context import Context
from ansible_collections.mage.lxd.plugins.module_utils._errors import InvalidInput
from ansible_collections.mage.lxd.plugins.module_utils._nat import iptables, plan, render, spec
from ansible_collections.mage.lxd.plugins.module_utils._server import options
from ansible_collections.mage.lxd.tests.integration import namespace, playbook, server

FOLDER = Path(__file__).parent
PEER = [sys.executable, str(FOLDER / "nat_peer.py")]
WORKER = [sys.executable, str(FOLDER / "nat_worker.py")]
IMAGE = "mage-test/busybox"
CHAINS = {"MAGE-LXD-PRE", "MAGE-LXD-OUT", "MAGE-LXD-POST", "MAGE-LXD-FWD"}
HEAD = "- hosts: localhost\n  gather_facts: false\n  tasks:\n"


def gateway() -> str:
    """The host's address on the bridge."""
    return server.bridge_subnet().partition("/")[0]


def task(name: str, action: str = "mage.lxd.nat", **arguments: t.Any) -> str:
    return f"    - name: {name}\n      {action}: {json.dumps(arguments)}\n"


def command(name: str, *argv: str) -> str:
    return task(name, "ansible.builtin.command", argv=list(argv))


def publish(name: str, *entries: dict[str, t.Any]) -> None:
    """As a person would: with the server's own client."""
    server.run("lxc", "config", "set", name, "user.mage.nat", json.dumps(entries) if entries else "")


def free_port() -> int:
    """A port that nothing has, neither a process nor a rule."""
    rules = server.run("iptables-save", "-t", "nat")
    while True:
        port = random.SystemRandom().randrange(20000, 30000)
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            if f"--dport {port} " not in rules:
                return port


def saved(*prefix: str) -> list[str]:
    """What the firewall says, without counters and times."""
    text = server.run(*prefix, "iptables-save")
    return [re.sub(r" \[\d+:\d+\]$", "", line) for line in text.splitlines() if not line.startswith("#")]


def jumps(rules: str) -> list[str]:
    """Which chains of ours the others jump to, once for each jump."""
    return sorted(re.findall(r"^-A (?!MAGE-).* -j (MAGE-\S+)$", rules, re.MULTILINE))


@dataclasses.dataclass(frozen=True)
class Container:
    """A running container with a server of TCP and UDP in it."""

    name: str
    address: str
    inside: tuple[str, ...]

    def ask(self, proto: str, address: str, port: int) -> str:
        return ask(proto, address, port, prefix=self.inside)


def ask(proto: str, address: str, port: int, *source: int, prefix: t.Sequence[str] = (), seconds: float = 20) -> str:
    """Who answers, and which address it sees: ``NAME 10.64.0.2``; empty if nobody does."""
    argv = [*prefix, *PEER, "ask", str(seconds), proto, address, str(port), *(str(one) for one in source)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60).stdout.strip()


def launch(name: str) -> Container:
    server.run("lxc", "launch", IMAGE, name)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        state = server.lxd_query(f"/1.0/instances/{name}/state")
        found = [
            one["address"] for one in state["network"].get("eth0", {}).get("addresses", ()) if one["family"] == "inet"
        ]
        if found:
            return Container(name, found[0], ("nsenter", f"--net=/proc/{state['pid']}/ns/net"))
        time.sleep(0.1)
    raise AssertionError(f"{name} has no address after 20 s")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[tuple[Container, Container]]:
    """Two containers that answer on TCP port 7 and UDP port 7; afterwards they are gone, their rules too."""
    prefix = server.own_prefix()
    try:
        made = [launch(f"{prefix}-{suffix}") for suffix in ("a", "b")]
        with contextlib.ExitStack() as answering:
            for one in made:
                argv = [*one.inside, *PEER, "serve", one.name, "7", "7"]
                peer = answering.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE))
                answering.callback(peer.kill)
                assert peer.stdout is not None
                assert peer.stdout.readline() == b"ready\n"
            yield made[0], made[1]
    finally:
        server.delete_instances(f"{prefix}-")
        text = HEAD + task("Remove the rules of what is gone")
        playbook.run_playbook(tmp_path_factory.mktemp("clean"), text).succeeded()
    assert not [line for line in saved() if prefix in line]


def test_a_port_is_reached_from_everywhere(pair: t.Any, client_namespace: t.Any, run_playbook: t.Any) -> None:
    a, b = pair
    client = client_namespace
    anywhere, by_interface, by_address, span, stranger = (free_port() for _index in range(5))
    entries = [
        {"extport": anywhere, "intport": 7, "proto": "both"},
        {"extport": by_interface, "intport": 7, "extif": client.interface},
        {"extport": by_address, "intport": 7, "extaddr": client.host_address, "proto": "both"},
        {"extport": f"{span}-{span + 2}", "intport": "6-8", "proto": "both"},
    ]
    publish(a.name, *entries)
    publish(b.name, {"extport": stranger, "intport": 7, "extif": "lxdbr0"})
    before = saved()
    text = HEAD + task("Publish")
    checked = run_playbook(text, check=True, diff=True).succeeded()
    assert saved() == before
    first = run_playbook(text, diff=True).succeeded()
    again = run_playbook(text, diff=True).succeeded()
    assert [run.task("Publish").changed for run in (checked, first, again)] == [True, True, False]
    assert checked.result("Publish")["diff"] == first.result("Publish")["diff"]
    tables = [one for one in first.result("Publish")["diff"] if one["after_header"].startswith("table ")]
    shown = {line for one in tables for line in one["after"].splitlines()}
    assert shown == {line.replace('"', "") for line in saved() if "MAGE-LXD" in line and line.startswith("-A")}

    outside = client.prefix()
    for proto in ("tcp", "udp"):
        # A client keeps its address, and so does the host.
        assert ask(proto, client.host_address, anywhere, prefix=outside) == f"{a.name} {client.address}"
        assert ask(proto, gateway(), anywhere, prefix=outside) == f"{a.name} {client.address}"
        assert ask(proto, client.host_address, by_address, prefix=outside) == f"{a.name} {client.address}"
        assert ask(proto, client.host_address, span + 1, prefix=outside) == f"{a.name} {client.address}"
        assert ask(proto, client.host_address, anywhere) == f"{a.name} {client.host_address}"
        for inside in (a, b):
            for port in (anywhere, by_address, span + 1):
                assert inside.ask(proto, client.host_address, port).split()[0] == a.name, (inside, proto, port)
    assert ask("tcp", client.host_address, by_interface, prefix=outside) == f"{a.name} {client.address}"
    assert ask("tcp", client.host_address, by_interface) == f"{a.name} {client.host_address}"
    assert b.ask("tcp", client.host_address, by_interface).split()[0] == a.name
    assert a.ask("tcp", client.host_address, by_interface).split()[0] == a.name
    # Published on the bridge only: nobody outside gets there, by no address.
    assert b.ask("tcp", gateway(), stranger).split()[0] == b.name
    both = client.host_address, gateway()
    assert [ask("tcp", address, stranger, prefix=outside, seconds=2) for address in both] == ["", ""]
    # A service of the host's own on its loopback stays reachable.
    with socket.create_server(("127.0.0.1", anywhere)), socket.create_connection(("127.0.0.1", anywhere), 2):
        pass


def test_an_address_that_the_host_has_not_leads_nobody_astray(
    pair: t.Any, client_namespace: t.Any, run_playbook: t.Any
) -> None:
    """An instance's key may name any address: what the host and others send there is not for the instance."""
    a, b = pair
    client, port = client_namespace, free_port()
    publish(b.name)
    publish(a.name, {"extport": port, "intport": 7, "extaddr": client.address, "proto": "both"})
    done = run_playbook(HEAD + task("Publish")).succeeded().result("Publish")
    assert any(f"no interface of this host has {client.address}" in one for one in done["warnings"])
    argv = [*client.prefix(), *PEER, "serve", "itself", str(port), str(port)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as peer:
        try:
            assert peer.stdout is not None
            assert peer.stdout.readline() == b"ready\n"
            for proto in ("tcp", "udp"):
                assert ask(proto, client.address, port) == f"itself {client.host_address}"
                assert b.ask(proto, client.address, port).split()[0] == "itself"
        finally:
            peer.kill()


def test_a_udp_flow_follows_its_port(pair: t.Any, client_namespace: t.Any, run_playbook: t.Any) -> None:
    a, b = pair
    port = free_port()
    entry = {"extport": port, "intport": 7, "proto": "udp"}

    def asked(seconds: float = 20) -> str:
        prefix = client_namespace.prefix()
        return ask("udp", client_namespace.host_address, port, 5555, prefix=prefix, seconds=seconds)

    for container, other in ((a, b), (b, a)):
        publish(other.name)
        publish(container.name, entry)
        run_playbook(HEAD + task("Publish")).succeeded()
        assert asked() == f"{container.name} {client_namespace.address}"
    publish(b.name)
    run_playbook(HEAD + task("Publish")).succeeded()
    assert asked(2) == ""


def declared(container: Container, *entries: dict[str, t.Any]) -> dict[str, t.Any]:
    """What mage.lxd.instances would have returned."""
    address = {"device": "eth0", "network": "lxdbr0", "family": 4, "address": container.address, "pinned": True}
    return {
        "name": container.name,
        "project": "default",
        "status": "Running",
        "addresses": [address],
        "keys": {"user.mage.nat": json.dumps(entries)},
    }


def test_conflicts_are_told_before_anything_changes(pair: t.Any, run_playbook: t.Any) -> None:
    a, b = pair
    port, taken = free_port(), free_port()
    with socket.create_server(("", taken)):
        publish(a.name, {"extport": port}, {"extport": taken})
        publish(b.name, {"extport": port})
        before = saved()
        text = HEAD + task("Publish", declared=[declared(a), declared(b)])
        message = run_playbook(text).failed()
        assert saved() == before
        assert f"default/{b.name}: nat[0]: tcp port {port}: default/{a.name} has it already" in message
        assert f"default/{a.name}: nat[1]: tcp port {taken}: " in message
        assert f"(pid {os.getpid()}) listens on 0.0.0.0:{taken}/tcp on this host" in message
        left = run_playbook(HEAD + task("Publish")).succeeded().result("Publish")
    assert {one["instance"] for one in left["left_out"]} >= {f"default/{a.name}", f"default/{b.name}"}
    assert [one["instance"] for one in left["rules"] if one["external"] == f"*:{port}"] == [a.name]
    planned = [declared(a, {"extport": port}), declared(b, {"extport": taken})]
    seen = run_playbook(HEAD + task("Publish", declared=planned), check=True).succeeded().result("Publish")
    assert {(one["instance"], one["external"]) for one in seen["rules"]} >= {
        (a.name, f"*:{port}"),
        (b.name, f"*:{taken}"),
    }


@dataclasses.dataclass
class Run:
    """A run of the module in this process, which has read and planned; what it does comes later."""

    declared: tuple[dict[str, t.Any], ...] = ()

    def __post_init__(self) -> None:
        self.desired = spec.Desired(declared=self.declared)
        self.context = Context({}, False, options.parse({}))
        self.observed = iptables.observe(self.desired, self.context)
        self.planned = plan.plan(self.desired, self.observed)

    def finish(self) -> t.Mapping[str, t.Any]:
        with contextlib.closing(self.context):
            report = iptables.apply(self.desired, self.observed, self.planned, self.context)
        return plan.present(self.desired, self.observed, self.planned, report)


def test_a_run_that_is_late_undoes_nothing_of_another(pair: t.Any) -> None:
    a, b = pair
    first, second = free_port(), free_port()
    publish(b.name)
    publish(a.name, {"extport": first, "intport": 7})
    late = Run()
    publish(b.name, {"extport": second, "intport": 7})
    Run().finish()
    ports = {one["external"] for one in late.finish()["rules"]}
    assert {f"*:{first}", f"*:{second}"} <= ports
    rules = "\n".join(saved())
    assert f"--dport {first} " in rules
    assert f"--dport {second} " in rules
    # What it declared has gone to somebody else meanwhile.
    publish(b.name)
    Run().finish()
    publish(a.name, {"extport": second, "intport": 7})
    late = Run((declared(a),))
    publish(a.name)
    publish(b.name, {"extport": second, "intport": 7})
    Run().finish()
    publish(a.name, {"extport": second, "intport": 7})
    with pytest.raises(InvalidInput, match=f"default/{a.name}: .*: default/{b.name} has it already"):
        late.finish()
    assert not [line for line in saved() if f"default/{a.name}" in line]


@pytest.fixture(params=["nft", "legacy"])
def firewall(request: pytest.FixtureRequest, tmp_path: Path) -> t.Iterator[tuple[namespace.Namespace, dict[str, str]]]:
    """A namespace with an empty firewall of its own, and the environment in which iptables is of one kind."""
    for tool in ("iptables", "iptables-save", "iptables-restore"):
        kind = shutil.which(tool.replace("iptables", f"iptables-{request.param}"))
        assert kind is not None, f"iptables-{request.param} is not installed"
        (tmp_path / tool).symlink_to(kind)
    path = f"{tmp_path}:{os.environ['PATH']}"
    with namespace.client_namespace() as made:
        made.run("ip", "link", "add", "lxdbr0", "type", "bridge")
        made.run("ip", "address", "add", server.bridge_subnet(), "dev", "lxdbr0")
        yield made, {"PATH": path, "PYTHONPATH": str(playbook.ROOT / ".tree")}


FOREIGN = ["-p", "tcp", "-m", "tcp", "--dport", "9", "-j", "ACCEPT"]


def test_one_run_restores_whatever_was_taken_away(firewall: t.Any, unique_name: t.Any, run_playbook: t.Any) -> None:
    made, environment = firewall
    name = unique_name("a")
    server.run("lxc", "init", IMAGE, name)
    server.run("lxc", "config", "device", "override", name, "eth0", f"ipv4.address={server.late_address()}")
    publish(name, {"extport": 61080, "intport": 80}, {"extport": 61053, "proto": "udp", "extif": "lxdbr0"})
    damages = {
        "everything was flushed": ["iptables -F; iptables -X; iptables -t nat -F; iptables -t nat -X"],
        "nat was flushed": ["iptables -t nat -F"],
        "jumps and rules were changed": [
            "iptables -t nat -D OUTPUT ! -d 127.0.0.0/8 -j MAGE-LXD-OUT",
            "iptables -t nat -R MAGE-LXD-PRE 1 -p tcp -j ACCEPT",
            "iptables -D FORWARD -j MAGE-LXD-FWD",
            *["iptables -t nat -A PREROUTING -j MAGE-LXD-PRE"] * 6,
        ],
    }
    # What else is on the server comes and goes: it may not publish here.
    only: dict[str, t.Any] = {"nat_policy": {"ports": ["61053", "61080"]}}
    text = HEAD + command("Own rule", "iptables", "-A", "INPUT", *FOREIGN)
    text += task("Publish", **only) + task("Publish again", **only)
    for damage, commands in damages.items():
        text += command(damage, "sh", "-ec", "\n".join(commands))
        text += task(f"Restore after {damage}", **only) + task(f"Leave alone after {damage}", **only)
    text += command("Rules", "iptables-save")
    text += task("Remove", state="absent") + task("Remove again", state="absent") + command("Nothing", "iptables-save")
    run = run_playbook(text, prefix=made.prefix(), environment=environment).succeeded()
    assert [run.task(one).changed for one in ("Publish", "Publish again", "Remove", "Remove again")] == [
        True,
        False,
        True,
        False,
    ]
    for damage in damages:
        assert run.task(f"Restore after {damage}").changed, damage
        assert not run.task(f"Leave alone after {damage}").changed, damage
    rules = run.result("Rules")["stdout"]
    assert {chain for chain in CHAINS if f":{chain} - " in rules} == CHAINS
    assert jumps(rules) == sorted(CHAINS)
    assert "--dport 61080" in rules
    left = run.result("Nothing")["stdout"]
    assert "MAGE" not in left
    server.run("lxc", "delete", name)


def test_docker_s_chain_is_used_only_while_packets_come_to_it(
    firewall: t.Any, unique_name: t.Any, run_playbook: t.Any, tmp_path: Path
) -> None:
    made, environment = firewall
    name = unique_name("a")
    server.run("lxc", "init", IMAGE, name)
    server.run("lxc", "config", "device", "override", name, "eth0", f"ipv4.address={server.late_address()}")
    publish(name, {"extport": 61081, "intport": 80})
    only: dict[str, t.Any] = {"nat_policy": {"ports": ["61081"]}}
    steps = {
        "Docker is gone": ("iptables -P FORWARD DROP; iptables -N DOCKER-USER; iptables -A DOCKER-USER -j RETURN", ""),
        "Docker is there": ("iptables -I FORWARD -j DOCKER-USER", "DOCKER-USER"),
        "FORWARD was flushed": ("iptables -F FORWARD", ""),
    }
    text = HEAD
    for step, (commands, _chain) in steps.items():
        text += command(step, "sh", "-ec", commands)
        text += task(f"Publish while {step}", **only) + task(f"Publish again while {step}", **only)
        text += command(f"Rules while {step}", "iptables-save", "-t", "filter")
    run = run_playbook(text, prefix=made.prefix(), environment=environment).succeeded()
    for step, (_commands, chain) in steps.items():
        assert run.task(f"Publish while {step}").changed, step
        assert not run.task(f"Publish again while {step}").changed, step
        found = re.findall(r"^-A (\S+) -j MAGE-LXD-FWD$", run.result(f"Rules while {step}")["stdout"], re.MULTILINE)
        assert found == [chain or "FORWARD"], step
    server.run("lxc", "delete", name)
    # What the unit does after a reboot: the same, whatever Docker is doing then.
    wanted = render.Wanted("filter", {}, (render.Rule("DOCKER-USER", ("-j", "MAGE-LXD-FWD")),))
    unit = render.persistence("lxd", [wanted], environment["PATH"].split(":")[0]).files[render.paths("lxd")[1]]
    (jump,) = re.findall("^ExecStart=/bin/sh -c '(.*)'$", str(unit), re.MULTILINE)
    for before, chain in (
        ("iptables -D FORWARD -j MAGE-LXD-FWD", "FORWARD"),
        (":", "FORWARD"),
        ("iptables -D FORWARD -j MAGE-LXD-FWD; iptables -I FORWARD -j DOCKER-USER", "DOCKER-USER"),
        (":", "DOCKER-USER"),
    ):
        made.run("env", f"PATH={environment['PATH']}", "sh", "-ec", f"{before}; {jump}; true")
        saved_rules = made.run(str(tmp_path / "iptables-save"), "-t", "filter")
        assert re.findall(r"^-A (\S+) -j MAGE-LXD-FWD$", saved_rules, re.MULTILINE) == [chain]


def test_writers_side_by_side_lose_nothing(firewall: t.Any) -> None:
    made, environment = firewall
    writing = [
        f"iptables-restore --noflush --wait=30 <<'END'\n*nat\n:FOREIGN-{index} - [0:0]\n"
        f"-A FOREIGN-{index} -p tcp -m tcp --dport {index + 1} -j ACCEPT\nCOMMIT\nEND"
        for index in range(30)
    ]
    commands = [["sh", "-c", text] for text in writing]
    for index in range(4):
        commands.insert(7 * index, [*WORKER, "50", "0"])
    running = [
        subprocess.Popen([*made.prefix(), *argv], env={**os.environ, **environment}, stderr=subprocess.PIPE)
        for argv in commands
    ]
    for one in running:
        _out, problem = one.communicate(timeout=60)
        assert one.returncode == 0, problem
    rules = server.run(*made.prefix(), str(Path(environment["PATH"].split(":")[0]) / "iptables-save"))
    assert len(set(re.findall(r"^-A (FOREIGN-\d+) ", rules, re.MULTILINE))) == 30
    assert jumps(rules) == sorted(CHAINS)
    assert rules.count("-A MAGE-LXD-PRE ") == 50


def test_a_kill_in_the_middle_leaves_a_whole_set(firewall: t.Any) -> None:
    made, environment = firewall
    save = str(Path(environment["PATH"].split(":")[0]) / "iptables-save")
    seen = set()
    started = time.monotonic()
    subprocess.run([*made.prefix(), *WORKER, "300", "0"], env={**os.environ, **environment}, check=True)
    whole = time.monotonic() - started
    for index in range(8):
        argv = [*made.prefix(), *WORKER, "300", str(index % 2 * 1000)]
        # A group of its own, so that iptables-restore dies with it.
        one = subprocess.Popen(argv, env={**os.environ, **environment}, start_new_session=True)
        time.sleep(whole * (0.3 + 0.09 * index))
        os.killpg(one.pid, signal.SIGKILL)
        one.wait()
        rules = server.run(*made.prefix(), save)
        ports = {int(port) for port in re.findall(r"-A MAGE-LXD-PRE .* --dport (\d+) ", rules)}
        assert len(ports) == 300
        assert min(ports) in (1024, 2024)
        assert max(ports) - min(ports) == 299
        seen.add(min(ports))
    subprocess.run([*made.prefix(), *WORKER, "300", "0"], env={**os.environ, **environment}, check=True)
    assert seen


def test_a_host_with_rules_in_both_kinds_is_refused(unique_name: t.Any, run_playbook: t.Any) -> None:
    name = unique_name("a")
    server.run("lxc", "init", IMAGE, name)
    server.run("lxc", "config", "device", "override", name, "eth0", f"ipv4.address={server.late_address()}")
    publish(name, {"extport": 8080, "intport": 80})
    with namespace.client_namespace() as made:
        made.run("iptables-legacy", "-A", "INPUT", *FOREIGN)
        message = run_playbook(HEAD + task("Publish"), prefix=made.prefix()).failed()
        rules = made.run("iptables-nft-save")
    server.run("lxc", "delete", name)
    assert "iptables-legacy (1 rules) and iptables-nft (0 rules)" in message
    assert "MAGE" not in rules
