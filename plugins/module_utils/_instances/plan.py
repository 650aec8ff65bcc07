# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What has to happen so that a list of instances becomes true. Pure."""

from __future__ import annotations

import dataclasses
import typing as t

from .. import _keys
from .._plan import Plan
from .._server.published import ABSENT
from .._server.snapshot import Instance, Nic, Snapshot
from .._values import Problems
from . import addresses, checks, expected, fetches, images, order, pins, prune, restart, settle, shown, states
from .expected import has_other_nics
from .observed import InstanceChange, Needs, Observed
from .readiness import expects_address
from .spec import Desired, InstanceSpec
from .update import Notes, desired_update, is_ready, recorded, waits

__all__ = ["InstanceChange", "Needs", "Observed", "needs", "plan"]

# States in which what runs in an instance can be asked.
UP = ("started", "restarted")


def needs(desired: Desired, snapshot: Snapshot) -> Needs:
    """What else must be known to plan. For a list that is true already: nothing."""
    shared = addresses.pinned(snapshot.instances)
    pins = images = profiles = busy = False
    python, silent, snapshots = [], [], []
    for item in desired.items:
        existing = snapshot.find(item.project, item.name)
        if item.state == "absent":
            continue
        again = existing is not None and item.recreate and checks.may_differ(item, existing)
        if existing is not None and checks.is_unfinished(item, existing):
            busy = again = True
        if existing is None or again:
            images = images or item.copy_of is None
            if item.copy_of and item.copy_of.snapshot:
                snapshots.append(item.copy_of.name)
            pinned = item.publishes or item.address is not None
            pins = pins or pinned
            profiles = profiles or pinned or item.profiles is not None or bool(item.disk or item.mounts)
        if existing is not None:
            images = images or checks.may_differ(item, existing)
            moves = has_other_nics(item, existing)
            unpinned = any(not nic.ipv4 or addresses.has_to_move(existing, nic, shared) for nic in existing.nics)
            unmet = item.address is not None and (moves or _not_as_wished(item, existing, shared))
            pins = pins or unmet or (item.publishes and (moves or unpinned))
            # Whose mounts are shifted depends on what its profiles say where it says nothing any more.
            profiles = profiles or moves or bool(item.mounts and restart.PRIVILEGED in expected.losing(item, existing))
            if item.python and existing.running and not recorded(existing).get("python"):
                python.append(existing.name)
            if _silent_nic(item, existing, snapshot):
                silent.append(existing.name)
    return Needs(pins, images, profiles, tuple(python), busy, tuple(silent), tuple(dict.fromkeys(snapshots)))


def _silent_nic(item: InstanceSpec, existing: Instance, snapshot: Snapshot) -> t.Optional[Nic]:
    """The NIC that an instance which runs is to have an address on and has none, if nobody said what to wait for."""
    nics = [nic for nic in existing.nics if nic.network]
    if item.state not in UP or item.wait_for is not None or not existing.running or not nics:
        return None
    has = {one.device for one in snapshot.addresses(existing)}
    return None if nics[0].device in has else nics[0]


def _not_as_wished(item: InstanceSpec, existing: Instance, shared: addresses.Pinned) -> bool:
    nic = pins.wished_nic(item, existing)
    if nic is None or item.address is None:
        return item.address is not None
    return not item.address.met(nic.ipv4, nic.ipv6) or addresses.has_to_move(existing, nic, shared)


