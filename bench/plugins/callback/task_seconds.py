# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes how long each task took, from its start to its last host's result, into the file MAGE_BENCH_TIMES."""

from __future__ import annotations

DOCUMENTATION = """
name: task_seconds
type: aggregate
short_description: seconds of each task
description: Writes how long each task took, by its name.
"""

import json
import os
import time
import typing as t

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):
    """See DOCUMENTATION."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "task_seconds"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._times: dict[str, float] = {}
        self._name = ""
        self._started = 0.0

    def v2_playbook_on_task_start(self, task: t.Any, is_conditional: bool) -> None:
        """A task begins."""
        self._name = task.get_name()
        self._started = time.monotonic()

    def v2_runner_on_ok(self, result: t.Any) -> None:
        """One host is done; the last one counts."""
        self._times[self._name] = time.monotonic() - self._started

    def v2_playbook_on_stats(self, stats: t.Any) -> None:
        """All is done."""
        with open(os.environ["MAGE_BENCH_TIMES"], "w", encoding="utf-8") as file:
            json.dump(self._times, file)
