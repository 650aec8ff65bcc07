# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine on which LXD is installed and nothing runs: this one, seen from namespaces of its own.

Processes, network, and all that LXD writes are apart; what runs in there is gone with the namespace. PID 1 is a shell,
so there is no init system.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
import typing as t
from pathlib import Path

from .server import run

# The cgroups stay, the rest of /sys is that of the new network namespace.
ENTER = """
set -e
mount --rbind /sys/fs/cgroup /mnt
mount -t sysfs sysfs /sys
mount --rbind /mnt /sys/fs/cgroup
ip link set lo up
for folder in /var/lib/lxd /var/log/lxd /var/lib/lxcfs /var/cache/lxd /etc/sysctl.d /run \
    /var/lib/incus /var/log/incus /var/cache/incus; do
    [ ! -d $folder ] || mount -t tmpfs -o mode=755 tmpfs $folder
done
touch /run/ready
while :; do sleep 1; done
"""


class BareMachine:
    """prefix goes before a command that is to run in there."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.prefix = ["nsenter", "--target", str(pid), "--mount", "--net", "--pid"]

    def run(self, *argv: str, timeout: float = 60) -> str:
        return run(*self.prefix, *argv, timeout=timeout).strip()

    def wait(self, *argv: str, seconds: float = 30) -> None:
        """Until a command succeeds."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.run(*argv)
                return
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def kill(self, pid_file: str) -> None:
        """End the daemon that this file names, and see it end."""
        pid = self.run("cat", pid_file)
        self.run("kill", pid)
        self.wait("sh", "-c", f"! kill -0 {pid} 2>/dev/null")


def write_busybox(path: Path) -> None:
    """The image of static busybox, for a machine that has no images."""
    run("bash", str(Path(__file__).parent / "busybox-image.sh"), str(path))


def first_child(pid: int) -> int:
    """The process that this one has started; it does so at once."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        if children:
            return int(children[0])
        time.sleep(0.02)
    raise RuntimeError(f"process {pid} has started nothing")


@contextlib.contextmanager
def bare_machine() -> t.Iterator[BareMachine]:
    """Gone afterwards, with all that runs in there."""
    argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]
    argv += ["--mount-proc", "bash", "-c", ENTER]
    outer = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        machine = BareMachine(first_child(outer.pid))
        machine.wait("test", "-e", "/run/ready")
        yield machine
    finally:
        outer.kill()
        outer.wait()
