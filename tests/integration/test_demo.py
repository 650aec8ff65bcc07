# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""scripts/demo, as the README says it. A demo that is there already is left running."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from ansible_collections.mage.lxd.tests.integration import server
from ansible_collections.mage.lxd.tests.integration.playbook import ROOT

NAMES = {"demo-web-1", "demo-web-2", "demo-tcp-1", "demo-mageproxy", "mageproxy"}


def demo(*arguments: str) -> str:
    # As a user does, who has LXD and Incus, and has not said which one is meant.
    environment = {key: value for key, value in os.environ.items() if key != "LXD_SOCKET"}
    done = subprocess.run(
        [ROOT / "scripts" / "demo", *arguments],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def made() -> set[str]:
    """The demo's instances."""
    return {one["name"] for one in server.instances() if one["config"].get("user.demo") == "true"}


def rules() -> str:
    return "\n".join(server.run("iptables-save", "-t", table) for table in ("nat", "filter"))


def test_the_demo_twice_and_clean() -> None:
    was_there = made()
    first = demo()
    assert made() <= NAMES
    assert len(made()) == 4
    assert "9 of 9 checked." in first
    second = demo()
    assert "9 of 9 checked." in second
    assert set(re.findall(r"changed=(\d+)", second)) == {"0"}
    if was_there:
        return
    hosts = Path("/etc/hosts").read_text(encoding="utf-8")
    assert "echo.example.org" in hosts
    others = {one["name"] for one in server.instances()} - made()
    assert "Nothing of the demo is left" in demo("--clean")
    assert {one["name"] for one in server.instances()} == others
    hosts = Path("/etc/hosts").read_text(encoding="utf-8")
    assert not [name for name in NAMES if name in hosts]
    assert not [name for name in NAMES if f"default/{name}" in rules()]
    assert "Nothing of the demo is left" in demo("--clean")
