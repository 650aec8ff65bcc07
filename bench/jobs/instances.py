# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A list of instances made true, beside the same list as tasks of one instance each."""

from __future__ import annotations

import contextlib
import functools
import time
import typing as t

from ..harness import FLOOR, OURS, Contender, Job, Limit, Peer
from ..place import BIN, ROOT, Place, hosts
from ..processes import Failed
from ..room import BUSYBOX, SOCKET, Room, delete_instance, each

FEW = 20
MANY = 100
FORKS = 20
# As many operations at a time have the floor and ours: more of them are no faster on two cores.
POOL = 8
NOTE = "user.note"
Items = t.Sequence[dict[str, t.Any]]


class _List(Job):
    """Four ways to one list: ours, a loop, a host for each of its items, and the server's API with a ping before."""

    runs = 3
    warm_up = 0

    def __init__(self, place: Place) -> None:
        self._place = place

    @functools.cached_property
    def _room(self) -> Room:
        return self._place.room(self.room)

    def _ours(self, items: Items) -> float:
        arguments = {"project": self._room.project, "concurrency": POOL, "defaults": {"image": BUSYBOX}}
        return self._play(["localhost"], {"name": "all", "mage.lxd.instances": {**arguments, "instances": list(items)}})

    def _loop(self, items: Items) -> float:
        task = {"name": "one", "community.general.lxd_container": "{{ arguments }}", "loop": self._theirs(items)}
        return self._play(["localhost"], {**task, "loop_control": {"label": "{{ item.name }}"}}, arguments="{{ item }}")

    def _forks(self, items: Items) -> float:
        each_one = {one["name"]: one for one in self._theirs(items)}
        task = {"name": "one", "community.general.lxd_container": "{{ arguments }}"}
        return self._play(list(each_one), task, arguments="{{ each_one[inventory_hostname] }}", each_one=each_one)

    def _theirs(self, items: Items) -> list[dict[str, t.Any]]:
        """The items as community.general's module wants them."""
        added = {
            "project": self._room.project,
            "url": f"unix:{SOCKET}",
            "source": {"type": "image", "alias": BUSYBOX},
            "profiles": ["default"],
            "wait_for_ipv4_addresses": True,
            "force_stop": True,
        }
        return [{**added, **one} for one in items]

    def _play(self, names: t.Sequence[str], task: t.Any, **variables: t.Any) -> float:
        python = str(BIN / "python")
        inventory = hosts(names, ansible_connection="local", ansible_python_interpreter=python, **variables)
        return self._place.play([task], inventory, forks=FORKS)[0]

    def _floor(self, work: t.Callable[[], object]) -> float:
        """Ansible's own start, and the least of requests."""
        seconds, _output = self._place.run("ansible", "-i", "localhost,", "-c", "local", "all", "-m", "ping")
        started = time.monotonic()
        work()
        return seconds + time.monotonic() - started


def _wait_for_address(room: Room, name: str) -> None:
    """Until the server knows an address of a running instance."""
    deadline = time.monotonic() + 60
    while not room.addresses(name):
        if time.monotonic() > deadline:
            raise Failed(f"{name}: no address after 60 s")
        time.sleep(0.02)


class Create(_List):
    """Create and start, until every instance has its address."""

    name = "create"
    title = f"create and start {FEW}, with addresses"
    room = "few"
    peers = (Peer("loop", "", 0.15), Peer("forks", f"against {FORKS} forks", 0.6))
    floor_limit = 1.4

    @contextlib.contextmanager
    def contenders(self) -> t.Iterator[t.Mapping[str, Contender]]:
        """Each of them begins with nothing there."""
        names = [f"create-{number}" for number in range(FEW)]
        items = [{"name": name, "state": "started"} for name in names]
        ways = {
            OURS: lambda: self._ours(items),
            "loop": lambda: self._loop(items),
            FLOOR: lambda: self._floor(lambda: each(self._one, names, POOL)),
            "forks": lambda: self._forks(items),
        }
        yield {key: functools.partial(self._checked, way, names) for key, way in ways.items()}

    def _one(self, name: str) -> None:
        self._room.make_one(name, start=True)
        _wait_for_address(self._room, name)

    def _checked(self, way: Contender, names: t.Sequence[str]) -> float:
        """All must run and have addresses when it says that it is done."""
        try:
            seconds = way()
            missing = [name for name in names if not self._room.addresses(name)]
            if missing:
                raise Failed(f"no address: {', '.join(missing)}")
            return seconds
        finally:
            self._room.remove(names)


