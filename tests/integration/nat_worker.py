# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Converges the firewall of the namespace that it runs in, as a program of its own that a test can kill.

``nat_worker.py COUNT OFFSET``: COUNT ports from 1024 + OFFSET on are published by one instance.
"""

from __future__ import annotations

import sys

from ansible_collections.mage.lxd.plugins.module_utils._nat import iptables, plan
from ansible_collections.mage.lxd.plugins.module_utils._nat.iptables import commands
from ansible_collections.mage.lxd.plugins.module_utils._nat.spec import Desired
from ansible_collections.mage.lxd.tests.unit.nat_samples import HOST, instance


def seen(count: int, offset: int) -> plan.Observed:
    entries = [{"extport": 1024 + offset + index, "intport": 80} for index in range(count)]
    publishers = (instance("worker", entries),) if count else ()
    return plan.Observed("lxd", commands.read_tables(), host=HOST, publishers=publishers)


if __name__ == "__main__":
    with commands.lock():
        iptables.converge(Desired(), seen(*(int(text) for text in sys.argv[1:])))
