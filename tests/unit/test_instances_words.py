# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The short words of an item, image, waits and defaults: what they stand for, and what they refuse."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest

from ansible_collections.mage.lxd.plugins.module_utils._errors import InvalidInput
from ansible_collections.mage.lxd.plugins.module_utils._instances import images, spec, stops, values, waits


def parse(*items: t.Any, **params: t.Any) -> spec.Desired:
    values = {"instances": list(items), "defaults": {}, "concurrency": 4, "timeout": 600, "owner": "", **params}
    return spec.parse(values, "default")


def problems(*items: t.Any, **params: t.Any) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        parse(*items, **params)
    return list(caught.value.problems)


def one(**fields: t.Any) -> spec.InstanceSpec:
    return parse({"name": "a", **fields}).items[0]


@pytest.mark.parametrize(
    ("raw", "stop", "patience"),
    [
        (None, stops.Stop(timeout=0, attempts=2, force=True), 15),
        ({"timeout": "90"}, stops.Stop(timeout=90), 90),
        ({"attempts": 3, "force": "no"}, stops.Stop(attempts=3, force=False), 15),
        ({"attempts": 0}, stops.Stop(attempts=0), 15),
    ],
)
def test_how_it_is_stopped(raw: t.Any, stop: stops.Stop, patience: int) -> None:
    parsed = one(stop=raw).stop
    assert (parsed, parsed.patience(600), stops.Stop().patience(20)) == (stop, patience, 5)


@pytest.mark.parametrize(
    ("fields", "config"),
    [
        (
            {"privileged": True, "nesting": "no", "autostart": 1},
            {"security.privileged": "true", "security.nesting": "false", "boot.autostart": "true"},
        ),
        (
            {"limits": {"cpu": 2, "memory": "0.5GiB", "processes": 500}},
            {"limits.cpu": "2", "limits.memory": "536870912", "limits.processes": "500"},
        ),
        ({"limits": {"cpu": "50%", "memory": "512 MiB"}}, {"limits.cpu.allowance": "50%", "limits.memory": "512MiB"}),
        ({"limits": {"cpu": "0-3,5", "memory": "25%"}}, {"limits.cpu": "0-3,5", "limits.memory": "25%"}),
        ({"limits": {"cpu": "0,2", "memory": 1048576}}, {"limits.cpu": "0,2", "limits.memory": "1048576"}),
        ({"limits": {"cpu": "2-2"}, "config": {"user.x": None}}, {"limits.cpu": "2-2"}),
        ({"instance_type": "c2-m4"}, {"limits.cpu": "2", "limits.memory": "4096MiB"}),
        ({"instance_type": "m0.5-c1.5"}, {"limits.cpu": "2", "limits.cpu.allowance": "75%", "limits.memory": "512MiB"}),
        ({"instance_type": "t2.micro"}, {"limits.cpu": "1", "limits.memory": "1024MiB"}),
        (
            {"instance_type": "gce:f1-micro"},
            {"limits.cpu": "1", "limits.cpu.allowance": "20%", "limits.memory": "614MiB"},
        ),
        ({"instance_type": "azure:Standard_D2_v2"}, {"limits.cpu": "2", "limits.memory": "7168MiB"}),
        ({"instance_type": "g1-small", "limits": {"cpu": 4}}, {"limits.cpu": "4", "limits.memory": "1740MiB"}),
        (
            {"instance_type": "t2.micro", "config": {"limits.memory": "2GiB"}},
            {"limits.cpu": "1", "limits.memory": "2GiB"},
        ),
        ({"limits": {"memory": "512MiB"}, "config": {"limits.memory": 536870912}}, {"limits.memory": "536870912"}),
        (
            {"cloud_init": {"user_data": {"packages": ["a", "b"]}}},
            {"cloud-init.user-data": '#cloud-config\n{"packages":["a","b"]}\n'},
        ),
        ({"cloud_init": {"vendor_data": "#!/bin/sh\ntrue\n"}}, {"cloud-init.vendor-data": "#!/bin/sh\ntrue\n"}),
        ({"cloud_init": {"network_config": {"version": 2}}}, {"cloud-init.network-config": '{"version":2}\n'}),
    ],
)
def test_short_words_become_keys_of_the_server(fields: dict[str, t.Any], config: dict[str, str]) -> None:
    assert one(**fields).config == config


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        ("debian/12", images.Image(alias="debian/12")),
        ({"fingerprint": 1234}, images.Image(fingerprint="1234")),
        (
            {"properties": {"os": "Debian", "release": 12}},
            images.Image(properties=(("os", "Debian"), ("release", "12"))),
        ),
        ({"file": "/srv/a.tar.xz"}, images.Image(file="/srv/a.tar.xz")),
        (
            {"file": "/srv/a.tar.xz", "fingerprint": "A" * 64},
            images.Image(file="/srv/a.tar.xz", fingerprint="a" * 64),
        ),
        (
            {
                "fingerprint": "abcd",
                "server": "https://a.example.org",
                "protocol": "lxd",
                "secret": "s",
                "auto_update": 1,
            },
            images.Image(
                fingerprint="abcd", server="https://a.example.org", protocol="lxd", secret="s", auto_update=True
            ),
        ),
    ],
)
def test_images(raw: object, kind: images.Image) -> None:
    assert one(image=raw).image == kind


