# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The words of an item on the real servers: what they become there, read back through the server's own client."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import shutil
import tempfile
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils._errors import InvalidInput
from ansible_collections.mage.lxd.tests.integration import doors as doors_module
from ansible_collections.mage.lxd.tests.integration import engine as engine_module
from ansible_collections.mage.lxd.tests.integration import image_server, server
from ansible_collections.mage.lxd.tests.integration.playbook import PlaybookRun

Run = t.Callable[..., PlaybookRun]
PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    - name: Make it true
      mage.lxd.instances: "{{ call }}"
"""
# Of no container, and of nobody who is likely to be there.
USER = 40000 + os.getpid() % 10000


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An image that no server has yet: padding makes it another one in each run."""
    path = tmp_path_factory.mktemp("image") / "image.tar.gz"
    server.run("bash", str(Path(__file__).parent / "busybox-image.sh"), str(path))
    return path.read_bytes() + bytes(os.getpid() % 5000 + 1)


@pytest.fixture(params=["lxd", "incus"])
def there(
    request: pytest.FixtureRequest, doors: doors_module.Doors, image: bytes
) -> t.Iterator[tuple[doors_module.Server, str, str]]:
    """A server, its endpoint, and a prefix; what bears it is deleted after the test, and the images of the test."""
    one, options = doors.way(request.param)
    prefix = server.own_prefix()
    yield one, options.endpoint, prefix
    one.delete(prefix)
    ours = {hashlib.sha256(image + b"\0" * more).hexdigest() for more in range(3)}
    for fingerprint in ours & set(_images(one)):
        one.run("image", "delete", fingerprint)


def _images(one: doors_module.Server) -> dict[str, dict[str, t.Any]]:
    return {image["fingerprint"]: image for image in one.query("/1.0/images?recursion=1")}


@pytest.fixture
def folders() -> t.Iterator[tuple[Path, Path]]:
    """Two folders of a user whom the server may map, where everybody finds the way: pytest's are root's alone."""
    top = Path(tempfile.mkdtemp(prefix="mage-"))
    top.chmod(0o755)
    made = top / "mapped", top / "listed"
    for folder in made:
        folder.mkdir(mode=0o700)
        (folder / "file").write_text("of the user\n", encoding="utf-8")
        os.chown(folder, USER, USER)
        os.chown(folder / "file", USER, USER)
    line = f"root:{USER}:1\n"
    paths = Path("/etc/subuid"), Path("/etc/subgid")
    for path in paths:
        text = path.read_text(encoding="utf-8")
        path.write_text(text + ("" if text.endswith("\n") else "\n") + line, encoding="utf-8")
    yield made
    for path in paths:
        path.write_text(path.read_text(encoding="utf-8").replace(line, ""), encoding="utf-8")
    shutil.rmtree(top)


def apply(run_playbook: Run, endpoint: str, *items: dict[str, t.Any], **options: t.Any) -> PlaybookRun:
    call = {"instances": list(items), "endpoint": endpoint, "timeout": 120, **options.pop("call", {})}
    return run_playbook(PLAY, extra_vars={"call": call}, **options).succeeded()


