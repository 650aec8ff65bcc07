# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Which instances are hosts."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
import typing as t

from ansible_collections.mage.lxd.plugins.module_utils._server.snapshot import Instance
from ansible_collections.mage.lxd.plugins.module_utils._values import Problems

Patterns = tuple[t.Pattern[str], ...]


@dataclasses.dataclass(frozen=True)
class Filters:
    """All that is said must hold; of several words for one thing, one. ``expressions`` are for Ansible to evaluate."""

    status: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()
    names: Patterns = ()
    profiles: Patterns = ()
    projects: Patterns = ()
    expressions: tuple[str, ...] = ()

    def match(self, one: Instance) -> bool:
        """Whether all but the expressions hold for an instance."""
        return (
            (not self.status or one.status.lower() in self.status)
            and (not self.types or one.type.lower() in self.types)
            and _any(self.names, (one.name,))
            and _any(self.profiles, one.profiles)
            and _any(self.projects, (one.project,))
        )

    @property
    def empty(self) -> bool:
        """Whether every instance is a host."""
        return self == Filters()


def _any(patterns_of_one: Patterns, words: t.Iterable[str]) -> bool:
    return not patterns_of_one or any(pattern.match(word) for word in words for pattern in patterns_of_one)


def patterns(words: t.Sequence[str], path: str, problems: Problems) -> Patterns:
    """Patterns as Ansible has them for hosts: ``web-*``, or a regular expression after ``~``."""
    found = []
    for word in words:
        try:
            found.append(re.compile(word[1:] if word.startswith("~") else fnmatch.translate(word)))
        except re.error as e:
            problems.add(path, word, f"is no regular expression: {e}")
    return tuple(found)
