# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""The config of an instance, and the short words that become keys of it. Pure."""

from __future__ import annotations

import re
import typing as t

from .. import _keys
from .._values import Problems, boolean, canonical_json, mapping, show
from . import instance_types, values

# Config whose values may be secrets: shown only as changed.
HIDDEN = (
    "environment.",
    "cloud-init.",
    "raw.lxc",
    "raw.qemu",
    "user.meta-data",
    "user.network-config",
    "user.user-data",
    "user.vendor-data",
)
# Short words that are true or false.
SWITCHES = {"privileged": "security.privileged", "nesting": "security.nesting", "autostart": "boot.autostart"}
LIMITS = ("cpu", "memory", "disk", "processes")
CLOUD_INIT = {"user_data": "user-data", "vendor_data": "vendor-data", "network_config": "network-config"}
_CPU = re.compile(r"[1-9][0-9]{0,4}|[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)+|[0-9]{1,5}-[0-9]{1,5}")
# Less is a number whose unit was forgotten.
_LEAST = 1 << 20
_SHARE = re.compile(r"[0-9]{1,3}%|[0-9]+ms/[0-9]+ms")
_KEY = re.compile(r"[A-Za-z0-9_.:/-]+")
# How keys begin that servers have.
_KNOWN = re.compile(
    r"(agent|boot|cluster|image|limits|linux|migration|nvidia|oci|placement|raw|security|snapshots|user|volatile)\..*",
    re.DOTALL,
)
# What stands instead of a value that is not told.
UNTOLD = "(hidden)"


def is_secret(key: str) -> bool:
    """Whether a key of an instance's config may hold a secret; the first part of such a key is one, too."""
    return f"{key}.".startswith(HIDDEN)


def may_be_told(key: str) -> bool:
    """Whether the value of a key may be shown. A key that no server has may be that of a secret, mistyped."""
    return bool(_KNOWN.fullmatch(key)) and not is_secret(key)


def told(raw: t.Any) -> t.Any:
    """A value as it may be told: without what may be a secret, also where that stands in a wrong place."""
    if isinstance(raw, dict):
        return {
            key: UNTOLD if value not in (None, "") and _hides(str(key)) else told(value) for key, value in raw.items()
        }
    return [told(one) for one in raw] if isinstance(raw, (list, tuple)) else raw


def told_config(raw: object) -> t.Any:
    """The config of an item as it may be told. What is no mapping, or nested, may hold a secret anywhere."""
    if not isinstance(raw, dict):
        return UNTOLD if raw else raw
    return {
        key: value if value in (None, "") or (scalar(value) is not None and may_be_told(str(key))) else UNTOLD
        for key, value in raw.items()
    }


def _hides(key: str) -> bool:
    return is_secret(key.replace("_", "-")) or key in (*CLOUD_INIT, "secret")


def scalar(raw: object) -> t.Optional[str]:
    """A value as the server wants it: text. A bare number or boolean gets a raw Go error there."""
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, (str, int, float)):
        return str(raw)
    return None


def parse(fields: t.Mapping[str, t.Any], path: str, problems: Problems) -> dict[str, str]:
    """The config of an item: what it says itself, then what its short words stand for, then its instance type."""
    said = _config(fields.get("config"), f"{path}.config", problems)
    short = {}
    for word, key, value in _short(fields, path, problems):
        short[key] = value
        if not values.same(key, said.get(key, value), value):
            told = "" if is_secret(key) else f": {show(said[key])} there, {show(value)} here"
            problems.add_text(f"{path}.{word}: is config.{key}, which says something else{told}")
    kind = fields.get("instance_type")
    typed = instance_types.limits(kind, f"{path}.instance_type", problems) if kind is not None else {}
    if {"limits.cpu", "limits.cpu.allowance"} & {*short, *said}:
        typed.pop("limits.cpu.allowance", None)
    return {**typed, **short, **said}


def _config(raw: object, path: str, problems: Problems) -> dict[str, str]:
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        problems.add(path, told_config(raw), "must be a mapping of the server's keys, such as {limits.memory: 512MiB}")
        return {}
    config: dict[str, str] = {}
    for key, value in raw.items():
        place = f"{path}.{key}"
        text = scalar(value)
        if value is None:
            # Not said, as with every other key.
            continue
        if str(key).startswith((_keys.PREFIX, "volatile.", "image.")):
            problems.add_text(f"{place}: is the collection's or the server's own key, and cannot be declared")
        elif not isinstance(key, str) or not _KEY.fullmatch(key):
            problems.add(path, key, "is not a key of the server, such as limits.memory")
        elif text is None:
            # Whatever is nested there may be a secret.
            problems.add(place, UNTOLD if value else value, "must be text, a number or a boolean")
        else:
            config[key] = text
    return config


