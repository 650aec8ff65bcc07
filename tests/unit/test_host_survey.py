# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role lxd_host finds missing: what is there is never altered, and what was done is not done again."""

from __future__ import annotations

import http.server
import ipaddress
import json
import socketserver
import threading
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mage.lxd.roles.lxd_host.files import survey

ALL_IDS = 4294967295
NESTED = 10000001
ASKED: dict[str, t.Any] = {
    "bridge": "lxdbr0",
    "ipv4": "auto",
    "ipv6": "none",
    "pool": "default",
    "pool_size": "20GiB",
}
BRIDGE = {"name": "br1", "type": "bridge", "managed": True}
ROOT = {"type": "disk", "path": "/", "pool": "p"}
NIC = {"type": "nic", "network": "br1"}


@pytest.mark.parametrize(
    ("uid_map", "count"),
    [
        ("         0          0 4294967295\n", ALL_IDS),
        ("         0     100000   10000001\n", NESTED),
        ("0 100000 1000\n1000 1000 1\n1001 101001 64535\n", 65536),
        ("1 100000 1000\n", 0),
    ],
)
def test_ids_are_counted_up_to_the_first_gap(uid_map: str, count: int) -> None:
    assert survey.available_ids(uid_map) == count


@pytest.mark.parametrize(
    ("text", "available", "expected"),
    [
        ("", ALL_IDS, "root:1000000:1000000000\n_lxd:1000000:1000000000\n"),
        ("me:100000:65536\n", ALL_IDS, "me:100000:65536\nroot:1000000:1000000000\n_lxd:1000000:1000000000\n"),
        ("root:100000:10000001\n_lxd:100000:10000001\n", ALL_IDS, None),
        ("root:100000:65536\n", ALL_IDS, "root:100000:65536\n_lxd:1000000:1000000000\n"),
        # Too small to be of use: kept, and one of use added.
        ("root:5:10\n_lxd:100000:65536\n", ALL_IDS, "root:5:10\n_lxd:100000:65536\nroot:1000000:1000000000\n"),
        # What Debian's package writes does not fit into a container.
        ("_lxd:100000:10000001\nroot:100000:10000001\n", NESTED, "root:1000000:9000001\n_lxd:1000000:9000001\n"),
        ("", 200000, "root:65536:134464\n_lxd:65536:134464\n"),
        ("", 65536, None),
    ],
)
def test_ranges_of_ids_are_added_and_those_that_cannot_work_replaced(
    text: str, available: int, expected: str | None
) -> None:
    planned = survey.plan_subids(text, ["root", "_lxd"], available)
    assert planned == expected
    if planned is not None:
        assert survey.plan_subids(planned, ["root", "_lxd"], available) is None


def test_kernel_settings_are_raised_never_lowered_and_kept() -> None:
    wanted = {"low": 100, "equal": 100, "high": 100, "absent": 100}
    first = survey.plan_sysctls(wanted, {"low": 1, "equal": 100, "high": 500}, "")
    assert first["set"] == {"low": 100}
    assert first["file"].splitlines()[1:] == ["low = 100"]
    again = survey.plan_sysctls(wanted, {"low": 100, "equal": 100, "high": 500}, first["file"])
    assert again == {"set": {}, "file": first["file"]}
    # Seen from a container that has not got it.
    assert survey.plan_sysctls(wanted, {}, first["file"]) == again
    # Somebody raised it further: at the next boot, that is to win.
    assert survey.plan_sysctls(wanted, {"low": 300}, first["file"]) == {"set": {}, "file": ""}


@pytest.mark.parametrize(
    ("networks", "pools", "devices", "expected"),
    [
        (
            [],
            [],
            {},
            {
                "networks": [
                    {
                        "name": "lxdbr0",
                        "type": "bridge",
                        "config": {"ipv4.address": "auto", "ipv4.nat": "true", "ipv6.address": "none"},
                    }
                ],
                "storage_pools": [{"name": "default", "driver": "btrfs", "config": {"size": "20GiB"}}],
                "profiles": [
                    {
                        "name": "default",
                        "devices": {
                            "root": {"type": "disk", "path": "/", "pool": "default"},
                            "eth0": {"type": "nic", "name": "eth0", "network": "lxdbr0"},
                        },
                    }
                ],
            },
        ),
        ([BRIDGE], [{"name": "p"}], {"root": ROOT, "eth0": NIC}, {}),
        # Devices of other names do as well.
        ([BRIDGE], [{"name": "p"}], {"disk0": ROOT, "lan": NIC}, {}),
        # A bridge of the host's own does, too.
        ([], [{"name": "p"}], {"root": ROOT, "eth0": {"type": "nic", "nictype": "bridged", "parent": "br0"}}, {}),
        # A device that somebody gave the name is left alone, whatever it is.
        ([BRIDGE], [{"name": "p"}], {"root": {"type": "none"}, "eth0": {"type": "none"}}, {}),
        (
            [{"name": "eth0", "type": "physical", "managed": False}, BRIDGE],
            [{"name": "p"}],
            {"root": ROOT},
            {"profiles": [{"name": "default", "devices": {"eth0": {"type": "nic", "name": "eth0", "network": "br1"}}}]},
        ),
    ],
)
def test_only_what_is_missing_is_added(networks: t.Any, pools: t.Any, devices: t.Any, expected: t.Any) -> None:
    assert survey.plan_preseed(ASKED, networks, pools, {"devices": devices}, "btrfs") == expected


