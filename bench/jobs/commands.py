# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands in containers, as tasks of a playbook."""

from __future__ import annotations

import contextlib
import time
import typing as t

from .. import bare
from ..harness import FLOOR, OURS, Contender, Job, Peer
from ..place import Place, hosts
from ..processes import Failed, call

ITEMS = 100
HOSTS = 10
TASKS = 5
OUR_CONNECTION = "mage.lxd.lxd"
THEIR_CONNECTION = "community.general.lxd"


class Raw(Job):
    """``raw: true`` in a loop: what one more item takes."""

    name = "raw"
    room = "commands"
    title = "raw: true, a loop item"
    runs = 9
    peers = (
        Peer("peer", "", 0.5),
        Peer("bare", "against a connection that does the floor's exec"),
        Peer("ansible", "against a connection that does nothing"),
    )
    floor_limit = 1.3

    def __init__(self, place: Place) -> None:
        self._place = place

    @contextlib.contextmanager
    def contenders(self) -> t.Iterator[t.Mapping[str, Contender]]:
        """The floor is the server's own exec, without Ansible."""
        room = self._place.room(self.room)
        (name,) = room.make(["raw"], start=True)

        def item(connection: str) -> float:
            variables = {"ansible_connection": connection, "ansible_lxd_project": room.project}
            _seconds, times = self._place.play([_raw("one", 1), _raw("many", ITEMS + 1)], hosts([name], **variables))
            return (times["many"] - times["one"]) / ITEMS

        yield {
            OURS: lambda: item(OUR_CONNECTION),
            "peer": lambda: item(THEIR_CONNECTION),
            FLOOR: lambda: _exec(room.server, name),
            "bare": lambda: item("bare_exec"),
            "ansible": lambda: item("nothing"),
        }


def _exec(server: bare.Server, name: str) -> float:
    started = time.monotonic()
    for _item in range(ITEMS):
        if server.execute(name, ["/bin/sh", "-c", "true"]) != (0, b"", b""):
            raise Failed("exec of true")
    return (time.monotonic() - started) / ITEMS


def _raw(name: str, items: int) -> dict[str, t.Any]:
    return {"name": name, "raw": "true", "loop": list(range(items)), "loop_control": {"label": "x"}}


class Command(Job):
    """``command: true`` on ten containers at once: what one task takes."""

    name = "command"
    room = "commands"
    title = f"command: true, {HOSTS} containers, {HOSTS} forks"
    runs = 9
    peers = (
        Peer("peer", "", 1.0),
        Peer("ssh", "beside SSH with ControlPersist"),
        Peer("mitogen", "beside Mitogen over SSH"),
        Peer("mitogen-lxd", "beside Mitogen over lxc"),
    )

    def __init__(self, place: Place) -> None:
        self._place = place

    @contextlib.contextmanager
    def contenders(self) -> t.Iterator[t.Mapping[str, Contender]]:
        """The floor is the same task on the controller itself, ten times."""
        place, room = self._place, self._place.room(self.room)
        names = room.python_boxes(HOSTS)
        control = place.folder / "ssh"
        ssh = {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(room.key),
            "ansible_ssh_args": "-o ControlMaster=auto -o ControlPersist=60s",
            "ansible_control_path_dir": str(control),
            "ansible_ssh_common_args": "-o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no",
        }
        lxd = {"ansible_lxd_project": room.project}
        over_ssh = hosts(names, ansible_connection="ssh", **ssh)
        over_ssh["all"]["hosts"] = {name: {"ansible_host": room.addresses(name)[0]} for name in names}
        mitogen = {"ANSIBLE_STRATEGY_PLUGINS": _mitogen_folder(), "ANSIBLE_STRATEGY": "mitogen_linear"}
        mitogen_lxd = {**mitogen, "LXD_CONF": _client_configuration(place, room.project)}
        try:
            yield {
                OURS: self._over(hosts(names, ansible_connection=OUR_CONNECTION, **lxd)),
                "peer": self._over(hosts(names, ansible_connection=THEIR_CONNECTION, **lxd)),
                FLOOR: self._over(hosts(names, ansible_connection="local")),
                "ssh": self._over(over_ssh),
                "mitogen": self._over(over_ssh, mitogen),
                "mitogen-lxd": self._over(hosts(names, ansible_connection="mitogen_lxd"), mitogen_lxd),
            }
        finally:
            for path in control.glob("*"):
                call(["ssh", "-o", f"ControlPath={path}", "-O", "exit", "any"])

    def _over(self, inventory: t.Any, environment: t.Optional[t.Mapping[str, str]] = None) -> Contender:
        """The first task also connects: it is left out."""
        tasks = [{"name": str(number), "command": "true"} for number in range(TASKS + 1)]

        def task() -> float:
            _seconds, times = self._place.play(tasks, inventory, forks=HOSTS, **(environment or {}))
            return sum(times[str(number)] for number in range(1, TASKS + 1)) / TASKS

        return task


def _client_configuration(place: Place, project: str) -> str:
    """A folder for ``lxc`` that says which project is meant: Mitogen cannot."""
    text = f"default-remote: local\nremotes: {{local: {{addr: 'unix://', project: {project}}}}}\n"
    folder = place.folder / "lxc"
    folder.mkdir()
    (folder / "config.yml").write_text(text, encoding="utf-8")
    return str(folder)


def _mitogen_folder() -> str:
    import ansible_mitogen

    return f"{ansible_mitogen.__path__[0]}/plugins/strategy"
