# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Brings images to the server. Decides nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import typing as t

from .._errors import MageError, OperationForgotten, ServerError, ServerUnreachable
from .._server import operations
from .._server.driver import Driver, api
from . import images
from .fetches import ImageChange
from .observed import InstanceChange
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


def bring(
    changes: t.Iterable[t.Any], driver: Driver, project: str, timeout: float
) -> tuple[dict[str, str], dict[str, MageError]]:
    """Carry out what ``fetches`` planned. Returns the fingerprints of what was downloaded, and why instances cannot be
    made, by the names of the instances."""
    there: dict[str, str] = {}
    errors: dict[str, MageError] = {}
    for change in changes:
        if not isinstance(change, ImageChange):
            continue
        try:
            there.update(dict.fromkeys(change.names, _bring(change.image, driver, project, timeout)))
        except ServerError as error:
            # Of the same kind: it says whether the server was but away.
            told = type(error)(error.status, error.message, f"{change.subject}: {error.request}")
            errors.update(dict.fromkeys(change.names, told))
        except (ServerUnreachable, OperationForgotten) as error:
            errors.update(dict.fromkeys(change.names, error))
        except (MageError, OSError) as error:
            errors.update(dict.fromkeys(change.names, MageError(f"{change.subject}: {error}")))
    return there, errors


def made_of(change: InstanceChange, fingerprint: str) -> InstanceChange:
    """A change that makes an instance anew makes it of the very image that was downloaded for it."""
    if not fingerprint or "delete" not in change.steps:
        return change
    source = {"type": "image", "fingerprint": fingerprint}
    return dataclasses.replace(change, body={**change.body, "source": source})


def _bring(image: images.Image, driver: Driver, project: str, timeout: float) -> str:
    query = {"project": project}
    if not image.file:
        source = {key: value for key, value in (images.source(image, {}) or {}).items() if key != "type"}
        body = {"source": {**source, "type": "image"}, "auto_update": bool(image.auto_update)}
        made = operations.run(driver, "POST", api("images"), query, body, None, timeout, strict=True)
        return str((made or {}).get("fingerprint") or "")
    headers = {"Content-Type": "application/octet-stream", "X-LXD-fingerprint": image.fingerprint}
    headers["X-Incus-fingerprint"] = image.fingerprint
    try:
        with open(image.file, "rb") as file:
            response = driver.request("POST", api("images"), query=query, body=file, headers=headers, timeout=timeout)
        operations.wait(driver, response, "POST /1.0/images", timeout, strict=True)
    except ServerError as error:
        # Somebody else may have been faster.
        if "already exists" not in str(error):
            raise
    return image.fingerprint