@pytest.mark.parametrize(
    ("asked", "supported", "loop", "driver"),
    [
        ("auto", ["dir", "btrfs"], True, "btrfs"),
        ("auto", ["dir", "btrfs"], False, "dir"),
        ("auto", ["dir"], True, "dir"),
        ("btrfs", ["dir"], False, "btrfs"),
    ],
)
def test_btrfs_where_the_machine_can(asked: str, supported: list[str], loop: bool, driver: str) -> None:
    assert survey.choose_driver(asked, supported, loop) == driver


def test_a_route_is_read_as_the_kernel_writes_it() -> None:
    table = (
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n"
        "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\n"
        "lxdbr0\t0000610A\t00000000\t0001\t0\t0\t0\t00FFFFFF\n"
    )
    assert survey.routed_networks(table) == [ipaddress.ip_network("10.97.0.0/24")]


@given(st.text(), st.lists(st.integers(0, 255), max_size=20))
def test_the_chosen_subnet_is_free_and_stays(seed: str, routed: list[int]) -> None:
    networks = [ipaddress.IPv4Network(f"10.{part}.0.0/16") for part in routed]
    chosen = survey.free_address(networks, seed)
    assert chosen == survey.free_address(networks, seed)
    assert chosen.startswith("10.")
    assert chosen.endswith(".1/24")
    assert not any(ipaddress.ip_interface(chosen).network.overlaps(network) for network in networks)


def image(**keys: t.Any) -> dict[str, t.Any]:
    return survey.with_defaults({"alias": "debian/bookworm", **keys})


def test_a_build_is_known_by_its_definition() -> None:
    asked = image(build={"suite": "bookworm", "packages": ["nginx", "curl"]})
    words = survey.plan_image(asked, None)
    assert words is not None
    assert words[:4] == ["build", "bookworm", "", "nginx,curl"]
    assert survey.plan_image(asked, {"properties": {"mage.definition": words[4]}}) is None
    assert survey.plan_image(asked, {"properties": {"mage.definition": "other"}}) == words
    assert survey.plan_image(asked, {"properties": {}}) == words


def test_a_pulled_image_is_known_by_its_source() -> None:
    asked = image(server="https://images.example.org")
    words = ["pull", "https://images.example.org", "simplestreams", "debian/bookworm"]
    source = {"server": words[1], "protocol": words[2], "alias": words[3]}
    assert survey.plan_image(asked, None) == words
    assert survey.plan_image(asked, {"update_source": source}) is None
    assert survey.plan_image(asked, {"update_source": {**source, "alias": "debian/11"}}) == words
    # Put there by hand.
    assert survey.plan_image(asked, {"update_source": None}) is None


def test_an_image_that_came_by_two_names_is_known_by_both() -> None:
    words = [
        ["https://images.example.org", "simplestreams", "debian/12"],
        ["https://images.example.org", "simplestreams", "debian/bookworm"],
    ]
    aliases = [{"name": one[2], "description": " ".join(one)} for one in words]
    source = dict(zip(("server", "protocol", "alias"), words[1]))
    for alias in ("debian/12", "debian/bookworm"):
        asked = survey.with_defaults({"alias": alias, "server": words[0][0]})
        assert survey.plan_image(asked, {"update_source": source, "aliases": aliases}) is None
    moved = survey.with_defaults({"alias": "debian/12", "server": words[0][0], "source": "debian/13"})
    assert survey.plan_image(moved, {"update_source": source, "aliases": aliases}) == [
        "pull",
        *words[0][:2],
        "debian/13",
    ]


class Starting(http.server.BaseHTTPRequestHandler):
    """A server that is about to start: it answers as one does, so many times."""

    left = 0

    def do_GET(self) -> None:
        ready = Starting.left == 0
        Starting.left -= not ready
        body = json.dumps({"metadata": {"up": True}} if ready else {"error": "daemon setup in progress"}).encode()
        self.send_response(200 if ready else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: t.Any, **more: t.Any) -> None:
        """Say nothing."""

    def address_string(self) -> str:
        return ""


