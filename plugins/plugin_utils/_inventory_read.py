# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Reads what an inventory is made of: all servers at the same time, one list for each project that is named, and the
rest only of those instances that the filters leave."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import typing as t

from ansible_collections.mage.lxd.plugins.module_utils import _errors, _keys
from ansible_collections.mage.lxd.plugins.module_utils._server import connect, snapshot
from ansible_collections.mage.lxd.plugins.module_utils._server.driver import Driver, api
from ansible_collections.mage.lxd.plugins.module_utils._server.options import ServerOptions
from ansible_collections.mage.lxd.plugins.module_utils._values import show
from ansible_collections.mage.lxd.plugins.plugin_utils._inventory_file import MISSING, Server, Settings

Key = tuple[str, str]
Full = dict[Key, dict[str, t.Any]]
MOST_SERVERS = 16
# More requests at a time make a server no faster.
AT_A_TIME = 4
# The inventory looks at no more of a server than this.
UNKNOWN_SERVER = snapshot.Server.from_api({})


class Door(Driver, t.Protocol):
    """A way to a server that counts its requests."""

    @property
    def requests(self) -> list[tuple[str, str]]:
        """Every request so far: method and path."""


@dataclasses.dataclass
class Answer:
    """What one server says. ``full`` holds state and snapshots by project and instance, where they were asked for."""

    server: Server
    driver: Door
    snapshot: snapshot.Snapshot
    full: Full = dataclasses.field(default_factory=dict)


Wanted = tuple[Answer, t.Sequence[snapshot.Instance]]


class Reader:
    """The servers of a file, each behind a driver that is open until ``close``."""

    def __init__(self, settings: Settings, connect: t.Callable[[ServerOptions], Door] = connect.connect_core) -> None:
        self._settings = settings
        self._connect = connect
        self._drivers: list[Door] = []
        self.warnings = list(settings.absent)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *args: object) -> None:
        for driver in self._drivers:
            driver.close()

    @property
    def requests(self) -> list[tuple[str, str]]:
        """Every request so far: method and path."""
        return [request for driver in self._drivers for request in driver.requests]

    def lists(self) -> list[Answer]:
        """The instances of every server that can be reached. Raises InvalidInput for those that must be and cannot."""
        answers = self._everywhere(self._settings.servers, lambda one: one, self._list)
        return [answer for answer in answers if answer is not None]

    def rest(self, wanted: t.Sequence[Wanted]) -> list[Wanted]:
        """The same, with what the instances need besides in the answers."""
        found = self._everywhere(wanted, lambda one: t.cast(Server, one[0].server), lambda one: self._rest(*one))
        return [one for one in found if one is not None]

    def _everywhere(
        self, places: t.Sequence[t.Any], server_of: t.Callable[[t.Any], Server], read: t.Callable[[t.Any], t.Any]
    ) -> list[t.Any]:
        """Read at all places at once, and tell of every server that cannot be reached."""
        problems: list[str] = []
        found = []
        with concurrent.futures.ThreadPoolExecutor(min(len(places), MOST_SERVERS) or 1) as pool:
            for place, future in [(place, pool.submit(read, place)) for place in places]:
                server = server_of(place)
                try:
                    found.append(future.result())
                except _errors.MageError as e:
                    told = e.problems if isinstance(e, _errors.InvalidInput) else (f"{server.path}endpoint: {e}",)
                    if server.fails:
                        problems.extend(told)
                    else:
                        self.warnings.extend(f"{text}: {MISSING}" for text in told)
        if problems:
            raise _errors.InvalidInput(problems)
        return found

    def _list(self, server: Server) -> Answer:
        driver = self._connect(server.options)
        self._drivers.append(driver)
        # Filters come before what is expensive: only without them all instances are entered by one request.
        in_one = self._wants_full and self._settings.filters.empty
        raw: list[dict[str, t.Any]] = []
        for project in server.projects or (None,):
            try:
                found = snapshot.read_raw(driver, project, 2 if in_one else 1)
            except _errors.ServerError as e:
                if project is None and e.status == 403:
                    rule = "the certificate may not read all projects: name those that it may"
                    raise _errors.InvalidInput([f"{server.path}projects: {e}: {rule}"]) from e
                raise
            if not all(isinstance(one, dict) and one.get("name") for one in found):
                raise _errors.ServerError(200, "what answered is no list of instances", "GET /1.0/instances")
            if project and not found:
                # The server answers with an empty list for a project that is not there.
                self._check_project(driver, server, project)
            raw.extend(found)
        instances = sorted(map(snapshot.Instance.from_api, raw), key=lambda one: (one.project, one.name))
        seen = snapshot.Snapshot(UNKNOWN_SERVER, tuple(instances))
        return Answer(server, driver, seen, self._parts(raw) if in_one else {})

    def _check_project(self, driver: Door, server: Server, project: str) -> None:
        """Raises InvalidInput if it is not there. The server's other projects are listed, if that is no error."""
        try:
            driver.request("GET", api("projects", project))
        except _errors.NotFound as e:
            problem = f"{server.path}{server.projects_key}: {show(project)}: there is none on {server.options.shown}"
            if server.fails:
                raise _errors.InvalidInput([problem]) from e
            self.warnings.append(f"{problem}: {MISSING}")

    @property
    def _wants_full(self) -> bool:
        return bool(self._settings.needs & {"state", "snapshots"})

    def _parts(self, raw: t.Iterable[t.Mapping[str, t.Any]]) -> Full:
        parts = self._settings.needs & {"state", "snapshots"}
        return {
            (str(one.get("project") or "default"), str(one["name"])): {part: one.get(part) for part in parts}
            for one in raw
        }

    def _rest(self, answer: Answer, wanted: t.Sequence[snapshot.Instance]) -> Wanted:
        keys = (_keys.GROUPS, _keys.VARS)

        def failed(what: str) -> None:
            self.warnings.append(f"{answer.server.path}endpoint: {what}")

        if any(key in one.config for one in wanted for key in keys):
            restricted = snapshot.read_restricted(answer.driver)
            answer.snapshot = dataclasses.replace(answer.snapshot, restricted=restricted)
        if self._wants_full and not answer.full:
            with concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool:
                raw = list(pool.map(lambda one: _full(answer.driver, one, failed), wanted))
            answer.full = self._parts(one for one in raw if one is not None)
        if "addresses" in self._settings.needs:
            states: dict[snapshot.NicKey, tuple[str, ...]] = {}
            for one in wanted:
                part = answer.full.get((one.project, one.name), {})
                if "state" in part:
                    states.update(snapshot.state_addresses(one, part["state"]))
            seen = dataclasses.replace(answer.snapshot, states=states)
            answer.snapshot = snapshot.read_addresses(answer.driver, seen, wanted, failed)
        return answer, wanted


def _full(driver: Door, one: snapshot.Instance, failed: snapshot.Failed) -> t.Optional[dict[str, t.Any]]:
    """An instance with its state and snapshots; None if it is gone since the list was read, or the server fails."""
    try:
        query = {"recursion": "1", "project": one.project}
        return t.cast(dict[str, t.Any], driver.request("GET", api("instances", one.name), query=query).metadata)
    except _errors.NotFound:
        return None
    except (_errors.ServerError, _errors.DeadlinePassed) as e:
        failed(f"{one.project}/{one.name}: its state and snapshots are missing: {e}")
        return None
