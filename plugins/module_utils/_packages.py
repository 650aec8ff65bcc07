# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Package managers inside instances: how one is found, and what it is told to install. Tables of commands, no I/O."""

from __future__ import annotations

import dataclasses
import typing as t

# What an instance is to be able to do.
PYTHON = "python"
NGINX = "nginx"


@dataclasses.dataclass(frozen=True)
class Manager:
    """A package manager. ``refresh`` and ``install`` are command lines; ``packages`` says what serves a purpose, and
    ``repair`` by which words it asks for which command after an installation that was cut off."""

    program: str
    refresh: tuple[str, ...]
    install: tuple[str, ...]
    packages: t.Mapping[str, tuple[str, ...]]
    environment: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    repair: t.Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def commands(self, purpose: str) -> tuple[tuple[str, ...], ...]:
        """The command lines to run one after another, as root, with ``environment``, for PYTHON or NGINX."""
        install = self.install + self.packages[purpose]
        return (self.refresh, install) if self.refresh else (install,)

    def repairs(self, output: str) -> tuple[tuple[str, ...], ...]:
        """The command lines that a failed one has asked for."""
        return tuple(command for words, command in self.repair.items() if words in output)


# Another installation may hold the lock, as cloud-init and apt-daily do after the first boot.
_APT = ("apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=3")

MANAGERS = (
    Manager(
        "apt-get",
        (*_APT, "update"),
        (*_APT, "install", "--no-install-recommends", "--"),
        {PYTHON: ("python3", "python3-apt"), NGINX: ("nginx",)},
        {"DEBIAN_FRONTEND": "noninteractive"},
        {"dpkg --configure -a": ("dpkg", "--configure", "-a")},
    ),
    Manager("dnf", (), ("dnf", "-q", "-y", "install"), {PYTHON: ("python3",), NGINX: ("nginx",)}),
    Manager("apk", (), ("apk", "add", "-q", "--update-cache"), {PYTHON: ("python3",), NGINX: ("nginx",)}),
    Manager(
        "zypper",
        (),
        ("zypper", "-q", "--non-interactive", "install", "--no-recommends"),
        {PYTHON: ("python3",), NGINX: ("nginx",)},
    ),
    # An upgrade of everything, since pacman supports no partial one.
    Manager("pacman", (), ("pacman", "-Syuq", "--noconfirm", "--needed"), {PYTHON: ("python",), NGINX: ("nginx",)}),
)

# Prints the first manager that is there; a constant, so nothing that a user wrote reaches the shell.
DETECT = (
    "sh",
    "-c",
    "for program in "
    + " ".join(manager.program for manager in MANAGERS)
    + '; do if command -v "$program" >/dev/null 2>&1; then echo "$program"; exit 0; fi; done; exit 0',
)


def detected(output: str) -> t.Optional[Manager]:
    """The manager that the output of DETECT names, or None where there is none."""
    for manager in MANAGERS:
        if manager.program == output.strip():
            return manager
    return None


def known() -> str:
    """The managers, for messages."""
    return ", ".join(manager.program for manager in MANAGERS)
