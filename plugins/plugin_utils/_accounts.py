# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Users of an instance, by name or by number: the server runs commands only by number."""

from __future__ import annotations

import typing as t


class Account(t.NamedTuple):
    """A user as the instance knows it."""

    uid: int
    gid: int
    home: str
    name: str


ROOT = Account(0, 0, "/root", "root")
# Prints lines of passwd: the one of user $1 from wherever the instance keeps users, else all that stand in the file.
LOOKUP = 'getent passwd "$1" 2>/dev/null || cat /etc/passwd'


def find(passwd: str, user: str) -> t.Optional[Account]:
    """The user of that name or number among lines of passwd. A number that has no line is its own user and group."""
    for line in passwd.splitlines():
        fields = line.split(":")
        if len(fields) >= 7 and user in (fields[0], fields[2]) and fields[2].isdigit() and fields[3].isdigit():
            return Account(int(fields[2]), int(fields[3]), fields[5] or "/", fields[0])
    if user.isascii() and user.isdigit():
        return Account(int(user), int(user), "/", user)
    return None


def environment(account: Account) -> dict[str, str]:
    """What the server sets for root by itself, and for others not."""
    return {"HOME": account.home, "USER": account.name, "LOGNAME": account.name}
