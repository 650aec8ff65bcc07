# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands above the table: the machine, and the versions of all that was measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import typing as t
from pathlib import Path

from . import bare
from .room import SOCKET

PACKAGES = ("ansible", "ansible-core", "mitogen", "pylxd")


def description() -> str:
    """A few lines of Markdown, without a date."""
    server = bare.Server(SOCKET)
    facts = server.request("GET", "")["environment"]
    pools = {pool["name"]: pool["driver"] for pool in server.request("GET", "storage-pools", recursion="1")}
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    memory = int(_first(r"MemTotal:\s+(\d+)", "/proc/meminfo")) / (1 << 20)
    processor = _first(r"model name\s*: (.*)", "/proc/cpuinfo")
    system = _first(r"PRETTY_NAME=.(.*).", "/etc/os-release")
    lines = (
        f"{os.cpu_count()} cores ({processor}), {memory:.0f} GiB of memory",
        f"{system}, Linux {platform.release()}, Python {platform.python_version()}",
        f"{facts['server']} {facts['server_version']}, storage {', '.join(sorted(set(pools.values())))}; {packages}",
        f"load before the run: {os.getloadavg()[0]:.1f}",
    )
    return "\n".join(f"- {line}" for line in lines)


def _first(pattern: str, path: str) -> str:
    """What the first match in a file of the system says."""
    found: t.Optional[re.Match[str]] = re.search(pattern, Path(path).read_text(encoding="utf-8"))
    return found[1].strip() if found else "unknown"
