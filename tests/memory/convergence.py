# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the instances' wing against a server in memory, as the module does, in no time."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import threading
import time
import typing as t
from unittest import mock

from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._context import Context, Report
from ansible_collections.mage.lxd.plugins.module_utils._instances import apply, spec
from ansible_collections.mage.lxd.plugins.module_utils._instances.plan import plan
from ansible_collections.mage.lxd.plugins.module_utils._plan import Plan
from ansible_collections.mage.lxd.plugins.module_utils._server.options import ServerOptions
from ansible_collections.mage.lxd.tests.memory.driver import Killed, MemoryDriver
from ansible_collections.mage.lxd.tests.memory.store import Raw, Store

# What the server chooses by itself, and what depends on the order in which instances were made.
_CHOSEN = ("volatile.", "user.mage.managed")


class _Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._lock = threading.Lock()

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self._now += seconds


@contextlib.contextmanager
def fast_time() -> t.Iterator[None]:
    """Whoever sleeps inside goes on at once, and finds that the time has passed."""
    clock = _Clock()
    with mock.patch.object(time, "sleep", clock.sleep), mock.patch.object(time, "monotonic", clock.monotonic):
        yield


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One run of the module. ``error`` is what it failed with before it had a report; ``killed``: it never ended."""

    plan: t.Optional[Plan] = None
    report: t.Optional[Report] = None
    error: str = ""
    killed: bool = False

    @property
    def failures(self) -> tuple[str, ...]:
        return self.report.failures if self.report else ()

    @property
    def changed(self) -> bool:
        return self.plan is not None and self.plan.changed

    @property
    def ok(self) -> bool:
        return not (self.error or self.killed or self.failures)


def _desired(items: t.Sequence[Raw], more: t.Mapping[str, t.Any]) -> spec.Desired:
    defaults = {name: option["default"] for name, option in spec.ARGUMENTS.items() if "default" in option}
    return spec.parse({**defaults, "timeout": 60, "instances": list(items), **more}, "default")


def foreseen(driver: MemoryDriver, items: t.Sequence[Raw], **more: t.Any) -> list[Raw]:
    """What check mode returns as the instances."""
    desired = _desired(items, more)
    context = Context({}, True, ServerOptions("memory"), driver)
    observed = apply.observe(desired, context)
    return list(apply.result(desired, observed, plan(desired, observed, True), None)["instances"])


def run(driver: MemoryDriver, items: t.Sequence[Raw], **more: t.Any) -> Outcome:
    """Observe, plan, apply."""
    planned = None
    with fast_time():
        try:
            desired = _desired(items, more)
            context = Context({}, False, ServerOptions("memory"), driver)
            observed = apply.observe(desired, context)
            planned = plan(desired, observed, False)
            report = apply.apply(desired, observed, planned, context) if planned.changed else None
        except _errors.MageError as e:
            return Outcome(planned, error=str(e))
        except Killed:
            return Outcome(planned, killed=True)
    return Outcome(planned, report)


def seen(store: Store) -> dict[str, Raw]:
    """All instances as they are, without what the server chooses by itself: for publishing ones, that includes the
    address, which is only known to be there."""
    found = {}
    for (project, name), raw in sorted(store.instances.items()):
        config = {key: value for key, value in raw["config"].items() if not key.startswith(_CHOSEN)}
        devices = {
            device: {key: "pinned" if key == "ipv4.address" else value for key, value in options.items()}
            for device, options in raw["devices"].items()
        }
        kept = {key: raw[key] for key in ("status", "type", "description", "profiles", "ephemeral")}
        found[f"{project}/{name}"] = {**kept, "config": config, "devices": devices}
    return found


def pins(store: Store) -> list[str]:
    """Every pinned address, sorted."""
    return sorted(
        options["ipv4.address"]
        for raw in store.instances.values()
        for options in raw["devices"].values()
        if options.get("ipv4.address")
    )


def copied(store: Store) -> Raw:
    """All that a store keeps, apart from it."""
    return copy.deepcopy(store.__dict__)
