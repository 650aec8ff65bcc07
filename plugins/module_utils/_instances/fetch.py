# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Brings images to the server. Decides nothing."""

from __future__ import annotations

import hashlib
import typing as t

from .._errors import MageError, ServerError
from .._server import operations
from .._server.driver import Driver, api
from . import images
from .fetches import ImageChange
from .spec import InstanceSpec

_PIECE = 1 << 20


def fingerprints(items: t.Iterable[InstanceSpec]) -> dict[str, str]:
    """The SHA-256 of every file that an instance is made from, by path, for those that can be read."""
    found = {}
    for path in sorted({item.image.file for item in items if item.image and item.image.file}):
        digest = hashlib.sha256()
        try:
            with open(path, "rb") as file:
                for piece in iter(lambda: file.read(_PIECE), b""):
                    digest.update(piece)
        except OSError:
            continue
        found[path] = digest.hexdigest()
    return found


def bring(changes: t.Iterable[t.Any], driver: Driver, project: str, timeout: float) -> dict[str, str]:
    """Carry out what ``fetches`` planned. Returns why instances cannot be made, by name."""
    errors = {}
    for change in changes:
        if not isinstance(change, ImageChange):
            continue
        try:
            _bring(change.image, driver, project, timeout)
        except (MageError, OSError) as error:
            errors.update(dict.fromkeys(change.names, f"{change.subject}: {error}"))
    return errors


def _bring(image: images.Image, driver: Driver, project: str, timeout: float) -> None:
    query = {"project": project}
    if not image.file:
        source = {key: value for key, value in (images.source(image, ()) or {}).items() if key != "type"}
        body = {"source": {**source, "type": "image"}, "auto_update": bool(image.auto_update)}
        operations.run(driver, "POST", api("images"), query, body, None, timeout)
        return
    headers = {"Content-Type": "application/octet-stream", "X-LXD-fingerprint": image.fingerprint}
    headers["X-Incus-fingerprint"] = image.fingerprint
    try:
        with open(image.file, "rb") as file:
            response = driver.request("POST", api("images"), query=query, body=file, headers=headers, timeout=timeout)
        operations.wait(driver, response, "POST /1.0/images", timeout)
    except ServerError as error:
        # Somebody else may have been faster.
        if "already exists" not in str(error):
            raise
