# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What a list asks for and a server cannot or should not do. Pure."""

from __future__ import annotations

import typing as t

from .. import _keys
from .._server.snapshot import Instance
from .._values import Problems, nearest
from . import images
from .observed import Observed
from .prune import PROTECTION, is_protected
from .spec import InstanceSpec
from .update import is_its_uuid, origin, recorded

# Of an instance whose creation a server has begun and not ended: it was never started, and is not set up for its start.
_NEVER = ("1970-", "0001-")
# What an instance has that was made: the first until its first start, the second since. One that was moved to another
# pool may have lost the first and the date of its last start, but not both of them.
_ONCE_MADE = {"volatile.apply_template", "volatile.last_state.power"}


def check_new(
    item: InstanceSpec,
    observed: Observed,
    declared: t.Container[str],
    problems: Problems,
    missing: Problems,
) -> None:
    """What an item needs that does not exist yet. ``missing`` takes what an earlier step may be going to bring."""
    if item.copy_of:
        _check_source(item, observed, declared, problems, missing)
    else:
        _check_image(item, observed, problems, missing)
    check_profiles(item, observed, problems)


def _check_source(
    item: InstanceSpec,
    observed: Observed,
    declared: t.Container[str],
    problems: Problems,
    missing: Problems,
) -> None:
    name = item.copy_of.name if item.copy_of else ""
    if name not in declared and observed.snapshot.find(item.project, name) is None:
        known = nearest(name, [one.name for one in observed.snapshot.instances])
        missing.add(f"{item.path}.copy_of", str(item.copy_of), f"there is no instance {name}{known}")
    elif item.copy_of and item.copy_of.snapshot:
        _check_snapshot(item, item.copy_of, observed, problems)


def _check_snapshot(item: InstanceSpec, source: images.CopyOf, observed: Observed, problems: Problems) -> None:
    if observed.snapshot.find(item.project, source.name) is None:
        told = f"{source.name} is yet to be made, and has no snapshots then"
        problems.add(f"{item.path}.copy_of", str(source), told)
    elif source.snapshot not in observed.snapshots.get(source.name, {}):
        known = sorted(observed.snapshots.get(source.name, {}))
        hint = nearest(source.snapshot, known) or (f"; there are {', '.join(known)}" if known else "; there are none")
        problems.add(f"{item.path}.copy_of", str(source), f"{source.name} has no such snapshot{hint}")


def _check_image(item: InstanceSpec, observed: Observed, problems: Problems, missing: Problems) -> None:
    path = f"{item.path}.image"
    if item.image is None:
        problems.add_text(f"{path}: missing: {item.name} does not exist, and an image is needed to create it")
    elif images.source(item.image, observed.images) is None:
        why = images.why_not(item.image, observed.images)
        missing.add(path, str(item.image), f"{why}. lxd_host_images of the role mage.lxd.lxd_host brings images")


def renamed(instances: t.Iterable[Instance]) -> dict[str, Instance]:
    """The instances that bear the keys of another, by the label of that one: it had their name, or they are copies."""
    found: dict[str, Instance] = {}
    for one in instances:
        whose = _keys.whose(one.config, _keys.MANAGED)
        if whose and whose != f"{one.project}/{one.name}":
            found.setdefault(whose, one)
    return found


def check_renamed(item: InstanceSpec, other: Instance, problems: Problems, warnings: list[str]) -> None:
    """What bears the keys of an instance that is not there is that one under a new name, or a copy of it."""
    record = _keys.of_another(other.config, _keys.MANAGED, other.project, other.name)
    kept = record.get("uuid") if isinstance(record, dict) else None
    if kept and is_its_uuid(kept, other) and not item.recreate:
        told = (
            f"has been renamed to {other.name}: rename it back, declare {other.name}, or recreate: true for a new one"
        )
        problems.add(f"{item.path}.name", item.name, told)
    else:
        warnings.append(f"{item.label}: is not there, and {other.name} was made of it, by copy or by name: made anew")


