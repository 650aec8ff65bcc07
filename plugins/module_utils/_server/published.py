# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What the projections start from: who publishes what, from which address.

The firewall, the proxy and the hosts file are pure functions of these values.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .. import _keys
from .snapshot import Address, Snapshot

# The status of an item that is not there, or will not be.
ABSENT = "Absent"


@dataclasses.dataclass(frozen=True)
class Publisher:
    """An instance that may publish. ``declared``: by this very run, so that its mistakes are errors, not warnings.

    ``config`` holds the ``user.mage.*`` keys of the instance itself. ``restricted``: its project is not trusted.
    """

    project: str
    name: str
    status: str
    location: str
    config: t.Mapping[str, str]
    addresses: tuple[Address, ...]
    declared: bool = False
    restricted: bool = False

    @property
    def label(self) -> str:
        """How messages call it: project/name."""
        return f"{self.project}/{self.name}"

    def standing(self, rank: int = 0) -> tuple[t.Any, ...]:
        """Who goes first of two that want the same and declare it alike: whoever is trusted, who has it already (the
        lower ``rank``), the default project, the alphabet."""
        return (self.restricted, rank, self.project != "default", self.project, self.name)

    def decode(self, key: str) -> _keys.Decoded:
        """One of its keys."""
        return _keys.decode(self.config, key, self.project, self.name)


def publishers(
    snapshot: Snapshot, declared: t.Sequence[t.Mapping[str, t.Any]] = (), planned: bool = False
) -> tuple[Publisher, ...]:
    """Every instance of the snapshot that holds one of our keys, sorted by project and name.

    ``declared`` is what ``mage.lxd.instances`` returned as ``instances``. With ``planned`` (check mode) it stands in
    for what the server says. In a cluster, only the instances of the member that answered.
    """
    ours = {(str(one["project"]), str(one["name"])): one for one in declared}
    found = {
        (one.project, one.name): Publisher(
            project=one.project,
            name=one.name,
            status=one.status,
            location=one.location,
            config={key: value for key, value in one.config.items() if key.startswith(_keys.PREFIX)},
            addresses=snapshot.addresses(one),
            declared=(one.project, one.name) in ours,
            restricted=not snapshot.trusts(one),
        )
        for one in snapshot.instances
        if not snapshot.server.clustered or one.location == snapshot.server.name
    }
    if planned:
        for key, item in ours.items():
            found.pop(key, None)
            if item["status"] != ABSENT:
                found[key] = _planned(item, key[0] in snapshot.restricted)
    return tuple(found[key] for key in sorted(found) if any(name in found[key].config for name in _keys.ALL))


def _planned(item: t.Mapping[str, t.Any], restricted: bool) -> Publisher:
    return Publisher(
        project=str(item["project"]),
        name=str(item["name"]),
        status=str(item["status"]),
        location=str(item.get("location") or ""),
        config=item.get("keys") or {},
        addresses=tuple(
            Address(one["device"], one["network"], int(one["family"]), one["address"], bool(one["pinned"]))
            for one in item.get("addresses") or ()
        ),
        declared=True,
        restricted=restricted,
    )
