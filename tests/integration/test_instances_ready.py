# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is waited for in a real Debian: its systemd, and the cloud-init that Debian packages."""

from __future__ import annotations

import contextlib
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.tests.integration import doors as doors_module
from ansible_collections.mage.lxd.tests.integration import server
from ansible_collections.mage.lxd.tests.integration.engine import Engine

DEBIAN = "debian/bookworm"
INSTALL = """set -e
export DEBIAN_FRONTEND=noninteractive
for i in $(seq 100); do getent hosts {mirror} >/dev/null && break; sleep 0.2; done
apt-get update -q
apt-get install -qy --no-install-recommends cloud-init
# A copy is to begin anew.
cloud-init clean --logs
"""


@contextlib.contextmanager
def clouded(engine: Engine) -> t.Iterator[str]:
    """A stopped Debian with cloud-init."""
    made = engine.good({"name": engine.name("origin"), "image": DEBIAN, "wait_for": ["system", "address"]}, timeout=300)
    assert made.one["actions"] == ["create", "start"]
    engine.server.run("exec", engine.name("origin"), "--", "sh", "-c", INSTALL.format(mirror=server.mirror_host()))
    engine.good({"name": engine.name("origin"), "state": "stopped"})
    yield engine.name("origin")


@pytest.mark.slow
def test_systemd_and_cloud_init_of_debian_are_waited_for(doors: doors_module.Doors) -> None:
    asked, options = doors.way("lxd")
    engine = Engine(asked, options, server.own_prefix())
    try:
        with clouded(engine) as origin:
            write = {
                "write_files": [{"path": "/root/made", "content": "made"}],
                "runcmd": ["sleep 1", "touch /root/last"],
            }
            good = {
                "name": engine.name("good"),
                "copy_of": origin,
                "cloud_init": {"user_data": write},
                "wait_for": ["cloud-init", "system"],
            }
            bad = {
                "name": engine.name("bad"),
                "copy_of": origin,
                "cloud_init": {"user_data": "#!/bin/sh\nexit 3\n"},
                "wait_for": ["cloud-init"],
            }
            done = engine.run(good, bad, timeout=300)
            (failure,) = done.failures
            assert failure.startswith(f"default/{engine.name('bad')}: ")
            assert "cloud-init failed: " in failure
            assert "scripts_user" in failure or "scripts-user" in failure
            assert done.steps(engine.name("good")) == ["create", "update", "start"]
            assert engine.execute("good", "cat", "/root/made") == "made"
            assert engine.execute("good", "stat", "-c", "%n", "/root/last").strip() == "/root/last"
            assert engine.execute("good", "sh", "-c", "systemctl is-system-running || :").strip() in (
                "running",
                "degraded",
            )
            assert not engine.good(good).changed
    finally:
        asked.delete(f"{engine.prefix}-")


@pytest.fixture
def debian(doors: doors_module.Doors, tmp_path: Path) -> t.Iterator[Engine]:
    """Incus, with the image that LXD has."""
    asked, options = doors.way("incus")
    engine = Engine(asked, options, server.own_prefix())
    file = tmp_path / "image"
    doors.way("lxd")[0].run("image", "export", DEBIAN, str(file))
    asked.run("image", "import", str(file), f"{file}.root", "--alias", f"{engine.prefix}/debian")
    yield engine
    asked.delete(f"{engine.prefix}-")
    asked.run("image", "delete", f"{engine.prefix}/debian")


def test_systemd_of_debian_is_waited_for_on_incus(debian: Engine) -> None:
    item = {"name": debian.name("system"), "image": f"{debian.prefix}/debian", "wait_for": ["system"]}
    assert debian.good(item, timeout=300).one["actions"] == ["create", "start"]
    assert debian.execute("system", "sh", "-c", "systemctl is-system-running || :").strip() in ("running", "degraded")
    assert not debian.good(item).changed
    (failure,) = debian.run({**item, "wait_for": ["cloud-init"]}).failures
    assert "there is no cloud-init in it" in failure
