# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Access lists as the kernel keeps them, so that the folders of mounts need no setfacl. Pure."""

from __future__ import annotations

import json
import struct
import typing as t

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NOBODY = 0xFFFFFFFF
READ, WRITE, EXECUTE = 4, 2, 1
_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")

Entries = dict[tuple[int, int], int]


def entries(raw: t.Optional[bytes], mode: int) -> Entries:
    """Permissions by tag and id: what a file has, or else what its mode says."""
    if raw:
        return {(tag, who): rights for tag, rights, who in _ENTRY.iter_unpack(raw[len(_VERSION) :])}
    return {(USER_OBJ, NOBODY): mode >> 6 & 7, (GROUP_OBJ, NOBODY): mode >> 3 & 7, (OTHER, NOBODY): mode & 7}


def granted(raw: t.Optional[bytes], mode: int, users: t.Iterable[int], rights: int) -> bytes:
    """An access list in which some users have rights, too. It takes none away."""
    found = entries(raw, mode)
    for user in users:
        found[USER, user] = found.get((USER, user), 0) | rights
    named = [held for (tag, _who), held in found.items() if tag in (USER, GROUP_OBJ, GROUP)]
    mask = 0
    for held in named:
        mask |= held
    found[MASK, NOBODY] = mask
    return _VERSION + b"".join(_ENTRY.pack(tag, held, who) for (tag, who), held in sorted(found.items()))


def root_of(config: t.Mapping[str, str]) -> t.Optional[int]:
    """The user of the host that is root in a container, as the server has mapped it."""
    raw = config.get("volatile.idmap.next") or config.get("volatile.idmap.current") or "[]"
    for one in json.loads(raw):
        if one.get("Isuid") and one.get("Nsid") == 0:
            return int(one["Hostid"])
    return None
