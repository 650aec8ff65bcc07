# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""The door to the host's firewall: reads what a plan is made from, and carries the plan out."""

from __future__ import annotations

import dataclasses
import typing as t

from ... import _keys
from ..._context import Context, Report
from ..._errors import CommandFailed, MageError, NotFound
from ..._server import snapshot, sockets
from ..._server.driver import Driver, api
from ..._server.published import Publisher, publishers
from ..._values import PortRange, Problems
from ..plan import NatPlan, Observed, Rival, forward_rivals, plan, present, proxy_rivals
from ..spec import Desired, parse_entries
from . import commands, host

# A foreign writer may come between reading and writing; it does not come every time.
ATTEMPTS = 5


def observe(desired: Desired, context: Context) -> Observed:
    """Read the server and the host. What only published ports need is read only if there are any."""
    driver = context.driver
    remote = sockets.elsewhere(context.server)
    if not desired.present:
        here = Observed(snapshot.read_server(driver).flavor, {}, remote=remote)
        return here if remote else _read_firewall(here, ())
    read = snapshot.read(driver, wants_address=lambda one: _keys.NAT in one.config, with_projects=True)
    found = publishers(read, desired.declared, planned=context.check_mode)
    asking = tuple(one for one in found if _keys.NAT in one.config)
    observed = Observed(read.server.flavor, {}, publishers=asking, remote=remote)
    if remote:
        # This host's firewall is no business of it, and may not be read by whoever asks.
        return observed
    if asking:
        networks = snapshot.read_networks(driver)
        observed = dataclasses.replace(
            observed,
            rivals=(*proxy_rivals(_local(read)), *_read_forwards(driver, read.server, networks)),
            ports=_bridge_ports(read.instances),
            networks=networks,
            instance_networks=tuple(sorted({nic.network for one in read.instances for nic in one.nics})),
            server_firewall=_read_server_firewall(driver),
        )
    return _read_firewall(observed, [span for one in asking for span in _spans(one)])


def apply(desired: Desired, observed: Observed, planned: NatPlan, context: Context) -> Report:
    """Restore the tables, read them back, forget stale flows, then what keeps the rules over a reboot."""
    with commands.lock():
        # Another run may have published what was not on the server yet when this one read it.
        observed = observe(desired, context)
        fresh = plan(desired, observed)
        warnings = [one for one in fresh.warnings if one not in planned.warnings]
        warnings += _carry_out(desired, observed, fresh)
    return Report(warnings=tuple(warnings), values=present(desired, observed, fresh, None))


def _carry_out(desired: Desired, observed: Observed, planned: NatPlan) -> list[str]:
    if planned.restores:
        converge(desired, observed)
    warnings = [commands.forget_flows(planned.stale), *(host.set_hairpin(port) for port in planned.hairpin)]
    if planned.enable_unit is False:
        host.enable_unit(planned.unit, False, observed.host.systemd)
    host.write_files(planned.files)
    if planned.files or planned.enable_unit:
        host.enable_unit(planned.unit, planned.enable_unit or None, observed.host.systemd)
    return [warning for warning in warnings if warning]


def converge(desired: Desired, observed: Observed) -> None:
    """Plan anew from what the firewall says, until what was committed reads back as wanted. Call it under the lock."""
    reason = "somebody else changes them at the same time"
    for attempt in range(ATTEMPTS + 1):
        fresh = plan(desired, dataclasses.replace(observed, tables=commands.read_tables()))
        if not fresh.restores:
            return
        if attempt < ATTEMPTS:
            try:
                commands.restore([text for _table, text in fresh.restores])
            except CommandFailed as error:
                # A jump that was to be removed may be gone already: the next attempt sees that.
                reason = str(error)
    tables = ", ".join(name for name, _text in fresh.restores)
    raise MageError(f"firewall: not as written after {ATTEMPTS} attempts, tables {tables}: {reason}")


def _read_firewall(observed: Observed, ports: t.Sequence[PortRange]) -> Observed:
    tables = commands.read_tables()
    return dataclasses.replace(
        observed,
        tables=tables,
        backends=commands.read_backends(tables),
        host=host.read_host(observed.flavor, ports),
    )


def _local(read: snapshot.Snapshot) -> list[snapshot.Instance]:
    """In a cluster, what runs on other members has ports of other hosts."""
    return [one for one in read.instances if not read.server.clustered or one.location == read.server.name]


def _read_forwards(
    driver: Driver, server: snapshot.Server, networks: t.Sequence[snapshot.Network]
) -> tuple[Rival, ...]:
    found: list[Rival] = []
    for one in networks:
        if "network_forward" not in server.extensions or not one.managed or one.type not in ("bridge", "ovn"):
            continue
        query = {"recursion": "1", "project": one.project}
        try:
            raw = driver.request("GET", api("networks", one.name, "forwards"), query=query).metadata or []
        except NotFound:
            # Deleted since the networks were listed.
            continue
        found += forward_rivals(one.name, raw)
    return tuple(found)


def _read_server_firewall(driver: Driver) -> str:
    known = getattr(driver, "server_info", None) or driver.request("GET", "/1.0").metadata or {}
    return str((known.get("environment") or {}).get("firewall") or "")


def _bridge_ports(instances: t.Sequence[snapshot.Instance]) -> dict[tuple[str, str, str], str]:
    return {
        (one.project, one.name, nic.network): one.config.get(f"volatile.{nic.device}.host_name", "")
        for one in instances
        for nic in one.nics
        if one.running
    }


def _spans(publisher: Publisher) -> list[PortRange]:
    """The ports that an instance may ask for. What is wrong with them is told by the plan."""
    raw = publisher.decode(_keys.NAT).value
    return [entry.extport for entry in parse_entries(raw, "", Problems())] if raw else []
