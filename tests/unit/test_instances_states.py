# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of what a plan is made of: states, restarts, order, readiness, and causes of starts that fail."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _errors, _keys
from ansible_collections.mage.lxd.plugins.module_utils._instances import (
    causes,
    checks,
    order,
    races,
    readiness,
    restart,
    spec,
    states,
)
from ansible_collections.mage.lxd.plugins.module_utils._server.snapshot import Instance, Network, Nic
from ansible_collections.mage.lxd.plugins.module_utils._values import Problems


def test_every_status_has_a_way_to_every_state() -> None:
    """Walked step by step, each way ends where it should."""
    moves = {"create": "Stopped", "kill": "Stopped", "delete": "Absent", **states.ENDS_IN}
    for status, ways in states.STEPS.items():
        assert set(ways) == set(states.STATUS)
        for state, steps in ways.items():
            now = status
            for step in steps:
                if step == "stop":
                    assert now == "Running"
                now = moves[step]
            assert now == states.STATUS[state], (status, state)


@pytest.mark.parametrize(
    ("word", "like"),
    [
        ("Running", "Running"),
        ("Ready", "Running"),
        ("Freezing", "Frozen"),
        ("Aborting", "Stopped"),
        ("Nonsense", "Error"),
    ],
)
def test_what_a_status_is_like(word: str, like: str) -> None:
    assert states.like(word) == like


@pytest.mark.parametrize(
    ("status", "state", "refused", "steps"),
    [
        ("Running", "started", False, ("update", "restart")),
        ("Running", "started", True, ("stop", "update", "start")),
        ("Running", "stopped", True, ("stop", "update")),
        ("Running", "stopped", False, ("update", "stop")),
        ("Running", "frozen", False, ("update", "restart", "freeze")),
        ("Frozen", "frozen", True, ("unfreeze", "stop", "update", "start", "freeze")),
        ("Stopped", "started", True, ("update", "start")),
    ],
)
def test_where_a_change_needs_a_restart(status: str, state: str, refused: bool, steps: tuple[str, ...]) -> None:
    assert states.with_restart(status, state, refused) == steps


@pytest.mark.parametrize(
    ("kind", "key", "old", "new", "effect"),
    [
        ("container", "limits.memory", "", "1GiB", restart.LIVE),
        ("container", "user.a", "", "1", restart.LIVE),
        ("container", "security.nesting", "", "true", restart.LIVE),
        ("container", "security.privileged", "", "true", restart.NEXT_START),
        ("container", "security.privileged", "true", "", restart.NEXT_START),
        ("container", "security.privileged", "", "false", restart.LIVE),
        ("container", "security.privileged", "0", "", restart.LIVE),
        ("container", "security.privileged", "1", "true", restart.LIVE),
        ("container", "security.privileged", "no", "False", restart.LIVE),
        ("container", "security.idmap.isolated", "", "false", restart.LIVE),
        ("container", "nvidia.runtime", "false", "", restart.LIVE),
        ("container", "security.syscalls.intercept.mknod", "", "false", restart.LIVE),
        ("container", "security.syscalls.intercept.mknod", "", "true", restart.NEXT_START),
        # Its default is true.
        ("container", "security.syscalls.deny_default", "", "false", restart.NEXT_START),
        ("container", "raw.lxc", "", "false", restart.NEXT_START),
        ("container", "raw.lxc", "", "x", restart.NEXT_START),
        ("container", "cloud-init.user-data", "", "x", restart.NEXT_START),
        ("container", "security.syscalls.intercept.mount.allowed", "", "ext4", restart.LIVE),
        ("virtual-machine", "limits.memory", "", "1GiB", restart.LIVE),
        ("virtual-machine", "limits.cpu", "1", "2", restart.LIVE),
        ("virtual-machine", "limits.cpu", "1", "0-1", restart.REFUSED),
        ("virtual-machine", "security.secureboot", "", "false", restart.NEXT_START),
        ("virtual-machine", "security.secureboot", "0", "false", restart.LIVE),
        # The server compares texts.
        ("virtual-machine", "agent.nic_config", "1", "true", restart.REFUSED),
        ("virtual-machine", "raw.qemu", "", "x", restart.REFUSED),
        ("virtual-machine", "limits.processes", "", "10", restart.LIVE),
    ],
)
def test_what_a_running_instance_does_with_a_key(kind: str, key: str, old: str, new: str, effect: str) -> None:
    assert restart.key_effect(kind, key, old, new, {"cpu_hotplug"}) == effect


