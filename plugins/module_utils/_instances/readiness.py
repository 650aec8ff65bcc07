# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What answers mean when an instance is asked whether it is ready. Pure."""

from __future__ import annotations

import re
import typing as t

from .._server.snapshot import Network, Nic


class Verdict(t.NamedTuple):
    """``done``: it is so. ``failed``: it never will be. ``seen`` is the last state, for people."""

    done: bool
    failed: bool
    seen: str


def expects_address(nic: Nic, network: t.Optional[Network]) -> t.Optional[bool]:
    """Whether a NIC will get an address; None where nobody here knows."""
    pinned = [one for one in (nic.ipv4, nic.ipv6) if one not in ("", "none")]
    if pinned:
        return True
    if network is None or not network.managed:
        return None
    if network.type not in ("bridge", "ovn"):
        return None
    config = network.config
    four = config.get("ipv4.address", "none") not in ("", "none") and config.get("ipv4.dhcp", "true") != "false"
    # Without DHCP, a router's announcements are enough for an IPv6 address.
    six = config.get("ipv6.address", "none") not in ("", "none")
    return (four and nic.ipv4 != "none") or (six and nic.ipv6 != "none")


def by_hwaddr(network: t.Mapping[str, t.Any], nics: t.Sequence[Nic]) -> dict[str, tuple[str, ...]]:
    """The global addresses by device, from what a server says of the network inside."""
    found: dict[str, tuple[str, ...]] = {}
    for one in network.values():
        addresses = tuple(each["address"] for each in one.get("addresses") or () if each.get("scope") == "global")
        hwaddr = str(one.get("hwaddr") or "").lower()
        for nic in nics:
            if hwaddr and nic.hwaddr == hwaddr:
                found[nic.device] = (*found.get(nic.device, ()), *addresses)
    return found


def cloud_init(rc: int, output: str) -> Verdict:
    """From ``cloud-init status --long``."""
    status = re.search(r"^status: (.+)$", output, re.MULTILINE)
    word = status[1].strip() if status else ""
    if word in ("done", "disabled") or word.startswith("degraded"):
        return Verdict(True, False, word)
    if word == "error":
        return Verdict(False, True, f"cloud-init failed: {_details(output)}")
    if not word and (rc == 127 or "not found" in output):
        return Verdict(False, True, "there is no cloud-init in it")
    return Verdict(False, False, f"cloud-init: {word or output.strip()[-200:]}")


def _details(output: str) -> str:
    """cloud-init's own words, without what says nothing."""
    lines = [line.strip() for line in output.splitlines()]
    dull = ("status:", "time:", "boot_status_code:", "last_update:", "extended_status:", "errors:", "detail:")
    told = [line for line in lines if line and not line.startswith(dull)]
    inline = [line.partition(":")[2].strip() for line in lines if line.startswith(("detail:", "errors:"))]
    return "; ".join([one for one in inline if one and one != "[]"] + told)[-500:] or "it does not say why"


def system(rc: int, output: str) -> Verdict:
    """From ``systemctl is-system-running``."""
    word = output.strip().partition("\n")[0].strip()
    if word in ("running", "degraded"):
        return Verdict(True, False, word)
    if rc == 127 or "not found" in output or "not been booted with systemd" in output:
        return Verdict(False, True, "there is no systemd in it")
    return Verdict(False, False, f"systemd: {word or 'no answer'}")


def listens(port: int, rc: int, output: str) -> Verdict:
    """From ``/proc/net/tcp`` and ``tcp6``: state 0A is LISTEN."""
    wanted = f"{port:04X}"
    for line in output.splitlines():
        fields = line.split()
        if len(fields) > 3 and fields[3] == "0A" and fields[1].rpartition(":")[2] == wanted:
            return Verdict(True, False, "")
    return Verdict(False, False, f"nothing listens on port {port}")
