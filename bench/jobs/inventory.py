# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Instances as hosts: what a server says of 1,000 of them, beside a static file that says the same."""

from __future__ import annotations

import contextlib
import json
import time
import typing as t
from pathlib import Path

from ..harness import FLOOR, OURS, Contender, Job, Peer
from ..place import Place
from ..processes import Failed
from ..room import SOCKET

COUNT = 1000
ROOM = "inventory"


class _Listing:
    """Stopped instances, and files that list them."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._server = place.room(ROOM).server
        place.room(ROOM).make(f"inventory-{number:04}" for number in range(COUNT))
        project = f"project: {place.room(ROOM).project}\n"
        cache = f"cache: true\ncache_plugin: jsonfile\ncache_connection: {place.folder / 'cache'}\n"
        self.ours = place.file("ours.lxd.yml", f"plugin: mage.lxd.lxd\n{project}")
        self.cached = place.file("cached.lxd.yml", f"plugin: mage.lxd.lxd\n{project}{cache}")
        self.peer = place.file("peer.lxd.yml", f"plugin: community.general.lxd\nurl: unix:{SOCKET}\n{project}")
        # Of the formats of static files JSON is read fastest.
        self.static = place.file("static.json", json.dumps(as_static(json.loads(self._list(self.ours)[1]))))

    def _list(self, path: Path) -> tuple[float, str]:
        return self._place.run("ansible-inventory", "-i", str(path), "--list")

    def seconds(self, path: Path) -> float:
        """What it takes to list a file; all hosts must be there."""
        seconds, output = self._list(path)
        found = len(json.loads(output)["_meta"]["hostvars"])
        if found != COUNT:
            raise Failed(f"{path.name}: {found} hosts instead of {COUNT}")
        return seconds

    def read(self) -> float:
        """What one read of the server's list takes."""
        started = time.monotonic()
        self._server.request("GET", "instances", recursion="1")
        return time.monotonic() - started


def as_static(listed: dict[str, t.Any]) -> dict[str, t.Any]:
    """The output of ansible-inventory as a file that says the same."""
    groups = {name: group for name, group in listed.items() if name not in ("_meta", "all", "ungrouped")}
    children: dict[str, t.Any] = {
        name: {"hosts": {host: {} for host in group.get("hosts", [])}} for name, group in groups.items()
    }
    return {"all": {"hosts": listed["_meta"]["hostvars"], "children": children}}


class Inventory(Job):
    """The server's list, read by ansible-inventory."""

    name = "inventory"
    room = ROOM
    title = f"inventory of {COUNT:,} instances"
    runs = 3
    warm_up = 0
    peers = (Peer("peer", "", 0.1),)
    floor_limit = 1.5

    def __init__(self, place: Place) -> None:
        self._place = place

    @contextlib.contextmanager
    def contenders(self) -> t.Iterator[t.Mapping[str, Contender]]:
        """The floor is a static file and one read."""
        listing = _Listing(self._place)
        yield {
            OURS: lambda: listing.seconds(listing.ours),
            "peer": lambda: listing.seconds(listing.peer),
            FLOOR: lambda: listing.seconds(listing.static) + listing.read(),
        }


class Cached(Job):
    """The same list from the cache."""

    name = "inventory-cached"
    room = ROOM
    title = f"inventory of {COUNT:,} instances, cached"
    runs = 9
    floor_limit = 1.1

    def __init__(self, place: Place) -> None:
        self._place = place

    @contextlib.contextmanager
    def contenders(self) -> t.Iterator[t.Mapping[str, Contender]]:
        """The first run fills the cache."""
        listing = _Listing(self._place)
        yield {OURS: lambda: listing.seconds(listing.cached), FLOOR: lambda: listing.seconds(listing.static)}
