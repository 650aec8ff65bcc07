# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a list becomes true, on LXD and on Incus: what happened is read back through each server's own client."""

from __future__ import annotations

import concurrent.futures
import json
import time
import typing as t

import pytest

from ansible_collections.mage.lxd.plugins.module_utils._errors import InvalidInput
from ansible_collections.mage.lxd.plugins.module_utils._instances import states
from ansible_collections.mage.lxd.plugins.module_utils._server.rest import RestDriver
from ansible_collections.mage.lxd.tests.integration import namespace
from ansible_collections.mage.lxd.tests.integration.engine import Engine, Raw

# Taken up at the next start only.
SLOW = {"linux.sysctl.net.ipv4.ip_forward": "1"}


def test_what_is_true_costs_one_read_of_each_kind(engine: Engine) -> None:
    items = [engine.item(f"n{n}") for n in range(5)]
    assert engine.good(*items).changed
    again = engine.good(*items)
    assert not again.changed
    assert [method for method, _path in again.requests if method != "GET"] == []
    assert [path for _method, path in again.requests if path.startswith("/1.0/instances")] == ["/1.0/instances"]
    assert len(again.requests) <= 4, again.requests


def test_values_that_mean_the_same_are_the_same(engine: Engine) -> None:
    config = {"limits.memory": "128MiB", "limits.cpu": 1, "boot.autostart": True}
    engine.good(engine.item("v", state="stopped", config=config))
    engine.patch("v", {"config": {"limits.memory": "134217728", "boot.autostart": "1", "user.theirs": "x"}})
    before = engine.get("v")
    assert not engine.good(engine.item("v", state="stopped", config=config)).changed
    assert engine.good(engine.item("v", state="stopped")).changed
    after = engine.get("v")["config"]
    assert {"limits.memory", "limits.cpu", "boot.autostart"} & set(after) == set()
    for key, value in before["config"].items():
        if key.startswith(("image.", "volatile.", "user.theirs")):
            assert after[key] == value


def test_what_is_dropped_goes_and_what_others_set_stays(engine: Engine) -> None:
    full = engine.item(
        "d",
        state="stopped",
        config={"limits.cpu": 1, "user.ours": "x", "user.theirs-now": "x"},
        devices={"ours": {"type": "none"}},
        nat=[{"extport": 39303}],
        description="ours",
    )
    engine.good(full)
    engine.patch("d", {"config": {"user.theirs": "1", "user.theirs-now": "2"}, "devices": {"hand": {"type": "none"}}})
    assert engine.good(engine.item("d", state="stopped")).changed
    now = engine.get("d")
    kept = {key: value for key, value in now["config"].items() if not key.startswith(("volatile.", "image."))}
    assert kept.pop("user.mage.managed")
    assert kept == {"user.theirs": "1", "user.theirs-now": "2"}
    assert (now["devices"], now["description"]) == ({"hand": {"type": "none"}}, "ours")
    assert not engine.good(engine.item("d", state="stopped")).changed


def test_a_key_written_meanwhile_is_kept(engine: Engine) -> None:
    """Somebody else writes between our read and our write: 412, and the next try sees it. A third time is too much."""
    engine.good(engine.item("m", state="stopped"))
    times: list[str] = []

    def meddle(method: str, path: str) -> None:
        if method in ("PATCH", "PUT") and len(times) < limit:
            times.append(method)
            engine.patch("m", {"config": {f"user.theirs-{len(times)}": "x"}})

    limit = 3
    (failure,) = engine.run(engine.item("m", state="stopped", config={"user.ours": "1"}), meddle=meddle).failures
    assert (len(times), "412" in failure) == (3, True), failure
    limit = 1
    times.clear()
    engine.good(engine.item("m", state="stopped", config={"user.ours": "1"}), meddle=meddle)
    config = engine.get("m")["config"]
    assert (config["user.ours"], config["user.theirs-1"]) == ("1", "x")
    device = {"gone": {"type": "none"}}
    engine.good(engine.item("m", state="stopped", config={"user.ours": "1"}, devices=device))
    times.clear()
    done = engine.good(engine.item("m", state="stopped", config={"user.ours": "2"}), meddle=meddle)
    assert times == ["PUT"]
    assert ("PUT", f"/1.0/instances/{engine.name('m')}") in done.requests
    now = engine.get("m")
    assert now["devices"] == {}
    assert (now["config"]["user.ours"], now["config"]["user.theirs-1"], now["status"]) == ("2", "x", "Stopped")


