# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""``instance_type``: ``c2-m4``, ``t2.micro`` or ``gce:n1-standard-1`` as limits. Pure.

The server has these names from a list that it downloads, images.linuxcontainers.org/meta/instance-types, made from
github.com/dustinkirkland/instance-type. The figures are what the clouds publish of their types: cores and GiB.
"""

from __future__ import annotations

import re

from .._values import Problems, nearest

RULE = "must be c2-m4 (cores and GiB of memory), or a name such as t2.micro or gce:n1-standard-1"
_PART = re.compile(r"([cm])([0-9]+(?:\.[0-9]+)?)")


def _steps(family: str, sizes: str, cpu: float, memory: float) -> dict[str, tuple[float, float]]:
    """Sizes of which each is twice the one before."""
    return {f"{family}{size}": (cpu * 2**step, memory * 2**step) for step, size in enumerate(sizes.split())}


AWS: dict[str, tuple[float, float]] = {
    "c1.medium": (2, 1.7),
    "c1.xlarge": (8, 7),
    **_steps("c3.", "large xlarge 2xlarge 4xlarge 8xlarge", 2, 3.75),
    **_steps("c4.", "large xlarge 2xlarge 4xlarge", 2, 3.75),
    "c4.8xlarge": (36, 60),
    "cc2.8xlarge": (32, 60.5),
    "cg1.4xlarge": (16, 22.5),
    "cr1.8xlarge": (32, 244),
    **_steps("d2.", "xlarge 2xlarge 4xlarge", 4, 30.5),
    "d2.8xlarge": (36, 244),
    "f1.2xlarge": (8, 122),
    "f1.16xlarge": (64, 976),
    "g2.2xlarge": (8, 15),
    "g2.8xlarge": (32, 60),
    "hi1.4xlarge": (16, 60.5),
    "hs1.8xlarge": (16, 117),
    **_steps("i2.", "xlarge 2xlarge 4xlarge 8xlarge", 4, 30.5),
    **_steps("i3.", "large xlarge 2xlarge 4xlarge 8xlarge 16xlarge", 2, 15.25),
    "m1.small": (1, 1.7),
    **_steps("m1.", "medium large xlarge", 1, 3.75),
    **_steps("m2.", "xlarge 2xlarge 4xlarge", 2, 17.1),
    **_steps("m3.", "medium large xlarge 2xlarge", 1, 3.75),
    **_steps("m4.", "large xlarge 2xlarge 4xlarge", 2, 8),
    "m4.10xlarge": (40, 160),
    "m4.16xlarge": (64, 256),
    "p2.xlarge": (4, 61),
    "p2.8xlarge": (32, 488),
    "p2.16xlarge": (64, 732),
    **_steps("r3.", "large xlarge 2xlarge 4xlarge 8xlarge", 2, 15.25),
    **_steps("r4.", "large xlarge 2xlarge 4xlarge 8xlarge 16xlarge", 2, 15.25),
    "t1.micro": (1, 0.613),
    "t2.nano": (1, 0.5),
    "t2.micro": (1, 1),
    "t2.small": (1, 2),
    "t2.medium": (2, 4),
    **_steps("t2.", "large xlarge 2xlarge", 2, 8),
    "x1.16xlarge": (64, 976),
    "x1.32xlarge": (128, 1952),
}
AZURE: dict[str, tuple[float, float]] = {
    "ExtraSmall": (1, 0.768),
    **_steps("", "Small Medium Large ExtraLarge", 1, 1.75),
    **_steps("A", "5 6 7", 2, 14),
    **_steps("A", "8 9", 8, 56),
    **_steps("A", "10 11", 8, 56),
    **{f"Standard_A{size}_v2": (size, size * 2) for size in (1, 2, 4, 8)},
    **{f"Standard_A{size}m_v2": (size, size * 8) for size in (2, 4, 8)},
    **_steps("Standard_D", "1 2 3 4", 1, 3.5),
    **_steps("Standard_D", "1_v2 2_v2 3_v2 4_v2 5_v2", 1, 3.5),
    **_steps("Standard_D", "11 12 13 14", 2, 14),
    **_steps("Standard_D", "11_v2 12_v2 13_v2 14_v2", 2, 14),
    "Standard_D15_v2": (20, 140),
    **_steps("Standard_G", "1 2 3 4 5", 2, 28),
    **_steps("Standard_H", "8 16", 8, 56),
    **_steps("Standard_H", "8m 16m", 8, 112),
    "Standard_H16r": (16, 112),
    "Standard_H16mr": (16, 224),
}
GCE: dict[str, tuple[float, float]] = {
    "f1-micro": (0.2, 0.6),
    "g1-small": (0.5, 1.7),
    **_steps("n1-standard-", "1 2 4 8 16 32 64", 1, 3.75),
    **_steps("n1-highcpu-", "2 4 8 16 32 64", 2, 1.8),
    **_steps("n1-highmem-", "2 4 8 16 32", 2, 13),
    "n1-highmem-64": (64, 416),
}
CLOUDS = {"aws": AWS, "azure": AZURE, "gce": GCE}


def limits(raw: object, path: str, problems: Problems) -> dict[str, str]:
    """The config keys that an instance type stands for, as the server works them out."""
    cloud, colon, name = str(raw).rpartition(":")
    if isinstance(raw, str) and (not colon or cloud in CLOUDS):
        places = [CLOUDS[cloud]] if colon else list(CLOUDS.values())
        for types in places:
            if name in types:
                return _config(*types[name])
        custom = {} if colon else _custom(raw)
        if custom:
            return _config(custom.get("c", 0.0), custom.get("m", 0.0))
    known = [name for types in CLOUDS.values() for name in types]
    problems.add(path, raw, RULE + (nearest(name, known) if isinstance(raw, str) else ""))
    return {}


def _custom(raw: str) -> dict[str, float]:
    parts = [_PART.fullmatch(part) for part in raw.split("-")]
    found = {part[1]: float(part[2]) for part in parts if part and float(part[2]) > 0}
    return found if len(found) == len(parts) else {}


def _config(cpu: float, memory: float) -> dict[str, str]:
    """Part of a core is a share of the next whole one."""
    found = {}
    if cpu:
        cores = int(cpu) + (cpu > int(cpu))
        found["limits.cpu"] = str(cores)
        share = int(round(cpu / cores * 100, 6))
        if share < 100:
            found["limits.cpu.allowance"] = f"{share}%"
    if memory:
        found["limits.memory"] = f"{int(memory * 1024)}MiB"
    return found
