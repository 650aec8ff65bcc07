# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs commands so that none outlives an interrupted run."""

from __future__ import annotations

import os
import signal
import subprocess
import typing as t

TIMEOUT = 1800


class Failed(Exception):
    """A contender did not do its job."""


def call(argv: t.Sequence[str], environment: t.Optional[t.Mapping[str, str]] = None) -> tuple[int, str, str]:
    """Run a command: its exit code, stdout and stderr. An interrupted one ends with all that it has started."""
    process = subprocess.Popen(
        argv,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, error = process.communicate(timeout=TIMEOUT)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return process.returncode, output, error
