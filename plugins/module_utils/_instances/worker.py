# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Carries one change out, step by step. Decides nothing."""

from __future__ import annotations

import dataclasses
import typing as t
import uuid

from .. import _packages
from .._errors import CommandFailed, MageError, NotFound, OperationForgotten, PreconditionFailed, ServerError
from .._server import install, operations
from .._server.driver import Driver, Response, api
from .._server.snapshot import Instance
from . import causes, checks, copies, expected, folders, pins, prune, python, reading, settle
from .config import is_secret
from .images import CopyOf
from .observed import InstanceChange
from .races import Missed, Overtaken, is_away, is_late, is_raced
from .spec import InstanceSpec
from .states import ENDS_IN, like
from .update import Update, desired_update, is_ready
from .waiting import Waiter, last_words

WRITES = 3
# What servers say where an instance has no folder for its files, or not even a volume.
_NO_CONTENT = ("no such file or directory", "Instance storage pool not found")


class Worker:
    """One change of one instance. ``warnings`` is added to."""

    def __init__(
        self,
        driver: Driver,
        change: InstanceChange,
        spec: InstanceSpec,
        timeout: int,
        waiter: Waiter,
        warnings: list[str],
        begun: bool = False,
    ) -> None:
        self.driver = driver
        self.change = change
        self.spec = spec
        self.timeout = timeout
        self.warnings = warnings
        self.query = {"project": spec.project}
        self.path = api("instances", spec.name)
        self.waiter = waiter
        # The steps of the change that have changed something.
        self.done: list[str] = []
        self._step = ""
        # Whether this run has begun to make the instance, now or before.
        self.begun = begun
        self._has_asked_again = False

    def run(self) -> None:
        """All steps of the change, in order."""
        steps: dict[str, t.Callable[[], None]] = {
            "create": self._create,
            "update": self._update,
            "start": self._start,
            "restart": self._restart,
            "stop": self._stop,
            "kill": self._kill,
            "freeze": lambda: self._state("freeze"),
            "unfreeze": lambda: self._state("unfreeze"),
            "delete": self._delete,
            "wait": self._wait,
            "python": self._python,
        }
        for step in self.change.steps:
            self._step = step
            steps[step]()
            self._acted()
            self._step = ""

    def _acted(self) -> None:
        """What comes after in this step only waits, and may fail without undoing what was done."""
        if self._step:
            self.done.append(self._step)
        self._step = ""

    def _run(
        self,
        method: str,
        path: str,
        body: t.Any = None,
        headers: t.Optional[dict[str, str]] = None,
        query: t.Optional[dict[str, str]] = None,
        more: int = 0,
    ) -> None:
        asked = {**self.query, **(query or {})}
        operations.run(self.driver, method, path, asked, body, headers, float(self.timeout + more), strict=True)

    def _get(self) -> tuple[Instance, Response]:
        response = self.driver.request("GET", self.path, query=self.query)
        return Instance.from_api(response.metadata), response

    # --- what it is ---------------------------------------------------------------------------------------------------

    def _create(self) -> None:
        query = {"target": self.spec.target} if self.spec.target else {}
        body = dict(self.change.body)
        if self.spec.copy_of:
            # Read only now: it may have been made, or pinned, by this very run.
            source = self._source(self.spec.copy_of)
            body["devices"] = {**copies.nics(source), **body["devices"]}
            body["config"] = {**copies.inert(source, str(self.spec.copy_of)), **body["config"]}
        elif any(is_secret(key) for key in self.spec.config):
            config = expected.with_uuid(self.spec, body["config"], self.change.pins, str(uuid.uuid4()))
            body["config"] = config
        try:
            self._run("POST", api("instances"), body=body, query=query)
        except MageError as error:
            self.begun = self.begun or is_away(error)
            raise

    def _source(self, source: CopyOf) -> Instance:
        snapshot = ("snapshots", source.snapshot) if source.snapshot else ()
        path = api("instances", source.name, *snapshot)
        return Instance.from_api(self.driver.request("GET", path, query=self.query).metadata)

    def _delete(self) -> None:
        try:
            existing, _response = self._get()
            if self.spec.pruned and not prune.is_of(existing, self.spec.owner):
                self.warnings.append(f"{self.spec.label}: has come to somebody else since it was read, and stays")
                return
            if prune.is_protected(existing):
                raise MageError(f"is protected: set {prune.PROTECTION} to false first")
            if self.change.unfinished:
                self._check_unfinished(existing)
            if existing.status != "Stopped":
                self._end()
            try:
                self._run("DELETE", self.path)
            except ServerError:
                self.done += ["stop"] if existing.running else []
                raise
        except NotFound:
            return

    def _check_unfinished(self, existing: Instance) -> None:
        """Nothing is deleted that has content, unless this very run has put it there."""
        if not checks.is_unfinished(self.spec, existing):
            raise Overtaken("somebody else has finished it since it was read")
        if not (self.begun or self._is_hollow()):
            raise MageError(checks.TOLD_IN_DOUBT)
        self.warnings.append(checks.told_unfinished(self.spec))

    def _is_hollow(self) -> bool:
        """Whether there is nothing in it, not even a folder for its files."""
        try:
            answer = self.driver.request("GET", f"{self.path}/files", query={**self.query, "path": "/"})
        except ServerError as error:
            return any(words in error.message for words in _NO_CONTENT)
        return answer.metadata == []

    def _end(self) -> None:
        """By force. What a server cannot even ask it deletes as it is."""
        try:
            self._state("stop", force=True)
        except _Unheard:
            told = "its status was Error, in which a server ends nothing: processes of it may be left on the host"
            self.warnings.append(f"{self.spec.label}: {told}")

    def _update(self) -> None:
        """Write what is missing onto a fresh read; where somebody else wrote meanwhile, read and plan again."""
        for attempt in range(1, WRITES + 1):
            existing, response = self._get()
            target = desired_update(self.spec, existing, self.change.pins, self.change.notes)
            if target.empty:
                return
            if existing.running:
                # Before, or a run that is killed in between leaves it undone for good.
                folders.grant(self.spec.mounts, existing.config)
            try:
                self._write(target, response)
                if self._step == "update":
                    self._acted()
                return
            except PreconditionFailed:
                if attempt == WRITES:
                    raise
            except ServerError as error:
                mounted = like(existing.status) != "Stopped" and settle.is_unshifted(error.message)
                if mounted and any(mount.automatic for mount in self.spec.mounts):
                    # Whose they are is mapped at a start: that is to be planned.
                    raise Unshifted(self.spec) from error
                raise

    def _write(self, target: Update, response: Response) -> None:
        headers = {"If-Match": response.headers.get("etag", "")}
        if not target.drop_devices:
            # LXD 5.0 takes a PATCH without a description for an empty one.
            kept = {"description": response.metadata.get("description", "")}
            self._run("PATCH", self.path, {**kept, **_patch(target)}, headers)
            return
        body = dict(response.metadata)
        config = {**body["config"], **target.config}
        body["config"] = {key: value for key, value in config.items() if value != ""}
        body["devices"] = {
            name: options
            for name, options in {**body["devices"], **target.devices}.items()
            if name not in target.drop_devices
        }
        plain = ("profiles", "description", "ephemeral")
        body.update({key: value for key, value in _patch(target).items() if key in plain})
        self._run("PUT", self.path, body, headers)

    def _note(self, python: bool = False, ready: bool = False) -> None:
        """Record what has come true, so that it is not asked again."""
        old = self.change.notes
        notes = dataclasses.replace(old, python=old.python or python, ready=old.ready or ready)
        self.change = dataclasses.replace(self.change, notes=notes)
        self._update()

    def _forget(self) -> None:
        """Before a start, what had come true is recorded no longer: a run that ends before it has come true again must
        not leave it for true. An update that came before has done so already."""
        if self.change.notes.starts and "update" not in self.done:
            self._update()

    # --- whether it runs ----------------------------------------------------------------------------------------------

    def _state(self, action: str, **options: t.Any) -> None:
        before = self._get()[0] if action == "restart" else None
        # What is given time to end has it, whatever all else may take.
        more = self.spec.stop.timeout if "timeout" in options else 0
        try:
            self._run("PUT", self.path + "/state", {"action": action, "timeout": self.timeout, **options}, more=more)
        except (ServerError, OperationForgotten) as error:
            # Somebody else may have been faster, or the server may have done it before it forgot.
            now = self._get()[0]
            if like(now.status) == "Error":
                raise _Unheard(action, error) from error
            restarted = before is None or (before.last_used != now.last_used)
            if like(now.status) != ENDS_IN[action] or not restarted:
                raise
        if action in ("start", "restart"):
            # It has taken up all that was written before: what is noted from now on must not say that this waits.
            notes = dataclasses.replace(self.change.notes, waits=())
            self.change = dataclasses.replace(self.change, notes=notes)

    def _kill(self) -> None:
        """End what is in Error. One whose server was but too busy to ask it is not ended for that."""
        status = like(self._get()[0].status)
        if status == "Error":
            self._state("stop", force=True)
        elif status != "Stopped" and self.spec.state == "restarted":
            self._forget()
            self._gently("restart", "restart")
        elif status != "Stopped" and self.spec.state == "stopped":
            self._stop()

    def _start(self) -> None:
        # One that was made a moment ago is stopped; if somebody was faster, the server says so.
        existing = None if self.done[-1:] == ["create"] else self._get()[0]
        if existing is None or not existing.running:
            frozen = existing is not None and existing.status == "Frozen"
            if not frozen:
                self._forget()
            try:
                self._begin("unfreeze" if frozen else "start")
            except ServerError as error:
                raise self._explained(error) from error
        self._acted()
        self._settled()

    def _begin(self, action: str) -> None:
        """Start; where the kernel shifts no owners after all, with the owners of mounts mapped."""
        if any(mount.acl for mount in self.spec.mounts):
            folders.grant(self.spec.mounts, self._get()[0].config)
        try:
            self._state(action)
        except ServerError as error:
            other = settle.unshifted(self.spec) if settle.is_unshifted(error.message) else None
            if other is None:
                raise
            self.spec = other
            self._update()
            self._state(action)

    def _restart(self) -> None:
        self._forget()
        self._gently("restart", "restart")
        self._acted()
        self._settled()

    def _stop(self) -> None:
        self._gently("stop", "shut down")

    def _gently(self, action: str, told: str) -> None:
        """What runs in it is to end cleanly, in the time that its item gives it; what does not is ended."""
        stop = self.spec.stop
        patience = stop.patience(self.timeout)
        for attempt in range(1, stop.attempts + 1):
            error = self._runs_on(action, timeout=patience, force=False)
            if error is None:
                return
            if attempt == stop.attempts:
                told = f"did not {told} in {patience} s{' each time' if attempt > 1 else ''} ({error.message})"
                if not stop.force:
                    raise MageError(f"{told}; it runs on, since its stop.force is false") from error
                self.warnings.append(f"{self.spec.label}: {told}: forced")
        error = self._runs_on(action, force=True)
        if error is not None:
            raise error

    def _runs_on(self, action: str, **options: t.Any) -> t.Optional[ServerError]:
        """Stop or restart it. Why it runs on, if it does."""
        try:
            self._state(action, **options)
        except ServerError as error:
            if is_raced(error):
                raise
            if action != "restart" or like(self._get()[0].status) != "Stopped":
                return error
            # It has stopped, and does not start: force would not help it.
            self._start_stopped(error)
        return None

    def _start_stopped(self, error: ServerError) -> None:
        """The second half of a restart that ended after its first, or in its first though it stops after all."""
        if settle.is_unshifted(error.message) or is_late(error):
            self._begin("start")
            return
        self.done.append("stop")
        raise self._explained(error) from error

    def _explained(self, error: ServerError) -> ServerError:
        """A failed start, with what the instance's log says of it."""
        if is_raced(error):
            return error
        words = last_words(self.driver, self.spec)
        hint = "" if causes.advice([words]) else causes.advice([error.message])
        return ServerError(error.status, error.message.rstrip(".") + "." + words + hint, error.request)

    # --- whether it is ready ------------------------------------------------------------------------------------------

    def _settled(self) -> None:
        """Wait until it is ready. A pin that it did not get follows what it has."""
        has = self.waiter.ready(self.change.pins)
        existing = self.waiter.existing
        moved = pins.followed(self.spec, existing, self.change.pins, has)
        missed = pins.missed(self.spec, existing, has, moved)
        if missed and {"update", "restart"} <= set(self.done) and self.change.pins and not self._has_asked_again:
            # It may have asked before the network's server had read the pin that it was given a moment ago.
            self._has_asked_again = True
            self._gently("restart", "restart")
            self._settled()
            return
        if moved:
            devices = {name: dict(options) for name, options in self.change.pins.items()}
            for device, address in moved.items():
                told = pins.told_of_move(self.spec.label, devices[device]["ipv4.address"], address)
                self.warnings.append(told)
                devices[device]["ipv4.address"] = address
            self.change = dataclasses.replace(self.change, pins=devices)
        ready = bool(self.spec.wait_for)
        if moved or (ready and not is_ready(self.spec, self._get()[0])):
            self._note(ready=ready)
        if missed:
            # Of a range, another address is as good.
            ranged = self.spec.address is not None and "/" in self.spec.address.ipv4
            # What had no address when it was planned may have asked for one before it was told which.
            asked = "update" in self.done and not {"start", "restart"} & set(self.done)
            raise (Missed if ranged or asked else MageError)(missed)

    def _wait(self) -> None:
        if self.spec.wait_for is None:
            self._settled()
            return
        self.waiter.ready(())
        self._note(ready=True)

    def _python(self) -> None:
        state = reading.probe(self.driver, self.spec.name, self.spec.project)
        if state == "missing":
            install.install(self.driver, self.spec.name, _packages.PYTHON, self.spec.project, self.timeout)
            self._acted()
            state = reading.probe(self.driver, self.spec.name, self.spec.project)
        if state != "usable":
            raise CommandFailed(python.PROBE[:1], 1, python.TOLD[state])
        self._note(python=True)


class Unshifted(Overtaken):
    """The kernel shifts no owners of mounts after all. ``mounts`` are the places of those to be told so."""

    def __init__(self, spec: InstanceSpec) -> None:
        self.mounts = frozenset(mount.place for mount in spec.mounts if mount.automatic)
        super().__init__("the kernel does not shift the owners of its mounts")


class _Unheard(MageError):
    """A server cannot ask an instance, so it does not change its state."""

    def __init__(self, action: str, error: MageError) -> None:
        message = str(getattr(error, "message", error)).rstrip(".")
        super().__init__(
            f"its status is Error, and the server does not {action} it ({message}): end the process that watches over "
            "it on the host ([lxc monitor], or qemu), or restart the host"
        )


def _patch(target: Update) -> dict[str, t.Any]:
    body: dict[str, t.Any] = {}
    if target.config:
        body["config"] = dict(target.config)
    if target.devices:
        body["devices"] = {name: dict(options) for name, options in target.devices.items()}
    if target.profiles is not None:
        body["profiles"] = list(target.profiles)
    if target.description is not None:
        body["description"] = target.description
    if target.ephemeral is not None:
        body["ephemeral"] = target.ephemeral
    return body
