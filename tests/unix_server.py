# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server at a socket that behaves as a test wants it to."""

from __future__ import annotations

import socket
import threading
from pathlib import Path


class UnixServer:
    """Calls ``serve`` with each connection, in a thread of its own. ``connections`` counts them."""

    def __init__(self, path: Path) -> None:
        self.connections = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            sock, _address = self._listener.accept()
            self.connections += 1
            self._took(sock)
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def _took(self, sock: socket.socket) -> None:
        """Before the next connection is taken."""

    def serve(self, sock: socket.socket) -> None:
        """Talk to a client, and close its socket."""
        raise AssertionError("each kind of server talks in its own way")
