# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images of another server: LXD's for Incus, and Incus's for LXD."""

from __future__ import annotations

import hashlib
import json
import os
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils._errors import InvalidInput
from ansible_collections.mage.lxd.tests.integration import doors as doors_module
from ansible_collections.mage.lxd.tests.integration import server
from ansible_collections.mage.lxd.tests.integration.engine import Engine


class Source(t.NamedTuple):
    """A server that has an image which the engine's has not: ``said`` says which server, ``alias`` and ``fingerprint``
    which image."""

    server: doors_module.Server
    said: dict[str, t.Any]
    alias: str
    fingerprint: str

    def publish(self, public: bool) -> None:
        """Whether everybody gets the image."""
        found = self.server.query(f"/1.0/images/{self.fingerprint}")
        body = {"public": public, "properties": found["properties"], "auto_update": False}
        path = f"/1.0/images/{self.fingerprint}"
        self.server.run("query", "--wait", "-X", "PUT", path, "-d", json.dumps(body))

    def secret(self) -> str:
        """What gives access to the image though it is not public."""
        answer = self.server.run("query", "-X", "POST", f"/1.0/images/{self.fingerprint}/secret")
        return str(json.loads(answer)["metadata"]["secret"])


@pytest.fixture
def source(engine: Engine, doors: doors_module.Doors, tmp_path: Path) -> t.Iterator[Source]:
    """The other one of LXD and Incus. Padding makes the image another one for each test."""
    other, _options = doors.way("incus" if engine.server.name == "lxd" else "lxd")
    file = tmp_path / "image.tar.gz"
    server.run("bash", str(Path(__file__).parent / "busybox-image.sh"), str(file))
    file.write_bytes(file.read_bytes() + bytes(5000 + os.getpid() % 5000 + int(engine.prefix[-4:], 16) % 1000))
    fingerprint = hashlib.sha256(file.read_bytes()).hexdigest()
    alias = f"{engine.prefix}/busybox"
    other.run("image", "import", str(file), "--alias", alias)
    info = other.query("/1.0")
    said = {
        "server": f"https://{info['config']['core.https_address']}",
        "certificate": info["environment"]["certificate"],
        "protocol": other.name,
    }
    yield Source(other, said, alias, fingerprint)
    engine.server.delete(f"{engine.prefix}-")
    for one in (engine.server, other):
        if fingerprint in images(one):
            one.run("image", "delete", fingerprint)


def images(one: doors_module.Server) -> dict[str, dict[str, t.Any]]:
    return {found["fingerprint"]: found for found in one.query("/1.0/images?recursion=1")}


def test_an_image_of_another_server_is_fetched_by_alias_and_by_fingerprint(engine: Engine, source: Source) -> None:
    source.publish(True)
    stopped: dict[str, t.Any] = {"state": "stopped"}
    by_alias = {**engine.item("alias", **stopped), "image": {"alias": source.alias, **source.said}}
    local = {**engine.item("local", **stopped), "image": {"alias": source.alias, **source.said, "mode": "local"}}
    with pytest.raises(InvalidInput, match="no image on the server has this alias"):
        engine.run(local)
    assert source.fingerprint not in images(engine.server)
    engine.good(by_alias)
    # As a server does by itself; it fetches nothing anew unless the other one has a newer image.
    assert images(engine.server)[source.fingerprint]["auto_update"] is True
    assert engine.get("alias")["config"]["volatile.base_image"] == source.fingerprint
    # It is here now.
    engine.good({**local, "image": {"fingerprint": source.fingerprint[:16], **source.said, "mode": "local"}})
    engine.server.delete(f"{engine.prefix}-")
    engine.server.run("image", "delete", source.fingerprint)
    whole = {"fingerprint": source.fingerprint, **source.said}
    by_fingerprint = {**engine.item("fingerprint", **stopped), "image": whole}
    done = engine.good(by_fingerprint)
    assert not engine.good(by_fingerprint).changed
    assert [path for method, path in done.requests if method == "POST"] == ["/1.0/instances"]
    for kept in (True, False):
        engine.server.delete(f"{engine.prefix}-")
        engine.server.run("image", "delete", source.fingerprint)
        items = [{**engine.item(f"kept{n}", **stopped), "image": {**whole, "auto_update": kept}} for n in range(2)]
        done = engine.good(*items)
        assert [path for method, path in done.requests if method == "POST"].count("/1.0/images") == 1
        assert images(engine.server)[source.fingerprint]["auto_update"] is kept


def test_a_private_image_needs_its_secret(engine: Engine, source: Source) -> None:
    image = {"fingerprint": source.fingerprint, **source.said}
    item = {**engine.item("private", state="stopped"), "image": image}
    (failure,) = engine.run(item).failures
    assert "not found" in failure
    secret = source.secret()
    done = engine.good({**item, "image": {**image, "secret": secret}}, timeout=60)
    assert engine.get("private")["config"]["volatile.base_image"] == source.fingerprint
    assert secret not in json.dumps(done.values) + str(done.plan.diff())
    # The secret is one for once; what is made needs none.
    assert not engine.good(item).changed
