# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Installing a package in a running instance, with whatever package manager it has."""

from __future__ import annotations

import time

from .. import _packages
from .._errors import CommandFailed, MageError
from .driver import Driver

# A network that has just come up may not resolve names yet.
_ATTEMPTS = 3
_PAUSE = 2.0


def install(driver: Driver, instance: str, purpose: str, project: str, timeout: float) -> str:
    """Install what serves a purpose of ``_packages``. Returns the package manager that did.

    Raises MageError where there is none, CommandFailed with the command's output where it fails three times.
    """
    answer = driver.execute(instance, _packages.DETECT, project=project, timeout=60)
    manager = _packages.detected(answer.stdout.decode("utf-8", "replace"))
    if manager is None:
        raise MageError(f"{purpose} is missing, and there is no package manager that is known ({_packages.known()})")
    for command in manager.commands(purpose):
        for attempt in range(1, _ATTEMPTS + 1):
            done = driver.execute(instance, command, project=project, environment=manager.environment, timeout=timeout)
            if done.rc == 0:
                break
            said = (done.stderr or done.stdout).decode("utf-8", "replace")
            if attempt == _ATTEMPTS:
                raise CommandFailed(command, done.rc, said)
            for repair in manager.repairs(said):
                driver.execute(instance, repair, project=project, environment=manager.environment, timeout=timeout)
            time.sleep(_PAUSE)
    return manager.program