def test_from_every_state_to_every_state(engine: Engine) -> None:
    begins = {"Absent": (), "Stopped": ("stopped",), "Running": ("started",), "Frozen": ("frozen",)}
    pairs = [(begin, end) for begin in begins for end in states.STATUS]
    items = {pair: engine.item(f"{pair[0]}-{pair[1]}".lower(), wait_for=[]) for pair in pairs}
    engine.good(*({**items[pair], "state": begins[pair[0]][0]} for pair in pairs if begins[pair[0]]))
    for pair in pairs:
        assert engine.status("-".join(pair).lower()) == pair[0]
    used = {pair: engine.get("-".join(pair).lower())["last_used_at"] for pair in pairs if pair[0] != "Absent"}
    done = engine.good(*({**items[pair], "state": pair[1]} for pair in pairs), concurrency=3)
    assert done.busiest <= 3
    for pair in pairs:
        suffix = "-".join(pair).lower()
        assert tuple(done.steps(engine.name(suffix))) == states.steps(*pair), pair
        assert engine.status(suffix) == states.STATUS[pair[1]], pair
    for begin in ("Running", "Frozen"):
        assert engine.get(f"{begin}-restarted".lower())["last_used_at"] != used[begin, "restarted"]
        assert engine.get(f"{begin}-started".lower())["last_used_at"] == used[begin, "started"]
    kept = [pair for pair in pairs if pair[1] != "restarted"]
    assert not engine.good(*({**items[pair], "state": pair[1]} for pair in kept)).changed


def test_a_restart_comes_only_where_it_must(engine: Engine) -> None:
    """Live keys are live; others wait, are told, and are taken up by the next run that may restart."""
    started: dict[str, t.Any] = {"wait_for": []}
    engine.good(engine.item("r", **started))
    used = engine.get("r")["last_used_at"]
    live = {"limits.memory": "256MiB", "limits.processes": "100", "user.x": "1"}
    assert engine.good(engine.item("r", config=live, **started)).one["actions"] == ["update"]
    told = engine.good(engine.item("r", config={**live, **SLOW}, **started), restart="never")
    waits = ["config.linux.sysctl.net.ipv4.ip_forward"]
    assert (told.one["actions"], told.one["restart_required"]) == (["update"], waits)
    again = engine.good(engine.item("r", config={**live, **SLOW}, **started), restart="never")
    assert (again.changed, again.one["restart_required"]) == (False, waits)
    assert engine.get("r")["last_used_at"] == used
    now = engine.good(engine.item("r", config={**live, **SLOW}, **started))
    assert (now.one["actions"], now.one["restart_required"]) == (["restart"], [])
    assert engine.execute("r", "cat", "/proc/sys/net/ipv4/ip_forward").strip() == "1"
    used = engine.get("r")["last_used_at"]
    assert not engine.good(engine.item("r", config={**live, **SLOW}, **started)).changed
    always = engine.good(engine.item("r", config={**SLOW, "user.x": "2"}, **started), restart="always")
    assert always.one["actions"] == ["update", "restart"]
    assert engine.get("r")["last_used_at"] != used
    # What stops by itself is not restarted, and what is stopped stays so.
    engine.good(engine.item("r", state="stopped", config={"user.x": "2"}))
    done = engine.good(engine.item("r", state="stopped", config={**SLOW, "user.x": "3"}), restart="always")
    assert (done.one["actions"], done.one["restart_required"]) == (["update"], [])
    assert engine.status("r") == "Stopped"


