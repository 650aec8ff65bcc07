# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role lxd_host finds missing: what is there is never altered, and what was done is not done again."""

from __future__ import annotations

import ipaddress
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
