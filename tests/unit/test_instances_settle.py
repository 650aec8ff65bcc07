# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What depends on the server: mounts, the disk, cloud-init's keys, and what a server has not."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest

from ansible_collections.mage.lxd.plugins.module_utils._errors import InvalidInput
from ansible_collections.mage.lxd.plugins.module_utils._instances import acl, mounts, settle, spec
from ansible_collections.mage.lxd.plugins.module_utils._server.snapshot import Instance, Server
from ansible_collections.mage.lxd.plugins.module_utils._values import Problems

EXTENSIONS = frozenset({"cloud_init", "virtual-machines", "id_map", "proxy"})
ABLE = Server("lxd", "5.0.2", "host", False, EXTENSIONS, ("x86_64",), frozenset({"idmapped_mounts"}))
UNABLE = dataclasses.replace(ABLE, features=frozenset())
ROOT = {"root": {"type": "disk", "path": "/", "pool": "default"}}
USER = mounts.Folder("ext4", 1000, 1000, True)
MOUNT = {"type": "disk", "source": "/srv", "path": "/srv"}


def settled(
    fields: dict[str, t.Any],
    server: Server = ABLE,
    folder: mounts.Folder | None = USER,
    devices: dict[str, dict[str, str]] | None = None,
) -> tuple[spec.InstanceSpec, list[str], list[str]]:
    """The item, the problems and the warnings. ``devices`` are the own ones of an instance that is there."""
    params = {"instances": [{"name": "a", **fields}], "concurrency": 4, "timeout": 600}
    (item,) = spec.parse(params, "default").items
    existing = Instance.from_api({"name": "a", "devices": devices}) if devices is not None else None
    folders = {"/srv": folder} if folder else {}
    problems, warnings = Problems(), list[str]()
    made = settle.settle(item, existing, server, {**ROOT, **(devices or {})}, folders, problems, warnings, {})
    return made, list(problems.texts), warnings


@pytest.mark.parametrize(
    ("mount", "server", "folder", "shift", "idmap"),
    [
        ({}, ABLE, USER, True, None),
        ({}, ABLE, None, True, None),
        ({}, ABLE, mounts.Folder("nfs4", 1000, 1001, True), False, "uid 1000 1000\ngid 1001 1001"),
        ({}, ABLE, mounts.Folder("sysfs", 0, 0, False), False, None),
        ({}, UNABLE, USER, False, "both 1000 1000"),
        ({"shift": False}, ABLE, USER, False, "both 1000 1000"),
        ({"shift": True}, ABLE, mounts.Folder("nfs4", 1000, 1000, True), True, None),
        ({"owner": "33:33"}, ABLE, USER, False, "both 33 33"),
        ({"acl": True}, ABLE, USER, False, None),
    ],
)
def test_owners_of_mounts(
    mount: dict[str, t.Any], server: Server, folder: mounts.Folder | None, shift: bool, idmap: str | None
) -> None:
    made, problems, warnings = settled({"mounts": [{"source": "/srv", "path": "/srv", **mount}]}, server, folder)
    assert made.devices["mount-srv"] == ({**MOUNT, "shift": "true"} if shift else MOUNT)
    assert made.config.get("raw.idmap") == idmap
    assert not problems
    assert not warnings


@pytest.mark.parametrize("fields", [{"privileged": True}, {"type": "virtual-machine"}])
def test_owners_are_left_alone_where_nothing_maps_them(fields: dict[str, t.Any]) -> None:
    made, problems, _warnings = settled({"mounts": ["/srv:/srv"], **fields})
    assert (made.devices["mount-srv"], made.config.get("raw.idmap"), problems) == (MOUNT, None, [])


def test_owners_that_cannot_be_mapped_are_told() -> None:
    stranger = dataclasses.replace(USER, delegated=False)
    _made, problems, _warnings = settled({"mounts": ["/srv:/srv"]}, UNABLE, stranger)
    assert "add root:1000:1 to /etc/subuid and root:1000:1 to /etc/subgid, or say acl: true" in problems[0]
    made, problems, warnings = settled({"mounts": ["/srv:/srv"]}, UNABLE, mounts.Folder("ext4", 0, 0, False))
    assert (made.config, problems, len(warnings)) == ({}, [], 1)
    _made, problems, warnings = settled({"mounts": ["/srv:/srv"]}, UNABLE, None)
    assert "whose /srv is, is not known here" in warnings[0]
    _made, problems, _warnings = settled({"mounts": [{"source": "/srv", "path": "/srv", "shift": True}]}, UNABLE)
    assert problems == ["instances[0].mounts[0].shift: true: the kernel under this lxd 5.0.2 cannot"]