class Ended(Exception):
    """A run ends here."""


def test_a_restart_after_every_change_is_made_up_for(engine: Engine) -> None:
    """Whether the run was ended between the write and the restart, or the restart failed."""
    # It does not hear that it is to end.
    deaf = {"raw.lxc": "lxc.signal.halt = SIGCONT\nlxc.signal.reboot = SIGCONT"}
    item = engine.item("u", wait_for=[], config=deaf, stop={"timeout": 1})
    engine.good(item)
    used = engine.get("u")["last_used_at"]

    def end(method: str, path: str) -> None:
        if method == "PUT" and path.endswith("/state"):
            raise Ended

    item["config"] = {**deaf, "user.x": "1"}
    with pytest.raises(Ended):
        engine.run(item, meddle=end, restart="always")
    assert (engine.get("u")["config"]["user.x"], engine.get("u")["last_used_at"]) == ("1", used)
    done = engine.good(item, restart="always")
    assert (done.one["actions"], done.one["restart_required"]) == (["restart"], [])
    assert engine.get("u")["last_used_at"] != used
    assert not engine.good(item, restart="always").changed
    used = engine.get("u")["last_used_at"]
    item["config"] = {**deaf, "user.x": "2"}
    for steps in (["update"], []):
        done = engine.run({**item, "stop": {"timeout": 1, "force": False}}, restart="always")
        assert "did not restart in 1 s" in done.failures[0]
        assert (done.one["actions"], done.one["restart_required"]) == (steps, ["config.user.x"])
    assert engine.get("u")["last_used_at"] == used
    assert engine.good(item, restart="always").one["actions"] == ["restart"]
    assert not engine.good(item, restart="always").changed


# It does not listen to the first time that it is asked to end.
INATTENTIVE = b"""#!/bin/sh
trap "trap 'exit 0' PWR" PWR
while :; do
    sleep 3600 &
    wait $!
done
"""


def test_what_misses_that_it_is_to_end_is_asked_again(engine: Engine) -> None:
    # It listens: the signal is the 30th.
    listens = {"exec": ["grep", "-q", "^SigCgt:.*[2367abef].......$", "/proc/1/status"]}

    def item(state: str) -> Raw:
        return engine.item("w", state=state, wait_for=[listens], stop={"timeout": 5})

    engine.good({**item("stopped"), "wait_for": []})
    driver = RestDriver(engine.options)
    try:
        driver.push(engine.name("w"), "/sbin/init", INATTENTIVE, mode=0o755)
    finally:
        driver.close()
    engine.good(item("started"))
    for state, step, status in (("restarted", "restart", "Running"), ("stopped", "stop", "Stopped")):
        done = engine.good(item(state))
        assert (done.one["actions"], done.warnings, engine.status("w")) == ([step], (), status)


def test_another_image_or_type_is_refused_or_made_anew(engine: Engine) -> None:
    engine.good(engine.item("i", state="stopped", nat=[{"extport": 39301}]))
    first = engine.get("i")
    with pytest.raises(InvalidInput, match=r"is a container: delete it first .state: absent., give another"):
        engine.run(engine.item("i", state="stopped", type="virtual-machine"))
    other = {"image": "0123456789abcdef"}
    with pytest.raises(InvalidInput, match=f"was made from {engine.server.image}: delete it first"):
        engine.run({**engine.item("i", state="stopped"), **other})
    base = first["config"]["volatile.base_image"]
    same = engine.good({**engine.item("i", state="stopped", nat=[{"extport": 39301}]), "image": base[:20]})
    assert same.one["actions"] == ["update"]
    # As if it had been made from an image that another alias meant.
    engine.server.run("config", "set", engine.name("i"), "volatile.base_image", "f" * 64)
    anew = engine.good(
        {**engine.item("i", state="stopped", nat=[{"extport": 39301}]), "image": base[:24], "recreate": True}
    )
    assert anew.one["actions"] == ["delete", "create"]
    now = engine.get("i")
    assert now["created_at"] != first["created_at"]
    assert now["config"]["volatile.base_image"] == base
    assert now["devices"]["eth0"]["ipv4.address"] == first["devices"]["eth0"]["ipv4.address"]


