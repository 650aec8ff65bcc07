# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A connection to nowhere, on which every command succeeds at once: what is left is Ansible's own share."""

from __future__ import annotations

DOCUMENTATION = """
name: nothing
short_description: runs nothing
description: Every command succeeds at once.
options: {}
"""

from ansible.plugins.connection import ConnectionBase


class Connection(ConnectionBase):
    """See DOCUMENTATION."""

    transport = "nothing"
    has_pipelining = True

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        """Success."""
        return 0, b"", b""

    def put_file(self, in_path: str, out_path: str) -> None:
        """Success."""

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Success."""

    def close(self) -> None:
        """Success."""
        self._connected = False
