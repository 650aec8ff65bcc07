# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers in instances of servers: reached through the byte bridge, one and two deep."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.mage.lxd.tests.integration import nested


@pytest.fixture(scope="module")
def boxes(nested_hosts: nested.Hosts) -> t.Iterator[dict[str, nested.Host]]:
    """A running busybox container in each host: its name, and where it is."""
    found = {"in-one": nested_hosts.one, "in-two": nested_hosts.two}
    for name, host in found.items():
        host.launch(name)
    yield found
    for name, host in found.items():
        host.delete(name)


def test_containers_run_in_containers_of_containers(boxes: dict[str, nested.Host]) -> None:
    for name, host in boxes.items():
        assert host.run("lxc", "exec", name, "--", "hostname") == name