def test_what_is_waited_for(engine: Engine) -> None:
    engine.good(engine.item("w", wait_for=[]))
    # A bridge as Docker makes one, with an address that is not the instance's.
    engine.execute(
        "w", "sh", "-c", "brctl addbr docker0 && ip addr add 172.17.0.1/16 dev docker0 && ip link set docker0 up"
    )
    done = engine.good(
        engine.item("w", config={"user.x": "1"}, wait_for=["address", {"exec": ["test", "-d", "/proc/1"]}])
    )
    assert done.one["actions"] == ["update", "wait"]
    assert not done.one["address"].startswith("172.17.")
    assert not engine.good(
        engine.item("w", config={"user.x": "1"}, wait_for=["address", {"exec": ["test", "-d", "/proc/1"]}])
    ).changed
    engine.good(engine.item("w6", wait_for=[]), engine.item("we", wait_for=[]))
    bad = engine.run(
        engine.item("w", wait_for=[{"port": 4321}]),
        engine.item("w6", wait_for=[{"address": {"family": 6, "nic": "eth7"}}]),
        engine.item("we", wait_for=[{"exec": ["sh", "-c", "echo not yet; exit 3"]}]),
        timeout=5,
    )
    told = dict(failure.split(": ", 1) for failure in bad.failures)
    expected = {
        "w": "port: 4321: not so after 5 s; last state: nothing listens on port 4321",
        "w6": "there is no such network device; there is eth0",
        "we": "last state: exit code 3: not yet",
    }
    for suffix, text in expected.items():
        assert text in told[f"default/{engine.name(suffix)}"], told
    for kind, told_of in (("cloud-init", "cloud-init"), ("system", "systemd")):
        (failure,) = engine.run(engine.item("w", wait_for=[kind])).failures
        assert f"there is no {told_of} in it" in failure
    # What cloud-init and systemd say of themselves, in their own words.
    says = {
        "/bin/cloud-init": "status: error\nerrors:\n- ('scripts_user', RuntimeError('Runparts: 1 failures'))",
        "/bin/systemctl": "starting",
    }
    for path, words in says.items():
        script = f"#!/bin/sh\ncat <<'END'\n{words}\nEND\n"
        engine.server.run(
            "exec", engine.name("w"), "--", "sh", "-c", f"cat > {path}; chmod 755 {path}", stdin=script.encode()
        )
    (failure,) = engine.run(engine.item("w", wait_for=["cloud-init"])).failures
    assert "cloud-init failed: - ('scripts_user', RuntimeError('Runparts: 1 failures'))" in failure
    (failure,) = engine.run(engine.item("w", wait_for=["system"]), timeout=5).failures
    assert "system: not so after 5 s; last state: systemd: starting" in failure
    engine.execute(
        "w",
        "sh",
        "-c",
        "for one in cloud-init systemctl; do sed -i 's/error/done/; s/^starting/degraded/' /bin/$one; done",
    )
    done = engine.good(engine.item("w", wait_for=["cloud-init", "system"]))
    assert done.one["actions"][-1] == "wait"
    engine.execute("w", "sh", "-c", "nc -l -p 4321 >/dev/null 2>&1 & sleep 0.2")
    assert engine.good(engine.item("w", wait_for=[{"port": 4321}])).one["actions"][-1] == "wait"


