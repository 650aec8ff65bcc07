# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing is deleted in doubt, and what failed once is not told as done: on real servers."""

from __future__ import annotations

import os
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils._errors import InvalidInput
from ansible_collections.mage.lxd.tests.integration import image_server, namespace, server
from ansible_collections.mage.lxd.tests.integration.engine import Engine


@pytest.fixture
def pool(engine: Engine) -> t.Iterator[str]:
    """A second pool, gone after the instances in it."""
    name = f"{engine.prefix}-pool"
    engine.server.run("storage", "create", name, "dir")
    yield name
    engine.server.delete(f"{engine.prefix}-")
    engine.server.run("storage", "delete", name)


def test_what_was_moved_to_another_pool_stays(engine: Engine, pool: str) -> None:
    """It looks as if it had never been started, and nothing like what was only begun."""
    item = engine.item("moved", wait_for=[])
    new = engine.item("new", state="stopped")
    engine.good(item, new)
    engine.execute("moved", "sh", "-c", "echo precious > /root/data; sync")
    engine.server.run("file", "push", "-", f"{engine.name('new')}/root/data", stdin=b"precious\n")
    engine.good({**item, "state": "stopped"})
    for suffix in ("moved", "new"):
        engine.server.run("move", engine.name(suffix), "--storage", pool)
        assert engine.get(suffix)["last_used_at"].startswith("1970")
    checked = engine.run({**item, "state": "stopped"}, new, check=True)
    assert not checked.changed
    done = engine.good(item, {**new, "state": "started", "wait_for": []})
    for suffix in ("moved", "new"):
        assert done.steps(engine.name(suffix)) == ["start"]
        assert engine.execute(suffix, "cat", "/root/data") == "precious\n"


def test_what_looks_unfinished_and_has_content_stays(engine: Engine) -> None:
    item = engine.item("doubt", state="stopped")
    engine.good(item)
    engine.server.run("file", "push", "-", f"{engine.name('doubt')}/root/data", stdin=b"precious\n")
    engine.server.run("config", "unset", engine.name("doubt"), "volatile.apply_template")
    for state in ("stopped", "started"):
        (failure,) = engine.run({**item, "state": state}).failures
        assert "there is something in it, or the server cannot tell: nothing is deleted" in failure
    engine.server.run("start", engine.name("doubt"))
    engine.good({**item, "state": "started"})
    assert engine.execute("doubt", "cat", "/root/data") == "precious\n"


def test_nothing_is_deleted_before_the_next_image_is_there(engine: Engine, tmp_path: Path) -> None:
    item = engine.item("anew", state="stopped")
    engine.good(item)
    first = engine.get("anew")["created_at"]
    path = tmp_path / "image.tar.gz"
    server.run("bash", str(Path(__file__).parent / "busybox-image.sh"), str(path))
    image = path.read_bytes() + bytes(os.getpid() % 5000 + 10001)
    with image_server.image_server(tmp_path / "images", image, "other/busybox") as images:
        source = {"alias": "other/busybox", "server": images.url, "certificate": images.certificate}
        there = {**item, "recreate": True, "image": source}
    (failure,) = engine.run(there, timeout=60).failures
    assert f"image other/busybox from {images.url}: POST /1.0/images: " in failure
    assert engine.get("anew")["created_at"] == first
    with image_server.image_server(tmp_path / "again", image, "other/busybox") as images:
        source = {"alias": "other/busybox", "server": images.url, "certificate": images.certificate}
        done = engine.good({**there, "image": source})
        try:
            writes = [one for one in done.requests if one[0] != "GET"]
            assert [method for method, _path in writes] == ["POST", "DELETE", "POST"]
            assert done.one["actions"] == ["delete", "create"]
            assert engine.get("anew")["config"]["volatile.base_image"] == images.fingerprint
        finally:
            engine.server.run("image", "delete", images.fingerprint)
        assert not engine.good({**there, "image": source}).changed


def test_mounts_come_to_what_runs(engine: Engine, tmp_path: Path) -> None:
    """Where the kernel shifts the owners of files, and where the server only believes so."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        (folder / "told").write_text("yes", encoding="ascii")
    item = engine.item("m", wait_for=[])
    engine.good(item)
    one = {**item, "mounts": [f"{folders[0]}:/one"]}
    engine.good(one)
    assert engine.execute("m", "cat", "/one/told") == "yes"
    both = {**item, "mounts": [*one["mounts"], f"{folders[1]}:/two"]}
    done = engine.good({**both, "state": "restarted"})
    assert done.one["actions"] == ["update", "restart"]
    assert engine.execute("m", "cat", "/one/told", "/two/told") == "yesyes"
    assert not engine.good(both).changed


def test_an_address_that_never_came_is_missed_again(engine: Engine) -> None:
    item = engine.item("mute", config={"raw.lxc": "lxc.init.cmd = /bin/sleep 1000"})
    for actions in (["create", "start"], []):
        done = engine.run(item, timeout=8)
        assert "address of eth0: not so after 8 s" in done.failures[0]
        assert done.one["actions"] == actions
    # One that it has given itself is found in it.
    nic = engine.server.query("/1.0/profiles/default")["devices"]["eth0"]
    gateway = engine.server.query(f"/1.0/networks/{nic['network']}")["config"]["ipv4.address"]
    address = f"{gateway.rpartition('.')[0]}.253/{gateway.rpartition('/')[2]}"
    engine.execute("mute", "sh", "-c", f"ip link set eth0 up; ip addr add {address} dev eth0")
    assert not engine.good(item, timeout=8).changed


def test_a_restart_that_does_not_start_is_not_forced(engine: Engine) -> None:
    item = engine.item("b", wait_for=[])
    engine.good(item)
    begun = time.monotonic()
    done = engine.run({**item, "config": {"raw.lxc": "lxc.init.cmd = /no/such/init"}})
    assert time.monotonic() - begun < 50
    (failure,) = done.failures
    assert "forkstart" in failure
    assert "/no/such/init" in failure
    assert "No security context" not in failure
    assert "forced" not in "".join(done.warnings)
    assert (done.one["actions"], engine.status("b")) == (["update", "stop"], "Stopped")
    assert engine.good(item).one["actions"] == ["update", "start"]


def test_a_copy_takes_no_address_of_what_it_is_a_copy_of(engine: Engine, bridge: t.Callable[..., str]) -> None:
    network = namespace.free_network(24)
    nic = {"type": "nic", "name": "eth0", "network": bridge(f"ipv4.address={network[1]}/24", "ipv6.address=none")}
    fixed = {**nic, "ipv4.address": str(network[77]), "hwaddr": "00:16:3e:77:77:77"}
    source = engine.item("src", wait_for=[], devices={"eth0": fixed})
    copies = [{"name": engine.name("cp"), "copy_of": engine.name("src")}]
    engine.good(source, *copies)
    engine.server.run("snapshot", *(["create"] if engine.server.name == "incus" else []), engine.name("src"), "s")
    copies.append({"name": engine.name("sn"), "copy_of": f"{engine.name('src')}/s"})
    done = engine.good(source, *copies)
    assert len({value["address"] for value in done.values}) == 3
    for suffix in ("cp", "sn"):
        assert engine.get(suffix)["devices"] == {"eth0": nic}
    assert not engine.good(source, *copies).changed
    with pytest.raises(InvalidInput, match="has no such snapshot; there are s"):
        engine.run({"name": engine.name("no"), "copy_of": f"{engine.name('src')}/other"}, engine.item("fresh"))
    assert engine.status("fresh") == "Absent"