def test_the_source_of_an_image_on_another_server() -> None:
    image = one(image={"alias": "12", "server": "https://a.example.org", "certificate": "PEM\nPEM"}).image
    assert image
    source = {"type": "image", "mode": "pull", "server": "https://a.example.org", "protocol": "simplestreams"}
    assert images.source(image, {}) == {**source, "alias": "12", "certificate": "PEM\nPEM"}
    assert images.source(dataclasses.replace(image, mode="local"), {"12": "a" * 64}) == {"type": "image", "alias": "12"}


@pytest.mark.parametrize(
    ("raw", "waits_for"),
    [
        (None, None),
        ([], ()),
        ("system", (waits.WaitFor("system"),)),
        (
            [
                "address",
                {"address": {"nic": "eth1", "family": "ipv6"}},
                "cloud-init",
                {"port": "80"},
                {"exec": ["a", "b"]},
            ],
            (
                waits.WaitFor("address"),
                waits.WaitFor("address", nic="eth1", family=6),
                waits.WaitFor("cloud-init"),
                waits.WaitFor("port", port=80),
                waits.WaitFor("exec", argv=("a", "b")),
            ),
        ),
    ],
)
def test_what_is_waited_for(raw: object, waits_for: object) -> None:
    assert one(wait_for=raw).wait_for == waits_for