def test_a_server_that_is_about_to_start_is_waited_for(tmp_path: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "socket")
    monkeypatch.setattr(survey, "SOCKETS", {"lxd": (str(tmp_path / "none"), path)})
    assert survey.find_server("lxd", 0) is None
    with socketserver.ThreadingUnixStreamServer(path, Starting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        Starting.left = 2
        assert survey.find_server("lxd", 30) == {"socket": path, "info": {"up": True}}
        Starting.left = 100
        with pytest.raises(survey.NotReady, match="daemon setup in progress"):
            survey.find_server("lxd", 0.1)
        server.shutdown()


def test_a_file_is_known_by_its_content(tmp_path: t.Any) -> None:
    for name in ("meta", "root"):
        (tmp_path / name).write_text(name)
    asked = image(file=str(tmp_path / "meta"), rootfs=str(tmp_path / "root"))
    # sha256 of "metaroot", as the server computes it over both files.
    fingerprint = survey.fingerprint([asked["file"], asked["rootfs"]])
    assert survey.plan_image(asked, {"fingerprint": fingerprint}) is None
    assert survey.plan_image(asked, {"fingerprint": "0"}) == ["file", asked["file"], asked["rootfs"]]


def test_the_packages_are_those_of_the_flavor_and_the_images() -> None:
    asked = {"flavor": "incus", "images": [image(build={"suite": "trixie"})], "extra_packages": ["incus"]}
    names = survey.wanted_packages(asked, {"ID": "debian"})
    assert {"incus-base", "incus-client", "mmdebstrap", "incus"} <= set(names)
    assert not {"lxd", "snapd"} & set(names)
    assert "snapd" in survey.wanted_packages({"flavor": "lxd", "images": [], "extra_packages": []}, {"ID": "ubuntu"})


def asked(**said: t.Any) -> dict[str, t.Any]:
    """What the role asks with its defaults, and with what is said."""
    options = {"extra_packages": [], "sysctls": {}, "images": [], "wait": 60, "python": True, "flavor": "lxd"}
    return {**ASKED, **options, **said}


ADDRESS = "must be auto, none, or a host's address with the length of its network's prefix, such as"
PACKAGE = "must be a package's name, such as nginx-light"
ALIAS = "must be a name, such as debian/bookworm"


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        *(
            ({"ipv4": address}, f'lxd_host_ipv4: "{address}": {ADDRESS} 10.8.0.1/24')
            for address in ("10.8.0.1", "10.8.0.0/24", "10.8.0.255/24", "10.8.0.1/33", "fd42::1/64", "", "10.8.0.1/32")
        ),
        ({"ipv4": None}, f"lxd_host_ipv4: null: {ADDRESS} 10.8.0.1/24"),
        ({"ipv6": "10.8.0.1/24"}, f'lxd_host_ipv6: "10.8.0.1/24": {ADDRESS} fd42:8::1/64'),
        (
            {"bridge": "a b"},
            'lxd_host_bridge: "a b": must be an interface\'s name of 2 to 15 characters, such as lxdbr0',
        ),
        ({"pool": "a/b"}, 'lxd_host_pool: "a/b": must be the name of a storage pool, such as default'),
        ({"pool_size": "20"}, 'lxd_host_pool_size: "20": must be a number with a unit, such as 20GiB'),
        ({"pool_size": "lots"}, 'lxd_host_pool_size: "lots": must be a number with a unit, such as 20GiB'),
        ({"wait": 0}, "lxd_host_wait: 0: must be a number of seconds, such as 60"),
        ({"extra_packages": ["ok", "$(id)"]}, f'lxd_host_extra_packages[1]: "$(id)": {PACKAGE}'),
        ({"extra_packages": [1]}, f"lxd_host_extra_packages[0]: 1: {PACKAGE}"),
        ({"sysctls": {"a.b": "x"}}, 'lxd_host_sysctls.a.b: "x": must be a whole number, such as 262144'),
        ({"sysctls": {"a.b": True}}, "lxd_host_sysctls.a.b: true: must be a whole number, such as 262144"),
        (
            {"sysctls": {"../etc": 1}},
            'lxd_host_sysctls: "../etc": must be the name of a kernel setting, such as vm.max_map_count',
        ),
        ({"sysctls": "a.b=1"}, 'lxd_host_sysctls: "a.b=1": must be a mapping, such as {vm.max_map_count: 262144}'),
        ({"images": "debian"}, 'lxd_host_images: "debian": must be a list'),
        ({"images": ["debian"]}, 'lxd_host_images[0]: "debian": must be a mapping, such as {alias: debian, '),
        (
            {"images": [{"alais": "a", "server": "https://a"}]},
            "lxd_host_images[0].alais: unknown key (did you mean alias?)",
        ),
        ({"images": [{"server": "https://a"}]}, f"lxd_host_images[0].alias: missing: {ALIAS}"),
        ({"images": [{"alias": "a b", "server": "https://a"}]}, f'lxd_host_images[0].alias: "a b": {ALIAS}'),
        (
            {"images": [{"alias": "a", "server": "ftp//nonsense"}]},
            'lxd_host_images[0].server: "ftp//nonsense": must be a URL, such as https://images.example.org',
        ),
        (
            {"images": [{"alias": "a", "server": "https://a", "protocol": "simplestream"}]},
            'lxd_host_images[0].protocol: "simplestream": must be one of simplestreams, lxd, incus, oci (did you',
        ),
        ({"images": [{"alias": "a"}]}, 'lxd_host_images[0]: "a": must have one of server, file and build'),
        (
            {"images": [{"alias": "a", "server": "https://a", "build": {"suite": "sid"}}]},
            'lxd_host_images[0]: "a": must have one of server, file and build',
        ),
        (
            {"images": [{"alias": "a", "server": "https://a"}] * 2},
            'lxd_host_images[1].alias: "a": is in the list twice',
        ),
        (
            {"images": [{"alias": "a", "file": "/nowhere"}]},
            'lxd_host_images[0].file: "/nowhere": there is no such file on this host',
        ),
        ({"images": [{"alias": "a", "file": "a.tar"}]}, 'lxd_host_images[0].file: "a.tar": must be an absolute path'),
        (
            {"images": [{"alias": "a", "rootfs": "/etc/passwd", "server": "https://a"}]},
            'lxd_host_images[0].rootfs: "/etc/passwd": belongs to',
        ),
        (
            {"images": [{"alias": "a", "build": "sid"}]},
            'lxd_host_images[0].build: "sid": must be a mapping, such as {suite',
        ),
        (
            {"images": [{"alias": "a", "build": {"suite": "../etc"}}]},
            'lxd_host_images[0].build.suite: "../etc": must be a suite\'s name, such as bookworm',
        ),
        (
            {"images": [{"alias": "a", "build": {"suite": "sid", "pakages": []}}]},
            "lxd_host_images[0].build.pakages: unknown key (did you mean packages?)",
        ),
        (
            {"images": [{"alias": "a", "build": {"suite": "sid", "packages": ["ok", "-x"]}}]},
            f'lxd_host_images[0].build.packages[1]: "-x": {PACKAGE}',
        ),
        (
            {"images": [{"alias": "a", "build": {"suite": "sid", "packages": "nginx"}}]},
            'lxd_host_images[0].build.packages: "nginx": must be a list of packages\' names, such as [nginx-light]',
        ),
        (
            {"images": [{"alias": "a", "build": {"suite": "sid", "mirror": "mirror"}}]},
            'lxd_host_images[0].build.mirror: "mirror": must be a URL, such as http://mirror.example.org/debian, ',
        ),
    ],
)
def test_what_is_refused_names_its_place_value_rule_and_an_example(said: dict[str, t.Any], problem: str) -> None:
    wanted = asked(**said)
    found = [*survey.option_problems(wanted), *survey.image_problems(wanted["images"])]
    assert found[0].startswith(problem), found
    # Without its alias, an image has no name either.
    assert len(found) == 1 + ("alais" in problem), found


