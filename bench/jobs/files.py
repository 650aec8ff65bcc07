# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that go into a container and come out of it."""

from __future__ import annotations

import contextlib
import os
import time
import typing as t
from pathlib import Path

from ..harness import FLOOR, OURS, Contender, Job, Peer
from ..place import BIN, Place, hosts
from ..processes import Failed
from ..room import Room
from .commands import OUR_CONNECTION, THEIR_CONNECTION

SMALL = 100
LARGE = 100 << 20


class Copy(Job):
    """``copy`` in a loop over small files: what the task takes."""

    name = "copy"
    title = f"copy of {SMALL} small files"
    room = "commands"
    runs = 3
    peers = (Peer("peer", "", 0.7),)

    def __init__(self, place: Place) -> None:
        self._place = place
        self._turn = 0

    @contextlib.contextmanager
    def contenders(self) -> t.Iterator[t.Mapping[str, Contender]]:
        """The floor is the same task on the controller itself. Every turn writes files that are not there yet."""
        room = self._place.room(self.room)
        (name,) = room.python_boxes(1)
        source = self._place.folder / "small"
        source.mkdir()
        for number in range(SMALL):
            (source / str(number)).write_bytes(os.urandom(1024))
        copies = self._place.folder / "copies"

        def copy(connection: str) -> float:
            self._turn += 1
            target = copies / str(self._turn) if connection == "local" else Path("/root", str(self._turn))
            made = {"name": "make", "file": {"path": str(target), "state": "directory", "mode": "0755"}}
            values = {"src": f"{source}/{{{{ item }}}}", "dest": f"{target}/{{{{ item }}}}", "mode": "0644"}
            task = {"name": "copy", "copy": values, "loop": list(range(SMALL))}
            variables = {"ansible_connection": connection, "ansible_lxd_project": room.project}
            return self._place.play([made, task], hosts([name], **variables))[1]["copy"]

        copies.mkdir()
        yield {
            OURS: lambda: copy(OUR_CONNECTION),
            "peer": lambda: copy(THEIR_CONNECTION),
            FLOOR: lambda: copy("local"),
        }


class _Transfer(Job):
    """A large file, by the connection plugin, by ``lxc file``, and by the server's files API with nothing around it."""

    room = "commands"
    runs = 7
    peers = (Peer("lxc file", "", 0.8),)
    direction: str

    def __init__(self, place: Place) -> None:
        self._place = place

    @contextlib.contextmanager
    def contenders(self) -> t.Iterator[t.Mapping[str, Contender]]:
        """All of them move the same bytes."""
        room = self._place.room(self.room)
        (name,) = room.make(["files"], start=True)
        local = self._place.folder / "large"
        with local.open("wb") as file:
            file.writelines(os.urandom(1 << 20) for _part in range(LARGE >> 20))
        room.server.push(name, str(local), "/root/large")
        moves = (self._ours, self._peer, self._floor)
        contenders = zip((OURS, "lxc file", FLOOR), moves)
        yield {key: self._checked(move, room, name, local) for key, move in contenders}

    def _checked(self, move: t.Callable[..., float], room: Room, name: str, local: Path) -> Contender:
        """What arrived must be as long as what was sent."""
        back = local.with_name("back")

        def contender() -> float:
            if self.direction == "put":
                seconds = move(room, name, str(local), "/root/arrived")
                room.wait_for(name, f"[ $(wc -c </root/arrived) = {LARGE} ] && rm /root/arrived", 0)
                return seconds
            seconds = move(room, name, "/root/large", str(back))
            if back.stat().st_size != LARGE:
                raise Failed(f"fetch: {back.stat().st_size} bytes came instead of {LARGE}")
            back.unlink()
            return seconds

        return contender

    def _ours(self, room: Room, name: str, source: str, target: str) -> float:
        script = str(Path(__file__).parents[1] / "transfer.py")
        _seconds, output = self._place.run(
            str(BIN / "python"), script, self.direction, name, room.project, source, target
        )
        return float(output)

    def _peer(self, room: Room, name: str, source: str, target: str) -> float:
        word = {"put": "push", "fetch": "pull"}[self.direction]
        places = [source, f"{name}{target}"] if word == "push" else [f"{name}{source}", target]
        return self._place.run("lxc", "file", word, "--project", room.project, *places)[0]

    def _floor(self, room: Room, name: str, source: str, target: str) -> float:
        started = time.monotonic()
        (room.server.push if self.direction == "put" else room.server.pull)(name, source, target)
        return time.monotonic() - started


class Put(_Transfer):
    """Into the container."""

    name = "put"
    title = f"put of {LARGE >> 20} MiB"
    direction = "put"


class Fetch(_Transfer):
    """Out of the container."""

    name = "fetch"
    title = f"fetch of {LARGE >> 20} MiB"
    direction = "fetch"
