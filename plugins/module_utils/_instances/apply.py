# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""The door of the instances: reads what a plan needs, and carries plans out. Decides nothing."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import random
import time
import typing as t

from .. import _packages
from .._context import Context, Report
from .._errors import CommandFailed, DeadlinePassed, MageError, NotFound, PreconditionFailed, ServerError
from .._plan import Plan
from .._server import install, operations, snapshot
from .._server.driver import Driver, Response, api
from .._server.snapshot import Instance, Snapshot
from . import addresses, fetch, folders, pins, python, settle
from .plan import InstanceChange, Needs, Observed, needs, plan
from .present import present
from .spec import Desired, InstanceSpec
from .update import Update, desired_update

STOP_TIMEOUT = 30
# What a server says where somebody else was faster: with the address, the name, or the instance as a whole.
ADDRESS_TAKEN = "already defined on another NIC"
RACED = (
    ADDRESS_TAKEN,
    'This "instances" entry already exists',
    "Instance is busy running",
    # Several that are the first to ask an image server: each wants to make the folder of its index.
    ": file exists",
    "A matching non-reusable operation has now succeeded",
)
ATTEMPTS = 5
ENDS_IN = {"start": "Running", "unfreeze": "Running", "stop": "Stopped"}
_POLL = (0.05, 0.1, 0.2, 0.3, 0.5)


def observe(desired: Desired, context: Context) -> Observed:
    """Read the server: one list, and what ``needs()`` asks for besides."""
    driver = context.driver
    names = {item.name for item in desired.items if item.state == "started"}
    first = snapshot.read(driver, desired.project, lambda one: one.name in names)
    wanted = needs(desired, first)
    return _read_more(desired, driver, first, wanted)


def _read_more(desired: Desired, driver: Driver, first: Snapshot, wanted: Needs) -> Observed:
    observed = Observed(first, folders=folders.read(desired.items, driver.endpoint))
    if wanted.pins:
        everywhere = snapshot.read_instances(driver)
        networks = {one.name: one for one in snapshot.read_networks(driver, desired.project)}
        bridges = {name for name, one in networks.items() if one.managed and one.type == "bridge"}
        projects = sorted({desired.project, *(one.project for one in everywhere)})
        used = {nic.network for one in everywhere for nic in one.nics} | bridges
        leases = {
            lease: None
            for name in sorted(used & bridges)
            for project in projects
            for lease in snapshot.read_leases(driver, name, project)
        }
        first = dataclasses.replace(first, leases=tuple(leases))
        observed = dataclasses.replace(observed, snapshot=first, everywhere=everywhere, networks=networks)
    if wanted.profiles or wanted.pins:
        query = {"recursion": "1", "project": desired.project}
        raw = driver.request("GET", api("profiles"), query=query).metadata or []
        observed = dataclasses.replace(observed, profiles={one["name"]: one.get("devices") or {} for one in raw})
    if wanted.images:
        missing = [item for item in desired.items if not first.find(item.project, item.name)]
        known = _read_images(driver, desired.project)
        observed = dataclasses.replace(observed, images=known, files=fetch.fingerprints(missing))
    if wanted.python:
        probes = _each(wanted.python, desired.concurrency, lambda name: _probe(driver, name, desired.project))
        observed = dataclasses.replace(observed, python=probes)
    return observed


def _read_images(driver: Driver, project: str) -> frozenset[str]:
    raw = driver.request("GET", api("images"), query={"recursion": "1", "project": project}).metadata or []
    names = {alias["name"] for one in raw for alias in one.get("aliases") or ()}
    return frozenset(names | {one["fingerprint"] for one in raw})


def _each(names: t.Sequence[str], concurrency: int, work: t.Callable[[str], str]) -> dict[str, str]:
    with concurrent.futures.ThreadPoolExecutor(max_workers=concurrency) as pool:
        return dict(zip(names, pool.map(work, names)))


def _probe(driver: Driver, name: str, project: str) -> str:
    return python.probed(driver.execute(name, python.PROBE, project=project, timeout=60).stdout)


