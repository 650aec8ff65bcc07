# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Waits until a started instance is ready: for its addresses, and for what ``wait_for`` names."""

from __future__ import annotations

import time
import typing as t

from .._errors import CommandFailed, DeadlinePassed, MageError, NotFound, ServerError
from .._server import snapshot
from .._server.driver import Driver, api
from .._server.snapshot import Instance, Network, Nic
from . import causes
from .addresses import NOWHERE
from .readiness import Verdict, by_hwaddr, cloud_init, expects_address, listens, system
from .slots import Slots
from .spec import InstanceSpec
from .states import like
from .waits import WaitFor

_POLL = (0.05, 0.1, 0.2, 0.3, 0.5)
# How long an address is waited for that nobody asked for, on a network of which nobody knows whether it has any.
UNKNOWN_NETWORK = 30.0
_LOGS = {"container": "lxc.log", "virtual-machine": "qemu.log"}
Networks = t.Callable[[], t.Mapping[str, Network]]


class Waiter:
    """Waits for one instance, in a slot that it leaves meanwhile. ``networks`` reads the networks, when asked for."""

    def __init__(
        self,
        driver: Driver,
        spec: InstanceSpec,
        timeout: float,
        networks: Networks,
        warnings: list[str],
        slots: Slots,
    ) -> None:
        self.driver = driver
        self.spec = spec
        self.timeout = timeout
        self.networks = networks
        self.warnings = warnings
        self.slots = slots
        self.path = api("instances", spec.name)
        self.query = {"project": spec.project}
        self.seen = "nothing yet"
        self.found: dict[str, tuple[str, ...]] = {}
        # As read before the wait.
        self.existing: Instance

    def ready(self, pinned: t.Container[str]) -> dict[str, tuple[str, ...]]:
        """Wait for all that is to be waited for; returns the IPv4 addresses by device. Raises DeadlinePassed with the
        last state seen, and at once where the instance dies."""
        with self.slots.left():
            return self._ready(pinned, time.monotonic() + self.timeout)

    def _ready(self, pinned: t.Container[str], deadline: float) -> dict[str, tuple[str, ...]]:
        existing = Instance.from_api(self.driver.request("GET", self.path, query=self.query).metadata)
        self.existing = existing
        if self.spec.wait_for is None:
            self._default(existing, pinned, deadline)
        for one in self.spec.wait_for or ():
            self._until(one, existing, pinned, deadline)
        return {device: tuple(one for one in some if "." in one) for device, some in self.found.items()}

    # --- addresses ----------------------------------------------------------------------------------------------------

    def _default(self, existing: Instance, pinned: t.Container[str], deadline: float) -> None:
        """The first NIC on a network has an address, and every pinned one has one of the family that it is pinned in. A
        network that gives none is not waited for; one that nobody knows is given up, with a warning."""
        nics = [nic for nic in existing.nics if nic.network]
        wanted = [(nic, _family(nic)) for nic in nics if nic.device in pinned]
        if nics and nics[0].device not in pinned:
            declared = "ipv4.address" in self.spec.devices.get(nics[0].device, {})
            wanted.insert(0, (nics[0], _family(nics[0]) if declared else 0))
        for nic, family in wanted:
            expects = nic.device in pinned or expects_address(nic, self.networks().get(nic.network))
            if expects is False:
                self._look(existing)
                continue
            one = WaitFor("address", nic=nic.device, family=family)
            try:
                self._until(one, existing, pinned, deadline if expects else time.monotonic() + self._patience)
            except _Late:
                if expects:
                    raise
                self.warnings.append(
                    f"{self.spec.label}: {nic.device} on {nic.network} got no address in {self._patience:g} s, nobody "
                    "says that it gives any; wait_for: [] does not wait"
                )
        if not wanted:
            self._look(existing)

    @property
    def _patience(self) -> float:
        return min(self.timeout, UNKNOWN_NETWORK)

    def _look(self, existing: Instance) -> None:
        """Read the state: a NIC is known by its hardware address, whatever else there is inside."""
        state = self._state()
        status = str(state.get("status") or "Error")
        if like(status) in ("Stopped", "Error"):
            raise DeadlinePassed(f"started, and was {status} right after.{last_words(self.driver, self.spec)}")
        self.found = by_hwaddr(state.get("network") or {}, existing.nics)
        has = sorted(address for some in self.found.values() for address in some)
        self.seen = ", ".join([status, *has])

    def _state(self) -> dict[str, t.Any]:
        try:
            return self.driver.request("GET", self.path + "/state", query=self.query).metadata or {}
        except NotFound:
            raise
        except ServerError as error:
            # Of one that is just dying, Incus cannot tell the state.
            found = self.driver.request("GET", self.path, query=self.query).metadata or {}
            self.seen = error.message
            return {"status": found.get("status")}

    # --- one after the other ------------------------------------------------------------------------------------------

    def _until(self, one: WaitFor, existing: Instance, pinned: t.Container[str], deadline: float) -> None:
        attempt = 0
        while True:
            self._look(existing)
            verdict = self._verdict(one, existing, deadline)
            if verdict.done:
                return
            self.seen = verdict.seen or self.seen
            if verdict.failed:
                raise CommandFailed((f"wait for {one}",), 1, verdict.seen)
            if time.monotonic() > deadline:
                raise _Late(
                    f"{one}: not so after {self.timeout:g} s; last state: {self.seen}."
                    + last_words(self.driver, self.spec)
                )
            time.sleep(_POLL[min(attempt, len(_POLL) - 1)])
            attempt += 1

    def _verdict(self, one: WaitFor, existing: Instance, deadline: float) -> Verdict:
        if one.kind == "address":
            return _address(one, existing.nics, self.found)
        limit = min(60.0, max(deadline - time.monotonic(), 1.0))
        try:
            if one.kind == "cloud-init":
                return cloud_init(*self._execute(limit, "sh", "-c", "cloud-init status --long"))
            if one.kind == "system":
                return system(*self._execute(limit, "sh", "-c", "systemctl is-system-running"))
            if one.kind == "port":
                return listens(one.port, *self._execute(limit, "sh", "-c", "cat /proc/net/tcp /proc/net/tcp6"))
            rc, output = self._execute(limit, *one.argv)
            return Verdict(rc == 0, False, f"exit code {rc}: {output.strip()[-500:]}")
        except NotFound:
            raise
        except (ServerError, DeadlinePassed) as error:
            # An agent that is not up yet, or a container on its way down: the state tells which.
            return Verdict(False, False, str(error))

    def _execute(self, limit: float, *argv: str) -> tuple[int, str]:
        with self.slots.held():
            done = self.driver.execute(self.spec.name, argv, project=self.spec.project, timeout=limit)
        return done.rc, (done.stdout + b"\n" + done.stderr).decode("utf-8", "replace")