def test_what_is_right_is_taken_in_all_its_forms() -> None:
    images = [
        {
            "alias": "debian/bookworm",
            "build": {"suite": "bookworm", "packages": None, "mirror": "deb http://a sid main"},
        },
        {
            "alias": "alpine/3.20",
            "server": "https://images.example.org:8443/1.0",
            "protocol": None,
            "source": "alpine/3",
        },
        {"alias": "file", "file": "/dev/../etc/passwd", "rootfs": None},
    ]
    numbers = {"vm.max_map_count": "262144", "net.ipv4.neigh.default.gc_thresh3": 8192}
    said = {"ipv4": "10.8.0.1/24", "ipv6": "fd42:8::1/64", "pool_size": "5GB", "wait": "60"}
    wanted = asked(images=images, sysctls=numbers, extra_packages="incus, nginx-light", **said)
    assert [*survey.option_problems(wanted), *survey.image_problems(images)] == []
    normal = survey.normal(wanted)
    assert normal["sysctls"] == {"vm.max_map_count": 262144, "net.ipv4.neigh.default.gc_thresh3": 8192}
    assert normal["extra_packages"] == ["incus", "nginx-light"]
    assert normal["images"][0]["build"]["packages"] == []
    assert normal["images"][1]["protocol"] == "simplestreams"


def test_all_mistakes_come_together() -> None:
    wanted = asked(pool="a/b", images=[{"alias": "a"}], sysctls={"a.b": "x"})
    python = {"path": "/usr/bin/python3", "missing": [], "system": True}
    assert [text.split(":")[0] for text in survey.problems(wanted, {"ID": "debian"}, python)][:3] == [
        "lxd_host_pool",
        "lxd_host_sysctls.a.b",
        "lxd_host_images[0]",
    ]
