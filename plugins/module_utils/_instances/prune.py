# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What an owner declared before and no longer does. Pure."""

from __future__ import annotations

import typing as t

from .. import _keys
from .._server.snapshot import Instance, Snapshot
from .spec import Desired, InstanceSpec

PROTECTION = "security.protection.delete"


def is_protected(existing: Instance) -> bool:
    """Whether the server will refuse to delete it, by its own config or a profile's."""
    return existing.expanded_config.get(PROTECTION, "").lower() in ("true", "1", "yes", "on")


def pruned(desired: Desired, snapshot: Snapshot, warnings: t.Optional[list[str]] = None) -> tuple[InstanceSpec, ...]:
    """The instances to remove: of this owner, written by this collection for this very instance, so that neither a copy
    nor what somebody else calls his own is ever taken. Protected ones stay, with a warning."""
    if not desired.prune or not desired.owner:
        return ()
    declared = {item.name for item in desired.items}
    found = []
    for one in snapshot.instances:
        if one.project != desired.project or one.name in declared or not is_of(one, desired.owner):
            continue
        if is_protected(one):
            if warnings is not None:
                told = f"{one.project}/{one.name}: is declared no longer, and stays: it is protected by {PROTECTION}"
                warnings.append(told)
            continue
        found.append(_gone(one, desired.owner))
    return tuple(found)


def is_of(one: Instance, owner: str) -> bool:
    """Whether this owner has declared this very instance."""
    decoded = [_keys.decode(one.config, key, one.project, one.name) for key in (_keys.OWNER, _keys.MANAGED)]
    return all(each.marked and not each.problem for each in decoded) and decoded[0].value == owner


def _gone(one: Instance, owner: str) -> InstanceSpec:
    return InstanceSpec(
        path=f"prune of {one.name}",
        project=one.project,
        name=one.name,
        inventory_name=str(
            _keys.decode(one.config, _keys.INVENTORY_NAME, one.project, one.name).value or one.name,
        ),
        state="absent",
        type=one.type,
        image=None,
        description=None,
        profiles=None,
        config={},
        devices={},
        nat=(),
        proxy=(),
        hostnames=(),
        python=False,
        owner=owner,
        pruned=True,
    )