def test_cores_are_not_plugged_where_the_server_cannot() -> None:
    assert restart.key_effect("virtual-machine", "limits.cpu", "1", "2", ()) == restart.REFUSED


NIC = Nic("eth0", "br0", True, "00:16:3e:00:00:01", "", "")
FOLDER = {"type": "disk", "source": "/srv", "path": "/srv"}


@pytest.mark.parametrize(
    ("kind", "old", "new", "flavor", "effect"),
    [
        ("container", None, FOLDER, "lxd", restart.LIVE),
        ("container", FOLDER, None, "lxd", restart.LIVE),
        ("container", None, {"type": "nic", "nictype": "ipvlan"}, "lxd", restart.REFUSED),
        ("virtual-machine", None, FOLDER, "lxd", restart.REFUSED),
        ("virtual-machine", None, FOLDER, "incus", restart.LIVE),
        ("virtual-machine", {"type": "gpu"}, None, "incus", restart.REFUSED),
        ("virtual-machine", {"type": "nic"}, {"type": "nic", "ipv4.address": "192.0.2.1"}, "lxd", restart.LIVE),
    ],
)
def test_what_a_running_instance_does_with_a_device(
    kind: str, old: t.Optional[dict[str, str]], new: t.Optional[dict[str, str]], flavor: str, effect: str
) -> None:
    assert restart.device_effect(kind, old, new, flavor) == effect


def items(*raw: dict[str, t.Any]) -> tuple[spec.InstanceSpec, ...]:
    params = {"instances": [{"image": "a", **one} for one in raw], "defaults": {}, "declared": []}
    return spec.parse({**params, "concurrency": 4, "timeout": 60}, "default").items


def test_what_comes_up_comes_after_and_what_goes_down_goes_before() -> None:
    up = items({"name": "web", "depends_on": ["db"]}, {"name": "db"})
    assert order.after(up, {}) == {"web": {"db"}, "db": set()}
    down = items({"name": "web", "state": "absent"}, {"name": "db", "state": "absent"})
    assert order.after(down, {"web": ["db"]}) == {"web": set(), "db": {"web"}}


def test_a_cycle_is_spelled_and_a_long_chain_is_none() -> None:
    problems = Problems()
    ring = items(
        {"name": "a", "depends_on": ["b"]}, {"name": "b", "depends_on": ["c"]}, {"name": "c", "depends_on": ["a"]}
    )
    order.check(ring, (), problems)
    with pytest.raises(_errors.InvalidInput, match=r"instances\[0\]\.depends_on: a → b → c → a: a cycle"):
        problems.raise_if_any()
    chain = [{"name": f"n{number}", "depends_on": [f"n{number + 1}"]} for number in range(2000)]
    order.check(items(*chain, {"name": "n2000"}), (), problems := Problems())
    assert len(problems) == 0


@pytest.mark.parametrize(
    ("rc", "output", "done", "failed", "seen"),
    [
        (0, "status: done\n", True, False, "done"),
        (2, "status: degraded done\n", True, False, "degraded done"),
        (0, "status: disabled\n", True, False, "disabled"),
        (0, "status: running\n", False, False, "cloud-init: running"),
        (0, "status: running\ndetail: seed not found\n", False, False, "cloud-init: running"),
        (1, "status: error\ndetail:\nmodule: no such disk\n", False, True, "cloud-init failed: module: no such disk"),
        (127, "sh: cloud-init: not found", False, True, "there is no cloud-init in it"),
    ],
)
def test_what_cloud_init_says(rc: int, output: str, done: bool, failed: bool, seen: str) -> None:
    assert readiness.cloud_init(rc, output) == (done, failed, seen)


@pytest.mark.parametrize(
    ("rc", "output", "done", "failed"),
    [
        (0, "running", True, False),
        (1, "degraded", True, False),
        (1, "starting", False, False),
        (1, "System has not been booted with systemd as init system (PID 1).", False, True),
        (127, "sh: systemctl: not found", False, True),
    ],
)
def test_what_systemd_says(rc: int, output: str, done: bool, failed: bool) -> None:
    assert readiness.system(rc, output)[:2] == (done, failed)


