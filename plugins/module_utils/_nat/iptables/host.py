# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Reads the host: interfaces, listening sockets, kernel switches, and the files of the unit. Writes the latter."""

from __future__ import annotations

import glob
import ipaddress
import json
import os
import re
import tempfile
import typing as t

from ..._errors import MageError
from ..._values import PortRange
from .. import render
from ..plan import Host, Listener
from .commands import run, which

# The states of /proc/net/tcp and udp: TCP that listens, UDP that has no peer.
_WAITING = {"tcp": "0A", "udp": "07"}


def read_host(flavor: str, ports: t.Sequence[PortRange]) -> Host:
    """The host as it is. Only listeners on ``ports`` are told: finding a listener's name reads all processes."""
    links = json.loads(run(["ip", "-json", "address", "show"]))
    tool = which("iptables-restore")
    return Host(
        interfaces={
            link["ifname"]: tuple(
                f"{one['local']}/{one['prefixlen']}"
                for one in link.get("addr_info") or ()
                if one.get("family") == "inet"
            )
            for link in links
            if link.get("ifname")
        },
        masters={link["ifname"]: link["master"] for link in links if link.get("master")},
        hairpin=_read_hairpin(),
        listeners=_read_listeners(ports),
        ip_forward=_read("/proc/sys/net/ipv4/ip_forward") == "1",
        bridge_netfilter=_read("/proc/sys/net/bridge/bridge-nf-call-iptables") == "1",
        systemd=os.path.isdir("/run/systemd/system"),
        tools=os.path.dirname(tool) if tool else "/usr/sbin",
        files={path: text for path in render.paths(flavor) for text in [_read_file(path)] if text is not None},
        unit_enabled=os.path.islink(f"{render.UNITS}/multi-user.target.wants/{render.unit_name(flavor)}"),
    )


def set_hairpin(port: str) -> t.Optional[str]:
    """Let a bridge port send a packet back to where it came from. Returns a warning where that cannot be done."""
    try:
        with open(f"/sys/class/net/{port}/brport/hairpin_mode", "w", encoding="ascii") as file:
            file.write("1")
    except OSError as error:
        return f"bridge port {port}: hairpin mode cannot be turned on: {error.strerror}"
    return None


def write_files(files: t.Mapping[str, t.Optional[str]]) -> None:
    """Write each file whole, or remove it (None). The folder of the rules goes with its last file."""
    for path, text in files.items():
        try:
            if text is not None:
                _write(path, text)
            elif os.path.exists(path):
                os.unlink(path)
        except OSError as error:
            raise MageError(
                f"{path}: cannot be {'removed' if text is None else 'written'}: {error.strerror}"
            ) from error
    if files and os.path.isdir(render.FOLDER) and not os.listdir(render.FOLDER):
        os.rmdir(render.FOLDER)


def enable_unit(unit: str, enable: t.Optional[bool], systemd: bool) -> None:
    """Tell systemd of a changed unit. It is not started: what it would restore is there."""
    if not systemd:
        return
    if enable is False:
        run(["systemctl", "disable", unit])
    run(["systemctl", "daemon-reload"])
    if enable:
        run(["systemctl", "enable", unit])


def parse_sockets(text: str, proto: str) -> list[tuple[str, int, str]]:
    """The waiting sockets of a file such as /proc/net/tcp: address, port, inode. IPv6 ones that take IPv4 are told as
    such; other IPv6 ones are left out."""
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or fields[3] != _WAITING[proto]:
            continue
        address, _colon, port = fields[1].partition(":")
        ip = _address(address)
        if ip is not None:
            found.append((ip, int(port, 16), fields[9]))
    return found


def _address(text: str) -> t.Optional[str]:
    """An address as the kernel writes it: words of 32 bits, each in the machine's byte order."""
    words = [bytes.fromhex(text[start : start + 8])[::-1] for start in range(0, len(text), 8)]
    if len(words) == 1:
        return str(ipaddress.IPv4Address(words[0]))
    parsed = ipaddress.IPv6Address(b"".join(words))
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return "::" if parsed.is_unspecified else None


def _read_listeners(ports: t.Sequence[PortRange]) -> tuple[Listener, ...]:
    if not ports:
        return ()
    sockets = [
        (proto, *socket)
        for proto in _WAITING
        for file in (proto, f"{proto}6")
        for socket in parse_sockets(_read(f"/proc/self/net/{file}"), proto)
    ]
    wanted = [one for one in sockets if any(span.first <= one[2] <= span.last for span in ports)]
    names = _processes({inode for _proto, _address, _port, inode in wanted})
    found = {Listener(proto, address, port, names.get(inode, "")) for proto, address, port, inode in wanted}
    return tuple(sorted(found, key=lambda one: (one.proto, one.port, one.address, one.process)))


def _processes(inodes: t.AbstractSet[str]) -> dict[str, str]:
    """The names of the processes that hold these sockets: ``sshd (pid 712)``."""
    found: dict[str, str] = {}
    for link in glob.iglob("/proc/[0-9]*/fd/*") if inodes else ():
        try:
            match = re.fullmatch(r"socket:\[([0-9]+)\]", os.readlink(link))
        except OSError:
            # The process or its descriptor is gone.
            continue
        if match and match[1] in inodes and match[1] not in found:
            pid = link.split("/")[2]
            found[match[1]] = f"{_read(f'/proc/{pid}/comm')} (pid {pid})"
    return found


def _read_hairpin() -> dict[str, bool]:
    files = glob.glob("/sys/class/net/*/brport/hairpin_mode")
    return {file.split("/")[4]: _read(file) == "1" for file in files}


def _read(path: str) -> str:
    return (_read_file(path) or "").strip()


def _read_file(path: str) -> t.Optional[str]:
    """The text of a file, or None: what the kernel can do, and processes, come and go."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
        return None


def _write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".mage-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
