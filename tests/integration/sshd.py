# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An sshd on loopback, with keys and a configuration of its own. It sees users that this machine does not have."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import typing as t
from pathlib import Path

from ansible_collections.mage.lxd.tests.integration import processes, server

# Users that only this sshd knows: one who may use the socket by the group, one by sudo, and one not at all.
USERS = {"member": 64001, "sudoer": 64002, "stranger": 64003}
# In a mount namespace of its own, the files of users are ours.
START = """
set -e
for file in passwd group shadow; do mount --bind "$1/$file" "/etc/$file"; done
mount --bind "$1/sudoers" /etc/sudoers
mkdir -p /run/sshd
exec /usr/sbin/sshd -D -e -f "$1/sshd_config"
"""
CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
{more}
"""


def _key(path: Path) -> None:
    server.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "mage", "-f", str(path))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclasses.dataclass
class Sshd:
    """A running sshd. ``args`` are what a client needs to reach it and nothing else."""

    folder: Path
    port: int
    more: str = ""
    process: subprocess.Popen[bytes] | None = None

    @property
    def key(self) -> Path:
        return self.folder / "user_key"

    @property
    def args(self) -> str:
        known = shlex.quote(f"UserKnownHostsFile={self.folder}/known_hosts")
        return f"-F none -i {self.key} -o IdentitiesOnly=yes -o StrictHostKeyChecking=yes -o {known}"

    def endpoint(self, user: str = "root", path: str = "") -> str:
        return f"ssh://{user}@127.0.0.1:{self.port}{path}"

    def inventory(self) -> str:
        """This machine as the host ``remote``, entered by this sshd."""
        variables = {
            "ansible_host": "127.0.0.1",
            "ansible_port": self.port,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.key),
            "ansible_ssh_common_args": f"-F none -o UserKnownHostsFile={self.folder}/known_hosts",
            "ansible_python_interpreter": sys.executable,
        }
        return "remote " + " ".join(f"{key}={shlex.quote(str(value))}" for key, value in variables.items()) + "\n"

    def start(self) -> None:
        text = CONFIG.format(port=self.port, folder=self.folder, more=self.more)
        (self.folder / "sshd_config").write_text(text, encoding="utf-8")
        with (self.folder / "log").open("ab") as log:
            argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "sh", "-c", START, "sh", str(self.folder)]
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError as error:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise RuntimeError((self.folder / "log").read_text(encoding="utf-8")) from error
            time.sleep(0.02)

    def stop(self) -> None:
        """End the listener and every connection, as a host that goes away."""
        if self.process is not None:
            for pid in processes.descendants(self.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            self.process.wait()
        self.process = None


def _write_users(folder: Path) -> None:
    group = server.run("stat", "-c", "%G", "/var/lib/lxd/unix.socket").strip()
    passwd, shadow = Path("/etc/passwd").read_text("utf-8"), Path("/etc/shadow").read_text("utf-8")
    groups = []
    for line in Path("/etc/group").read_text("utf-8").splitlines():
        joins = line.startswith(f"{group}:")
        groups.append(line + ("," if joins and not line.endswith(":") else "") + ("member" if joins else ""))
    for name, number in USERS.items():
        passwd += f"{name}:x:{number}:{number}::/tmp:/bin/sh\n"
        shadow += f"{name}:*:19000:0:99999:7:::\n"
        groups.append(f"{name}:x:{number}:")
    files = {"passwd": passwd, "shadow": shadow, "group": "\n".join(groups) + "\n"}
    files["sudoers"] = "root ALL=(ALL:ALL) ALL\nsudoer ALL=(ALL) NOPASSWD: ALL\n"
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod({"shadow": 0o600, "sudoers": 0o440}.get(name, 0o644))


@contextlib.contextmanager
def sshd(more: str = "") -> t.Iterator[Sshd]:
    """Runs until the end of the block. ``more`` is added to its configuration."""
    # Not pytest's: its folders are root's alone, and their paths are long.
    folder = Path(tempfile.mkdtemp(prefix="mage-sshd-"))
    made = Sshd(folder, _free_port(), more)
    try:
        folder.chmod(0o755)
        _key(folder / "host_key")
        _key(folder / "user_key")
        _write_users(folder)
        public = (folder / "host_key.pub").read_text("utf-8").split()
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{made.port} {public[0]} {public[1]}\n", encoding="utf-8")
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder)
