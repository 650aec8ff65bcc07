# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""A local socket that leads to any server: pylxd and the client programs then need to know of no other way."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import socket
import ssl
import tempfile
import threading
import typing as t

from .._errors import ServerUnreachable
from . import sockets
from .options import ServerOptions

_CHUNK = 1 << 16
# An AF_UNIX path has at most 107 bytes.
_LONGEST_PLACE = 107 - len("/mage-12345678/unix.socket")


class Relay:
    """Listens on ``path``, in a folder that only this user can enter, until it is closed.

    ``cause`` is why the server could not be reached the last time: who connects here only sees the line drop.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.cause: t.Optional[ServerUnreachable] = None
        self._folder = tempfile.mkdtemp(prefix="mage-", dir=_place())
        self.path = os.path.join(self._folder, "unix.socket")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(64)
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Stop listening. Connections that are open end with their peers."""
        with contextlib.suppress(OSError):
            # Closing alone does not wake the thread that accepts.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _serve(self) -> None:
        while True:
            try:
                near, _address = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        # A peer that goes away in mid-sentence is what the other one will see, too.
        with near, contextlib.suppress(OSError):
            # A server takes no other connection while one is silent.
            if not near.recv(1, socket.MSG_PEEK):
                return
            try:
                far = sockets.connect(self.options)
                self.cause = None
            except ServerUnreachable as e:
                self.cause = e
                return
            with far:
                _pump(near, far)


def _place() -> t.Optional[str]:
    """Where the folder is made: where temporary files belong, unless no socket can have a path that long."""
    return None if len(os.fsencode(tempfile.gettempdir())) <= _LONGEST_PLACE else "/tmp"


def _pump(near: socket.socket, far: socket.socket) -> None:
    """Carry bytes both ways until one side ends. One thread, since a TLS connection must not be used by two."""
    near.settimeout(None)
    far.settimeout(None)
    with selectors.DefaultSelector() as selector:
        for sock in (near, far):
            selector.register(sock, selectors.EVENT_READ)
        while True:
            pending = isinstance(far, ssl.SSLSocket) and far.pending() > 0
            readable = [far] if pending else [key.fileobj for key, _events in selector.select()]
            for source, target in ((near, far), (far, near)):
                if source not in readable:
                    continue
                data = _read(source)
                if data == b"":
                    return
                if data:
                    target.sendall(data)


def _read(source: socket.socket) -> t.Optional[bytes]:
    """What is there, or None: messages of TLS itself look readable, and to wait would hold up the other way."""
    source.settimeout(0)
    try:
        return source.recv(_CHUNK)
    except (BlockingIOError, ssl.SSLWantReadError):
        return None
    finally:
        source.settimeout(None)