def test_words_become_what_the_server_calls_them(
    run_playbook: Run,
    there: tuple[doors_module.Server, str, str],
    folders: tuple[Path, Path],
    image: bytes,
    tmp_path: Path,
) -> None:
    one, endpoint, prefix = there
    main, listed, brief, copied = (f"{prefix}-{suffix}" for suffix in ("main", "listed", "brief", "copied"))
    nic = one.query("/1.0/profiles/default")["devices"]["eth0"]
    bridge = ipaddress.ip_interface(one.query(f"/1.0/networks/{nic['network']}")["config"]["ipv4.address"]).network
    wish: t.Any = list(bridge.subnets(new_prefix=bridge.prefixlen + 2))[2]
    with image_server.image_server(tmp_path / "images", image, f"{prefix}/busybox") as images:
        source = {"alias": f"{prefix}/busybox", "server": images.url, "certificate": images.certificate}
        items: list[dict[str, t.Any]] = [
            {
                "name": main,
                "instance_type": "c1.5-m0.1",
                "nesting": True,
                "limits": {"disk": "0.5GiB", "processes": 99},
                "cloud_init": {"user_data": {"password": "canary-data"}},
                "mounts": [f"{folders[0]}:/mapped", "/sys/kernel:/kernel:ro"],
                "address": str(wish),
            },
            {"name": listed, "mounts": [{"source": str(folders[1]), "path": "/listed", "acl": True}]},
            {"name": brief, "ephemeral": True},
            {"name": f"{prefix}-other", "state": "stopped"},
        ]
        call = {"defaults": {"image": source, "limits": {"memory": "64MiB"}}, "concurrency": 4}
        made = apply(run_playbook, endpoint, *items, call=call, diff=True)
        assert images.downloads == 1
        again = apply(run_playbook, endpoint, *items, call=call, diff=True)
        assert not again.changed, again.output
    for done in (made, again):
        assert "canary" not in done.output
        assert "canary" not in json.dumps([task.result for task in done.tasks])
    assert images.fingerprint in _images(one)

    config = one.query(f"/1.0/instances/{main}")["config"]
    assert {key: config[key] for key in config if key.startswith(("limits.", "security.", "cloud-init."))} == {
        "limits.cpu": "2",
        "limits.cpu.allowance": "75%",
        "limits.memory": "64MiB",
        "limits.processes": "99",
        "security.nesting": "true",
        "cloud-init.user-data": '#cloud-config\n{"password":"canary-data"}\n',
    }
    devices = one.query(f"/1.0/instances/{main}")["devices"]
    assert devices["root"]["size"] == "536870912"
    assert ipaddress.ip_address(devices["eth0"]["ipv4.address"]) in wish
    assert devices["eth0"]["ipv4.address"] in one.run("exec", main, "--", *server.LINGER, "ip", "addr", "show", "eth0")
    assert one.run("exec", main, "--", *server.LINGER, "stat", "-c", "%u %g", "/mapped/file").split() == [
        str(USER),
        str(USER),
    ]
    assert one.query(f"/1.0/instances/{brief}")["ephemeral"] is True

    one.run("exec", listed, "--", "sh", "-c", "cat /listed/file && echo from inside > /listed/new")
    reads = [f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "cat", str(folders[1] / "new")]
    assert server.run("setpriv", *reads) == "from inside\n"

    copy = {"name": copied, "copy_of": main, "state": "started", "nesting": False}
    apply(run_playbook, endpoint, copy)
    assert not apply(run_playbook, endpoint, copy).changed
    config = one.query(f"/1.0/instances/{copied}")["config"]
    assert (config["security.nesting"], config["limits.processes"]) == ("false", "99")
    assert "ipv4.address" not in one.query(f"/1.0/instances/{copied}")["devices"].get("eth0", {})


def test_mounts_of_a_container_that_is_no_longer_privileged_are_as_those_of_a_new_one(
    run_playbook: Run, there: tuple[doors_module.Server, str, str], folders: tuple[Path, Path]
) -> None:
    """No server takes a shifted mount while the container is privileged; some say of their kernel that it can, and it
    cannot."""
    one, endpoint, prefix = there
    mounted: dict[str, t.Any] = {"image": doors_module.IMAGE, "mounts": [f"{folders[0]}:/srv"], "wait_for": []}
    old, new = ({**mounted, "name": f"{prefix}-{suffix}"} for suffix in ("old", "new"))
    apply(run_playbook, endpoint, {**old, "privileged": True})
    assert "shift" not in one.query(f"/1.0/instances/{old['name']}")["devices"]["mount-srv"]
    for changes in (True, False):
        done = apply(run_playbook, endpoint, old, new)
        assert bool(done.changed) is changes, done.output
        raw, fresh = (one.query(f"/1.0/instances/{item['name']}") for item in (old, new))
        assert (raw["status"], raw["devices"]) == ("Running", fresh["devices"])
        assert raw["config"].get("raw.idmap") == fresh["config"].get("raw.idmap")
        assert "security.privileged" not in raw["config"]
        owner = one.run("exec", old["name"], "--", *server.LINGER, "stat", "-c", "%u", "/srv")
        assert owner.strip() == str(USER)


