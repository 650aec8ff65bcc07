# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Files in an instance, by the server's SFTP: to a temporary name, size checked, then renamed. No shell is needed.

Older servers have none: they are asked over their files API.
"""

from __future__ import annotations

import contextlib
import errno
import posixpath
import secrets
import socket
import typing as t

from .._errors import CommandFailed, DeadlinePassed, InvalidInput, MageError, NotFound, ServerError
from . import files_api, sftp
from .driver import api
from .files import Execute, Place
from .transport import Transport

# What a server says of a path that it does not know. Of an instance that is not there, it says more.
_UNKNOWN = "not found"


def push(transport: Transport, place: Place, data: t.BinaryIO, size: int, execute: Execute) -> None:
    """Write ``size`` bytes to a file, which is there whole or not at all. ``execute`` runs a command."""
    sock = _switched(transport, place)
    if sock is None:
        files_api.push(transport, place, data, size, execute)
        return
    temporary = posixpath.join(posixpath.dirname(place.path), f".mage-{secrets.token_hex(8)}")
    with _told(place.request("push")), _session(transport, sock) as session:
        if session.is_directory(place.path):
            # A link that leads to one would be replaced by the file.
            raise CommandFailed([place.request("push")], 1, f"{place.path} is a directory")
        handle = session.open(temporary, sftp.WRITE | sftp.CREATE | sftp.EXCLUSIVE)
        try:
            _write(session, handle, place, data, size)
            session.rename(temporary, place.path)
        except BaseException:
            _forget(transport, place, temporary)
            raise


def _write(session: sftp.Session, handle: bytes, place: Place, data: t.BinaryIO, size: int) -> None:
    request = place.request("push")
    session.set_owner_and_mode(handle, place.uid, place.gid, place.mode)
    sent = session.write(handle, data, size)
    arrived = session.attributes(handle).size
    session.close_handle(handle)
    if sent != size:
        raise InvalidInput([f"{request}: the file became {size - sent} bytes shorter while it was read"])
    if arrived != size:
        raise ServerError(500, f"{arrived} bytes arrived instead of {size}", request)


def _forget(transport: Transport, place: Place, temporary: str) -> None:
    """Remove a temporary file, by a session of its own: the one that wrote may be in the middle of a sentence."""
    # What went wrong before is what the user has to know.
    with contextlib.suppress(MageError, OSError):
        sock = _switched(transport, place)
        if sock is not None:
            with _session(transport, sock) as session:
                session.remove(temporary)


def pull(transport: Transport, place: Place, output: t.BinaryIO) -> None:
    """Write a file's content to ``output``. Links are followed inside the instance. Raises NotFound."""
    sock = _switched(transport, place)
    if sock is None:
        files_api.pull(transport, place, output)
        return
    request = place.request("pull")
    with _told(request), _session(transport, sock) as session:
        found = session.attributes_of(place.path)
        if found.is_directory:
            raise ServerError(400, "it is a directory", request)
        if found.is_pipe:
            # The server would wait in it for ever, even when we are gone, and so would the instance's end.
            raise ServerError(400, "it is a pipe", request)
        session.read(session.open(place.path, sftp.READ), output)


def _switched(transport: Transport, place: Place) -> t.Optional[socket.socket]:
    """A connection that speaks SFTP, or None if the server does not."""
    if transport.lacks_sftp:
        return None
    try:
        return transport.switch(api("instances", place.instance, "sftp"), {"project": place.project}, "sftp")
    except NotFound as e:
        if e.message != _UNKNOWN:
            raise
        transport.lacks_sftp = True
        return None


@contextlib.contextmanager
def _session(transport: Transport, sock: socket.socket) -> t.Iterator[sftp.Session]:
    try:
        yield sftp.Session(sock, transport.options.shown)
    finally:
        sock.close()


@contextlib.contextmanager
def _told(request: str) -> t.Iterator[None]:
    """Turn a refusal into the collection's exceptions, and say of what there was no answer."""
    try:
        yield
    except DeadlinePassed as e:
        raise DeadlinePassed(f"{request}: {e}") from e
    except sftp.Refused as e:
        if e.errno == errno.ENOENT:
            raise NotFound(404, "no such file or directory", request) from e
        if "too many levels" in str(e.strerror):
            raise ServerError(400, "too many links", request) from e
        raise ServerError(403 if e.errno == errno.EACCES else 400, str(e.strerror), request) from e
