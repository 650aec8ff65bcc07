# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The demo's last word: one row for each published thing. Exits with 1 if anything was not as it should be.

report.py INVENTORY.json PING.txt PROXY < what check.py printed
"""

from __future__ import annotations

import json
import pathlib
import sys

HEAD = ("container", "state", "address", "published", "checked")


def plain(value: object) -> str:
    """A value of the inventory as text. Ansible marks what a server said, since it is data and never a template."""
    return str(value["__ansible_unsafe"] if isinstance(value, dict) else value)


def main() -> int:
    """Print the table."""
    hosts = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))["_meta"]["hostvars"]
    pings = pathlib.Path(sys.argv[2]).read_text(encoding="utf-8")
    checks = [
        (sys.argv[3] if one["container"] == "mageproxy" else one["container"], one) for one in json.load(sys.stdin)
    ]
    for name in ("demo-web-1", "demo-web-2", "demo-tcp-1"):
        right = f"{name} | SUCCESS" in pings
        found = "pong" if right else "no answer"
        checks.append((name, {"claim": "ansible -m ping, no SSH", "found": found, "right": right}))
    rows = [HEAD]
    for name, one in sorted(checks, key=lambda check: check[0]):
        host = hosts.get(name, {})
        addresses = host.get("lxd_ipv4") or ["-"]
        checked = "yes" if one["right"] else f"NO: {one['found']}"
        rows.append((name, plain(host.get("lxd_status", "missing")), plain(addresses[0]), one["claim"], checked))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())
    wrong = sum(not one["right"] for _name, one in checks)
    print(f"\n{len(checks) - wrong} of {len(checks)} checked.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