def check_existing(item: InstanceSpec, existing: Instance, observed: Observed, problems: Problems) -> None:
    """What an item says of itself that an existing instance is not."""
    if item.recreate:
        if different(item, existing, observed) and is_protected(existing):
            problems.add_text(f"{item.path}.recreate: {item.name} is protected: set {PROTECTION} to false first")
    else:
        told = "delete it first (state: absent), give another name, or recreate: true"
        if existing.type != item.type:
            problems.add(f"{item.path}.type", item.type, f"{item.name} is a {existing.type}: {told}")
        elif is_of_another_origin(item, existing, observed.images, observed.files):
            key = "copy_of" if item.copy_of else "image"
            was = recorded(existing).get("image") or existing.config.get("volatile.base_image", "")[:12]
            problems.add(f"{item.path}.{key}", origin(item), f"{item.name} was made from {was}: {told}")
    stops = item.state == "stopped" and existing.status != "Stopped"
    if stops and existing.ephemeral and item.ephemeral is not False:
        told = f"{item.name} is ephemeral, and is deleted when it stops: state: absent, or ephemeral: false"
        problems.add(f"{item.path}.state", item.state, told)
    if item.profiles is not None and item.profiles != existing.profiles:
        check_profiles(item, observed, problems)


def check_absent(item: InstanceSpec, existing: Instance, problems: Problems) -> None:
    """A protected instance is not deleted."""
    if is_protected(existing):
        problems.add_text(f"{item.path}.state: {item.name} is protected: set {PROTECTION} to false first")


def check_profiles(item: InstanceSpec, observed: Observed, problems: Problems) -> None:
    """Profiles that are declared are there."""
    for index, name in enumerate(item.profiles or ()):
        if name not in observed.profiles:
            hint = nearest(name, observed.profiles)
            problems.add(f"{item.path}.profiles[{index}]", name, f"there is no such profile{hint}")


def may_differ(item: InstanceSpec, existing: Instance) -> bool:
    """Whether it takes the list of images to tell if an item can be true of this instance."""
    return existing.type != item.type or is_of_another_origin(item, existing, {}, {})


def different(item: InstanceSpec, existing: Instance, observed: Observed) -> bool:
    """Whether an item can only be true of a new instance."""
    return existing.type != item.type or is_of_another_origin(item, existing, observed.images, observed.files)


def is_of_another_origin(
    item: InstanceSpec, existing: Instance, known: t.Mapping[str, str], files: t.Mapping[str, str]
) -> bool:
    """Whether an instance was made from something else. That an alias has moved on since is no difference: compared is
    what was declared when it was made; of what others made, only a fingerprint is known for sure."""
    last, now = recorded(existing).get("image"), origin(item)
    base = existing.config.get("volatile.base_image", "")
    if not now or (last and _plain(last) == _plain(now)):
        return False
    if item.image is None:
        return bool(last)
    alias = item.image.alias if _is_fingerprint(item.image.alias) else ""
    wanted = files.get(item.image.file) or item.image.fingerprint or alias
    if wanted:
        return bool(base) and not base.startswith(wanted)
    if not last:
        return False
    source = images.source(item.image, known) or {}
    found = source.get("fingerprint") or known.get(str(source.get("alias")), "")
    return not base or found != base


def _is_fingerprint(alias: str) -> bool:
    return len(alias) >= 12 and all(char in "0123456789abcdef" for char in alias)


def _plain(text: str) -> str:
    """An alias without its architecture."""
    base, slash, last = text.rpartition("/")
    return base if slash and last in images.ARCHITECTURES else text


def is_unfinished(item: InstanceSpec, existing: Instance) -> bool:
    """Whether it looks as if a server had begun to make this instance for us and was stopped on the way. Whether it has
    content is not known yet."""
    label = f"{item.project}/{item.name}"
    # The record of a copy that is not finished is still that of what it is a copy of.
    ours = {label, f"{item.project}/{item.copy_of.name}"} if item.copy_of else {label}
    fresh = existing.last_used.startswith(_NEVER) and existing.status == "Stopped"
    return fresh and _keys.whose(existing.config, _keys.MANAGED) in ours and not _ONCE_MADE & set(existing.config)


TOLD_IN_DOUBT = (
    "its creation seems to have been interrupted, but there is something in it, or the server cannot tell: nothing is "
    "deleted. If it is whole, start it once by hand; else delete it (state: absent)"
)


def told_unfinished(item: InstanceSpec) -> str:
    """What is told of one that looks so, before it is made anew."""
    return f"{item.label}: its creation seems to have been interrupted, and nothing to be in it: it is made anew"
