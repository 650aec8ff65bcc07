# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Reads what a plan needs: one list, and what ``needs()`` asks for besides."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import typing as t

from .._errors import MageError, NotFound, ServerError
from .._server import snapshot
from .._server.driver import Driver, api
from .._server.snapshot import Instance, Nic, Snapshot
from . import checks, expected, fetch, folders, images, python
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
    if wanted.profiles or wanted.pins:
        raw = _list(driver, "profiles", desired.project)
        observed = dataclasses.replace(
            observed,
            profiles={one["name"]: one.get("devices") or {} for one in raw},
            profile_config={one["name"]: one.get("config") or {} for one in raw},
        )
    if wanted.pins:
        observed = _with_networks(desired, driver, observed)
    if wanted.images:
        files = [item for item in desired.items if _is_new_or_another(item, first.find(item.project, item.name))]
        known = _images(desired, driver)
        observed = dataclasses.replace(observed, images=known, files=fetch.fingerprints(files))
    if wanted.python:
        probes = _each(wanted.python, desired.concurrency, lambda name: _probed(driver, name, desired.project))
        observed = dataclasses.replace(observed, python=probes)
    if wanted.busy:
        observed = dataclasses.replace(observed, busy=_busy(driver, desired.project))
    if wanted.silent:
        observed = _looked_into(observed, driver, desired, wanted.silent)
    if wanted.snapshots:
        found = {name: _snapshots(driver, desired.project, name) for name in wanted.snapshots}
        observed = dataclasses.replace(observed, snapshots=found)
    return observed


def _with_networks(desired: Desired, driver: Driver, observed: Observed) -> Observed:
    """What is needed to pin: the leases of the bridges that the list pins on, of the projects that are on them."""
    everywhere = snapshot.read_instances(driver)
    networks = {one.name: one for one in snapshot.read_networks(driver, desired.project)}
    wanted = {nic.network for item in desired.items for nic in _pinned_nics(item, desired, observed)}
    bridges = {name for name, one in networks.items() if one.managed and one.type == "bridge" and name in wanted}
    places = {(nic.network, one.project) for one in everywhere for nic in one.nics if nic.network in bridges}
    found = [lease for name, project in sorted(places) for lease in snapshot.read_leases(driver, name, project)]
    seen = dataclasses.replace(observed.snapshot, leases=tuple(dict.fromkeys((*observed.snapshot.leases, *found))))
    return dataclasses.replace(observed, snapshot=seen, everywhere=everywhere, networks=networks)


def _pinned_nics(item: InstanceSpec, desired: Desired, observed: Observed) -> t.Iterator[Nic]:
    """The NICs that an item may be pinned on: those that it has or will have, and those of a new one in its place."""
    existing = observed.snapshot.find(item.project, item.name)
    if item.state == "absent" or not (item.publishes or item.address):
        return
    if existing:
        yield from expected.future(item, existing, observed).nics
    profiles = expected.first_profiles(item, observed, desired.items)
    yield from expected.unborn(item, profiles, observed).nics


def _is_new_or_another(item: InstanceSpec, existing: t.Optional[Instance]) -> bool:
    return existing is None or item.recreate or checks.may_differ(item, existing)


def _list(driver: Driver, kind: str, project: str) -> list[t.Any]:
    return driver.request("GET", api(kind), query={"recursion": "1", "project": project}).metadata or []


def _images(desired: Desired, driver: Driver) -> dict[str, str]:
    """Fingerprints by alias, by themselves, and by the properties that are asked for."""
    found = {}
    there = _list(driver, "images", desired.project)
    for one in there:
        found[one["fingerprint"]] = one["fingerprint"]
        found.update({alias["name"]: one["fingerprint"] for alias in one.get("aliases") or ()})
    for wanted in {item.image.properties for item in desired.items if item.image and item.image.properties}:
        found[images.property_key(wanted)] = images.matching(wanted, there)
    return found


def _looked_into(observed: Observed, driver: Driver, desired: Desired, names: t.Iterable[str]) -> Observed:
    """With the addresses that no lease tells of, and with the networks, which say whether there should be any."""
    states = dict(observed.snapshot.states)
    for name in names:
        existing = observed.snapshot.find(desired.project, name)
        # One that cannot be asked is none that has an address.
        with contextlib.suppress(ServerError):
            states.update(snapshot.read_state_addresses(driver, existing) if existing else {})
    networks = observed.networks or {one.name: one for one in snapshot.read_networks(driver, desired.project)}
    seen = dataclasses.replace(observed.snapshot, states=states)
    return dataclasses.replace(observed, snapshot=seen, networks=networks)


def _snapshots(driver: Driver, project: str, name: str) -> dict[str, Instance]:
    try:
        raw = driver.request("GET", api("instances", name, "snapshots"), query={"recursion": "1", "project": project})
    except NotFound:
        return {}
    return {str(one["name"]).rpartition("/")[2]: Instance.from_api(one) for one in raw.metadata or ()}


def _busy(driver: Driver, project: str) -> frozenset[str]:
    """The instances that an operation works on that has not ended."""
    raw = driver.request("GET", api("operations"), query={"recursion": "1", "project": project}).metadata or {}
    running = [one for group in raw.values() for one in group] if isinstance(raw, dict) else raw
    found = set()
    for one in running:
        if int(one.get("status_code") or 0) >= 200:
            # Servers keep what has ended for some seconds.
            continue
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