def test_a_mount_that_could_not_be_shifted_stays_as_it_is() -> None:
    first, _problems, _warnings = settled({"mounts": ["/srv:/srv"]})
    second = settle.unshifted(first)
    assert second is not None
    assert (second.devices["mount-srv"], second.config["raw.idmap"]) == (MOUNT, "both 1000 1000")
    third, _problems, _warnings = settled({"mounts": ["/srv:/srv"]}, devices={"mount-srv": MOUNT})
    assert (third.devices, third.config) == (second.devices, second.config)
    insisting, _problems, _warnings = settled({"mounts": [{"source": "/srv", "path": "/srv", "shift": True}]})
    assert settle.unshifted(insisting) is None
    stranger, _problems, _warnings = settled(
        {"mounts": ["/srv:/srv"]}, folder=dataclasses.replace(USER, delegated=False)
    )
    with pytest.raises(InvalidInput, match="may not map them"):
        settle.unshifted(stranger)


def test_the_disk_has_its_size_on_a_copy_of_the_root_device() -> None:
    made, problems, _warnings = settled({"limits": {"disk": "10GiB"}})
    assert (made.devices, problems) == ({"root": {**ROOT["root"], "size": "10GiB"}}, [])
    own = {"big": {"type": "disk", "path": "/", "pool": "p", "size": "20GiB"}}
    _made, problems, _warnings = settled({"limits": {"disk": "10GiB"}, "devices": own})
    assert problems == ['instances[0].limits.disk: "10GiB": devices.big.size says 20GiB']


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"target": "b"}, 'instances[0].target: "b": this lxd 5.0.2 is no member of a cluster'),
        (
            {"type": "virtual-machine"},
            "instances[0].type: virtual-machine: this lxd 5.0.2 cannot: it lacks the API extension virtual-machines",
        ),
        (
            {"devices": {"t": {"type": "tpm"}}},
            "instances[0].devices.t.type: tpm: this lxd 5.0.2 cannot: it lacks the API extension tpm_device_type",
        ),
        (
            {"config": {"cloud-init.user-data": "x"}},
            "instances[0].config.cloud-init.user-data: this lxd 5.0.2 cannot: it lacks the API extension cloud_init",
        ),
    ],
)
def test_what_a_server_has_not_is_one_sentence(fields: dict[str, t.Any], problem: str) -> None:
    bare = dataclasses.replace(ABLE, extensions=frozenset({"etag"}))
    assert settled(fields, bare)[1] == [problem]


def test_cloud_init_has_the_keys_that_the_server_knows() -> None:
    fields = {"cloud_init": {"user_data": "x"}}
    assert settled(fields)[0].config == {"cloud-init.user-data": "x"}
    bare = dataclasses.replace(ABLE, extensions=frozenset({"etag"}))
    assert settled(fields, bare)[0].config == {"user.user-data": "x"}


def test_an_access_list_gives_rights_and_takes_none() -> None:
    first = acl.granted(None, 0o40750, [100000], acl.READ | acl.WRITE | acl.EXECUTE)
    assert acl.entries(first, 0) == {
        (acl.USER_OBJ, acl.NOBODY): 7,
        (acl.USER, 100000): 7,
        (acl.GROUP_OBJ, acl.NOBODY): 5,
        (acl.MASK, acl.NOBODY): 7,
        (acl.OTHER, acl.NOBODY): 0,
    }
    assert acl.granted(first, 0, [100000], acl.READ) == first
    assert acl.entries(acl.granted(first, 0, [5], acl.READ), 0)[acl.USER, 5] == 4
    assert acl.root_of({"volatile.idmap.next": '[{"Isuid":true,"Hostid":100000,"Nsid":0,"Maprange":1}]'}) == 100000
    assert acl.root_of({}) is None


@pytest.mark.parametrize("flavor", ["lxd", "incus"])
@pytest.mark.parametrize("said", ["lxd", "incus", "simplestreams"])
def test_a_protocol_has_the_name_that_the_server_has_for_it(flavor: str, said: str) -> None:
    image = {"alias": "a", "server": "https://a.example.org", "protocol": said}
    item, problems, _warnings = settled({"image": image}, dataclasses.replace(ABLE, flavor=flavor))
    assert item.image is not None
    assert (item.image.protocol, problems) == (said if said == "simplestreams" else flavor, [])
