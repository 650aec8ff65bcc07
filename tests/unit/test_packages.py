# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said to the package manager of an instance, and what becomes of a manager that is missing or fails."""

from __future__ import annotations

import time
import typing as t

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _packages
from ansible_collections.mage.lxd.plugins.module_utils._errors import CommandFailed, MageError
from ansible_collections.mage.lxd.plugins.module_utils._packages import NGINX, PYTHON
from ansible_collections.mage.lxd.plugins.module_utils._server import install
from ansible_collections.mage.lxd.plugins.module_utils._server.driver import Completed, Driver

APT = "apt-get -q -y -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3"


@pytest.mark.parametrize(
    ("program", "purpose", "lines"),
    [
        ("apt-get", PYTHON, [f"{APT} update", f"{APT} install --no-install-recommends -- python3 python3-apt"]),
        ("apt-get", NGINX, [f"{APT} update", f"{APT} install --no-install-recommends -- nginx"]),
        ("dnf", PYTHON, ["dnf -q -y install python3"]),
        ("dnf", NGINX, ["dnf -q -y install nginx"]),
        ("apk", PYTHON, ["apk add -q --update-cache python3"]),
        ("apk", NGINX, ["apk add -q --update-cache nginx"]),
        ("zypper", PYTHON, ["zypper -q --non-interactive install --no-recommends python3"]),
        ("zypper", NGINX, ["zypper -q --non-interactive install --no-recommends nginx"]),
        ("pacman", PYTHON, ["pacman -Syuq --noconfirm --needed python"]),
        ("pacman", NGINX, ["pacman -Syuq --noconfirm --needed nginx"]),
    ],
)
def test_each_manager_is_told_in_its_own_words(program: str, purpose: str, lines: list[str]) -> None:
    manager = _packages.detected(f"{program}\n")
    assert manager is not None
    assert [" ".join(command) for command in manager.commands(purpose)] == lines
    assert manager.environment == ({"DEBIAN_FRONTEND": "noninteractive"} if program == "apt-get" else {})


def test_every_manager_is_looked_for_and_serves_every_purpose() -> None:
    assert _packages.known() == "apt-get, dnf, apk, zypper, pacman"
    assert f"for program in {_packages.known().replace(',', '')};" in _packages.DETECT[2]
    assert all(set(manager.packages) == {PYTHON, NGINX} for manager in _packages.MANAGERS)


@pytest.mark.parametrize("output", ["", "\n", "yum\n", "dnf apk\n"])
def test_what_is_not_known_is_no_manager(output: str) -> None:
    assert _packages.detected(output) is None


class Instance:
    """A driver to one instance: its manager, and what the manager answers, one after another."""

    def __init__(self, program: str, answers: t.Iterable[Completed] = ()) -> None:
        self.program = program
        self.answers = iter(answers)
        self.told: list[str] = []

    def execute(self, instance: str, argv: t.Sequence[str], **options: t.Any) -> Completed:
        assert (instance, options["project"]) == ("web-1", "default")
        if tuple(argv) == _packages.DETECT:
            return Completed(0, f"{self.program}\n".encode(), b"")
        self.told.append(" ".join(argv))
        assert options["timeout"] == 5
        assert ("DEBIAN_FRONTEND" in options["environment"]) is (self.program == "apt-get")
        return next(self.answers)


OK = Completed(0, b"", b"")


def failed(text: str) -> Completed:
    return Completed(100, b"on stdout", text.encode())


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were asked for, and not taken."""
    taken: list[float] = []
    monkeypatch.setattr(time, "sleep", taken.append)
    return taken


def installed(instance: Instance, purpose: str = NGINX) -> str:
    return install.install(t.cast(Driver, instance), "web-1", purpose, "default", 5)


def test_the_manager_that_did_it_is_told(pauses: list[float]) -> None:
    instance = Instance("apt-get", [OK, OK])
    assert installed(instance) == "apt-get"
    assert [line.split()[7] for line in instance.told] == ["update", "install"]
    assert pauses == []


def test_what_fails_once_is_tried_again(pauses: list[float]) -> None:
    instance = Instance("apt-get", [failed("no such host"), OK, failed("no such host"), OK])
    assert installed(instance) == "apt-get"
    assert [line.split()[7] for line in instance.told] == ["update", "update", "install", "install"]
    assert pauses == [2.0, 2.0]


def test_what_was_cut_off_is_finished_first() -> None:
    said = "E: dpkg was interrupted, you must manually run 'dpkg --configure -a' to correct the problem."
    instance = Instance("apt-get", [OK, failed(said), OK, OK])
    assert installed(instance) == "apt-get"
    assert [line.split()[0] for line in instance.told] == ["apt-get", "apt-get", "dpkg", "apt-get"]
    assert instance.told[2] == "dpkg --configure -a"


def test_what_fails_three_times_is_told_with_the_last_words(pauses: list[float]) -> None:
    instance = Instance("dnf", [failed("first"), failed("second"), failed("no package nginx")])
    with pytest.raises(CommandFailed, match="no package nginx") as caught:
        installed(instance)
    assert "dnf -q -y install nginx" in str(caught.value)
    assert len(instance.told) == 3
    assert pauses == [2.0, 2.0]


def test_a_manager_that_says_nothing_on_stderr_is_quoted_from_stdout() -> None:
    with pytest.raises(CommandFailed, match="on stdout"):
        installed(Instance("apk", [failed("")] * 3))


def test_without_a_manager_the_error_says_which_are_known() -> None:
    instance = Instance("")
    rule = r"^python is missing, and there is no package manager that is known \(apt-get, dnf, apk, zypper, pacman\)$"
    with pytest.raises(MageError, match=rule):
        installed(instance, PYTHON)
    assert instance.told == []
