# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Names that resolve to instances: one more projection of what the server says. Pure."""

from __future__ import annotations

import re
import typing as t

from . import _keys
from ._server.published import Publisher
from ._values import Problems, hostname

_RESERVED = re.compile(r"localhost|.*\.localhost|localhost\..*|ip6-.*|broadcasthost")


class HostsEntry(t.NamedTuple):
    """A line of a hosts file: an address and the names that resolve to it."""

    address: str
    names: tuple[str, ...]


def is_reserved(name: str) -> bool:
    """Whether a machine has that name for itself."""
    return _RESERVED.fullmatch(name) is not None


def entries(
    publishers: t.Iterable[Publisher], projects: t.Container[str] = ()
) -> tuple[tuple[HostsEntry, ...], tuple[str, ...]]:
    """The lines for instances with a pinned IPv4 address, sorted by project and name, and warnings.

    Each has the instance's own name and those of ``user.mage.hostnames``. A name that somebody has already is left out
    with a warning: first come the instances' own names, then whoever stands first. Of restricted projects, only
    ``projects`` have names.
    """
    warnings: list[str] = []
    asked = [one for one in sorted(publishers, key=lambda one: one.standing()) if _may_have(one, projects, warnings)]
    more = {one.label: _declared(one, warnings) for one in asked}
    owners: dict[str, str] = {}
    for found in ({one.label: _own(one) for one in asked}, more):
        for label, names in found.items():
            for name in names:
                owners.setdefault(name, label)
    entries = []
    for one in sorted(asked, key=lambda one: (one.project != "default", one.project, one.name)):
        kept = [name for name in (*_own(one), *more[one.label]) if _is_free(name, one.label, owners[name], warnings)]
        if kept:
            entries.append(HostsEntry(_pinned(one), tuple(dict.fromkeys(kept))))
    return tuple(entries), tuple(warnings)


def _pinned(one: Publisher) -> str:
    return next((address.address for address in one.addresses if address.pinned and address.family == 4), "")


def _may_have(one: Publisher, projects: t.Container[str], warnings: list[str]) -> bool:
    if _pinned(one) and one.restricted and one.project not in projects:
        if one.config.get(_keys.HOSTNAMES):
            warnings.append(f"{one.label}: project {one.project} is restricted and not allowed: it has no names")
        return False
    return bool(_pinned(one))


def _own(one: Publisher) -> tuple[str, ...]:
    """Its own name, unless it is a copy made by hand, which has the record of the other, and its address."""
    return () if _keys.whose(one.config, _keys.MANAGED) not in ("", one.label) else (one.name.lower(),)


def _is_free(name: str, label: str, owner: str, warnings: list[str]) -> bool:
    if is_reserved(name):
        warnings.append(f"{label}: the name {name} is reserved: left out")
        return False
    if owner != label:
        warnings.append(f"{label}: the name {name} is that of {owner} already: left out")
    return owner == label


def _declared(one: Publisher, warnings: list[str]) -> list[str]:
    decoded = one.decode(_keys.HOSTNAMES)
    if decoded.problem:
        warnings.append(decoded.problem)
    if decoded.value is None:
        return []
    problems = Problems()
    raw = decoded.value if isinstance(decoded.value, list) else [decoded.value]
    names = [hostname(name, f"{one.label}: {_keys.HOSTNAMES}", problems) for name in raw]
    warnings.extend(problems.first())
    return [name for name in names if name]
