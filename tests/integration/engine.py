# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The instances' wing on a real server, in this process: what the module does, without Ansible's start."""

from __future__ import annotations

import dataclasses
import json
import time
import typing as t

from ansible_collections.mage.lxd.plugins.module_utils._context import Context, Report
from ansible_collections.mage.lxd.plugins.module_utils._instances import apply, info, spec
from ansible_collections.mage.lxd.plugins.module_utils._instances.plan import plan
from ansible_collections.mage.lxd.plugins.module_utils._plan import Plan
from ansible_collections.mage.lxd.plugins.module_utils._server.driver import Driver
from ansible_collections.mage.lxd.plugins.module_utils._server.options import ServerOptions
from ansible_collections.mage.lxd.plugins.module_utils._server.rest import RestDriver
from ansible_collections.mage.lxd.tests.integration.doors import Server
from ansible_collections.mage.lxd.tests.integration.server import LINGER

Raw = dict[str, t.Any]


class MeddlingDriver(RestDriver):
    """A driver before whose requests somebody else may do something: ``meddle(method, path)``. ``busiest`` is how many
    writes and operations were under way at once."""

    def __init__(self, options: ServerOptions) -> None:
        super().__init__(options)
        self.meddle: t.Callable[[str, str], None] = lambda method, path: None
        self.under_way: list[str] = []
        self.busiest = 0

    def request(self, method: str, path: str, *args: t.Any, **kwargs: t.Any) -> t.Any:
        self.meddle(method, path)
        if method == "GET" and not path.endswith("/wait"):
            return super().request(method, path, *args, **kwargs)
        self.under_way.append(path)
        self.busiest = max(self.busiest, len(self.under_way))
        try:
            return super().request(method, path, *args, **kwargs)
        finally:
            self.under_way.remove(path)


@dataclasses.dataclass(frozen=True)
class Done:
    """What came of one call."""

    plan: Plan
    report: t.Optional[Report]
    values: list[Raw]
    requests: list[tuple[str, str]]
    busiest: int

    @property
    def changed(self) -> bool:
        return self.plan.changed

    @property
    def failures(self) -> tuple[str, ...]:
        return self.report.failures if self.report else ()

    @property
    def warnings(self) -> tuple[str, ...]:
        return (*self.plan.warnings, *(self.report.warnings if self.report else ()))

    @property
    def one(self) -> Raw:
        (value,) = self.values
        return value

    def steps(self, name: str) -> list[str]:
        return next(value["actions"] for value in self.values if value["name"] == name)


def converge(
    driver: Driver, options: ServerOptions, *items: Raw, check: bool = False, **more: t.Any
) -> tuple[Plan, t.Optional[Report], list[Raw]]:
    """Observe, plan, apply, as a task would over this driver: the plan, the report if something was done, and the
    instances. Raises what the module would fail with before it changes anything."""
    defaults = {name: option["default"] for name, option in spec.ARGUMENTS.items() if "default" in option}
    desired = spec.parse({**defaults, "timeout": 60, "instances": list(items), **more}, "default")
    context = Context({}, check, options, driver)
    observed = apply.observe(desired, context)
    planned = plan(desired, observed, check)
    report = apply.apply(desired, observed, planned, context) if planned.changed and not check else None
    return planned, report, apply.result(desired, observed, planned, report)["instances"]


# The default profile's device is hidden: there is no address.
NO_NIC: Raw = {"devices": {"eth0": {"type": "none"}}}


@dataclasses.dataclass(frozen=True)
class Engine:
    """One server: called as a task would call the module, and asked by its own client. ``base`` is in every item."""

    server: Server
    options: ServerOptions
    prefix: str
    base: Raw = dataclasses.field(default_factory=dict)

    def name(self, suffix: str) -> str:
        return f"{self.prefix}-{suffix}"

    def item(self, suffix: str, **fields: t.Any) -> Raw:
        return {"name": self.name(suffix), "image": self.server.image, **self.base, **fields}

    def run(self, *items: Raw, check: bool = False, meddle: t.Any = None, **more: t.Any) -> Done:
        """See ``converge``."""
        driver = MeddlingDriver(self.options)
        if meddle:
            driver.meddle = meddle
        try:
            planned, report, values = converge(driver, self.options, *items, check=check, **more)
        finally:
            driver.close()
        return Done(planned, report, values, driver.requests, driver.busiest)

    def info(self, **asked: t.Any) -> tuple[dict[str, t.Any], list[tuple[str, str]]]:
        """What instances_info answers, and the requests that it took."""
        asked = {"names": None, "all_projects": False, "declared": [], "hosts_policy": {"projects": []}, **asked}
        query = info.parse({"filters": None, **asked}, "default")
        driver = MeddlingDriver(self.options)
        context = Context({}, False, self.options, driver)
        try:
            seen = info.observe(query, context)
        finally:
            context.close()
        return info.result(query, seen, info.plan(query, seen, False), None), driver.requests

    def good(self, *items: Raw, **more: t.Any) -> Done:
        done = self.run(*items, **more)
        assert done.failures == (), done.failures
        return done

    def get(self, suffix: str) -> Raw:
        return dict(self.server.query(f"/1.0/instances/{self.name(suffix)}"))

    def status(self, suffix: str) -> str:
        found = [one for one in self.server.query("/1.0/instances?recursion=1") if one["name"] == self.name(suffix)]
        return str(found[0]["status"]) if found else "Absent"

    def patch(self, suffix: str, body: Raw) -> None:
        path = f"/1.0/instances/{self.name(suffix)}"
        kept = {"description": self.get(suffix)["description"]}
        self.server.run("query", "--wait", "-X", "PATCH", path, "-d", json.dumps({**kept, **body}))

    def has_address(self, suffix: str, address: str) -> bool:
        """Whether eth0 has it, in a moment: a client that is busy may lose what a command prints."""
        deadline = time.monotonic() + 30
        while f" {address}/" not in self.execute(suffix, "ip", "addr", "show", "eth0"):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    def execute(self, suffix: str, *argv: str) -> str:
        return self.server.run("exec", self.name(suffix), "--", *LINGER, *argv)