def apply(desired: Desired, observed: Observed, planned: Plan, context: Context) -> Report:
    """Carry a plan out, ``concurrency`` instances at once. One that fails does not stop the others.

    ``values["instances"]`` holds the state afterwards, read anew.
    """
    errors = fetch.bring(planned.changes, context.driver, desired.project, desired.timeout)
    changes = [change for change in planned.changes if isinstance(change, InstanceChange)]
    changes = [change for change in changes if not (change.spec and change.spec.name in errors)]
    warnings: list[str] = []
    with concurrent.futures.ThreadPoolExecutor(max_workers=desired.concurrency) as pool:
        futures = {
            pool.submit(_Worker(context.driver, change, change.spec, desired.timeout, warnings).run): change.spec.name
            for change in changes
            if change.spec
        }
        for future in concurrent.futures.as_completed(futures):
            try:
                future.result()
            except MageError as error:
                errors[futures[future]] = str(error)
    raced = {name for name, text in errors.items() if _is_raced(text)} | _have_to_move(changes, context.driver)
    for item in desired.items:
        if item.name in raced:
            errors.pop(item.name, None)
            _settle(dataclasses.replace(desired, items=(item,), warnings=()), context.driver, errors, warnings)
    names = {item.name for item in desired.items if item.state == "started"}
    after = snapshot.read(context.driver, desired.project, lambda one: one.name in names)
    failures = [f"{item.label}: {errors[item.name]}" for item in desired.items if item.name in errors]
    return Report(tuple(failures), tuple(warnings), {"instances": present(desired, after, changes, True, errors)})


def _have_to_move(changes: t.Sequence[InstanceChange], driver: Driver) -> set[str]:
    """Read back: the server's own check of pinned addresses can be raced by another writer."""
    ours = {change.spec.name: change.spec.project for change in changes if change.spec and change.pins}
    if not ours:
        return set()
    everywhere = snapshot.read_instances(driver)
    pinned = addresses.pinned(everywhere)
    return {
        one.name
        for one in everywhere
        if ours.get(one.name) == one.project and any(addresses.has_to_move(one, nic, pinned) for nic in one.nics)
    }


def _settle(desired: Desired, driver: Driver, errors: dict[str, str], warnings: list[str]) -> None:
    """Plan one instance anew until it is true: somebody else wrote between reading and writing."""
    (item,) = desired.items
    deadline = time.monotonic() + desired.timeout
    attempts = 0
    while attempts < ATTEMPTS:
        try:
            first = snapshot.read(driver, desired.project, lambda one: one.name == item.name)
            wanted = dataclasses.replace(needs(desired, first), pins=True)
            again = plan(desired, _read_more(desired, driver, first, wanted), False)
            for change in again.changes:
                if isinstance(change, InstanceChange):
                    _Worker(driver, change, item, desired.timeout, warnings).run()
        except MageError as error:
            errors[item.name] = str(error)
            if not _is_raced(str(error)) or time.monotonic() > deadline:
                return
            # What runs in an instance comes to its end; a taken address may be one that nobody here may change.
            attempts += ADDRESS_TAKEN in str(error)
        else:
            errors.pop(item.name, None)
            if not again.changed:
                return
            attempts += 1
        time.sleep(random.uniform(0.1, 1.0))


def _is_raced(error: str) -> bool:
    return any(text in error for text in RACED)


