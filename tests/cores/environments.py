# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An environment for each ansible-core that is promised, under .cache: made once, by the Pythons that are here."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import subprocess
import typing as t
from pathlib import Path

from ansible_collections.mage.lxd.tests.integration import server
from ansible_collections.mage.lxd.tests.integration.playbook import ROOT

Version = tuple[int, int]

# The oldest that are promised, with the first and last Python that they run on.
OLD = {"2.17": ((3, 10), (3, 12)), "2.18": ((3, 11), (3, 13))}
# The newest need at least this. A machine may be older, as Debian 12 is.
MODERN = (3, 12)
PACKAGES = ("pytest", "hypothesis")


@dataclasses.dataclass(frozen=True)
class Core:
    """An ansible-core: what it is called, what pip is asked for, and the Python to run it."""

    name: str
    requirement: str
    python: Path

    @property
    def folder(self) -> Path:
        """Its environment."""
        return ROOT / ".cache" / f"core-{self.name}"

    def program(self, name: str) -> Path:
        """One of its programs."""
        return self.folder / "bin" / name

    @property
    def version(self) -> str:
        """The one that pip has found."""
        found = self.folder.glob("lib/*/site-packages/ansible_core-*.dist-info")
        return next((one.name.removesuffix(".dist-info").split("-")[1] for one in found), "not made")

    def make(self) -> None:
        """Make the environment, unless it is there and whole."""
        stamp = self.folder / "requirements"
        wanted = " ".join((self.requirement, *PACKAGES))
        if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        server.run(str(self.python), "-m", "venv", str(self.folder))
        pip = (str(self.program("python")), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        server.run(*pip, *wanted.split(), timeout=300)
        stamp.write_text(wanted, encoding="utf-8")


@functools.cache
def cores() -> tuple[Core, ...]:
    """Every one that this machine can run. What is promised and cannot be run is in ``left_out``."""
    return _chosen()[0]


@functools.cache
def left_out() -> tuple[str, ...]:
    """What could not be run here, and why."""
    return _chosen()[1]


def _chosen() -> tuple[tuple[Core, ...], tuple[str, ...]]:
    pythons = _pythons()
    machine, newest = next(iter(pythons)), max(pythons)
    found, missing = [], []
    for version, (first, last) in OLD.items():
        fitting = [one for one in pythons if first <= one <= last]
        if fitting:
            found.append(Core(version, f"ansible-core=={version}.*", pythons[fitting[0]]))
        else:
            missing.append(f"ansible-core {version}: left out, no Python from {_text(first)} to {_text(last)} is here")
    for python in dict.fromkeys((machine, newest)):
        found.append(Core(f"newest-{_text(python)}", "ansible-core", pythons[python]))
    if newest < MODERN:
        missing.append(f"the newest ansible-core of all: left out, no Python from {_text(MODERN)} on is here")
    return tuple(found), tuple(missing)


def _pythons() -> dict[Version, Path]:
    """Pythons by version, the machine's own first: those on the path, and those of pyenv and uv."""
    candidates = [Path("/usr/bin/python3")]
    for minor in range(10, 20):
        on_path = shutil.which(f"python3.{minor}")
        candidates += [Path(on_path)] if on_path else []
    for pattern in (".pyenv/versions/3.*/bin/python3", ".local/share/uv/python/cpython-3.*/bin/python3"):
        candidates += sorted(Path.home().glob(pattern))
    found: dict[Version, Path] = {}
    for path in candidates:
        version = _version(path)
        if version:
            found.setdefault(version, path)
    return found


def _version(path: Path) -> t.Optional[Version]:
    """None for what does not run: a launcher of pyenv may lead nowhere."""
    script = "import sys, venv, ensurepip; print(sys.version_info[0], sys.version_info[1])"
    try:
        done = subprocess.run([path, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    major, minor = done.stdout.split()
    return int(major), int(minor)


def _text(version: Version) -> str:
    return f"{version[0]}.{version[1]}"
