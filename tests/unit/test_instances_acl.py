# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``acl: true`` writes on this machine: only where the server is on it, and before the mount is there."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils._instances import folders, mounts
from ansible_collections.mage.lxd.tests.memory import convergence
from ansible_collections.mage.lxd.tests.memory.driver import Fault, MemoryDriver
from ansible_collections.mage.lxd.tests.memory.store import Store

ITEM = {"name": "a", "image": "busybox", "wait_for": []}


class HereDriver(MemoryDriver):
    """A server whose socket is on this machine."""

    @property
    def endpoint(self) -> str:
        return "unix:///run/memory.socket"


def mounted(folder: Path) -> dict[str, t.Any]:
    return {**ITEM, "mounts": [{"source": str(folder), "path": "/srv", "acl": True}]}


@pytest.mark.parametrize(
    ("endpoint", "here"),
    [
        ("unix:///var/lib/lxd/unix.socket", True),
        ("unix:///var/lib/lxd/unix.socket via outer", False),
        ("https://203.0.113.5:8443", False),
        ("ssh://root@host.example.org", False),
    ],
)
def test_folders_are_known_only_where_the_server_is_here(endpoint: str, here: bool) -> None:
    assert (folders.read([], endpoint) is not None) == here


def test_access_lists_are_refused_where_the_server_is_not_here(tmp_path: Path) -> None:
    driver = MemoryDriver()
    outcome = convergence.run(driver, [mounted(tmp_path)])
    assert "instances[0].mounts[0].acl: access lists are written on the machine that the module runs" in outcome.error
    assert driver.writes == []


@pytest.mark.parametrize("fault", [Fault.KILLED, Fault.KILLED_AFTER])
def test_a_run_that_is_killed_leaves_no_mount_without_its_access_list(
    fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store()
    assert convergence.run(HereDriver(store), [ITEM]).ok
    granted: list[mounts.Mount] = []
    monkeypatch.setattr(folders, "grant", lambda some, config: granted.extend(some))
    struck = _struck(store, fault, tmp_path)
    granted.clear()
    driver = HereDriver(store, struck)
    assert convergence.run(driver, [mounted(tmp_path)]).killed
    assert driver.writes[-1:] == ([("PATCH", "/1.0/instances/a")] if fault is Fault.KILLED_AFTER else [])
    assert granted
    assert convergence.run(HereDriver(store), [mounted(tmp_path)]).ok
    assert "mount-srv" in store.instances["default", "a"]["devices"]
    assert not convergence.run(HereDriver(store), [mounted(tmp_path)]).changed


def _struck(store: Store, fault: Fault, folder: Path) -> dict[int, Fault]:
    """The number of the call that writes the mount: as many come before it as on a server that is the same."""
    twin = Store()
    twin.instances = {key: dict(raw) for key, raw in store.instances.items()}
    driver = HereDriver(twin)
    assert convergence.run(driver, [mounted(folder)]).ok
    return {[method for method, _path in driver.requests].index("PATCH"): fault}
