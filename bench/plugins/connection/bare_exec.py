# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A connection whose commands are the benchmarks' floor: the least that Ansible with the server's own exec can take."""

from __future__ import annotations

DOCUMENTATION = """
name: bare_exec
short_description: runs the server's own exec
description: Commands and files by the standard library alone.
options:
  instance:
    description: Its name.
    vars:
      - name: inventory_hostname
  project:
    description: The server's project.
    vars:
      - name: ansible_lxd_project
  socket:
    description: The server's.
    env:
      - name: LXD_SOCKET
"""

import shlex
import sys
import typing as t
from pathlib import Path

from ansible.plugins.connection import ConnectionBase

sys.path.append(str(Path(__file__).resolve().parents[3]))

from bench import bare


class Connection(ConnectionBase):
    """See DOCUMENTATION."""

    transport = "bare_exec"
    has_pipelining = True
    _server: t.Optional[bare.Server] = None

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def _bare(self) -> bare.Server:
        if self._server is None:
            self._server = bare.Server(self.get_option("socket"), self.get_option("project"))
        return self._server

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        """Run a command in the instance."""
        return self._bare().execute(self.get_option("instance"), shlex.split(cmd), in_data or b"")

    def put_file(self, in_path: str, out_path: str) -> None:
        """Write a file of the instance."""
        self._bare().push(self.get_option("instance"), in_path, out_path)

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Read a file of the instance."""
        self._bare().pull(self.get_option("instance"), in_path, out_path)

    def close(self) -> None:
        """Forget the server."""
        self._server = None
        self._connected = False
