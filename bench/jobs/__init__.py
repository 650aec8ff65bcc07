# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every job, in the order of the table."""

from __future__ import annotations

from . import commands, files, instances, inventory

JOBS = (
    inventory.Inventory,
    inventory.Cached,
    commands.Raw,
    commands.Command,
    files.Copy,
    files.Put,
    files.Fetch,
    instances.Create,
    instances.Unchanged,
    instances.Change,
    instances.Delete,
    instances.Plan,
)