@pytest.mark.parametrize(
    ("fields", "start"),
    [
        ({"limits": {"cpus": 1}}, "instances[0].limits.cpus: unknown key (did you mean cpu?)"),
        ({"limits": {"memory": "lots"}}, 'instances[0].limits.memory: "lots": must be a size, such as 512MiB'),
        ({"limits": {"memory": 512}}, "instances[0].limits.memory: 512: is 512 bytes: must be a size, such as 512MiB"),
        ({"limits": {"memory": "512kB"}}, 'instances[0].limits.memory: "512kB": is 512000 bytes: must be a size'),
        ({"limits": {"cpu": "3-1"}}, 'instances[0].limits.cpu: "3-1": must be a number of cores'),
        ({"limits": {"cpu": "0-3-5"}}, 'instances[0].limits.cpu: "0-3-5": must be a number of cores'),
        ({"limits": {"cpu": "1,3-2"}}, 'instances[0].limits.cpu: "1,3-2": must be a number of cores'),
        ({"image": ["canary"]}, 'instances[0].image: "(hidden)": must be an alias, a fingerprint, or a mapping'),
        (
            {"image": {"file": "/a", "fingerprint": "abcd"}},
            'instances[0].image.fingerprint: "abcd": must be the whole SHA-256 of the file',
        ),
        (
            {"image": {"file": "/a", "alias": "b", "fingerprint": "a" * 64}},
            "instances[0].image: has alias and file: one of them says which image",
        ),
        ({"limits": {"disk": "0"}}, 'instances[0].limits.disk: "0": must be a size'),
        ({"limits": {"disk": 10}}, "instances[0].limits.disk: 10: is 10 bytes: must be a size, such as 512MiB"),
        ({"limits": {"disk": "0.5kB"}}, 'instances[0].limits.disk: "0.5kB": is 500 bytes: must be a size'),
        ({"limits": {"cpu": 0}}, "instances[0].limits.cpu: 0: must be a number of cores"),
        ({"limits": {"processes": True}}, "instances[0].limits.processes: true: must be a number"),
        (
            {"instance_type": "t2.mikro"},
            'instances[0].instance_type: "t2.mikro": must be c2-m4 (cores and GiB of memory), or a name such as ',
        ),
        ({"instance_type": "gce:t2.micro"}, "instances[0].instance_type: "),
        ({"instance_type": "c0-m0"}, "instances[0].instance_type: "),
        (
            {"nesting": True, "config": {"security.nesting": "false"}},
            'instances[0].nesting: is config.security.nesting, which says something else: "false" there, "true" here',
        ),
        (
            {"cloud_init": {"user-data": "x"}},
            "instances[0].cloud_init.user-data: unknown key (did you mean user_data?)",
        ),
        ({"cloud_init": {"user_data": 7}}, "instances[0].cloud_init.user_data: must be text, or a mapping"),
        ({"cloud_init": "canary"}, "instances[0].cloud_init: must be a mapping with user_data"),
        (
            {"image": {"alias": "a", "file": "/b"}},
            "instances[0].image: has alias and file: one of them says which image",
        ),
        ({"image": {}}, "instances[0].image: needs alias, fingerprint, properties or file"),
        ({"image": {"alais": "a"}}, "instances[0].image.alais: unknown key (did you mean alias?)"),
        ({"image": {"alias": "a", "protocol": "lxd"}}, "instances[0].image.protocol: is of no use without server"),
        ({"image": {"alias": "a", "server": "http://a"}}, 'instances[0].image.server: "http://a": must be https://'),
        ({"image": {"fingerprint": "xyz"}}, 'instances[0].image.fingerprint: "xyz": must be the fingerprint'),
        (
            {"image": {"properties": {"os": "a"}, "server": "https://a"}},
            "instances[0].image.properties: match images on",
        ),
        (
            {"image": {"alias": "a", "server": "https://a", "secret": ["canary"]}},
            'instances[0].image.secret: "(hidden)": ',
        ),
        (
            {"image": {"alias": "a", "server": "https://a", "protocol": "lxd", "secret": "canary"}},
            "instances[0].image.secret: is for an image that is told by its fingerprint, with protocol lxd or incus",
        ),
        ({"image": "a", "copy_of": "b"}, "instances[0].copy_of: has image as well"),
        ({"copy_of": "a"}, "instances[0].copy_of: a cannot be made from itself"),
        ({"copy_of": "b/c/d"}, 'instances[0].copy_of: "b/c/d": must be an instance or its snapshot'),
        ({"depends_on": ["b", "a"]}, 'instances[0].depends_on[1]: "a": is the instance itself'),
        ({"depends_on": ["a b"]}, 'instances[0].depends_on[0]: "a b": 1 to 63 letters'),
        ({"stop": "hard"}, 'instances[0].stop: "hard": must be a mapping with the keys attempts, force, timeout'),
        ({"stop": {"tries": 2}}, "instances[0].stop.tries: unknown key"),
        ({"stop": {"timeout": 0}}, "instances[0].stop.timeout: 0: must be a whole number, 1 to 86400"),
        ({"stop": {"attempts": "x"}}, 'instances[0].stop.attempts: "x": must be a whole number, 0 to 10'),
        ({"stop": {"attempts": 0, "force": False}}, "instances[0].stop: neither asks it to end nor ends it"),
        ({"wait_for": ["adress"]}, 'instances[0].wait_for[0]: "adress": must be address, cloud-init, system'),
        ({"wait_for": [{"port": 0}]}, "instances[0].wait_for[0].port: 0: must be 1 to 65535"),
        ({"wait_for": [{"exec": "a b"}]}, 'instances[0].wait_for[0].exec: "a b": must be a command and its arguments'),
        ({"wait_for": [{"address": {"family": 5}}]}, "instances[0].wait_for[0].address.family: 5: must be 4 or 6"),
        ({"wait_for": [{"port": 1, "exec": ["a"]}]}, "instances[0].wait_for[0]: "),
        ({"ephemeral": True, "state": "stopped"}, "instances[0].ephemeral: is deleted when it stops"),
        ({"target": "a b"}, 'instances[0].target: "a b": must be the name of a member'),
        (
            {"address": "10.0.0.1/24"},
            'instances[0].address: "10.0.0.1/24": must be an address, or a network such as 192.0.2.0/28 (did you',
        ),
        ({"address": "10.0.0"}, 'instances[0].address: "10.0.0": must be an IPv4 or IPv6 address'),
        ({"address": {"ipv4": "fd00::1"}}, 'instances[0].address.ipv4: "fd00::1": must be an IPv4 address'),
        ({"address": {"nic": "eth0"}}, "instances[0].address: needs ipv4 or ipv6"),
        (
            {
                "address": {"nic": "e", "ipv4": "10.0.0.1"},
                "devices": {"e": {"type": "nic", "ipv4.address": "10.0.0.2"}},
            },
            "instances[0].address: devices.e has an ipv4.address as well",
        ),
        ({"mounts": ["/a:/b/c", "/c:/b//c/"]}, 'instances[0].mounts[1]: "/c:/b//c/": there is a device or mount for '),
        (
            {"mounts": ["/a:/b/c"], "devices": {"mount-b-c": {"type": "disk", "source": "/c", "path": "/b/c"}}},
            'instances[0].mounts[0]: "/a:/b/c": there is a device or mount for /b/c already',
        ),
        ({"mounts": [{"source": "/a", "path": "/b", "acl": True, "shift": True}]}, "instances[0].mounts[0].acl: "),
        (
            {"mounts": [{"source": "/a", "path": "/b", "shift": True, "owner": 1}]},
            "instances[0].mounts[0].owner: with shift",
        ),
        (
            {"mounts": [{"source": "/a", "path": "/b", "owner": "me"}]},
            'instances[0].mounts[0].owner: "me": must be the number',
        ),
    ],
)
def test_what_short_words_refuse(fields: dict[str, t.Any], start: str) -> None:
    (problem,) = problems({"name": "a", **fields})
    assert problem.startswith(start)
    assert "canary" not in problem


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"config": {"user.x": "canary\udcff"}}, "config.user.x"),
        ({"config": {"environment.X": "canary\udcff"}}, "config.environment.X"),
        ({"cloud_init": {"user_data": "canary\ud83d"}}, "cloud_init.user_data"),
        (
            {"cloud_init": {"user_data": {"write_files": [{"content": "\udcff"}]}}},
            "cloud_init.user_data.write_files[0]",
        ),
        ({"cloud_init": {"user_data": {"\udcff": 1}}}, "cloud_init.user_data: a key"),
        ({"devices": {"d": {"type": "disk", "path": "/\udcff"}}}, "devices.d.path"),
        ({"mounts": ["/srv/\udcff:/srv"]}, "mounts[0]"),
        ({"description": "\udcff"}, "description"),
    ],
)
def test_text_that_no_server_can_hold_is_told(fields: dict[str, t.Any], path: str) -> None:
    """Half of a character, as what reads files byte by byte makes it. JSON takes it along."""
    for found in (problems({"name": "a", **fields}), problems({"name": "a"}, defaults=fields)):
        assert len(found) == 1
        assert found[0].partition(".")[2].startswith(path)
        assert found[0].endswith("must be text that UTF-8 can hold")
        assert "canary" not in found[0]
    assert problems({"name": "a"}, owner="\udcff") == ["owner: must be text that UTF-8 can hold"]
    assert one(config={"user.x": "\U0001f40b"}).config == {"user.x": "\U0001f40b"}


