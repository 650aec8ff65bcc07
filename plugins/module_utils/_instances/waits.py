# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""When a started instance is ready: ``wait_for``, in words and as values. Pure."""

from __future__ import annotations

import dataclasses
import typing as t

from .._values import Problems, interface, mapping, port, sequence

KINDS = ("address", "cloud-init", "system", "port", "exec")
RULE = "must be address, cloud-init, system, {port: 5432}, {exec: [pg_isready]} or {address: {nic: eth0, family: 4}}"
FAMILIES = {"4": 4, "ipv4": 4, "6": 6, "ipv6": 6}


@dataclasses.dataclass(frozen=True)
class WaitFor:
    """One thing that has to be true before an instance counts as started.

    ``kind`` is one of KINDS. address: ``nic`` names the device (empty: the first that is on a network), ``family`` is
    4, 6 or 0 (either). port: something listens on TCP ``port``. exec: ``argv`` ends with 0.
    """

    kind: str
    nic: str = ""
    family: int = 0
    port: int = 0
    argv: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.kind == "address":
            return "address" + (f" of {self.nic}" if self.nic else "") + (f" (IPv{self.family})" if self.family else "")
        told = str(self.port) if self.kind == "port" else " ".join(self.argv)
        return f"{self.kind}: {told}" if told else self.kind


def parse(raw: object, path: str, problems: Problems) -> t.Optional[tuple[WaitFor, ...]]:
    """What is waited for. None: nothing was said; an empty list: nothing at all."""
    if raw is None:
        return None
    many = raw if isinstance(raw, (list, tuple)) else [raw]
    found = [_one(one, f"{path}[{index}]", problems) for index, one in enumerate(sequence(many, path, problems))]
    return tuple(one for one in found if one)


def _one(raw: object, path: str, problems: Problems) -> t.Optional[WaitFor]:
    if isinstance(raw, str):
        if raw in ("address", "cloud-init", "system"):
            return WaitFor(raw)
        problems.add(path, raw, RULE)
        return None
    before = len(problems)
    fields = mapping(raw, path, ("address", "port", "exec"), problems)
    if fields is None or len(problems) > before:
        return None
    if len(fields) != 1:
        problems.add(path, raw, RULE)
        return None
    ((kind, value),) = fields.items()
    place = f"{path}.{kind}"
    if kind == "port":
        number = port(value, place, problems)
        return WaitFor("port", port=number) if number else None
    return _address(value, place, problems) if kind == "address" else _exec(value, place, problems)


def _address(raw: object, path: str, problems: Problems) -> t.Optional[WaitFor]:
    before = len(problems)
    fields = mapping(raw, path, ("nic", "family"), problems)
    if fields is None:
        return None
    nic = interface(fields["nic"], f"{path}.nic", problems) if "nic" in fields else ""
    family = FAMILIES.get(str(fields.get("family", "")).lower(), 0)
    if "family" in fields and not family:
        problems.add(f"{path}.family", fields["family"], "must be 4 or 6")
    return WaitFor("address", nic=nic or "", family=family) if len(problems) == before else None


def _exec(raw: object, path: str, problems: Problems) -> t.Optional[WaitFor]:
    if isinstance(raw, list) and raw and all(isinstance(word, str) for word in raw) and raw[0]:
        return WaitFor("exec", argv=tuple(raw))
    problems.add(path, raw, "must be a command and its arguments, each of them text, such as [pg_isready, -q]")
    return None
