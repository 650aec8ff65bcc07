# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Where a key stands in a YAML file, so that an error can name the line.

The file is read anew, by PyYAML alone: each ansible-core keeps positions in another way, and none keeps all.
"""

from __future__ import annotations

import re
import typing as t

import yaml

# servers[1].endpoint → servers, [1], endpoint
_STEP = re.compile(r"\[(\d+)\]|([^.\[\]]+)")


class Mistake(t.NamedTuple):
    """Where a text stops being YAML, and why."""

    line: int
    what: str


def mistake(text: str) -> t.Optional[Mistake]:
    """The first mistake of a text that is no YAML; None where there is none, or no place for it."""
    try:
        yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        begun = f", {e.context} of line {e.context_mark.line + 1}" if e.context and e.context_mark else ""
        return Mistake(mark.line + 1, f"{e.problem}{begun}") if mark else None
    except yaml.YAMLError:
        return None
    return None


def line(text: str, path: str) -> t.Optional[int]:
    """The line of the key at the path, or of the nearest thing around it; None where there is none."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    found: t.Optional[int] = None
    for index, key in _STEP.findall(path):
        inner = _item(node, int(index)) if index else _value(node, key)
        if inner is None:
            break
        mark, node = inner
        found = mark.line + 1
    return found


def _item(node: t.Any, index: int) -> t.Optional[tuple[t.Any, t.Any]]:
    if not isinstance(node, yaml.SequenceNode) or index >= len(node.value):
        return None
    return node.value[index].start_mark, node.value[index]


def _value(node: t.Any, key: str) -> t.Optional[tuple[t.Any, t.Any]]:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next(((name.start_mark, value) for name, value in node.value if name.value == key), None)


def placed(file: str, text: str, problems: t.Iterable[str]) -> str:
    """All problems, each with the file and, where its key is found, the line."""
    told = []
    for problem in problems:
        where = line(text, re.split(r"[:,] ", problem, maxsplit=1)[0])
        told.append(f"{file}:{where}: {problem}" if where else f"{file}: {problem}")
    return "; ".join(told)