def test_only_who_listens_is_heard() -> None:
    table = "  sl  local_address\n   0: 0100007F:1538 00000000:0000 0A 0\n   1: 0100007F:1539 00000000:0000 01 0\n"
    assert readiness.listens(5432, 0, table).done
    assert not readiness.listens(5433, 0, table).done


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"ipv4.address": "10.64.0.1/24"}, True),
        ({"ipv4.address": "none", "ipv6.address": "none"}, False),
        ({"ipv4.address": "10.64.0.1/24", "ipv4.dhcp": "false", "ipv6.address": "none"}, False),
        ({"ipv4.address": "none", "ipv6.address": "fd42::1/64"}, True),
    ],
)
def test_which_network_gives_addresses(config: dict[str, str], expected: bool) -> None:
    assert readiness.expects_address(NIC, Network("br0", "default", "bridge", True, config)) is expected
    assert readiness.expects_address(NIC, None) is None


def test_a_bridge_inside_gives_no_address() -> None:
    inside = {
        "docker0": {"hwaddr": "02:42:00:00:00:01", "addresses": [{"address": "172.17.0.1", "scope": "global"}]},
        "eth0": {"hwaddr": "00:16:3e:00:00:01", "addresses": [{"address": "fe80::1", "scope": "link"}]},
    }
    assert readiness.by_hwaddr(inside, [NIC]) == {"eth0": ()}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("Failed to allocate manager object: Too many open files", "fs.inotify.max_user_instances"),
        ("Failed to set up id mapping: newuidmap failed to write mapping", "/etc/subuid and /etc/subgid"),
        ("No uid/gid allocation configured. In this mode, only privileged containers are supported", "/etc/subuid"),
        ("mount: /proc/sys: mount proc: Operation not permitted", "set nesting: true"),
        ("Failed to mount API filesystems.", "set nesting: true"),
        ("write /var/lib/lxd/x: No space left on device", "storage pool is full"),
        ('Failed to exec "/sbin/init": Exec format error', "another architecture"),
    ],
)
def test_known_causes_have_an_advice(words: str, told: str) -> None:
    assert told in causes.advice(["nothing", words])


def test_other_causes_have_none() -> None:
    assert causes.advice(["it is just so"]) == ""
    assert causes.last_lines(b"a\n\x1b[31mred\x1b[0m\r\n\n \x00\nlast\n", 2) == ["red", "last"]


@pytest.mark.parametrize(
    ("error", "raced"),
    [
        (
            _errors.ServerError(
                500, "Add instance info: UNIQUE constraint failed: instances.project_id, instances.name"
            ),
            True,
        ),
        (_errors.ServerError(400, 'This "instances" entry already exists'), True),
        (_errors.ServerError(409, 'IP address "192.0.2.1" already defined on another NIC'), True),
        (_errors.ServerError(503, "LXD daemon is starting up"), True),
        (_errors.OperationForgotten("POST /1.0/instances"), True),
        (_errors.ServerUnreachable("unix:///x", "refused"), True),
        (_errors.PreconditionFailed(412, "ETag doesn't match"), False),
        (_errors.ServerError(400, "Unknown configuration key: nope"), False),
    ],
)
def test_what_is_worth_another_try(error: _errors.MageError, raced: bool) -> None:
    assert races.is_raced(error) is raced


@pytest.mark.parametrize(("digest", "other"), [("a" * 64, False), ("b" * 64, True)])
def test_a_file_that_has_moved_is_known_by_its_content(digest: str, other: bool) -> None:
    record = _keys.encode({"image": "/srv/old.tar.xz"}, "default", "web")
    raw = {"name": "web", "project": "default", "status": "Stopped"}
    there = Instance.from_api({**raw, "config": {_keys.MANAGED: record, "volatile.base_image": "a" * 64}})
    (item,) = items({"name": "web", "image": {"file": "/srv/new.tar.xz"}})
    assert checks.is_of_another_origin(item, there, {}, {"/srv/new.tar.xz": digest}) is other
    (item,) = items({"name": "web", "image": {"file": "/srv/old.tar.xz"}})
    assert not checks.may_differ(item, there)
