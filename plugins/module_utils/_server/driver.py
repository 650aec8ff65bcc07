# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What a driver is: one interface to a server, whatever way leads there."""

from __future__ import annotations

import json
import typing as t
import urllib.parse

from .._errors import NotFound, PreconditionFailed, ServerError


class Response(t.NamedTuple):
    """What the server answered: the HTTP status, the headers in lower case, the body."""

    status: int
    headers: t.Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, t.Any]:
        """The body as the server's envelope: ``type``, ``metadata``, ``operation`` and so on. Raises ServerError."""
        try:
            value = json.loads(self.body or b"{}")
        except ValueError as e:
            raise ServerError(self.status, "what answered is not JSON: is this a server of LXD or Incus?") from e
        return value if isinstance(value, dict) else {}

    @property
    def metadata(self) -> t.Any:
        """What the envelope holds."""
        return self.json.get("metadata")


class Completed(t.NamedTuple):
    """A command that ran to its end in an instance."""

    rc: int
    stdout: bytes
    stderr: bytes


class Driver(t.Protocol):
    """A way to one server. Every method raises the exceptions of ``_errors`` and no others.

    ``path`` is made by ``api()``. ``timeout`` is in seconds, for the whole call.
    """

    @property
    def endpoint(self) -> str:
        """Where the server is, as a person would write it."""

    def request(
        self,
        method: str,
        path: str,
        query: t.Optional[t.Mapping[str, str]] = None,
        body: t.Any = None,
        headers: t.Optional[t.Mapping[str, str]] = None,
        timeout: t.Optional[float] = None,
    ) -> Response:
        """One HTTP request. ``body`` is sent as it is if bytes or a file, else as JSON. ServerError from 400 on."""

    def execute(
        self,
        instance: str,
        argv: t.Sequence[str],
        project: str = "default",
        stdin: bytes = b"",
        environment: t.Optional[t.Mapping[str, str]] = None,
        timeout: t.Optional[float] = None,
    ) -> Completed:
        """Run a command as root in a running instance and wait for its end."""

    def push(
        self,
        instance: str,
        path: str,
        data: bytes,
        project: str = "default",
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
    ) -> None:
        """Write a file in an instance."""

    def pull(self, instance: str, path: str, project: str = "default") -> bytes:
        """Read a file of an instance. Raises NotFound."""

    def push_folder(
        self, instance: str, path: str, source: str, project: str = "default", timeout: t.Optional[float] = None
    ) -> None:
        """Copy what is in a folder here into a folder of a running instance, as root's."""

    def pull_folder(
        self, instance: str, path: str, target: str, project: str = "default", timeout: t.Optional[float] = None
    ) -> None:
        """Copy files, folders and links out of a folder of a running instance. Raises InvalidInput for what would land
        outside of the target."""

    def close(self) -> None:
        """Let go of every connection."""


def api(*segments: str) -> str:
    """The path of an object: ``api("instances", name, "state")``. Every segment is quoted."""
    return "/1.0" + "".join("/" + urllib.parse.quote(segment, safe="") for segment in segments)


_FAILED = b'{"type":"error",'


def checked(response: Response, request: str) -> Response:
    """The response, or the exception for its status. ``request`` is told in the message (``GET /1.0/…``)."""
    # A console's log is what the guest wrote.
    is_raw = response.headers.get("content-type") == "application/octet-stream"
    if response.body.startswith(_FAILED) and response.status < 400 and not is_raw:
        # Incus answers 200 before it knows how an operation ends. No NotFound: it is not the operation that is missing.
        envelope = response.json
        raise ServerError(int(envelope.get("error_code") or 500), str(envelope.get("error")), request)
    if response.status < 400:
        return response
    try:
        message = str(response.json.get("error") or "")
    except ServerError:
        message = response.body[:200].decode("utf-8", "replace")
    raise error_for(response.status, message or "no reason given", request)


def error_for(status: int, message: str, request: str) -> ServerError:
    """The exception for a status, of HTTP or of an operation."""
    kind = {404: NotFound, 412: PreconditionFailed}.get(status, ServerError)
    return kind(status, message, request)