def _family(nic: Nic) -> int:
    """The family of the address that a NIC is pinned to; of both, IPv4. 0: of none."""
    return 4 if nic.ipv4 not in NOWHERE else 6 if nic.ipv6 not in NOWHERE else 0


class _Late(DeadlinePassed):
    """What was waited for did not come true in time."""


def _address(one: WaitFor, nics: t.Sequence[Nic], found: t.Mapping[str, tuple[str, ...]]) -> Verdict:
    wanted = [nic.device for nic in nics if nic.network][:1] if not one.nic else [one.nic]
    if not wanted or wanted[0] not in {nic.device for nic in nics}:
        known = ", ".join(nic.device for nic in nics) or "none"
        return Verdict(False, True, f"there is no such network device; there is {known}")
    mine = [address for address in found.get(wanted[0], ()) if one.family in (0, 6 if ":" in address else 4)]
    return Verdict(bool(mine), False, "")


def last_words(driver: Driver, spec: InstanceSpec) -> str:
    """The last lines of an instance's console and log, and what to do about a cause that is known."""
    query, path = {"project": spec.project}, api("instances", spec.name)
    told, everything = [], []
    for title, place in (("console", "/console"), ("log", f"/logs/{_LOGS[spec.type]}")):
        try:
            raw = _read(driver, path + place, query)
        except MageError as error:
            told.append(f" Its {title} cannot be read: {getattr(error, 'message', error)}.")
            continue
        lines = causes.last_lines(raw)
        everything += causes.last_lines(raw, 200)
        if lines:
            told.append(f" Its {title} ends with: {' | '.join(lines)}.")
        else:
            told.append(f" Its {title} says nothing.")
    return "".join(told) + causes.advice(everything)


def _read(driver: Driver, path: str, query: dict[str, str]) -> bytes:
    """A console cannot be read while its container is just dying."""
    for pause in (0.2, 0.5, 1.0):
        try:
            return driver.request("GET", path, query=query).body
        except ServerError:
            time.sleep(pause)
    return driver.request("GET", path, query=query).body


def known_networks(driver: Driver, project: str) -> dict[str, Network]:
    """The networks by name."""
    return {one.name: one for one in snapshot.read_networks(driver, project)}
