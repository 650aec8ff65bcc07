# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""``defaults`` under an item: what the item says wins; mappings are merged key by key. Pure."""

from __future__ import annotations

import typing as t

from .images import WHICH

# Said by the item, one of these puts the others of the defaults aside.
_SOURCES = ("image", "copy_of")


def merged(defaults: t.Mapping[str, t.Any], item: t.Any) -> t.Any:
    """An item with the defaults under it. Lists are not joined: the item's is the one that counts."""
    if not isinstance(item, dict):
        return item
    if any(item.get(key) is not None for key in _SOURCES):
        defaults = {key: value for key, value in defaults.items() if key not in _SOURCES or item.get(key) is not None}
    image, own = defaults.get("image"), item.get("image")
    if isinstance(image, dict) and isinstance(own, dict) and any(own.get(key) is not None for key in WHICH):
        defaults = {**defaults, "image": {key: value for key, value in image.items() if key not in WHICH}}
    found: dict[t.Any, t.Any] = _under(defaults, item)
    return found


def _under(low: t.Any, high: t.Any) -> t.Any:
    """``high`` over ``low``. What is null was not said."""
    if high is None:
        return low
    if not (isinstance(low, dict) and isinstance(high, dict)):
        return high
    return {**low, **{key: _under(low.get(key), value) for key, value in high.items()}}
