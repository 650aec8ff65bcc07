# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the benchmarks happen: a folder, rooms on the server, and Ansible in the peers' environment."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import typing as t
from pathlib import Path

from . import room
from .processes import Failed, call

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "bench"
BIN = Path(sys.executable).parent
CONFIG = f"""[defaults]
callback_plugins = {ROOT}/bench/plugins/callback
callbacks_enabled = task_seconds
collections_path = {ROOT}/.tree
connection_plugins = {ROOT}/bench/plugins/connection
host_key_checking = false
interpreter_python = /usr/bin/python3
localhost_warning = false
nocolor = true
retry_files_enabled = false
[connection]
pipelining = true
"""


class Place:
    """What the jobs of one run share; all of it is gone afterwards, and what a killed run left before."""

    def __init__(self) -> None:
        self.folder = CACHE / str(os.getpid())
        self._rooms: dict[str, room.Room] = {}

    def __enter__(self) -> Place:
        room.delete_orphans()
        for folder in CACHE.glob("[0-9]*"):
            if not Path("/proc", folder.name).exists():
                shutil.rmtree(folder)
        self.folder.mkdir(parents=True)
        (self.folder / "ansible.cfg").write_text(CONFIG, encoding="utf-8")
        return self

    def __exit__(self, *_exc: object) -> None:
        self.leave(self._rooms)
        shutil.rmtree(self.folder)

    def room(self, name: str) -> room.Room:
        """The room of that name, made when it is first asked for."""
        if name not in self._rooms:
            self._rooms[name] = room.Room(name, self.folder)
        return self._rooms[name]

    def leave(self, names: t.Iterable[str]) -> None:
        """Delete these rooms."""
        for name in sorted(self._rooms.keys() & set(names)):
            self._rooms.pop(name).close()

    def file(self, name: str, text: str) -> Path:
        """A file in the folder."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def run(self, *argv: str, **environment: str) -> tuple[float, str]:
        """Run a tool of the peers' environment: how long it took, and what it printed."""
        added = {
            "ANSIBLE_CONFIG": str(self.folder / "ansible.cfg"),
            "ANSIBLE_HOME": str(self.folder / "ansible"),
            # Where both servers are, ours wants to be told which.
            "LXD_SOCKET": room.SOCKET,
            "MAGE_BENCH_TIMES": str(self.folder / "times.json"),
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }
        started = time.monotonic()
        code, output, error = call(argv, {**os.environ, **added, **environment})
        seconds = time.monotonic() - started
        if code:
            raise Failed(f"{' '.join(argv)}: exit {code}\n{output[-3000:]}\n{error[-3000:]}")
        return seconds, output

    def play(
        self, tasks: t.Sequence[t.Any], inventory: t.Any, forks: int = 5, **environment: str
    ) -> tuple[float, dict[str, float]]:
        """Run tasks on all hosts: how long it took, and how long each task did, by its name."""
        book = self.file("play.json", json.dumps([{"hosts": "all", "gather_facts": False, "tasks": list(tasks)}]))
        listed = self.file("hosts.json", json.dumps(inventory))
        argv = ("ansible-playbook", "--forks", str(forks), "-i", str(listed), str(book))
        seconds, _output = self.run(*argv, **environment)
        return seconds, json.loads((self.folder / "times.json").read_text(encoding="utf-8"))


def hosts(names: t.Iterable[str], **variables: t.Any) -> dict[str, t.Any]:
    """An inventory of these hosts."""
    return {"all": {"hosts": {name: {} for name in names}, "vars": variables}}
