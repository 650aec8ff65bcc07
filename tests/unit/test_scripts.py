# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scripts on machines that are not ready: programs of the machine are replaced by ones that say what they were told."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CUT_OFF = "E: dpkg was interrupted, you must manually run 'dpkg --configure -a' to correct the problem."
LOCKED = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)"


def program(folder: Path, name: str, script: str) -> None:
    """A program that writes its name and arguments into the log, and then runs the script."""
    path = folder / name
    path.write_text(f'#!/bin/sh\necho "{name} $*" >>"{folder}/log"\n{script}\n', encoding="utf-8")
    path.chmod(0o755)


def run(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=60)


def told(folder: Path) -> list[str]:
    return [line.split()[0] for line in (folder / "log").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("first", "expected"),
    [(CUT_OFF, ["apt-get", "dpkg", "apt-get"]), (LOCKED, ["apt-get", "sleep", "apt-get"])],
)
def test_a_machine_that_is_not_ready_for_apt_is_waited_for_and_repaired(
    tmp_path: Path, first: str, expected: list[str]
) -> None:
    program(
        tmp_path, "apt-get", f'[ -e "{tmp_path}/second" ] || {{ touch "{tmp_path}/second"; echo "{first}"; exit 100; }}'
    )
    for name in ("dpkg", "sleep"):
        program(tmp_path, name, "")
    done = run(tmp_path, "bash", "-c", f'. "{ROOT}/scripts/lib.sh"; apt update')
    assert done.returncode == 0, done.stderr
    assert told(tmp_path) == expected


def test_what_apt_cannot_do_is_told_in_its_words(tmp_path: Path) -> None:
    program(tmp_path, "apt-get", "echo 'E: Unable to locate package nothing'; exit 100")
    done = run(tmp_path, "bash", "-c", f'. "{ROOT}/scripts/lib.sh"; apt install nothing')
    assert done.returncode == 1
    assert "apt-get install nothing failed: E: Unable to locate package nothing" in done.stderr
    assert told(tmp_path) == ["apt-get"]


def test_scripts_need_neither_a_language_nor_the_folders_of_root(tmp_path: Path) -> None:
    done = subprocess.run(
        ["/bin/bash", "-c", f'. "{ROOT}/scripts/lib.sh"; echo "$LC_ALL $PATH"'],
        env={"PATH": "/usr/bin:/bin", "LANG": "de_DE.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    language, path = done.stdout.split()
    assert language == "C.UTF-8"
    assert {"/usr/sbin", "/sbin"} <= set(path.split(":"))


@pytest.mark.parametrize(
    ("mirror", "brought"), [("https://mirror.example.org/debian", True), ("http://m.example.org", False)]
)
def test_an_image_of_an_https_mirror_has_its_certificates(tmp_path: Path, mirror: str, brought: bool) -> None:
    program(tmp_path, "client", "echo '[]'")
    program(tmp_path, "mmdebstrap", "exit 9")
    script = (ROOT / "roles/lxd_host/files/mage-lxd-image.sh").read_text(encoding="utf-8")
    script = script.replace("/var/cache/mage-lxd", str(tmp_path / "work"))
    (tmp_path / "mage-lxd-image.sh").write_text(script, encoding="utf-8")
    done = run(
        tmp_path,
        "bash",
        str(tmp_path / "mage-lxd-image.sh"),
        str(tmp_path / "client"),
        "a",
        "build",
        "bookworm",
        mirror,
        "",
        "x",
    )
    assert "mmdebstrap bookworm failed" in done.stderr
    (line,) = [
        one for one in (tmp_path / "log").read_text(encoding="utf-8").splitlines() if one.startswith("mmdebstrap")
    ]
    assert ("ca-certificates" in line) is brought


@pytest.mark.parametrize(
    ("sources", "lines"),
    [
        (["{0}|{0}|Debian|http://m.example.org/debian/"], ["deb http://m.example.org/debian/ {0} main"]),
        (["stable|{0}|Debian|http://m.example.org/debian"], ["deb http://m.example.org/debian {0} main"]),
        (["{0}|{0}|Debian|http://m.example.org/remote/"], ["deb http://m.example.org/remote/ {0} main"]),
        # Without the lists, apt knows neither codename nor origin.
        (["{0}|$(CODENAME)|$(ORIGIN)|http://m.example.org/debian/"], ["deb http://m.example.org/debian/ {0} main"]),
        (
            [
                "{0}-updates|{0}|Ubuntu|http://u.example.org/ubuntu/",
                "{0}-security|{0}|Ubuntu|http://s.example.org/ubuntu/",
                "{0}|{0}|Ubuntu|http://m.example.org/ubuntu/",
            ],
            ["deb http://m.example.org/ubuntu/ {0} main", "deb http://s.example.org/ubuntu/ {0}-security main"],
        ),
        (["{0}|{0}|Somebody|http://m.example.org/tools/"], []),
    ],
)
def test_a_build_takes_the_mirror_that_the_machine_uses(tmp_path: Path, sources: list[str], lines: list[str]) -> None:
    release = Path("/etc/os-release").read_text(encoding="utf-8")
    codename = release.partition("VERSION_CODENAME=")[2].split()[0]
    told = "\n".join(sources).format(codename)
    (tmp_path / "apt-get").write_text(f"#!/bin/sh\ncat <<'END'\n{told}\nEND\n", encoding="utf-8")
    (tmp_path / "apt-get").chmod(0o755)
    script = (ROOT / "roles/lxd_host/files/mage-lxd-image.sh").read_text(encoding="utf-8")
    functions = script[script.index("sources() {") : script.index("# metadata DIRECTORY")]
    done = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", f"{functions}\nown_mirror {codename}"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = [line.format(codename) for line in lines]
    assert [line for line in done.stdout.splitlines() if "-updates main" not in line] == expected
