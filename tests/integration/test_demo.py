# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""scripts/demo, as the README says it. A demo that is there already is left running."""

from __future__ import annotations

import os
import re
import subprocess
import typing as t
from pathlib import Path

from ansible_collections.mage.lxd.tests.integration import host_bare, server
from ansible_collections.mage.lxd.tests.integration.playbook import ROOT, PlaybookRun

NAMES = {"demo-web-1", "demo-web-2", "demo-tcp-1", "demo-mageproxy", "mageproxy"}


def demo(*arguments: str, prefix: t.Sequence[str] = ()) -> str:
    # As a user does, who has LXD and Incus, and has not said which one is meant.
    environment = {key: value for key, value in os.environ.items() if key != "LXD_SOCKET"}
    done = subprocess.run(
        [*prefix, ROOT / "scripts" / "demo", *arguments],
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


PLAY = """
- hosts: localhost
  gather_facts: false
  roles:
    - role: mage.lxd.lxd_host
    - role: mage.lxd.lxd_provisioning
"""


def test_what_an_interrupted_clean_leaves_goes_with_the_next(
    run_playbook: t.Callable[..., PlaybookRun], tmp_path: Path
) -> None:
    """On a machine of its own, with a hosts file of its own: the container is gone, its rules and name are not."""
    image = {"alias": "busybox", "file": str(tmp_path / "busybox.tar.gz")}
    host_bare.write_busybox(Path(image["file"]))
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n", encoding="utf-8")
    item = {"name": "demo-tcp-1", "image": "busybox", "nat": [{"extport": 2323, "intport": 7}], "python": False}
    wanted = {
        "lxd_host_pool": "bare",
        "lxd_host_images": [image],
        "lxd_provisioning_inventory": [{**item, "hostnames": ["echo.example.org"], "config": {"user.demo": "true"}}],
    }
    with host_bare.bare_machine() as machine:
        machine.run("mount", "--bind", str(hosts), "/etc/hosts")
        run_playbook(PLAY, extra_vars=wanted, prefix=machine.prefix).succeeded()
        machine.run("lxc", "delete", "--force", "demo-tcp-1")
        assert "demo-tcp-1" in machine.run("iptables-save")
        assert "echo.example.org" in hosts.read_text(encoding="utf-8")
        assert "Nothing of the demo is left" in demo("--clean", prefix=machine.prefix)
        assert "MAGE" not in machine.run("iptables-save")
        assert hosts.read_text(encoding="utf-8") == "127.0.0.1 localhost\n"


def test_the_demo_twice_and_clean(tmp_path: Path) -> None:
    was_there = made()
    switched = ["env", *server.switched_client(tmp_path, "elsewhere")]
    first = demo(prefix=switched)
    assert made() <= NAMES
    assert len(made()) == 4
    assert "9 of 9 checked." in first
    second = demo(prefix=switched)
    assert "9 of 9 checked." in second
    assert set(re.findall(r"changed=(\d+)", second)) == {"0"}
    if was_there:
        return
    hosts = Path("/etc/hosts").read_text(encoding="utf-8")
    assert "echo.example.org" in hosts
    others = server.names() - made()
    assert "Nothing of the demo is left" in demo("--clean", prefix=switched)
    assert server.names() == others
    hosts = Path("/etc/hosts").read_text(encoding="utf-8")
    assert not [name for name in NAMES if name in hosts]
    assert not [name for name in NAMES if f"default/{name}" in rules()]
    assert "Nothing of the demo is left" in demo("--clean", prefix=switched)
