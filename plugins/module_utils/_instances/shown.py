# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""How an instance and its changes look in a diff. Secrets are hidden here. Pure."""

from __future__ import annotations

import json
import typing as t

from .. import _keys
from .._server.snapshot import Instance
from .config import UNTOLD, may_be_told
from .update import Update


def image_of(instance: Instance) -> str:
    """What the instance was made from, for people."""
    return instance.config.get("image.description") or instance.config.get("volatile.base_image", "")[:12]


def readable(config: t.Mapping[str, str], project: str, name: str) -> dict[str, t.Any]:
    """Config for a diff: secrets hidden, our own keys as the values that they hold, our bookkeeping left out."""
    seen: dict[str, t.Any] = {}
    for key, value in config.items():
        if key == _keys.MANAGED:
            continue
        if key in _keys.ALL:
            decoded = _keys.decode(config, key, project, name)
            seen[key] = value if decoded.problem else decoded.value
        elif value and not may_be_told(key):
            seen[key] = UNTOLD
        else:
            seen[key] = value
    return seen


def difference(existing: Instance, target: Update) -> tuple[dict[str, t.Any], dict[str, t.Any]]:
    """The touched fields only, before and after."""
    before: dict[str, t.Any] = {}
    after: dict[str, t.Any] = {}
    touched = {key: existing.config[key] for key in target.config if key in existing.config}
    kept = {key: value for key, value in target.config.items() if value}
    place = (existing.project, existing.name)
    future = readable(kept, *place)
    future.update({key: f"{UNTOLD[:-1]}, changed)" for key in kept if not may_be_told(key) and touched.get(key)})
    for name, old, new in (
        ("config", readable(touched, *place), future),
        (
            "devices",
            {key: existing.devices[key] for key in (*target.devices, *target.drop_devices) if key in existing.devices},
            target.devices,
        ),
    ):
        if old or new:
            before[name], after[name] = old, new
    if target.profiles is not None:
        before["profiles"], after["profiles"] = list(existing.profiles), list(target.profiles)
    if target.description is not None:
        before["description"], after["description"] = existing.description, target.description
    return before, after


def as_text(value: t.Mapping[str, t.Any]) -> str:
    """A mapping as text whose lines can be compared."""
    return json.dumps(value, indent=2, sort_keys=True, default=dict, ensure_ascii=False) + "\n"
