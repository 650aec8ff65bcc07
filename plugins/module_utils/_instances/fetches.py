# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Which images have to be on the server before instances are made of them. Pure.

The server itself downloads what an instance is made of, once for all that ask at a time. So only files are brought
here, images that shall be kept up to date, which it is told when it downloads them, and those of instances that are
made anew: no instance is deleted before the image of the next one is there.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._plan import Change
from .._values import Problems
from . import images
from .spec import InstanceSpec


@dataclasses.dataclass(frozen=True)
class ImageChange(Change):
    """An image that comes to the server, for the instances of those names."""

    image: images.Image = dataclasses.field(default_factory=images.Image)
    names: tuple[str, ...] = ()


def known(item: InstanceSpec, files: t.Mapping[str, str], problems: Problems, missing: Problems) -> InstanceSpec:
    """The item with the fingerprint of the file that it is made from; ``files`` are those that could be read."""
    if item.image is None or not item.image.file:
        return item
    found, wanted = files.get(item.image.file), item.image.fingerprint
    if not found:
        missing.add(f"{item.path}.image.file", item.image.file, "cannot be read on the host that the module runs on")
    if found and wanted not in ("", found):
        told = f"the SHA-256 of {item.image.file} is {found}"
        problems.add(f"{item.path}.image.fingerprint", wanted, told)
    return dataclasses.replace(item, image=dataclasses.replace(item.image, fingerprint=found or wanted or "0" * 64))


def fetches(
    created: t.Iterable[InstanceSpec], there: t.Collection[str], anew: t.Container[str] = ()
) -> tuple[ImageChange, ...]:
    """One change for each image that is brought. ``there`` are the aliases and fingerprints on the server, ``anew`` the
    names of the instances that are deleted first."""
    wanted: dict[images.Image, list[str]] = {}
    for item in created:
        image = item.image
        if image is None:
            continue
        remote = bool(image.server) and image.mode == "pull" and item.name in anew
        updated = image.auto_update is not None and image.mode == "pull"
        if remote or (image.file and image.fingerprint not in there) or updated:
            wanted.setdefault(image, []).append(item.name)
    return tuple(
        ImageChange(f"image {image}", "import" if image.file else "download", "", f"{image}\n", image, tuple(names))
        for image, names in wanted.items()
    )