def test_defaults_are_merged_key_by_key() -> None:
    defaults = {
        "config": {"user.a": 1, "user.b": 2},
        "limits": {"cpu": 1, "memory": "1GiB"},
        "image": {"alias": "a", "server": "https://a.example.org"},
        "cloud_init": {"user_data": {"packages": ["a"], "locale": "C"}},
        "mounts": ["/a:/a"],
    }
    mine = {
        "config": {"user.b": 3},
        "limits": {"cpu": 2, "memory": None},
        "image": {"fingerprint": "abcd"},
        "cloud_init": {"user_data": {"packages": ["b"]}},
        "mounts": ["/b:/b"],
    }
    merged, copied = parse({"name": "a", **mine}, {"name": "b", "copy_of": "a"}, defaults=defaults).items
    assert merged.config == {
        "user.a": "1",
        "user.b": "3",
        "limits.cpu": "2",
        "limits.memory": "1GiB",
        "cloud-init.user-data": '#cloud-config\n{"locale":"C","packages":["b"]}\n',
    }
    assert merged.image == images.Image(fingerprint="abcd", server="https://a.example.org")
    assert [mount.path for mount in merged.mounts] == ["/b"]
    assert (copied.image, copied.copy_of, copied.depends_on) == (None, images.CopyOf("a"), ())
    unsaid = parse(
        {"name": "b", "copy_of": "a", "image": None}, {"name": "a", "copy_of": None}, defaults=defaults
    ).items
    assert (unsaid[0], unsaid[1].image) == (
        dataclasses.replace(copied, path="instances[0]", mounts=unsaid[0].mounts),
        images.Image("a", server="https://a.example.org"),
    )


