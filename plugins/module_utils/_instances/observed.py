# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What plans are made of: what a server says, and what happens to one instance. Pure."""

from __future__ import annotations

import dataclasses
import typing as t

from .._plan import Change
from .._server.snapshot import Instance, Network, Snapshot
from . import mounts
from .spec import InstanceSpec
from .update import NOTHING, Devices, Notes


@dataclasses.dataclass(frozen=True)
class Observed:
    """What the server says. The parts after ``snapshot`` are read only where ``needs()`` asks for them.

    ``everywhere`` are the instances of all projects, ``profiles`` maps names to devices and ``profile_config`` to
    config, ``networks`` names to networks, ``images`` aliases, fingerprints and properties to fingerprints, ``python``
    instance names to what the probe said, ``busy`` names the instances that an operation of the server works on,
    ``folders`` the sources of mounts to what is known of them, and is None where the server is not on this machine,
    ``files`` files of images to their fingerprints, ``snapshots`` instances that are copied from to their snapshots by
    name.
    """

    snapshot: Snapshot
    everywhere: tuple[Instance, ...] = ()
    profiles: t.Mapping[str, Devices] = dataclasses.field(default_factory=dict)
    profile_config: t.Mapping[str, t.Mapping[str, str]] = dataclasses.field(default_factory=dict)
    networks: t.Mapping[str, Network] = dataclasses.field(default_factory=dict)
    images: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    python: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    busy: frozenset[str] = frozenset()
    folders: t.Optional[t.Mapping[str, mounts.Folder]] = dataclasses.field(default_factory=dict)
    files: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    snapshots: t.Mapping[str, t.Mapping[str, Instance]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Needs:
    """What has to be read besides the list of instances. ``silent`` names those that run and have no address as far as
    the list says, ``snapshots`` those whose snapshots are copied."""

    pins: bool = False
    images: bool = False
    profiles: bool = False
    python: tuple[str, ...] = ()
    busy: bool = False
    silent: tuple[str, ...] = ()
    snapshots: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class InstanceChange(Change):
    """What happens to one instance: ``steps`` in order, out of create, update, start, stop, restart, freeze, unfreeze,
    kill, delete, wait, python.

    ``pins`` maps NIC devices to the device that pins them; ``body`` is the request that creates the instance, and
    ``target`` the cluster member that is asked for; ``waits`` what is not taken up before its next start;
    ``unfinished``: it is deleted only if there is nothing in it.
    """

    spec: t.Optional[InstanceSpec] = None
    steps: tuple[str, ...] = ()
    pins: Devices = dataclasses.field(default_factory=dict)
    body: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    notes: Notes = NOTHING
    waits: tuple[str, ...] = ()
    unfinished: bool = False
