# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Moves one file through a connection plugin, and prints how many seconds that took.

transfer.py put|fetch INSTANCE PROJECT SOURCE TARGET
"""

from __future__ import annotations

import sys
import time

from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import connection_loader, init_plugin_loader


def main(direction: str, instance: str, project: str, source: str, target: str) -> None:
    """Print the seconds of the transfer alone."""
    init_plugin_loader()
    connection = connection_loader.get("mage.lxd.lxd", PlayContext())
    connection.set_options(direct={"remote_addr": instance, "project": project})
    started = time.monotonic()
    (connection.put_file if direction == "put" else connection.fetch_file)(source, target)
    print(time.monotonic() - started)
    connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