def _short(fields: t.Mapping[str, t.Any], path: str, problems: Problems) -> list[tuple[str, str, str]]:
    """The short words of an item, each with the key that it stands for and its value."""
    found = []
    for word, key in SWITCHES.items():
        if word in fields:
            value = boolean(fields[word], f"{path}.{word}", problems)
            if value is not None:
                found.append((word, key, scalar(value) or ""))
    found += _limits(fields.get("limits"), f"{path}.limits", problems)
    return found + _cloud_init(fields.get("cloud_init"), f"{path}.cloud_init", problems)


def _limits(raw: object, path: str, problems: Problems) -> list[tuple[str, str, str]]:
    fields = (mapping(raw, path, LIMITS, problems) or {}) if raw is not None else {}
    found = []
    for word in ("cpu", "memory", "processes"):
        if word not in fields:
            continue
        value = scalar(fields[word]) or ""
        key, rule = _limit(word, value)
        if rule or isinstance(fields[word], bool):
            problems.add(f"{path}.{word}", fields[word], rule or "must be a number")
        else:
            found.append((f"limits.{word}", key, whole_size(value) if word == "memory" else value))
    return found


def _limit(word: str, value: str) -> tuple[str, str]:
    """The key of a limit, and what is wrong with its value."""
    if word == "cpu":
        if _SHARE.fullmatch(value):
            return "limits.cpu.allowance", ""
        ends = [part.split("-") for part in value.split(",")]
        good = bool(_CPU.fullmatch(value)) and all(int(part[0]) <= int(part[-1]) for part in ends)
        return (
            "limits.cpu",
            "" if good else "must be a number of cores, a set of them such as 0-3, or a share such as 50%",
        )
    if word == "memory":
        found = values.size(value)
        if found and found < _LEAST:
            return "limits.memory", f"is {found} bytes: " + values.SIZE_RULE
        good = bool(found or re.fullmatch(r"[1-9][0-9]?%|100%", value))
        return "limits.memory", "" if good else values.SIZE_RULE + ", or a share such as 50%"
    good = bool(re.fullmatch(r"[1-9][0-9]*", value))
    return "limits.processes", "" if good else "must be a number, such as 500"


def disk_limit(raw: object, path: str, problems: Problems) -> str:
    """``limits.disk``: the size of the root device, or nothing."""
    if not isinstance(raw, dict) or raw.get("disk") is None:
        return ""
    value = scalar(raw["disk"]) or ""
    found = values.size(value)
    if not found or found < _LEAST:
        told = f"is {found} bytes: " if found else ""
        problems.add(f"{path}.limits.disk", raw["disk"], told + values.SIZE_RULE)
    return whole_size(value)


def whole_size(value: str) -> str:
    """A size that the server can read: it takes no fractions."""
    found = values.size(value)
    return str(found) if found is not None and "." in value else value.replace(" ", "")


def _cloud_init(raw: object, path: str, problems: Problems) -> list[tuple[str, str, str]]:
    if raw is None:
        return []
    if not isinstance(raw, dict):
        # Its values may be secrets, wherever they stand.
        problems.add_text(f"{path}: must be a mapping with {', '.join(CLOUD_INIT)}")
        return []
    fields = mapping(raw, path, tuple(CLOUD_INIT), problems) or {}
    found = []
    for word, value in fields.items():
        text = cloud_text(word, value)
        if text is None:
            problems.add_text(f"{path}.{word}: must be text, or a mapping, which is written as YAML")
        else:
            found.append((f"cloud_init.{word}", f"cloud-init.{CLOUD_INIT[word]}", text))
    return found


def cloud_keys(fields: t.Mapping[str, t.Any]) -> frozenset[str]:
    """The keys that the word cloud_init of an item stands for."""
    raw = fields.get("cloud_init")
    words = raw if isinstance(raw, dict) else {}
    return frozenset(f"cloud-init.{key}" for word, key in CLOUD_INIT.items() if words.get(word) is not None)


def cloud_text(word: str, value: object) -> t.Optional[str]:
    """What cloud-init reads. A mapping becomes JSON, which is YAML; all but the network's has a header."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        return None
    try:
        text = canonical_json(value)
    except (TypeError, ValueError):
        return None
    return f"{text}\n" if word == "network_config" else f"#cloud-config\n{text}\n"
