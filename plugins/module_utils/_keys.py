# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What the collection keeps on an instance: the ``user.mage.*`` keys.

A value that we write is ``{"for": "PROJECT/NAME", "value": …}`` in canonical JSON. On a copy of the instance the mark
names somebody else, so the copy's key is inert. A value that a person writes needs no mark: it is the bare value.
"""

from __future__ import annotations

import json
import typing as t

from ._values import canonical_json, show

PREFIX = "user.mage."
MANAGED = PREFIX + "managed"
NAT = PREFIX + "nat"
PROXY = PREFIX + "proxy"
HOSTNAMES = PREFIX + "hostnames"
OWNER = PREFIX + "owner"
INVENTORY_NAME = PREFIX + "inventory_name"
ALL = (MANAGED, NAT, PROXY, HOSTNAMES, OWNER, INVENTORY_NAME)
# What only the inventory reads: nothing is published by them, and no declaration writes them.
GROUPS = PREFIX + "groups"
VARS = PREFIX + "vars"
# Keys that a person may write as bare words.
_WORDS = (OWNER, INVENTORY_NAME, GROUPS)
# Whoever may write an instance's keys may write anything into them.
LONGEST = 1 << 18
DEEPEST = 16


class Decoded(t.NamedTuple):
    """A key as read. ``problem`` says why ``value`` is None although the key is there."""

    value: t.Any
    problem: str
    marked: bool


def encode(value: object, project: str, name: str) -> str:
    """The text of a key's value, marked for one instance."""
    return canonical_json({"for": f"{project}/{name}", "value": value})


def decode(config: t.Mapping[str, str], key: str, project: str, name: str) -> Decoded:
    """Read a key of an instance's own config. Never raises: what cannot be read is told in ``problem``."""
    raw = config.get(key, "")
    if raw == "":
        return Decoded(None, "", False)
    if len(raw) > LONGEST:
        return Decoded(None, f"{project}/{name}: {key} is longer than {LONGEST} characters", False)
    try:
        value = json.loads(raw)
    except RecursionError:
        return Decoded(None, f"{project}/{name}: {key} is nested too deeply", False)
    except ValueError:
        if key in _WORDS:
            return Decoded(raw, "", False)
        return Decoded(None, f"{project}/{name}: {key} is not JSON", False)
    if key in _WORDS and isinstance(value, (bool, int, float)):
        return Decoded(raw, "", False)
    wrong = _wrong(value, raw)
    if wrong:
        return Decoded(None, f"{project}/{name}: {key} {wrong}", False)
    if not isinstance(value, dict) or set(value) != {"for", "value"}:
        return Decoded(value, "", False)
    if value["for"] != f"{project}/{name}":
        whom = value["for"] if isinstance(value["for"], str) and value["for"].isprintable() else show(value["for"])
        return Decoded(None, f"{project}/{name}: {key} was written for {whom[:200]}: ignored until declared", True)
    return Decoded(value["value"], "", True)


def whose(config: t.Mapping[str, str], key: str) -> str:
    """The project and name that a key was written for, by its mark; nothing where it has none."""
    raw = config.get(key, "")
    if len(raw) > LONGEST or not raw.startswith('{"for":"'):
        return ""
    found = raw[len('{"for":"') :].partition('"')[0]
    return found if found.isprintable() else ""


def of_another(config: t.Mapping[str, str], key: str, project: str, name: str) -> t.Any:
    """What a key holds that was written for another instance, as on a copy; else None."""
    decoded = decode(config, key, project, name)
    return json.loads(config[key])["value"] if decoded.marked and decoded.problem else None


def _wrong(value: object, raw: str) -> str:
    """What is wrong with a value although it is JSON; empty if nothing is."""
    if not _shallow(value, DEEPEST):
        return "is nested too deeply"
    if "\\u" in raw and not _is_text(value):
        return "holds half of a character, which no file takes"
    return ""


def _shallow(value: object, left: int) -> bool:
    """Whether lists and mappings stand in each other at most ``left`` times."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left > 0 and all(_shallow(one, left - 1) for one in inner)


def _is_text(value: object) -> bool:
    """Whether the value can be written anywhere: JSON may hold one half of a character that has two."""
    try:
        canonical_json(value).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
