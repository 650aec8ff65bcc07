# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Files in an instance over the files API of servers that have no SFTP."""

from __future__ import annotations

import dataclasses
import posixpath
import typing as t

from .._errors import NotFound, ServerError, ServerUnreachable
from .driver import Response, api, checked
from .files import MOST_LINKS, TIMEOUT, Execute, Place, Sized, deliver, tells_of_missing
from .transport import Transport, lowered

PART = 1 << 20


def push(transport: Transport, place: Place, data: t.BinaryIO, size: int, execute: Execute) -> None:
    """Write ``size`` bytes to a file over the API. See ``deliver``."""

    def write(target: Place, request: str) -> None:
        _write(transport, target, data, size, request)

    deliver(place, data, size, execute, write, lambda temporary: _forget(transport, temporary))


def _write(transport: Transport, place: Place, data: t.BinaryIO, size: int, request: str) -> None:
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
    for prefix in ("X-LXD-", "X-Incus-"):
        values = {"type": "file", "write": "overwrite", "mode": f"{place.mode:04o}", "uid": place.uid, "gid": place.gid}
        headers.update({prefix + key: str(value) for key, value in values.items()})
    body = Sized(data, size)
    with transport.exchange("POST", _path(place), _query(place), body, headers, TIMEOUT) as answer:
        response = Response(answer.status, lowered(answer), answer.read())
    checked(response, request)
    body.check(request)


def _forget(transport: Transport, temporary: Place) -> None:
    """Remove a temporary file, if it came to be."""
    with transport.exchange("DELETE", _path(temporary), _query(temporary), None, {}, TIMEOUT) as answer:
        answer.read()


def pull(transport: Transport, place: Place, output: t.BinaryIO) -> None:
    """Write a file's content to ``output``. Links are followed inside the instance. Raises NotFound."""
    request = place.request("pull")
    for _link in range(MOST_LINKS):
        with transport.exchange("GET", _path(place), _query(place), None, {}, TIMEOUT) as answer:
            headers = lowered(answer)
            if answer.status >= 400:
                raise _refusal(Response(answer.status, headers, answer.read()), place)
            kind = headers.get("x-lxd-type") or headers.get("x-incus-type")
            if kind == "directory":
                raise ServerError(400, "it is a directory", request)
            if kind != "symlink":
                _copy(transport, answer, output)
                return
            link = answer.read().decode("utf-8", "surrogateescape").rstrip("\n")
        folder = posixpath.dirname(place.path)
        place = dataclasses.replace(place, path=posixpath.normpath(posixpath.join(folder, link)))
    raise ServerError(400, "too many links", request)


def _copy(transport: Transport, answer: t.Any, output: t.BinaryIO) -> None:
    expected = answer.getheader("Content-Length")
    size = 0
    while True:
        part = answer.read(PART)
        if not part:
            break
        output.write(part)
        size += len(part)
    if expected is not None and size != int(expected):
        raise ServerUnreachable(transport.options.endpoint, f"the connection was lost after {size} of {expected} bytes")


def _refusal(response: Response, place: Place) -> ServerError:
    """LXD answers 404 and sometimes 500 for a file that is not there, and 404 for an instance, too."""
    try:
        checked(response, f"GET {_path(place)}")
    except ServerError as e:
        no_file = e.message.lower() == "not found" or tells_of_missing(e.message)
        return NotFound(404, e.message, place.request("pull")) if no_file else e
    return ServerError(response.status, "no reason given", place.request("pull"))


def _path(place: Place) -> str:
    return api("instances", place.instance, "files")


def _query(place: Place) -> dict[str, str]:
    return {"path": place.path, "project": place.project}