def test_what_does_not_come_true_after_a_start_is_waited_for_again(engine: Engine) -> None:
    engine.good(engine.item("s", wait_for=[]))
    engine.execute("s", "touch", "/serves")
    item = engine.item("s", wait_for=["address", {"exec": ["test", "-e", "/serves"]}])
    assert engine.good(item).one["actions"] == ["wait"]
    engine.execute("s", "rm", "/serves")
    # It is not asked without need.
    assert not engine.good(item).changed
    dependent = engine.item("after", depends_on=[item["name"]], state="started", wait_for=[])
    told = "exec: test -e /serves: not so after 10 s"
    done = engine.run({**item, "config": SLOW}, timeout=10)
    assert done.one["actions"] == ["update", "restart"]
    assert told in done.failures[0]
    assert engine.good({**item, "config": SLOW, "state": "stopped"}).one["actions"] == ["stop"]
    done = engine.run({**item, "config": SLOW}, timeout=10)
    assert done.one["actions"] == ["start"]
    assert told in done.failures[0]
    again = engine.run({**item, "config": SLOW}, dependent, timeout=10)
    assert told in again.failures[0]
    assert "not tried, since it comes after" in again.failures[1]
    assert engine.status("after") == "Absent"
    engine.execute("s", "touch", "/serves")
    assert engine.good({**item, "config": SLOW}).one["actions"] == ["wait"]
    for state, steps in (("restarted", ["restart"]), ("started", [])):
        assert engine.good({**item, "config": SLOW, "state": state}).one["actions"] == steps


def test_a_network_that_gives_no_addresses_is_not_waited_for(engine: Engine, bridge: t.Callable[..., str]) -> None:
    quiet = bridge("ipv4.address=none", "ipv6.address=none")
    nic = {"eth0": {"type": "nic", "name": "eth0", "network": quiet}}
    begun = time.monotonic()
    assert engine.good(engine.item("q", devices=nic)).one["status"] == "Running"
    assert time.monotonic() - begun < 120


def test_a_death_right_after_the_start_is_told_with_console_and_log(engine: Engine) -> None:
    item = engine.item("dies", config={"raw.lxc": "lxc.init.cmd = /bin/echo Too many open files"})
    begun = time.monotonic()
    (failure,) = engine.run(item).failures
    assert time.monotonic() - begun < 120
    assert "started, and was Stopped right after" in failure
    assert "Its console" in failure
    assert "Its log" in failure
    assert "raise fs.inotify.max_user_instances" in failure
    unknown = engine.item("unknown", state="stopped", config={"nope.nope": "1"})
    (failure,) = engine.run(unknown).failures
    told = "POST /1.0/instances: Failed creating instance record: Unknown configuration key: nope.nope"
    assert failure.startswith(f"default/{unknown['name']}: {told} (")
    broken = engine.item("never", config={"raw.lxc": "lxc.init.cmd = /no/such/init"})
    (failure,) = engine.run(broken).failures
    assert "/no/such/init" in failure or "Its log ends with" in failure


def test_dependencies_come_first_and_go_last(engine: Engine) -> None:
    names = {key: engine.name(key) for key in ("db", "app", "web", "lone")}
    items = [
        engine.item("web", depends_on=[names["app"]], wait_for=[]),
        engine.item("app", depends_on=[names["db"]], wait_for=[]),
        engine.item("db", wait_for=[]),
        engine.item("lone"),
    ]
    engine.good(*items)
    used = [engine.get(key)["last_used_at"] for key in ("db", "app", "web")]
    assert used == sorted(used)
    gone = engine.good(*({**item, "state": "absent"} for item in items))
    deleted = [path.rpartition("-")[2] for method, path in gone.requests if method == "DELETE"]
    assert [key for key in deleted if key != "lone"] == ["web", "app", "db"]
    with pytest.raises(InvalidInput) as cycle:
        engine.run(*items[:2], engine.item("db", depends_on=[names["web"]]))
    assert " → ".join((names["web"], names["app"], names["db"], names["web"])) in str(cycle.value)
    broken = {"d": {"type": "disk", "source": "/nowhere/at/all", "path": "/d"}}
    failed = engine.run(items[0], items[1], engine.item("db", devices=broken, wait_for=[]), items[3])
    assert f"default/{names['app']}: not tried, since it comes after {names['db']}, which failed" in failed.failures
    assert f"default/{names['web']}: not tried, since it comes after {names['app']}, which failed" in failed.failures
    assert [engine.status(key) for key in ("app", "web", "lone")] == ["Absent", "Absent", "Running"]
    values = {value["name"].rpartition("-")[2]: value for value in failed.values}
    lone = values["lone"]
    assert (lone["status"], lone["changed"], lone["actions"], lone["error"]) == (
        "Running",
        True,
        ["create", "start"],
        "",
    )
    assert lone["addresses"][0]["address"] == lone["address"]
    assert "/nowhere/at/all" in values["db"]["error"]
    # The next run touches only what failed.
    again = engine.good(*items)
    assert {value["name"].rpartition("-")[2]: value["changed"] for value in again.values} == {
        "web": True,
        "app": True,
        "db": True,
        "lone": False,
    }


