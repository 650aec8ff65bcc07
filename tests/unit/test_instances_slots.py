# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many instances are worked on at once, and how many wait."""

from __future__ import annotations

import threading
import typing as t

import pytest

from ansible_collections.mage.lxd.plugins.module_utils._server.driver import Completed, Response
from ansible_collections.mage.lxd.tests.memory import convergence
from ansible_collections.mage.lxd.tests.memory.driver import MemoryDriver
from ansible_collections.mage.lxd.tests.memory.store import Store

ITEMS = [{"name": f"box-{number}", "image": "busybox"} for number in range(12)]


class Watched(MemoryDriver):
    """``operations`` and ``booting`` are the most that there were at once.

    No operation ends before there were ``enough`` at once, and no instance has an address before ``together`` of them
    have started.
    """

    def __init__(self, together: int = 1, enough: int = 1) -> None:
        super().__init__(Store())
        self.operations = self.booting = 0
        self.order: list[str] = []
        self._together = together
        self._enough = enough
        self._under_way = self._boots = self._started = 0
        self._changed = threading.Condition()

    def request(self, method: str, path: str, *args: t.Any, **more: t.Any) -> Response:
        if method == "GET" and path.endswith("/state"):
            return self._state(method, path, *args, **more)
        ends = path.endswith("/wait")
        with self._changed:
            self._under_way += method != "GET"
            self.operations = max(self.operations, self._under_way)
            self._changed.notify_all()
            if ends:
                assert self._changed.wait_for(lambda: self.operations >= self._enough, 20), "nobody else works"
        response = super().request(method, path, *args, **more)
        if method == "PUT" and path.endswith("/state"):
            with self._changed:
                self.order.append(f"start {path.split('/')[3]}")
                self._started += 1
                self._boots += 1
                self.booting = max(self.booting, self._boots)
                self._changed.notify_all()
        with self._changed:
            self._under_way -= ends or (method != "GET" and response.json["type"] != "async")
        return response

    def _state(self, *args: t.Any, **more: t.Any) -> Response:
        response = super().request(*args, **more)
        with self._changed:
            together = self._changed.wait_for(lambda: self._started >= min(self._together, len(ITEMS)), 20)
            assert together, "nobody else starts while this one waits"
            self._boots -= 1
            self.order.append(f"ready {args[1].split('/')[3]}")
        return response

    def execute(self, *args: t.Any, **more: t.Any) -> Completed:
        with self._changed:
            self._under_way += 1
            self.operations = max(self.operations, self._under_way)
        threading.Event().wait(0.01)
        try:
            return super().execute(*args, **more)
        finally:
            with self._changed:
                self._under_way -= 1


@pytest.mark.parametrize("concurrency", [1, 2, 3, 8])
@pytest.mark.parametrize("more", [{}, {"wait_for": ["address", {"exec": ["true"]}]}], ids=["address", "exec"])
def test_no_more_operations_at_once_than_asked_for(concurrency: int, more: dict[str, t.Any]) -> None:
    driver = Watched(enough=concurrency)
    assert convergence.run(driver, [{**item, **more} for item in ITEMS], concurrency=concurrency).ok
    assert driver.operations == concurrency


@pytest.mark.parametrize("concurrency", [2, 3])
def test_what_waits_lets_as_many_others_go_on(concurrency: int) -> None:
    driver = Watched(together=2 * concurrency)
    assert convergence.run(driver, ITEMS, concurrency=concurrency).ok
    assert driver.booting == 2 * concurrency
    assert driver.operations <= concurrency


def test_one_after_the_other_where_that_is_asked_for() -> None:
    driver = Watched()
    assert convergence.run(driver, ITEMS, concurrency=1).ok
    pairs = [driver.order[place : place + 2] for place in range(0, len(driver.order), 2)]
    assert all(start.replace("start", "ready") == ready for start, ready in pairs)
    assert len(pairs) == len(ITEMS)
