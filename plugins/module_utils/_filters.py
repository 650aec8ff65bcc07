# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Which instances are meant: the words of an inventory and of a question."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
import typing as t

from ._server.snapshot import Instance
from ._values import Problems, nearest, sequence

Patterns = tuple[t.Pattern[str], ...]
WORDS = ("status", "type", "name", "profile", "project")
STATUSES = ("running", "stopped", "frozen", "error", "starting", "stopping", "freezing", "ready")
TYPES = ("container", "virtual-machine")


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
        """Whether every instance is meant."""
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


def parse(fields: t.Mapping[str, t.Any], path: str, problems: Problems) -> Filters:
    """Everything but the expressions. ``fields`` may have each of WORDS: one text, or a list of them."""
    words = {key: texts(fields.get(key), f"{path}.{key}", problems) for key in WORDS}
    for key, allowed in (("status", STATUSES), ("type", TYPES)):
        for word in words[key]:
            if word.lower() not in allowed:
                problems.add(f"{path}.{key}", word, "must be one of " + ", ".join(allowed) + nearest(word, allowed))
    return Filters(
        status=frozenset(word.lower() for word in words["status"]),
        types=frozenset(word.lower() for word in words["type"]),
        names=patterns(words["name"], f"{path}.name", problems),
        profiles=patterns(words["profile"], f"{path}.profile", problems),
        projects=patterns(words["project"], f"{path}.project", problems),
    )


def texts(raw: t.Any, path: str, problems: Problems) -> list[str]:
    """One text, or a list of them."""
    if raw is None or isinstance(raw, str):
        return [raw] if raw else []
    found = sequence(raw, path, problems)
    for index, one in enumerate(found):
        if not isinstance(one, str) or not one:
            problems.add(f"{path}[{index}]", one, "must be text")
    return [str(one) for one in found]