def test_pruning_takes_only_its_own(engine: Engine) -> None:
    mine, other = engine.name("owner"), engine.name("other")
    options: dict[str, t.Any] = {"owner": mine, "prune": True}
    items = {key: engine.item(key, state="stopped") for key in ("kept", "gone", "safe")}
    items["safe"]["config"] = {"security.protection.delete": True}
    engine.good(*items.values(), **options)
    engine.good(engine.item("theirs", state="stopped"), owner=other)
    engine.good(engine.item("nobodys", state="stopped"))
    engine.server.run("copy", engine.name("gone"), engine.name("copy"))
    checked = engine.run(items["kept"], check=True, **options)
    assert [value["name"] for value in checked.values if value["actions"] == ["delete"]] == [engine.name("gone")]
    assert engine.status("gone") == "Stopped"
    done = engine.good(items["kept"], **options)
    assert any(engine.name("safe") in told and "security.protection.delete" in told for told in done.warnings)
    found = {key: engine.status(key) for key in ("kept", "gone", "safe", "theirs", "nobodys", "copy")}
    assert found == {**dict.fromkeys(found, "Stopped"), "gone": "Absent"}
    with pytest.raises(InvalidInput, match=r"is protected: set security\.protection\.delete to false first"):
        engine.run({**items["safe"], "state": "absent"})
    engine.good({**items["safe"], "config": {"security.protection.delete": False}})
    engine.good({**items["safe"], "state": "absent"})
    with pytest.raises(InvalidInput, match="prune: needs owner"):
        engine.run(prune=True)


def test_copies_bring_nothing_of_their_origin(engine: Engine) -> None:
    engine.good(engine.item("orig", state="stopped", nat=[{"extport": 39302}], config={"user.app": "1"}))
    copied = {"name": engine.name("twin"), "copy_of": engine.name("orig"), "wait_for": []}
    done = engine.good(copied, engine.item("orig", state="stopped", nat=[{"extport": 39302}], config={"user.app": "1"}))
    assert done.steps(engine.name("twin")) == ["create", "update", "start"]
    # One made by hand brings the keys of the other along; they are inert, and its origin is as it was.
    engine.server.run("copy", engine.name("orig"), engine.name("hand"))
    assert json.loads(engine.get("hand")["config"]["user.mage.nat"])["for"] == f"default/{engine.name('orig')}"
    answer, _requests = engine.info(filters={"name": [f"{engine.prefix}-*"]})
    groups = {one["name"].rpartition("-")[2]: set(one["groups"]) for one in answer["instances"]}
    assert ["lxd_containers" in groups[suffix] for suffix in ("orig", "hand", "twin")] == [False, False, True]
    named = [name for one in answer["hosts"] for name in one["names"]]
    assert (engine.name("orig") in named, engine.name("hand") in named) == (True, False)
    assert not engine.good(
        engine.item("orig", state="stopped", nat=[{"extport": 39302}], config={"user.app": "1"})
    ).changed
    twin = engine.get("twin")
    assert (twin["config"]["user.app"], twin["devices"]) == ("1", {})
    assert "user.mage.nat" not in twin["config"]
    assert not engine.good(copied).changed


