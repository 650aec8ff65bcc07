# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Carries one change out, step by step. Decides nothing."""

from __future__ import annotations

import dataclasses
import typing as t

from .. import _packages
from .._errors import CommandFailed, MageError, NotFound, OperationForgotten, PreconditionFailed, ServerError
from .._server import install, operations
from .._server.driver import Driver, Response, api
from .._server.snapshot import Instance
from . import causes, folders, pins, prune, python, reading, settle
from .observed import InstanceChange
from .races import is_raced
from .spec import InstanceSpec
from .states import ENDS_IN, like
from .update import Update, desired_update, expectation, recorded
from .waiting import Networks, Waiter, last_words

STOP_TIMEOUT = 30
WRITES = 3


class Worker:
    """One change of one instance. ``warnings`` is added to."""

    def __init__(
        self,
        driver: Driver,
        change: InstanceChange,
        spec: InstanceSpec,
        timeout: int,
        networks: Networks,
        warnings: list[str],
    ) -> None:
        self.driver = driver
        self.change = change
        self.spec = spec
        self.timeout = timeout
        self.warnings = warnings
        self.query = {"project": spec.project}
        self.path = api("instances", spec.name)
        self.waiter = Waiter(driver, spec, timeout, networks, warnings)
        # The steps of the change that are behind it.
        self.done: list[str] = []

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
            steps[step]()
            self.done.append(step)

    def _run(
        self,
        method: str,
        path: str,
        body: t.Any = None,
        headers: t.Optional[dict[str, str]] = None,
        query: t.Optional[dict[str, str]] = None,
    ) -> None:
        asked = {**self.query, **(query or {})}
        operations.run(self.driver, method, path, asked, body, headers, float(self.timeout), strict=True)

    def _get(self) -> tuple[Instance, Response]:
        response = self.driver.request("GET", self.path, query=self.query)
        return Instance.from_api(response.metadata), response

    # --- what it is ---------------------------------------------------------------------------------------------------

    def _create(self) -> None:
        query = {"target": self.spec.target} if self.spec.target else {}
        self._run("POST", api("instances"), body=dict(self.change.body), query=query)

    def _delete(self) -> None:
        try:
            existing, _response = self._get()
            if self.spec.pruned and not prune.is_of(existing, self.spec.owner):
                self.warnings.append(f"{self.spec.label}: has come to somebody else since it was read, and stays")
                return
            if prune.is_protected(existing):
                raise MageError(f"is protected: set {prune.PROTECTION} to false first")
            if existing.status != "Stopped":
                self._end()
            self._run("DELETE", self.path)
        except NotFound:
            return

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
            try:
                self._write(target, response)
                if existing.running:
                    folders.grant(self.spec.mounts, existing.config)
                return
            except PreconditionFailed:
                if attempt == WRITES:
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

    # --- whether it runs ----------------------------------------------------------------------------------------------

    def _state(self, action: str, **options: t.Any) -> None:
        before = self._get()[0] if action == "restart" else None
        try:
            self._run("PUT", self.path + "/state", {"action": action, "timeout": self.timeout, **options})
        except (ServerError, OperationForgotten) as error:
            # Somebody else may have been faster, or the server may have done it before it forgot.
            now = self._get()[0]
            if like(now.status) == "Error":
                raise _Unheard(action, error) from error
            restarted = before is None or (before.last_used != now.last_used)
            if like(now.status) != ENDS_IN[action] or not restarted:
                raise

    def _kill(self) -> None:
        """End what is in Error. One whose server was but too busy to ask it is not ended for that."""
        status = like(self._get()[0].status)
        if status == "Error":
            self._state("stop", force=True)
        elif status != "Stopped" and self.spec.state == "restarted":
            self._gently("restart", "restart")
        elif status != "Stopped" and self.spec.state == "stopped":
            self._stop()

    def _start(self) -> None:
        existing, _response = self._get()
        if not existing.running:
            try:
                self._begin("unfreeze" if existing.status == "Frozen" else "start")
            except ServerError as error:
                raise self._explained(error) from error
        self._settled()

    def _begin(self, action: str) -> None:
        """Start; where the kernel shifts no owners after all, with the owners of mounts mapped."""
        if any(mount.acl for mount in self.spec.mounts):
            folders.grant(self.spec.mounts, self._get()[0].config)
        try:
            self._state(action)
        except ServerError as error:
            other = settle.unshifted(self.spec) if any(word in str(error) for word in settle.UNSHIFTED) else None
            if other is None:
                raise
            self.spec = other
            self._update()
            self._state(action)

    def _restart(self) -> None:
        self._gently("restart", "restart")
        self._settled()

    def _stop(self) -> None:
        self._gently("stop", "shut down")

    def _gently(self, action: str, told: str) -> None:
        """What runs in it is to end cleanly; what does not is ended."""
        # The server is to give up before we do.
        patience = min(STOP_TIMEOUT, max(1, self.timeout // 2))
        try:
            self._state(action, timeout=patience, force=False)
        except ServerError as error:
            if is_raced(error):
                raise
            self.warnings.append(f"{self.spec.label}: did not {told} in {patience} s ({error.message}): forced")
            self._state(action, force=True)

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
        moved = pins.followed(self.spec, self.change.pins, self.waiter.ready(self.change.pins))
        if moved:
            devices = {name: dict(options) for name, options in self.change.pins.items()}
            for device, address in moved.items():
                told = pins.told_of_move(self.spec.label, devices[device]["ipv4.address"], address)
                self.warnings.append(told)
                devices[device]["ipv4.address"] = address
            self.change = dataclasses.replace(self.change, pins=devices)
        ready = bool(self.spec.wait_for)
        if moved or (ready and recorded(self._get()[0]).get("ready") != expectation(self.spec)):
            self._note(ready=ready)

    def _wait(self) -> None:
        self.waiter.ready(())
        self._note(ready=True)

    def _python(self) -> None:
        state = reading.probe(self.driver, self.spec.name, self.spec.project)
        if state == "missing":
            install.install(self.driver, self.spec.name, _packages.PYTHON, self.spec.project, self.timeout)
            state = reading.probe(self.driver, self.spec.name, self.spec.project)
        if state != "usable":
            raise CommandFailed(python.PROBE[:1], 1, python.TOLD[state])
        self._note(python=True)


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
