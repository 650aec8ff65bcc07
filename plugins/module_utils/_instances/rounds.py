# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Rounds of changes, carried out side by side, until each instance is as declared or its error is one that stays."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import random
import threading
import time
import typing as t

from .._context import Report
from .._errors import InvalidInput, MageError
from .._plan import Plan
from .._server import snapshot
from .._server.driver import Driver
from .._server.snapshot import Instance, Network, Snapshot
from . import addresses, fetch, order, reading
from .images import Image
from .observed import InstanceChange, Observed
from .plan import UP, needs, plan
from .present import present
from .races import Missed, is_away, is_busy, is_raced, is_unseen
from .slots import Slots
from .spec import Desired, InstanceSpec
from .states import like
from .update import recorded
from .waiting import Waiter, known_networks, last_words
from .worker import Unshifted, Worker

ATTEMPTS = 5
# How long a server that went away may take to be back.
SERVER_BACK = 120.0
# The steps after which an address is waited for.
_STARTS = frozenset(("start", "restart"))
T = t.TypeVar("T")


class Run:
    """One call: rounds of changes, until each instance is as declared or its error is one that stays."""

    def __init__(self, desired: Desired, observed: Observed, driver: Driver) -> None:
        self.desired = desired
        self.driver = driver
        self.before = observed.snapshot
        self.errors: dict[str, MageError] = {}
        self.warnings: list[str] = []
        self.attempts: dict[str, int] = {}
        # The steps that were carried out, by instance.
        self.done: dict[str, list[str]] = {}
        # The instances whose making was begun, and where the mounts stand that the kernel does not shift, by instance.
        self.begun: set[str] = set()
        self.unshifted: dict[str, frozenset[str]] = {}
        # The images that instances were made of.
        self._found: set[Image] = set()
        self._declared = {item.name for item in desired.items if item.state != "absent"}
        self._networks: t.Optional[dict[str, Network]] = None
        self._lock = threading.Lock()
        self._slots = Slots(desired.concurrency)

    def carry_out(self, planned: Plan) -> Report:
        """All rounds, and the report."""
        first = _changes(planned)
        deadline: t.Optional[float] = None
        changes = first
        told = set(planned.warnings)
        while changes:
            self._round(self._brought(planned))
            # The first round takes as long as the list is.
            deadline = deadline or time.monotonic() + self.desired.timeout
            again = self._again(changes)
            if not again or time.monotonic() > deadline:
                self._tell_of_shared_addresses(again)
                break
            time.sleep(random.uniform(0.1, 1.0))
            planned = self._planned_again(again)
            changes = _changes(planned)
            self.warnings += [one for one in planned.warnings if one not in told]
            told |= set(planned.warnings)
        return self._report(first)

    def _brought(self, planned: Plan) -> list[InstanceChange]:
        """The changes of a plan whose images are there."""
        there, failed = fetch.bring(planned.changes, self.driver, self.desired.project, self.desired.timeout)
        self.errors.update(failed)
        changes = [change for change in _changes(planned) if _spec(change).name not in failed]
        return [fetch.made_of(change, there.get(_spec(change).name, "")) for change in changes]

    # --- one round ----------------------------------------------------------------------------------------------------

    def _round(self, changes: t.Sequence[InstanceChange]) -> None:
        """Carry changes out, side by side, each after those that it has to wait for."""
        waiting = {_spec(change).name: change for change in changes}
        before = order.after([_spec(change) for change in changes], self._recorded())
        running: dict[concurrent.futures.Future[None], str] = {}
        if any(_spec(change).wait_for is None and not _STARTS.isdisjoint(change.steps) for change in changes):
            with contextlib.suppress(MageError):
                # Each asks again, and is told. A server that is at work on many takes long to answer.
                self._known_networks()
        with concurrent.futures.ThreadPoolExecutor(max_workers=self._slots.workers) as pool:
            while waiting or running:
                open_names = {*waiting, *running.values()}
                ready = [name for name in waiting if not before[name] & open_names]
                # What others have recorded may go round in circles.
                for name in ready or ([] if running else list(waiting)):
                    change = waiting.pop(name)
                    failed = self._failed_before(_spec(change), before[name])
                    if failed:
                        self.errors[name] = _Blocked(failed)
                    else:
                        running[pool.submit(self._work, change)] = name
                done, _rest = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    name = running.pop(future)
                    try:
                        future.result()
                    except MageError as error:
                        self.errors[name] = error

    def _work(self, change: InstanceChange) -> None:
        spec = _spec(change)
        begun = spec.name in self.begun
        waiter = Waiter(self.driver, spec, self.desired.timeout, self._known_networks, self.warnings, slots=self._slots)
        worker = Worker(self.driver, change, spec, self.desired.timeout, waiter, self.warnings, begun)
        try:
            with self._slots.held():
                worker.run()
        except Unshifted as error:
            self.unshifted[spec.name] = error.mounts
            raise
        finally:
            self.begun |= {spec.name} if worker.begun else set()
            self.done.setdefault(spec.name, []).extend(worker.done)

    def _failed_before(self, item: InstanceSpec, before: t.Iterable[str]) -> tuple[str, ...]:
        needed = {*before, *(order.dependencies(item, {}) if item.state not in order.DOWN else ())}
        return tuple(sorted(name for name in needed if name in self.errors))

    def _recorded(self) -> dict[str, t.Sequence[str]]:
        """What the instances of the list depended on when they were declared last."""
        return {one.name: tuple(map(str, recorded(one).get("depends_on", ()))) for one in self._ours(self.before)}

    def _ours(self, seen: Snapshot) -> list[Instance]:
        return [one for one in seen.instances if one.project == self.desired.project]

    def _known_networks(self) -> dict[str, Network]:
        with self._lock:
            if self._networks is None:
                self._networks = known_networks(self.driver, self.desired.project)
            return self._networks

    # --- the next round -----------------------------------------------------------------------------------------------

    def _again(self, changes: t.Sequence[InstanceChange]) -> dict[str, InstanceSpec]:
        """What is to be planned anew: somebody else wrote between reading and writing, or the server went away."""
        specs = {_spec(change).name: _spec(change) for change in changes}
        raced = {name for name in specs if name in self.errors and is_raced(self.errors[name])}
        self._found |= {
            spec.image for name, spec in specs.items() if "create" in self.done.get(name, ()) and spec.image
        }
        unseen = {name: spec for name, spec in specs.items() if is_unseen(self.errors.get(name))}
        raced |= {name for name, spec in unseen.items() if spec.image in self._found}
        raced |= self._read_back(changes)
        while True:
            blocked = {
                name
                for name in specs
                if isinstance(self.errors.get(name), _Blocked) and set(self._cause(name)) <= raced
            }
            if blocked <= raced:
                break
            raced |= blocked
        for name in sorted(raced):
            error = self.errors.get(name)
            # What goes on in an instance comes to its end; a taken address may be one that nobody here may change. What
            # was not tried has had no attempt.
            if error is None or not (isinstance(error, _Blocked) or is_busy(error) or is_away(error)):
                self.attempts[name] = self.attempts.get(name, 0) + 1
        said = {item.name: self._as_told(item) for item in self.desired.items}
        left = {name for name in raced if self.attempts.get(name, 0) < ATTEMPTS}
        # Without one that is given up, what comes after it would be done before its time.
        while any(not set(self._cause(name)) <= left for name in left):
            left = {name for name in left if set(self._cause(name)) <= left}
        self._tell_of_shared_addresses(raced - left)
        return {name: said.get(name, specs[name]) for name in specs if name in left}

    def _as_told(self, item: InstanceSpec) -> InstanceSpec:
        """The item with what the server has told of its kernel."""
        told = self.unshifted.get(item.name, frozenset())
        mounts = (dataclasses.replace(one, shift=False) if one.place in told else one for one in item.mounts)
        return dataclasses.replace(item, mounts=tuple(mounts)) if told else item

    def _tell_of_shared_addresses(self, names: t.Iterable[str]) -> None:
        """What was to be planned again though nothing had failed, and is not any more."""
        for name in names:
            told = "another instance is pinned to its address, too; somebody else keeps changing them: run again"
            self.errors.setdefault(name, MageError(told))

    def _cause(self, name: str) -> tuple[str, ...]:
        error = self.errors.get(name)
        return error.names if isinstance(error, _Blocked) else ()

    def _read_back(self, changes: t.Sequence[InstanceChange]) -> set[str]:
        """The instances whose pins are others', too. What cannot be read back is an error of those that it is about."""
        try:
            return self._patiently(functools.partial(self._have_to_move, changes))
        except MageError as error:
            told = MageError(f"its address cannot be read back: {error}")
            for name in (_spec(change).name for change in changes if change.pins):
                self.errors.setdefault(name, told)
            return set()

    def _have_to_move(self, changes: t.Sequence[InstanceChange]) -> set[str]:
        """Read back: the server's own check of pinned addresses can be raced by another writer."""
        ours = {_spec(change).name: _spec(change).project for change in changes if change.pins}
        if not ours:
            return set()
        everywhere = snapshot.read_instances(self.driver)
        pinned = addresses.pinned(everywhere)
        return {
            one.name
            for one in everywhere
            if ours.get(one.name) == one.project and any(addresses.has_to_move(one, nic, pinned) for nic in one.nics)
        }

    def _planned_again(self, again: t.Mapping[str, InstanceSpec]) -> Plan:
        """The changes that are left. Nothing is left of what somebody else has done meanwhile."""
        try:
            seen = self._patiently(functools.partial(self._read_again, tuple(again.values())))
        except MageError as error:
            self.errors.update({name: error for name in again if name not in self.errors})
            return Plan()
        items = []
        for item in self._not_restarted(again.values(), seen.snapshot):
            try:
                alone = plan(self._only((item,)), seen, False, self._declared)
                starts = any(not _STARTS.isdisjoint(change.steps) for change in _changes(alone))
                if isinstance(self.errors.get(item.name), Missed) and not starts:
                    continue
                items.append(item)
                self.errors.pop(item.name, None)
            except InvalidInput as error:
                self.errors[item.name] = error
        return plan(self._only(items), seen, False, self._declared)

    def _read_again(self, items: t.Sequence[InstanceSpec]) -> Observed:
        desired = self._only(items)
        first = snapshot.read(self.driver, desired.project, lambda one: one.name in {item.name for item in items})
        wanted = dataclasses.replace(needs(desired, first), pins=any(item.publishes or item.address for item in items))
        return reading.more(desired, self.driver, first, wanted)

    def _not_restarted(self, items: t.Iterable[InstanceSpec], seen: Snapshot) -> list[InstanceSpec]:
        """What has been restarted since this run began is not restarted again."""
        found = []
        for item in items:
            old, now = self.before.find(item.project, item.name), seen.find(item.project, item.name)
            done = item.state == "restarted" and now and now.running and (not old or old.last_used != now.last_used)
            found.append(dataclasses.replace(item, state="started") if done else item)
        return found

    def _only(self, items: t.Sequence[InstanceSpec]) -> Desired:
        return dataclasses.replace(self.desired, items=tuple(items), prune=False, warnings=())

    def _patiently(self, read: t.Callable[[], T]) -> T:
        """Read, and wait for a server that restarts."""
        deadline = time.monotonic() + min(SERVER_BACK, self.desired.timeout)
        while True:
            try:
                return read()
            except MageError as error:
                if not is_away(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.5)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _report(self, changes: t.Sequence[InstanceChange]) -> Report:
        names = {item.name for item in self.desired.items if item.state in UP}
        try:
            after = self._patiently(
                lambda: snapshot.read(self.driver, self.desired.project, lambda one: one.name in names)
            )
            self._tell_of_deaths(changes, after)
        except MageError as error:
            # What is known of each is worth more than this alone.
            after = self.before
            for change in changes:
                self.errors.setdefault(_spec(change).name, MageError(f"what came of it cannot be read: {error}"))
        errors = {name: str(error) for name, error in self.errors.items()}
        specs = {_spec(change).name: _spec(change) for change in changes}
        labels = {item.name: item.label for item in (*self.desired.items, *specs.values())}
        failures = [f"{label}: {errors[name]}" for name, label in labels.items() if name in errors]
        done = [
            dataclasses.replace(change, steps=tuple(dict.fromkeys(self.done.get(_spec(change).name, ()))))
            for change in changes
        ]
        values = {"instances": present(self.desired, after, done, True, errors)}
        return Report(tuple(failures), tuple(self.warnings), values)

    def _tell_of_deaths(self, changes: t.Sequence[InstanceChange], after: Snapshot) -> None:
        for change in changes:
            spec = _spec(change)
            now = after.find(spec.project, spec.name)
            if spec.state in UP and spec.name not in self.errors and now and like(now.status) in ("Stopped", "Error"):
                told = f"started, and was {now.status} right after.{last_words(self.driver, spec)}"
                self.errors[spec.name] = MageError(told)


class _Blocked(MageError):
    """Not tried, since it comes after what has failed."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        told = " and ".join(names)
        super().__init__(f"not tried, since it comes after {told}, which failed")


def _changes(planned: Plan) -> list[InstanceChange]:
    return [change for change in planned.changes if isinstance(change, InstanceChange) and change.spec]


def _spec(change: InstanceChange) -> InstanceSpec:
    return t.cast(InstanceSpec, change.spec)