class Delete(_List):
    """Delete what runs."""

    name = "delete"
    title = f"delete {FEW}"
    room = "few"
    peers = (Peer("loop", "", 0.3), Peer("forks", f"against {FORKS} forks"))
    floor_limit = 1.4

    @contextlib.contextmanager
    def contenders(self) -> t.Iterator[t.Mapping[str, Contender]]:
        """Each of them begins with all of them running."""
        names = [f"delete-{number}" for number in range(FEW)]
        items = [{"name": name, "state": "absent"} for name in names]
        server = self._room.server
        ways = {
            OURS: lambda: self._ours(items),
            "loop": lambda: self._loop(items),
            FLOOR: lambda: self._floor(lambda: each(lambda name: delete_instance(server, name), names, POOL)),
            "forks": lambda: self._forks(items),
        }
        yield {key: functools.partial(self._checked, way, names) for key, way in ways.items()}

    def _checked(self, way: Contender, names: t.Sequence[str]) -> float:
        self._room.make(names, start=True)
        for name in names:
            _wait_for_address(self._room, name)
        seconds = way()
        left = self._room.names() & set(names)
        if left:
            raise Failed(f"still there: {', '.join(sorted(left))}")
        return seconds


class _Many(_List):
    """A hundred that run already."""

    room = "many"

    def _items(self, note: str) -> list[dict[str, t.Any]]:
        """The list, with a key on the first of them."""
        names = [f"many-{number}" for number in range(MANY)]
        return [{"name": name, "config": {NOTE: note if name == names[0] else "0"}} for name in names]

    def _make(self) -> None:
        """Running, with addresses, and declared by us once: what is declared again is not changed."""
        items = self._items("0")
        names = self._room.make((one["name"] for one in items), start=True, config={NOTE: "0"})
        for name in names:
            _wait_for_address(self._room, name)
        self._ours(items)

    def _read(self) -> list[t.Any]:
        found: list[t.Any] = self._room.server.request("GET", "instances", recursion="1")
        return found


class Unchanged(_Many):
    """A list that is true already."""

    name = "unchanged"
    title = f"{MANY} unchanged"
    peers = (Peer("loop", "", 0.02), Peer("forks", f"against {FORKS} forks", 0.1))
    floor_limit = 2.0

    @contextlib.contextmanager
    def contenders(self) -> t.Iterator[t.Mapping[str, Contender]]:
        """The floor is one read of the list."""
        self._make()
        items = self._items("0")
        ways = {
            OURS: lambda: self._ours(items),
            "loop": lambda: self._loop(items),
            FLOOR: lambda: self._floor(self._read),
            "forks": lambda: self._forks(items),
        }
        yield {key: functools.partial(self._checked, way) for key, way in ways.items()}

    def _checked(self, way: Contender) -> float:
        """Nothing may have been written."""
        before = {one["name"]: one["config"] for one in self._read()}
        seconds = way()
        if before != {one["name"]: one["config"] for one in self._read()}:
            raise Failed("something was changed")
        return seconds


class Change(_Many):
    """The same list with another value of one key of one instance."""

    name = "change"
    title = f"change one key on 1 of {MANY}"
    peers = (Peer("loop", "", 0.02), Peer("forks", f"against {FORKS} forks"))
    floor_limit = 2.0

    @contextlib.contextmanager
    def contenders(self) -> t.Iterator[t.Mapping[str, Contender]]:
        """The floor is one read of the list, and one write."""
        self._make()
        turns = (str(number) for number in range(1, 1000))
        ways: dict[str, t.Callable[[Items], float]] = {
            OURS: self._ours,
            "loop": self._loop,
            FLOOR: lambda items: self._floor(lambda: self._write(items)),
            "forks": self._forks,
        }
        yield {key: functools.partial(self._checked, way, turns) for key, way in ways.items()}

    def _write(self, items: Items) -> None:
        self._read()
        first = items[0]
        self._room.server.request("PATCH", f"instances/{first['name']}", {"config": first["config"]})

    def _checked(self, way: t.Callable[[Items], float], turns: t.Iterator[str]) -> float:
        items = self._items(next(turns))
        seconds = way(items)
        first = next(one for one in self._read() if one["name"] == items[0]["name"])
        if first["config"][NOTE] != items[0]["config"][NOTE]:
            raise Failed(f"{first['name']}: {NOTE} is {first['config'][NOTE]}")
        return seconds


class Plan(Job):
    """A plan for a long list, in a process of its own; no server."""

    name = "plan"
    title = "plan 10,000 against 10,000 (floor: 1,000 against 1,000)"
    room = "none"
    floor_limit = 12.0

    def __init__(self, place: Place) -> None:
        self._place = place
        self._memory = 0.0

    @contextlib.contextmanager
    def contenders(self) -> t.Iterator[t.Mapping[str, Contender]]:
        """Both are ours: the floor is a tenth of the work."""
        yield {OURS: lambda: self._plan(10_000), FLOOR: lambda: self._plan(1_000)}

    def _plan(self, count: int) -> float:
        argv = (str(BIN / "python"), str(ROOT / "bench" / "planning.py"), str(count))
        seconds, memory = self._place.run(*argv, PYTHONPATH=str(ROOT / ".tree"))[1].split()
        self._memory = max(self._memory, float(memory))
        return float(seconds)

    def limits(self) -> list[Limit]:
        """The most that the process ever had."""
        return [Limit("plan: memory of the process", self._memory, 300, "MB")]
