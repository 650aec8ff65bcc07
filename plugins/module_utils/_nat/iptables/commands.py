# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""The host's own commands for its firewall: iptables-save, iptables-restore, conntrack."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import time
import typing as t

from ..._errors import CommandFailed, DeadlinePassed, MageError
from ..plan import Stale
from ..render import Table, parse_save

TIMEOUT = 120.0
LOCK = "/run/mage-lxd-nat.lock"
TABLES = ("nat", "filter")
SYSTEM_FOLDERS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def which(command: str) -> t.Optional[str]:
    """Where a command is. Its folder may be missing from the PATH of a login without root's profile."""
    return shutil.which(command, path=f"{os.environ.get('PATH', '')}:{SYSTEM_FOLDERS}")


def run(argv: t.Sequence[str], stdin: str = "", accept: t.Container[int] = (0,)) -> str:
    """Run a command and return what it printed. Raises CommandFailed, or DeadlinePassed after two minutes."""
    path = which(argv[0])
    if path is None:
        raise MageError(f"The command {argv[0]} is missing on this host: the role mage.lxd.lxd_host installs it")
    try:
        done = subprocess.run(
            [path, *argv[1:]],
            input=stdin,
            capture_output=True,
            check=False,
            encoding="utf-8",
            errors="surrogateescape",
            env={**os.environ, "LC_ALL": "C"},
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise DeadlinePassed(f"{' '.join(argv)}: not done after {TIMEOUT:.0f} s") from error
    if done.returncode not in accept:
        raise CommandFailed(argv, done.returncode, done.stderr or done.stdout)
    return done.stdout


@contextlib.contextmanager
def lock(path: str = LOCK, deadline: float = TIMEOUT) -> t.Iterator[None]:
    """Held while the firewall is read, changed and read back, so that runs side by side come one after another."""
    end = time.monotonic() + deadline
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise DeadlinePassed(f"{path}: another run has held this lock for {deadline:.0f} s") from error
                time.sleep(0.05)
        yield
    finally:
        os.close(handle)


def read_tables() -> dict[str, Table]:
    """The tables nat and filter. Empty where the host has no iptables."""
    if which("iptables-save") is None:
        return {}
    tables: dict[str, Table] = {}
    for name in TABLES:
        text = run(["iptables-save", "-t", name])
        tables.update(parse_save(text))
        if name not in tables:
            raise MageError(f"iptables-save -t {name} shows no such table: {text.strip()[:300] or 'no output'}")
    return tables


def read_backends(tables: t.Mapping[str, Table]) -> dict[str, int]:
    """How many rules there are in the iptables that is in use, and in the other one, if it has any."""
    if not tables:
        return {}
    nft = "nf_tables" in run(["iptables", "--version"])
    used, other = ("iptables-nft", "iptables-legacy") if nft else ("iptables-legacy", "iptables-nft")
    found = {used: sum(len(table.rules) for table in tables.values())}
    count = _count_rules(f"{other}-save")
    return {**found, **({other: count} if count else {})}


def _count_rules(command: str) -> int:
    if which(command) is None or (command == "iptables-legacy-save" and not _legacy_tables()):
        return 0
    # A kernel that does not have this iptables has no rules in it: the command fails.
    return sum(line.startswith("-A ") for line in run([command], accept=range(256)).splitlines())


def _legacy_tables() -> str:
    """The legacy tables that the kernel has. Asking iptables-legacy instead would make them."""
    try:
        with open("/proc/self/net/ip_tables_names", encoding="ascii") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def restore(texts: t.Sequence[str]) -> None:
    """Hand over one input a table: all are tested first, then each is committed at once or not at all."""
    for options in (["--test"], []):
        for text in texts:
            if not text.strip():
                raise MageError("iptables-restore was to be called with nothing to restore")
            run(["iptables-restore", "--noflush", "--wait=30", *options], stdin=text)


def forget_flows(stale: t.Sequence[Stale]) -> t.Optional[str]:
    """Delete the UDP flows that still go where they went before. Returns a warning where that cannot be done."""
    if not stale:
        return None
    if which("conntrack") is None:
        return "the command conntrack is missing: running UDP flows go on to where they went before, until they pause"
    flows = {destination(line) for line in run(["conntrack", "-L", "-f", "ipv4", "-p", "udp"]).splitlines()}
    for address, port in sorted(flow for flow in flows if flow):
        if any(one.ports.first <= port <= one.ports.last and address in one.addresses for one in stale):
            # Exit code 1: the flow has ended meanwhile.
            run(
                ["conntrack", "-D", "-f", "ipv4", "-p", "udp", "--orig-dst", address, "--orig-port-dst", str(port)],
                accept=(0, 1),
            )
    return None


def destination(line: str) -> t.Optional[tuple[str, int]]:
    """Where the first packet of a flow was sent: the first dst= and dport= of a line of conntrack -L."""
    address = port = ""
    for word in line.split():
        name, _equals, text = word.partition("=")
        if name == "dst" and not address:
            address = text
        elif name == "dport" and not port:
            port = text
    return (address, int(port)) if address and port.isdigit() else None