def plan(desired: Desired, observed: Observed, check_mode: bool, coming: t.Iterable[str] = ()) -> Plan:
    """The changes, one for each instance that is not as declared. Raises InvalidInput for what cannot be done.

    In check mode an image that is not there yet is but missing, since an earlier step may be going to bring it.
    ``coming`` are names that are declared, too, and planned for elsewhere.
    """
    warnings: list[str] = []
    pruned = prune.pruned(desired, observed.snapshot, warnings)
    planner = _Planner(desired, observed, check_mode, pruned)
    planner.declared.update(coming)
    planner.warnings += warnings
    found = [planner.change(item) for item in (*desired.items, *pruned)]
    known = {one.name for one in observed.snapshot.instances if one.project == desired.project}
    gone = {item.name for item in pruned}
    order.check(desired.items, known | planner.declared, planner.problems, gone)
    order.check_sources(planner.created, desired.items, planner.problems, gone)
    planner.problems.raise_if_any()
    brought = fetches.fetches(planner.created, observed.images, planner.anew)
    changes = (*brought, *(change for change in found if change))
    return Plan(changes, tuple(planner.warnings), planner.missing.texts if check_mode else ())


class _Planner:
    """Plans one item after the other; what one takes, the next does not get."""

    def __init__(
        self, desired: Desired, observed: Observed, check_mode: bool, pruned: t.Iterable[InstanceSpec]
    ) -> None:
        self.desired = desired
        self.observed = observed
        self.check_mode = check_mode
        self.problems = Problems()
        self.missing = Problems() if check_mode else self.problems
        self.warnings = list(desired.warnings)
        self.declared = {item.name for item in desired.items if item.state != "absent"}
        everywhere = observed.everywhere or observed.snapshot.instances
        there = [item for item in desired.items if item.state != "absent"]
        fixed = [item.address.ipv4 for item in there if item.address]
        fixed += [options.get("ipv4.address", "") for item in there for options in item.devices.values()]
        going = {(item.project, item.name) for item in (*desired.items, *pruned) if item.state == "absent"}
        leases = observed.snapshot.leases
        self.picker = pins.Picker(observed.networks, everywhere, leases, desired.declared, fixed, going)
        self.created: list[InstanceSpec] = []
        # The names of those that are deleted first.
        self.anew: set[str] = set()
        self.renamed = checks.renamed(observed.snapshot.instances)

    def change(self, item: InstanceSpec) -> t.Optional[InstanceChange]:
        """What happens for one item, or None."""
        existing = self.observed.snapshot.find(item.project, item.name)
        if item.state == "absent":
            return self._deletion(item, existing) if existing else None
        item = self._settled(item, existing)
        if existing is None:
            return self._creation(item, None)
        checks.check_existing(item, existing, self.observed, self.problems)
        if item.recreate and checks.different(item, existing, self.observed):
            return self._creation(item, existing)
        if checks.is_unfinished(item, existing) and item.name not in self.observed.busy:
            if self.check_mode:
                self.warnings.append(checks.told_unfinished(item))
            return dataclasses.replace(self._creation(item, existing), unfinished=True)
        return self._correction(item, existing)

    def _settled(self, item: InstanceSpec, existing: t.Optional[Instance]) -> InstanceSpec:
        """The item as this server understands it."""
        observed, server = self.observed, self.observed.snapshot.server
        profiles = expected.first_profiles(item, observed, self.desired.items)
        future = expected.future(item, existing, observed) if existing else expected.unborn(item, profiles, observed)
        devices = future.expanded_devices
        config = expected.config_of(item, existing, profiles, observed)
        return settle.settle(item, existing, server, devices, observed.folders, self.problems, self.warnings, config)

    def _deletion(self, item: InstanceSpec, existing: Instance) -> InstanceChange:
        checks.check_absent(item, existing, self.problems)
        before = shown.as_text(
            {"status": existing.status, "profiles": list(existing.profiles), "image": shown.image_of(existing)}
        )
        return InstanceChange(f"instance {item.label}", "delete", before, "", item, ("delete",))

    def _creation(self, item: InstanceSpec, old: t.Optional[Instance]) -> InstanceChange:
        """A new instance; in place of ``old``, if there is one."""
        item = fetches.known(item, self.observed.files, self.problems, self.missing)
        self.created.append(item)
        self.anew |= {item.name} if old else set()
        checks.check_new(item, self.observed, self.declared, self.problems, self.missing)
        if old is None and item.label in self.renamed:
            checks.check_renamed(item, self.renamed[item.label], self.problems, self.warnings)
        profiles = expected.first_profiles(item, self.observed, self.desired.items)
        future = expected.unborn(item, profiles, self.observed, old)
        ours = recorded(old).get("devices", {}) if old else ()
        pinned = pins.pins(item, future, ours, self.picker, self.problems, self.warnings)
        body = _body(item, pinned, self.observed, profiles)
        # A copy has the keys of what it is a copy of, and they are not its own.
        steps = [*(["delete"] if old else []), "create", *(["update"] if item.copy_of else [])]
        steps += [step for step in states.STEPS[ABSENT][item.state] if step != "create"]
        if item.state in UP and item.python:
            steps.append("python")
        after = {key: value for key, value in body.items() if key not in ("name", "source")}
        config = shown.readable(body["config"], item.project, item.name)
        made_of = str(item.copy_of or item.image)
        after.update({"copy_of" if item.copy_of else "image": made_of}, state=item.state, config=config)
        before = {"status": old.status, "image": shown.image_of(old)} if old else {}
        return InstanceChange(
            f"instance {item.label}",
            ", ".join(steps),
            shown.as_text(before) if before else "",
            shown.as_text(after),
            item,
            tuple(steps),
            pinned,
            body,
        )

    def _correction(self, item: InstanceSpec, existing: Instance) -> t.Optional[InstanceChange]:
        """What an existing instance lacks."""
        observed = self.observed
        ours = recorded(existing).get("devices") or {}
        future = expected.future(item, existing, observed)
        pinned = pins.pins(item, future, ours, self.picker, self.problems, self.warnings)
        probe = observed.python.get(item.name, "")
        away = pins.away(item, existing, future, pinned, self.picker, self.warnings)
        notes, effects = self._notes(item, existing, pinned, probe == "usable", away)
        target = desired_update(item, existing, pinned, notes)
        steps = list(self._steps(item, existing, effects, target.empty))
        if item.state in UP and not recorded(existing).get("python") and item.python and probe != "usable":
            steps.append("python")
        ready = bool(item.wait_for) and is_ready(item, existing)
        if ready and {"start", "restart"} & set(steps):
            notes = dataclasses.replace(notes, starts=True)
        if item.state in UP and item.wait_for and not ready:
            steps.append("wait")
        if self._lacks_address(item, existing) and not {"start", "restart"} & set(steps):
            steps.append("wait")
        if not steps:
            return None
        before, after = shown.difference(existing, target)
        moved = [step for step in steps if step not in ("update", "python", "wait")]
        if moved:
            before["state"], after["state"] = existing.status.lower(), item.state
        if "restart" in steps or effects.all:
            after["restart_required"] = sorted({*effects.all, *waits(existing)})
        if "python" in steps:
            after["python"] = "as modules need it"
        if "wait" in steps:
            after["wait_for"] = [str(one) for one in item.wait_for or ("address",)]
        return InstanceChange(
            f"instance {item.label}",
            ", ".join(steps),
            shown.as_text(before),
            shown.as_text(after),
            item,
            tuple(steps),
            pinned,
            {},
            notes,
            self._left_waiting(existing, effects, steps),
        )

    def _notes(
        self,
        item: InstanceSpec,
        existing: Instance,
        pinned: t.Mapping[str, t.Any],
        python: bool,
        away: t.Iterable[str],
    ) -> tuple[Notes, restart.Effects]:
        """What is recorded with an update, and what of it does not take effect at once. ``away`` are the devices that
        wait for their address."""
        displaced = tuple(f"devices.{device}" for device in away)
        target = desired_update(item, existing, pinned, Notes(python=python))
        if states.like(existing.status) not in ("Running", "Frozen") or target.empty:
            return Notes(python=python), restart.Effects(displaced)
        server = self.observed.snapshot.server
        config, devices = expected.expanded(item, existing, target, self.observed)
        effects = restart.effects(existing, config, devices, server.extensions, server.flavor)
        # Where the device is not written, the leases say so as long as it is so.
        recorded_too = tuple(one for one in displaced if one.partition(".")[2] in target.devices)
        notes = Notes(python, waits=effects._replace(start=(*effects.start, *recorded_too)).all)
        effects = effects._replace(start=(*effects.start, *displaced))
        if not self._may_stop(item, existing):
            own = {f"config.{key}" for key in target.config}
            own |= {f"devices.{name}" for name in (*target.devices, *target.drop_devices)}
            held = effects.refused if set(effects.refused) <= own else (*effects.refused, "profiles")
            notes = dataclasses.replace(notes, held=held)
        if self.desired.restart == "always" and item.state not in order.DOWN:
            # Where the restart does not come to be, the next run finds nothing else that tells of it.
            written = desired_update(item, existing, pinned, notes).parts
            notes = dataclasses.replace(notes, waits=tuple(sorted({*effects.all, *written})))
        return notes, effects

    def _may_stop(self, item: InstanceSpec, existing: Instance) -> bool:
        """Whether it may be stopped to be changed: to stop is the end of what is ephemeral."""
        asked = self.desired.restart != "never" or item.state in ("restarted", "stopped")
        return asked and not existing.ephemeral

    def _steps(self, item: InstanceSpec, existing: Instance, effects: restart.Effects, empty: bool) -> tuple[str, ...]:
        plain = states.steps(existing.status, item.state)
        update = () if empty else ("update",)
        refused = bool(effects.refused) and self._may_stop(item, existing)
        if states.like(existing.status) not in ("Running", "Frozen") or item.state in order.DOWN:
            return states.with_restart(existing.status, item.state, True) if refused else (*update, *plain)
        # What may not be stopped takes up by a restart only what it has taken.
        left = () if self._may_stop(item, existing) else effects.refused
        required = bool({*effects.all, *waits(existing)} - set(left))
        wanted = {"never": False, "if_required": required, "always": required or not empty}[self.desired.restart]
        if not (wanted or (item.state == "restarted" and refused)):
            return (*update, *plain)
        steps = states.with_restart(existing.status, item.state, refused)
        return tuple(step for step in steps if step != "update" or not empty)

    def _lacks_address(self, item: InstanceSpec, existing: Instance) -> bool:
        """An earlier run has waited in vain, and said so: that is not forgotten by the next one."""
        nic = _silent_nic(item, existing, self.observed.snapshot)
        if nic is None or (item.project, item.name, nic.device) not in self.observed.snapshot.states:
            return False
        return expects_address(nic, self.observed.networks.get(nic.network)) is True

    def _left_waiting(self, existing: Instance, effects: restart.Effects, steps: t.Sequence[str]) -> tuple[str, ...]:
        if {"restart", "stop", "kill", "start"} & set(steps):
            return ()
        return tuple(sorted({*effects.all, *waits(existing)}))


def _body(
    item: InstanceSpec, pinned: t.Mapping[str, t.Any], observed: Observed, profiles: t.Sequence[str]
) -> dict[str, t.Any]:
    """The request that creates an instance."""
    target = desired_update(item, expected.blank(item), pinned)
    config = dict(target.config)
    source: dict[str, t.Any] = {}
    if item.copy_of:
        # The record that comes along says which of its pins were made for what it is a copy of.
        config.pop(_keys.MANAGED)
        source = {"type": "copy", "source": str(item.copy_of), "instance_only": True, "container_only": True}
    elif item.image:
        source = images.source(item.image, observed.images) or {}
    body: dict[str, t.Any] = {
        "name": item.name,
        "type": item.type,
        "source": source,
        "config": config,
        "devices": {name: dict(options) for name, options in target.devices.items()},
        "description": item.description or "",
    }
    if item.profiles is not None or item.copy_of:
        body["profiles"] = list(profiles)
    if item.ephemeral is not None:
        body["ephemeral"] = item.ephemeral
    return body
