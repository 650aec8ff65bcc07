# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Reads what a plan needs: one list, and what ``needs()`` asks for besides."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import typing as t

from .._errors import MageError
from .._server import snapshot
from .._server.driver import Driver, api
from .._server.snapshot import Instance, Snapshot
from . import checks, fetch, folders, python
from .observed import Needs, Observed
from .plan import UP, needs
from .spec import Desired, InstanceSpec


def read(desired: Desired, driver: Driver) -> Observed:
    """The list of instances with the addresses of those that are to be up, and what else the plan needs."""
    names = {item.name for item in desired.items if item.state in UP}
    first = snapshot.read(driver, desired.project, lambda one: one.name in names)
    return more(desired, driver, first, needs(desired, first))


def more(desired: Desired, driver: Driver, first: Snapshot, wanted: Needs) -> Observed:
    """What is needed besides the list."""
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
        raw = _list(driver, "profiles", desired.project)
        observed = dataclasses.replace(
            observed,
            profiles={one["name"]: one.get("devices") or {} for one in raw},
            profile_config={one["name"]: one.get("config") or {} for one in raw},
        )
    if wanted.images:
        files = [item for item in desired.items if _is_new_or_another(item, first.find(item.project, item.name))]
        known = _images(driver, desired.project)
        observed = dataclasses.replace(observed, images=known, files=fetch.fingerprints(files))
    if wanted.python:
        probes = _each(wanted.python, desired.concurrency, lambda name: _probed(driver, name, desired.project))
        observed = dataclasses.replace(observed, python=probes)
    if wanted.busy:
        observed = dataclasses.replace(observed, busy=_busy(driver, desired.project))
    return observed


def _is_new_or_another(item: InstanceSpec, existing: t.Optional[Instance]) -> bool:
    return existing is None or item.recreate or checks.may_differ(item, existing)


def _list(driver: Driver, kind: str, project: str) -> list[t.Any]:
    return driver.request("GET", api(kind), query={"recursion": "1", "project": project}).metadata or []


def _images(driver: Driver, project: str) -> dict[str, str]:
    found = {}
    for one in _list(driver, "images", project):
        found[one["fingerprint"]] = one["fingerprint"]
        found.update({alias["name"]: one["fingerprint"] for alias in one.get("aliases") or ()})
    return found


def _busy(driver: Driver, project: str) -> frozenset[str]:
    """The instances that an operation works on that has not ended."""
    raw = driver.request("GET", api("operations"), query={"recursion": "1", "project": project}).metadata or {}
    running = [one for group in raw.values() for one in group] if isinstance(raw, dict) else raw
    found = set()
    for one in running:
        resources = one.get("resources") or {}
        for path in (*(resources.get("instances") or ()), *(resources.get("containers") or ())):
            found.add(str(path).partition("?")[0].rpartition("/")[2])
    return frozenset(found)


def _each(names: t.Sequence[str], concurrency: int, work: t.Callable[[str], str]) -> dict[str, str]:
    with concurrent.futures.ThreadPoolExecutor(max_workers=concurrency) as pool:
        return dict(zip(names, pool.map(work, names)))


def _probed(driver: Driver, name: str, project: str) -> str:
    """What Python there is. One that cannot be asked keeps no other from being planned: its own step tells why."""
    try:
        return probe(driver, name, project)
    except MageError:
        return "unknown"


def probe(driver: Driver, name: str, project: str) -> str:
    """What Python there is in a running instance."""
    return python.probed(driver.execute(name, python.PROBE, project=project, timeout=60).stdout)
