# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a playbook as a user would and reads what each task answered."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import typing as t
from pathlib import Path

from ansible_collections.mage.lxd.tests.integration import processes

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
LOCALHOST = 'localhost ansible_connection=local ansible_python_interpreter="{{ ansible_playbook_python }}"\n'


def ansible_environment(**extra: str) -> dict[str, str]:
    """The environment in which every Ansible command of the tests runs: this checkout's collection, no colours."""
    return {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".tree"),
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "PATH": f"{BIN}:{os.environ['PATH']}",
        **extra,
    }


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """What one task answered on one host. status is ok, failed, ignored, unreachable or skipped."""

    host: str
    task: str
    action: str
    status: str
    result: dict[str, t.Any]

    @property
    def changed(self) -> bool:
        return bool(self.result.get("changed", False))


@dataclasses.dataclass(frozen=True)
class PlaybookRun:
    """A finished run: exit code, output, every task's result, and the totals of each host."""

    rc: int
    output: str
    tasks: tuple[TaskResult, ...]
    stats: dict[str, dict[str, int]]

    @property
    def changed(self) -> int:
        """How many tasks changed something, over all hosts."""
        return sum(host["changed"] for host in self.stats.values())

    @property
    def failures(self) -> tuple[TaskResult, ...]:
        return tuple(task for task in self.tasks if task.status in ("failed", "unreachable"))

    def task(self, name: str, host: str = "localhost") -> TaskResult:
        """The one result of the task that ends in this name (roles put their own name before it)."""
        found = [task for task in self.tasks if task.host == host and task.task.endswith(name)]
        assert len(found) == 1, f"{len(found)} results of {name!r} on {host}; there are {[x.task for x in self.tasks]}"
        return found[0]

    def result(self, name: str, host: str = "localhost") -> dict[str, t.Any]:
        return self.task(name, host).result

    def succeeded(self) -> PlaybookRun:
        """This run, or a failed test that shows the whole output."""
        assert self.rc == 0, self.output
        return self

    def unchanged(self) -> PlaybookRun:
        """This run, or a failed test that names the tasks that changed something."""
        changes = [(task.host, task.task, task.result) for task in self.tasks if task.changed]
        assert self.succeeded().changed == 0, changes
        return self

    def failed(self) -> str:
        """The messages of what failed, one a line; a failed test if nothing did."""
        assert self.rc != 0, f"expected a failure:\n{self.output}"
        return "\n".join(str(task.result.get("msg", task.result)) for task in self.failures) or self.output


def _read_results(path: Path) -> tuple[tuple[TaskResult, ...], dict[str, dict[str, int]]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    tasks = tuple(
        TaskResult(line["host"], line["task"], line["action"], line["status"], line["result"])
        for line in lines
        if line["kind"] == "task"
    )
    return tasks, {line["host"]: line["stats"] for line in lines if line["kind"] == "stats"}


def run_playbook(
    folder: Path,
    playbook: str | Path,
    *,
    inventory: str | Path = LOCALHOST,
    extra_vars: dict[str, t.Any] | None = None,
    check: bool = False,
    diff: bool = False,
    arguments: t.Sequence[str] = (),
    environment: dict[str, str] | None = None,
    prefix: t.Sequence[str] = (),
    timeout: float = 600,
) -> PlaybookRun:
    """Run a playbook (its text, or the path of a file) in a process of its own.

    folder is an empty place for its files; inventory is the text of an INI inventory, or a path; prefix is put before
    the command (``["ip", "netns", "exec", name]``); timeout is in seconds.
    """
    results = folder / "results.jsonl"
    if isinstance(playbook, str):
        (folder / "playbook.yml").write_text(playbook, encoding="utf-8")
        playbook = folder / "playbook.yml"
    if isinstance(inventory, str):
        (folder / "hosts.ini").write_text(inventory, encoding="utf-8")
        inventory = folder / "hosts.ini"
    argv = [*prefix, str(BIN / "ansible-playbook"), "-i", str(inventory), *arguments]
    if extra_vars:
        argv += ["--extra-vars", json.dumps(extra_vars)]
    argv += [*(["--check"] if check else []), *(["--diff"] if diff else []), str(playbook)]
    process = subprocess.Popen(
        argv,
        cwd=ROOT,
        env=ansible_environment(
            ANSIBLE_CALLBACK_PLUGINS=str(Path(__file__).parent / "callback"),
            ANSIBLE_CALLBACKS_ENABLED="jsonl",
            MAGE_TEST_RESULTS=str(results),
            **(environment or {}),
        ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    with process:
        try:
            output, _none = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            told = _where_it_hangs(process, Path(f"{results}.stacks"))
            process.kill()
            output, _none = process.communicate()
            raise AssertionError(f"not done after {timeout:g} s:\n{output}\n{told}") from None
        except BaseException:
            process.kill()
            raise
    tasks, stats = _read_results(results)
    return PlaybookRun(process.returncode, output, tasks, stats)


def _where_it_hangs(process: subprocess.Popen[str], stacks: Path) -> str:
    """The stacks of Ansible's processes, and the open files of each."""
    told = []
    for pid in processes.descendants(process.pid):
        command = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").replace("\0", " ")
        files = [f"{one.name} {os.readlink(one)}" for one in Path(f"/proc/{pid}/fd").iterdir()]
        told.append(f"{pid} {command}\n  {', '.join(files)}")
        if "ansible-playbook" in command:
            os.kill(pid, signal.SIGUSR1)
            # One after the other: they write into one file.
            time.sleep(0.5)
    return "\n".join([*told, stacks.read_text(encoding="utf-8") if stacks.exists() else "no stacks"])
