# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes every result of a run as a line of JSON, for the integration tests. Not part of the collection."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import typing as t

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: jsonl
type: notification
short_description: Write every task result as a line of JSON
description:
  - Writes to the file that the environment variable E(MAGE_TEST_RESULTS) names.
requirements: []
author:
  - The mage.lxd contributors
"""


class CallbackModule(CallbackBase):
    """One line for each finished task on each host, and one for each host's totals."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "jsonl"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args: t.Any, **kwargs: t.Any) -> None:
        super().__init__(*args, **kwargs)
        self.path = os.environ["MAGE_TEST_RESULTS"]
        # Workers have it too: where one of them hangs, it can be asked where.
        stacks = os.open(self.path + ".stacks", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        faulthandler.register(signal.SIGUSR1, stacks)

    def _write(self, line: dict[str, t.Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as results:
            results.write(json.dumps(line, default=str) + "\n")

    def _result(self, status: str, result: t.Any) -> None:
        self._write(
            {
                "kind": "task",
                "status": status,
                "host": result._host.get_name(),
                "task": result.task_name,
                "action": result._task.action,
                "result": result._result,
            }
        )

    def v2_runner_on_ok(self, result: t.Any) -> None:
        self._result("ok", result)

    def v2_runner_on_failed(self, result: t.Any, ignore_errors: bool = False) -> None:
        self._result("ignored" if ignore_errors else "failed", result)

    def v2_runner_on_unreachable(self, result: t.Any) -> None:
        self._result("unreachable", result)

    def v2_runner_on_skipped(self, result: t.Any) -> None:
        self._result("skipped", result)

    def v2_playbook_on_stats(self, stats: t.Any) -> None:
        for host in sorted(stats.processed):
            self._write({"kind": "stats", "host": host, "stats": stats.summarize(host)})
