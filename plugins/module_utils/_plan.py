# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Change and Plan: what is going to happen, and how it is shown."""

from __future__ import annotations

import dataclasses
import typing as t


@dataclasses.dataclass(frozen=True)
class Change:
    """One thing that will be done. ``before`` and ``after`` are text for people; secrets are hidden by who makes them.

    ``subject`` names the object (``instance default/web-1``), ``action`` what happens to it (``create``).
    """

    subject: str
    action: str
    before: str = ""
    after: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A set of changes, and what the user should be told besides. ``missing``, in check mode: what the changes need and
    an earlier step may be going to bring."""

    changes: tuple[Change, ...] = ()
    warnings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.changes)

    def diff(self) -> list[dict[str, str]]:
        """The changes as Ansible's diff mode shows them, sorted by subject."""
        return [
            {
                "before_header": f"{change.subject} (now)",
                "after_header": f"{change.subject} ({change.action})",
                "before": _ended(change.before),
                "after": _ended(change.after),
            }
            for change in sorted(self.changes, key=lambda change: change.subject)
        ]

    def actions(self) -> list[dict[str, str]]:
        """The changes as return value: a list of mappings with ``subject`` and ``action``."""
        return [{"subject": change.subject, "action": change.action} for change in self.changes]


def _ended(text: t.Optional[str]) -> str:
    return text + "\n" if text and not text.endswith("\n") else text or ""