def test_what_is_null_was_not_said() -> None:
    """As an item of its own, and where it stands for what the defaults have not."""
    nothing: dict[str, t.Any] = {"config": {"user.a": None}, "devices": {"d": {"type": "none", "x": None}}}
    for item in parse({"name": "a", **nothing}, {"name": "b", "config": {"user.a": None}}, defaults=nothing).items:
        assert item.config == {}
        assert item.devices == {"d": {"type": "none"}}
    assert parse({"name": "a", "config": {"user.a": None}}, defaults={"config": {"user.a": 1}}).items[0].config == {
        "user.a": "1"
    }


def test_what_is_wrong_with_defaults_is_told_once() -> None:
    found = problems({"name": "a"}, {"name": "b"}, defaults={"nesting": "maybe", "limits": {"cpu": -1}})
    assert [one.split(": ")[0] for one in found] == ["defaults.nesting", "defaults.limits.cpu"]
    assert problems({"name": "a"}, defaults={"name": "b"})[0].startswith("defaults.name: unknown key")


def test_prune_needs_an_owner() -> None:
    assert problems(prune=True) == ["prune: needs owner: only what this owner declared before is removed"]
    assert parse(prune=True, owner="me").prune


@pytest.mark.parametrize(
    ("key", "one_value", "other", "alike"),
    [
        ("limits.memory", "512MiB", "536870912", True),
        ("limits.memory", "0.5GiB", "512MiB", True),
        ("limits.memory", "512MB", "512MiB", False),
        ("limits.memory", "50%", "50%", True),
        ("limits.memory", "50%", "50", False),
        ("size", "10GiB", "10240MiB", True),
        ("size", "1EiB", str(1024**6), True),
        ("security.nesting", "true", "1", True),
        ("security.nesting", "True", "yes", True),
        ("security.nesting", "false", "", False),
        ("user.x", "1KiB", "1024", False),
        ("user.x", "true", "1", False),
        ("readonly", "true", "1", True),
    ],
)
def test_values_that_mean_the_same(key: str, one_value: str, other: str, alike: bool) -> None:
    assert values.same(key, one_value, other) is alike
    assert values.same(key, other, one_value) is alike


def test_secrets_of_short_words_are_not_told() -> None:
    secret: dict[str, t.Any] = {
        "config": dict.fromkeys(("raw.lxc", "raw.qemu", "user.meta-data", "environment.TOKEN"), "canary"),
        "cloud_init": {"user_data": {"password": "canary"}},
        "image": {"fingerprint": "abcd", "server": "https://a.example.org", "protocol": "lxd", "secret": "canary"},
    }
    strange = {"name": "b", "cloud_init": "canary", "image": ["canary"]}
    params = {"instances": [{"name": "a", **secret}, strange], "defaults": secret}
    assert "canary" not in str(spec.hidden(params))
    assert "a.example.org" in str(spec.hidden(params))
    assert "canary" in str(params)
    assert "canary" not in str(one(**secret).image) + repr(one(**secret).image)
