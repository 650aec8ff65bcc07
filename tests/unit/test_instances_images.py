# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which image on a server is meant, and what is said where there is none."""

from __future__ import annotations

import hashlib
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils._instances import fetch, fetches, images, spec
from ansible_collections.mage.lxd.plugins.module_utils._values import Problems
from ansible_collections.mage.lxd.tests.memory import convergence
from ansible_collections.mage.lxd.tests.memory.driver import MemoryDriver
from ansible_collections.mage.lxd.tests.memory.store import FINGERPRINT, Store

TWINS = ("abcd1" + "0" * 59, "abcd2" + "0" * 59)
KNOWN = {"debian/bookworm": TWINS[0], "alpine/amd64": TWINS[0], "alpine/arm64": TWINS[1], **{one: one for one in TWINS}}
THERE: list[dict[str, t.Any]] = [
    {"fingerprint": "a", "properties": {"os": "Debian", "release": "12"}, "created_at": "2026-01-01T00:00:00Z"},
    {"fingerprint": "b", "properties": {"os": "Debian", "release": "12"}, "created_at": "2026-03-01T00:00:00Z"},
    {"fingerprint": "c", "properties": {"os": "Debian", "release": "11"}, "created_at": "2026-02-01T00:00:00Z"},
    {"fingerprint": "d", "properties": None},
]


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (images.Image(fingerprint="abcd"), "the fingerprints of 2 images on the server begin so: abcd1"),
        (images.Image(alias="abcd" + "0" * 20), "no image on the server has this alias or fingerprint"),
        (images.Image(fingerprint="ffff"), "no image on the server has this fingerprint"),
        (images.Image(properties=(("os", "x"),)), "no image on the server has these properties"),
        (images.Image(alias="alpine"), "say which one, alpine/amd64 or alpine/arm64"),
        (images.Image(alias="debian/bokworm"), "has this alias (did you mean debian/bookworm?)"),
        (images.Image(alias="zzz"), "has this alias; there are alpine/amd64, alpine/arm64, debian/bookworm"),
    ],
)
def test_why_there_is_no_such_image(image: images.Image, told: str) -> None:
    assert images.source(image, KNOWN) is None
    found = images.why_not(image, KNOWN)
    assert told in found
    assert ("alias" in found) == bool(image.alias and image.alias != "alpine")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"os": "Debian"}, "b"),
        ({"os": "Debian", "release": "11"}, "c"),
        ({"os": "Debian", "release": "10"}, ""),
        ({"os": "debian"}, ""),
    ],
)
def test_the_newest_image_of_those_properties_is_meant(wanted: dict[str, str], found: str) -> None:
    assert images.matching(wanted.items(), THERE) == found


def test_one_image_may_be_told_in_many_ways() -> None:
    """Another word for the image that an instance was made from is no other image, and one that nobody has is told at
    once."""
    store = Store()
    store.images = {"linux/amd64": FINGERPRINT}

    def run(image: object, **more: t.Any) -> convergence.Outcome:
        return convergence.run(MemoryDriver(store), [{"name": "a", "image": image, "state": "stopped"}], **more)

    made = store.images
    assert run("linux").ok
    for other in ("linux/amd64", FINGERPRINT, {"fingerprint": FINGERPRINT[:8]}, {"properties": {"os": "linux/amd64"}}):
        assert run(other).ok, other
    assert store.images == made
    told = run({"properties": {"os": "none"}})
    assert "a was made from" in told.error
    store.instances.clear()
    assert "no image on the server has these properties" in run({"properties": {"os": "none"}}).error
    assert store.instances == {}
    assert run({"properties": {"os": "linux/amd64"}}).ok
    assert run("linux").ok


def test_a_file_is_what_its_fingerprint_says(tmp_path: Path) -> None:
    file = tmp_path / "image.tar.gz"
    file.write_bytes(b"image")
    digest = hashlib.sha256(b"image").hexdigest()
    for wanted, told in ((digest, []), (digest.upper(), []), ("0" * 64, [f"the SHA-256 of {file} is {digest}"])):
        item = {"name": "a", "image": {"file": str(file), "fingerprint": wanted}}
        defaults = {name: option["default"] for name, option in spec.ARGUMENTS.items() if "default" in option}
        desired = spec.parse({**defaults, "timeout": 60, "instances": [item]}, "default")
        problems, missing = Problems(), Problems()
        known = fetches.known(desired.items[0], fetch.fingerprints(desired.items), problems, missing)
        assert [text.rpartition(": ")[2] for text in problems.texts] == told
        assert not missing.texts
        assert known.image is not None
        assert known.image.fingerprint == digest