class _Worker:
    """Carries one change out, step by step."""

    def __init__(
        self, driver: Driver, change: InstanceChange, spec: InstanceSpec, timeout: int, warnings: list[str]
    ) -> None:
        self.driver = driver
        self.change = change
        self.spec = spec
        self.timeout = timeout
        self.warnings = warnings
        self.query = {"project": self.spec.project}
        self.path = api("instances", self.spec.name)

    def run(self) -> None:
        """All steps of the change."""
        steps = {
            "create": self._create,
            "update": self._update,
            "start": self._start,
            "stop": self._stop,
            "delete": self._delete,
            "python": self._python,
        }
        for step in self.change.steps:
            steps[step]()

    def _run(self, method: str, path: str, body: t.Any = None, headers: t.Optional[dict[str, str]] = None) -> t.Any:
        return operations.run(self.driver, method, path, self.query, body, headers, float(self.timeout))

    def _get(self) -> tuple[Instance, Response]:
        response = self.driver.request("GET", self.path, query=self.query)
        return Instance.from_api(response.metadata), response

    def _create(self) -> None:
        query = {**self.query, **({"target": self.spec.target} if self.spec.target else {})}
        operations.run(self.driver, "POST", api("instances"), query, dict(self.change.body), None, float(self.timeout))

    def _update(self, python_done: bool = False) -> None:
        """Write what is missing onto a fresh read; where somebody else wrote meanwhile, read and plan again."""
        for attempt in range(3):
            existing, response = self._get()
            target = desired_update(self.spec, existing, self.change.pins, python_done)
            if target.empty:
                return
            try:
                self._write(target, response)
                if existing.running:
                    folders.grant(self.spec.mounts, existing.config)
                return
            except PreconditionFailed:
                if attempt == 2:
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
        body.update({key: value for key, value in _patch(target).items() if key in ("profiles", "description")})
        self._run("PUT", self.path, body, headers)

    def _state(self, action: str, **options: t.Any) -> None:
        try:
            self._run("PUT", self.path + "/state", {"action": action, "timeout": self.timeout, **options})
        except ServerError:
            # Somebody else may have been faster.
            if self._get()[0].status != ENDS_IN[action]:
                raise

    def _start(self) -> None:
        existing, _response = self._get()
        if not existing.running:
            self._begin("unfreeze" if existing.status == "Frozen" else "start")
        moved = pins.followed(self.spec, self.change.pins, self._wait_for_addresses())
        if moved:
            devices = {name: dict(options) for name, options in self.change.pins.items()}
            for device, address in moved.items():
                told = pins.told_of_move(self.spec.label, devices[device]["ipv4.address"], address)
                self.warnings.append(told)
                devices[device]["ipv4.address"] = address
            self.change = dataclasses.replace(self.change, pins=devices)
            self._update()

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

    def _stop(self) -> None:
        try:
            self._state("stop", timeout=STOP_TIMEOUT, force=False)
        except ServerError as error:
            self.warnings.append(f"{self.spec.label}: did not shut down in {STOP_TIMEOUT} s ({error.message}): forced")
            self._state("stop", force=True)

    def _delete(self) -> None:
        try:
            existing, _response = self._get()
            if existing.status != "Stopped":
                self._state("stop", force=True)
            self._run("DELETE", self.path)
        except NotFound:
            return

    def _wait_for_addresses(self) -> dict[str, str]:
        """Until the first NIC with a network has an address, and every pinned one an IPv4 address. Returns the IPv4
        addresses by device. A death right after the start is told at once."""
        deadline = time.monotonic() + self.timeout
        attempt = 0
        while True:
            existing, _response = self._get()
            if existing.status in ("Stopped", "Error"):
                raise DeadlinePassed(f"started, and was {existing.status} right after.{self._last_words()}")
            wanted = [nic.device for nic in existing.nics if nic.network]
            found = snapshot.read_state_addresses(self.driver, existing) if wanted else {}
            by_device = {device: addresses for (_project, _name, device), addresses in found.items()}
            first = {device: [one for one in some if "." in one][:1] for device, some in by_device.items()}
            ipv4 = {device: some[0] for device, some in first.items() if some}
            missing = [device for device in wanted[:1] if not by_device.get(device)]
            missing += [device for device in self.change.pins if device in wanted and device not in ipv4]
            if not missing:
                return ipv4
            if time.monotonic() > deadline:
                told = f"{missing[0]} has no address after {self.timeout} s; last state: {existing.status}."
                raise DeadlinePassed(told + self._last_words())
            time.sleep(_POLL[min(attempt, len(_POLL) - 1)])
            attempt += 1

    def _last_words(self) -> str:
        try:
            console = self.driver.request("GET", self.path + "/console", query=self.query).body
        except ServerError as error:
            return f" Its console cannot be read: {error.message}"
        lines = [line.strip() for line in console.decode("utf-8", "replace").splitlines() if line.strip()]
        hint = ""
        if any("Too many open files" in line for line in lines):
            hint = " The host has run out of inotify instances: raise fs.inotify.max_user_instances (lxd_host does)."
        return " Its console ends with: " + " | ".join(lines[-5:]) + "." + hint if lines else " Its console is empty."

    def _python(self) -> None:
        state = _probe(self.driver, self.spec.name, self.spec.project)
        if state == "missing":
            install.install(self.driver, self.spec.name, _packages.PYTHON, self.spec.project, self.timeout)
            state = _probe(self.driver, self.spec.name, self.spec.project)
        if state != "usable":
            raise CommandFailed(python.PROBE[:1], 1, python.TOLD[state])
        self._update(python_done=True)


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
    return body


def result(desired: Desired, observed: Observed, planned: Plan, report: t.Optional[Report]) -> t.Mapping[str, t.Any]:
    """The return values: as read after the changes, or as planned where none were carried out."""
    return report.values if report else {"instances": present(desired, observed.snapshot, planned.changes, False, {})}
