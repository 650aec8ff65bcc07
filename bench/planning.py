# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans a list of that many instances against as many that are there, and prints its seconds and megabytes.

planning.py COUNT
"""

from __future__ import annotations

import resource
import sys
import time
import typing as t

from ansible_collections.mage.lxd.plugins.module_utils._instances import plan, spec
from ansible_collections.mage.lxd.plugins.module_utils._server.snapshot import Instance, Network, Server, Snapshot

NIC = {"type": "nic", "name": "eth0", "network": "lxdbr0"}
PROFILES = {"default": {"eth0": NIC, "root": {"type": "disk", "path": "/", "pool": "default"}}}
NETWORK = Network("lxdbr0", "default", "bridge", True, {"ipv4.address": "10.64.0.1/16"})
SERVER = Server("lxd", "5.0.2", "host", False, frozenset(), ("x86_64",))


def item(number: int) -> dict[str, t.Any]:
    """Of ten, one is new, one goes, one has another value, and seven are true already."""
    name = f"i{number + 1 if number % 10 == 0 else number}" + ("-new" if number % 10 == 0 else "")
    value = "1" if number % 10 == 1 else "0"
    state = "absent" if number % 10 == 2 else "started"
    return {"name": name, "image": "debian/bookworm", "config": {"user.note": value}, "state": state}


def existing(number: int) -> Instance:
    """As the server tells of it."""
    config = {"user.note": "0", "image.os": "debian", "volatile.uuid": str(number)}
    devices = {"devices": {}, "expanded_devices": PROFILES["default"]}
    raw = {"name": f"i{number}", "status": "Running", "project": "default", "profiles": ["default"], **devices}
    return Instance.from_api({**raw, "config": config, "expanded_config": config})


def main(count: int) -> None:
    """The clock runs from the words of the user to the plan, and counts this process alone."""
    found = tuple(existing(number) for number in range(count))
    observed = plan.Observed(
        Snapshot(SERVER, found),
        everywhere=found,
        profiles=PROFILES,
        networks={"lxdbr0": NETWORK},
        images={"debian/bookworm": "a" * 64},
    )
    instances = [item(number) for number in range(count)]
    started = time.process_time()
    values = {"instances": instances, "defaults": {}, "concurrency": 4, "timeout": 600, "declared": []}
    made = plan.plan(spec.parse(values, "default"), observed, False)
    seconds = time.process_time() - started
    if len(made.changes) < count * 0.3:
        raise SystemExit(f"{len(made.changes)} changes are too few")
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main(int(sys.argv[1]))