def test_a_name_that_was_renamed_is_told(engine: Engine) -> None:
    item = engine.item("before", state="stopped")
    engine.good(item)
    engine.good({**item, "config": {"user.x": "1"}})
    engine.server.run("move", engine.name("before"), engine.name("after"))
    with pytest.raises(InvalidInput, match=f"has been renamed to {engine.name('after')}: rename it back"):
        engine.run(item)
    assert engine.status("before") == "Absent"
    assert not engine.good({**item, "name": engine.name("after"), "config": {"user.x": "1"}}).failures


def test_two_runs_at_once(engine: Engine, bridge: t.Callable[..., str]) -> None:
    """Both pick the lowest free addresses, and both create what is in both lists. The next run settles what one has
    moved under the other: every instance has the address that it is pinned to, and every key."""
    # On a bridge of its own nothing has been leased yet: a server does not tell of leases of deleted instances.
    network = namespace.free_network(24)
    nic = {"type": "nic", "name": "eth0", "network": bridge(f"ipv4.address={network[1]}/24", "ipv6.address=none")}

    def listed(letter: str, port: int, count: int) -> list[dict[str, t.Any]]:
        common = {"devices": {"eth0": nic}, "config": {"user.of": letter}}
        return [engine.item(f"{letter}{n}", **common, nat=[{"extport": port + n}]) for n in range(count)]

    both = listed("o", 39310, 2)
    lists = [[*both, *listed("x", 39320, 2)], [*both, *listed("y", 39330, 2)]]
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        first = list(pool.map(lambda items: engine.run(*items), lists))
    assert [done.failures for done in first] == [(), ()]
    for items in lists:
        engine.good(*items)
    names = {one["name"].rpartition("-")[2]: one for items in lists for one in items}
    pins = {name: engine.get(name)["devices"]["eth0"]["ipv4.address"] for name in names}
    assert len(set(pins.values())) == len(pins) == 6
    for name, pin in pins.items():
        assert engine.has_address(name, pin)
        assert engine.get(name)["config"]["user.of"] == name[0]
    for items in lists:
        assert not engine.good(*items).changed


def test_what_one_says_of_its_origin_and_limits(engine: Engine) -> None:
    """Words that become other words on the server; none of these containers runs."""
    stopped: dict[str, t.Any] = {"state": "stopped"}
    fingerprint = next(
        one["fingerprint"]
        for one in engine.server.query("/1.0/images?recursion=1")
        if engine.server.image in [alias["name"] for alias in one["aliases"]]
    )
    architecture = engine.server.query("/1.0")["environment"]["architectures"][0]
    clouded = {"vendor_data": {"packages": ["git"]}, "network_config": "version: 2\n"}
    items = [
        {**engine.item("short", **stopped), "image": {"fingerprint": fingerprint[:12]}},
        {**engine.item("matched", **stopped), "image": {"properties": {"os": "busybox"}}},
        {**engine.item("long", **stopped), "image": f"{engine.server.image}/{architecture}"},
        engine.item("sized", **stopped, instance_type="t2.micro", privileged=True, autostart=False, cloud_init=clouded),
    ]
    engine.good(*items)
    for suffix in ("short", "long"):
        assert engine.get(suffix)["config"]["volatile.base_image"] == fingerprint
    assert engine.get("matched")["config"]["image.os"] == "busybox"
    config = engine.get("sized")["config"]
    expected = {
        "limits.cpu": "1",
        "limits.memory": "1024MiB",
        "security.privileged": "true",
        "boot.autostart": "false",
        "cloud-init.vendor-data": '#cloud-config\n{"packages":["git"]}\n',
        "cloud-init.network-config": "version: 2\n",
    }
    assert {key: config[key] for key in expected} == expected
    engine.server.run("snapshot", *(["create"] if engine.server.name == "incus" else []), engine.name("sized"), "first")
    engine.patch("sized", {"config": {"user.later": "1"}})
    copy = {"name": engine.name("again"), "copy_of": f"{engine.name('sized')}/first", **stopped}
    engine.good(copy)
    config = engine.get("again")["config"]
    assert (config["limits.cpu"], "user.later" in config) == ("1", False)
    assert not engine.good(*items, copy).changed