def test_images_of_files_are_imported_once_and_kept_up_to_date_as_said(
    run_playbook: Run, there: tuple[doors_module.Server, str, str], image: bytes, tmp_path: Path
) -> None:
    one, endpoint, prefix = there
    path = tmp_path / "image.tar.gz"
    path.write_bytes(image + b"\0")
    fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()
    call = {"defaults": {"image": {"file": str(path)}, "state": "stopped"}}
    names = [{"name": f"{prefix}-{number}"} for number in range(3)]
    checked = apply(run_playbook, endpoint, *names[:2], call=call, check=True).result("Make it true")
    assert fingerprint not in _images(one)
    made = apply(run_playbook, endpoint, *names[:2], call=call).result("Make it true")
    assert made["actions"] == checked["actions"]
    assert [action["action"] for action in made["actions"]] == ["import", "create", "create"]
    assert fingerprint in _images(one)
    third = apply(run_playbook, endpoint, *names, call=call).result("Make it true")
    assert [action["action"] for action in third["actions"]] == ["create"]

    with image_server.image_server(tmp_path / "images", image + b"\0\0", f"{prefix}/still") as images:
        still = {"alias": f"{prefix}/still", "server": images.url, "certificate": images.certificate}
        one_more = {"name": f"{prefix}-still", "state": "stopped", "image": {**still, "auto_update": False}}
        apply(run_playbook, endpoint, one_more)
        assert images.downloads == 1
    assert _images(one)[images.fingerprint]["auto_update"] is False


def test_an_address_that_cannot_be_had_is_told_before_anything_is_made(
    run_playbook: Run, there: tuple[doors_module.Server, str, str]
) -> None:
    one, endpoint, prefix = there
    items = [
        {"name": f"{prefix}-a", "image": one.image, "address": "192.0.2.1"},
        {"name": f"{prefix}-b", "image": one.image, "address": {"nic": "eth7", "ipv4": "192.0.2.1"}},
        {"name": f"{prefix}-c", "image": one.image, "target": "nowhere"},
        {"name": f"{prefix}-d", "copy_of": f"{prefix}-nobody"},
    ]
    call = {"instances": items, "endpoint": endpoint}
    told = run_playbook(PLAY, extra_vars={"call": call}).failed()
    for problem in (
        'instances[0].address: "192.0.2.1": is none that an instance can have on ',
        'instances[1].address.nic: "eth7": ',
        'instances[2].target: "nowhere": this ',
        f'instances[3].copy_of: "{prefix}-nobody": there is no instance {prefix}-nobody',
    ):
        assert problem in told
    secret = {"fingerprint": "0123456789ab", "server": "https://127.0.0.1:1", "protocol": one.name, "secret": "canary"}
    call = {"instances": [{"name": f"{prefix}-e", "image": secret}], "endpoint": endpoint}
    refused = run_playbook(PLAY, extra_vars={"call": call}, diff=True)
    assert f"{prefix}-e: " in refused.failed()
    assert "canary" not in refused.output + json.dumps([task.result for task in refused.tasks])
    assert not [path for path in one.query("/1.0/instances") if prefix in path]


def test_no_access_list_is_written_for_a_server_that_is_elsewhere(
    doors: doors_module.Doors, folders: tuple[Path, Path]
) -> None:
    asked, options = doors.way("https")
    engine = engine_module.Engine(asked, options, server.own_prefix())
    mount = {"source": str(folders[1]), "path": "/listed", "acl": True}
    with pytest.raises(
        InvalidInput, match=r"mounts\[0\]\.acl: access lists are written on the machine that the module"
    ):
        engine.run(engine.item("far", mounts=[mount], state="stopped"))
    assert engine.status("far") == "Absent"
    assert os.listxattr(folders[1]) == []
