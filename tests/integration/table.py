# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of doors and operations: noted while the tests run, printed at their end; docs/servers.md holds it."""

from __future__ import annotations

from ansible_collections.mage.lxd.tests.integration.doors import DOORS

_DONE: dict[str, list[str]] = {}


def note(door: str, operation: str) -> None:
    """An operation went through a door, and was seen to have been done."""
    _DONE.setdefault(operation, []).append(door)


def lines() -> list[str]:
    """The table in Markdown: a cell is empty where a door did not come to an operation."""
    doors = [door for door in DOORS if any(door in done for done in _DONE.values())]
    head = ["| operation | " + " | ".join(doors) + " |", "|---|" + ":-:|" * len(doors)]
    rows = [
        f"| {operation} | {' | '.join('yes' if door in done else '' for door in doors)} |"
        for operation, done in _DONE.items()
    ]
    return head + rows if doors else []