def test_check_mode_writes_nothing_and_shows_the_plan(engine: Engine) -> None:
    """Sorted, without what the server makes itself, and without secrets; then it comes as planned."""
    secret = {"environment.TOKEN": "canary", "cloud-init.user-data": "canary", "user.plain": "told"}
    engine.good(engine.item("changes", state="stopped", config={"user.a": "1"}), engine.item("goes", state="stopped"))
    items = [
        engine.item("comes", config=secret, nat=[{"extport": 39304}], wait_for=["address"]),
        engine.item("changes", state="stopped", config={**secret, "user.a": "2"}),
        engine.item("goes", state="absent"),
    ]
    before = engine.server.query("/1.0/instances?recursion=1")
    checked = engine.run(*items, check=True)
    assert [method for method, _path in checked.requests if method != "GET"] == []
    ours = [one for one in before if one["name"].startswith(engine.prefix)]
    assert ours == [
        one for one in engine.server.query("/1.0/instances?recursion=1") if one["name"].startswith(engine.prefix)
    ]
    diff = checked.plan.diff()
    subjects = [part["before_header"].partition(engine.prefix)[2] for part in diff]
    assert subjects == ["-changes (now)", "-comes (now)", "-goes (now)"]
    text = str(diff)
    assert "canary" not in text
    assert "volatile" not in text
    assert "told" in text
    done = engine.good(*items)
    for planned, value in zip(checked.values, done.values):
        # What has come true since is in the record.
        for one in (planned, value):
            one["keys"].pop("user.mage.managed", None)
        for key in ("name", "status", "actions", "changed", "keys", "address"):
            assert planned[key] == value[key], (key, planned, value)
    assert "canary" not in str(done.values)


def test_info_has_the_same_shape_for_any_filter(engine: Engine) -> None:
    made = engine.good(engine.item("up"), engine.item("down", state="stopped", hostnames=["down.example.org"]))
    pattern = [f"{engine.prefix}-*"]
    answer, requests = engine.info(filters={"name": pattern})
    found = {one["name"].rpartition("-")[2]: one for one in answer["instances"]}
    assert {method for method, _path in requests} == {"GET"}
    assert [path for _method, path in requests if path.startswith("/1.0/instances")] == ["/1.0/instances"]
    for value in made.values:
        suffix = value["name"].rpartition("-")[2]
        same = {key: value[key] for key in value if key not in ("actions", "changed", "error", "restart_required")}
        assert found[suffix] == same
    assert found["up"]["address"]
    for filters, expected in (
        ({"status": ["stopped"]}, {"down"}),
        ({"status": ["running", "Stopped"], "type": ["container"]}, {"up", "down"}),
        ({"type": ["virtual-machine"]}, set()),
        ({"profile": ["default"], "name": [f"~{engine.prefix}-u"]}, {"up"}),
        ({"project": ["nowhere"]}, set()),
    ):
        answer, _requests = engine.info(filters={"name": pattern, **filters}, all_projects=True)
        assert {one["name"].rpartition("-")[2] for one in answer["instances"]} == expected, filters
    answer, _requests = engine.info(names=[engine.name("up"), engine.name("nobody")])
    assert [one["name"] for one in answer["instances"]] == [engine.name("up")]
    with pytest.raises(InvalidInput, match=r'filters\.status: "runing": must be one of .*did you mean running'):
        engine.info(filters={"status": ["runing"]})
