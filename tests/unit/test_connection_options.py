# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the connection plugin takes of a task, in a process of its own, as Ansible loads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOAD = """
import json, sys
from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import connection_loader, init_plugin_loader
init_plugin_loader()
found = []
made = None
for keys, variables in json.loads(sys.argv[1]):
    # A loop's items share a connection.
    if made is None or not keys.pop("again", False):
        made = connection_loader.get("mage.lxd.lxd", PlayContext(), None)
    made.set_options(task_keys=keys, var_options=variables)
    found.append([made.get_option("remote_addr"), made.get_option("remote_user"), made._server().timeout])
print(json.dumps(found))
"""
# Two instances know the same user by two numbers.
ITEMS = """
import json, sys
from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import connection_loader, init_plugin_loader
init_plugin_loader()
made = connection_loader.get("mage.lxd.lxd", PlayContext(), None)
from ansible_collections.mage.lxd.plugins.module_utils._server.core import CoreDriver
from ansible_collections.mage.lxd.plugins.module_utils._server.driver import Completed
found = []
def execute(door, instance, argv, project="default", user=0, **others):
    if "getent" in argv[2]:
        uid = int(instance[-1]) + 1000
        return Completed(0, f"eve:x:{uid}:{uid}::/home/eve:/bin/sh".encode(), b"")
    found[-1] += [door.endpoint, project, instance, user]
    return Completed(0, b"", b"")
CoreDriver.execute = execute
last = None
for variables in json.loads(sys.argv[1]):
    keys = {"delegate_to": variables.pop("delegate_to", None)}
    found.append([])
    made.set_options(task_keys=keys, var_options=variables)
    made.exec_command("true")
    found[-1].append(made._driver is last)
    last = made._driver
print(json.dumps(found))
"""
SERVER = {"ansible_lxd_endpoint": "unix:///nowhere", "inventory_hostname": "web-1"}


def taken(*given: tuple[dict[str, t.Any], dict[str, t.Any]]) -> list[list[t.Any]]:
    """The instance, the user and the server's timeout, for the keywords of a task and variables."""
    return in_ansible(LOAD, [[keys, {**SERVER, **variables}] for keys, variables in given])


def in_ansible(program: str, asked: t.Any) -> list[list[t.Any]]:
    """What a program that has loaded the plugin prints."""
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".tree")}
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(asked)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return list(json.loads(done.stdout))


def test_a_tasks_own_timeout_is_not_the_servers() -> None:
    """Ansible hands its own on to every option of that name: 10 for a task, 0 for a reset."""
    own = {"ansible_lxd_timeout": 30}
    assert [one[2] for one in taken(({"timeout": 10}, {}), ({"timeout": 0}, {}), ({"timeout": 10}, own))] == [
        600,
        600,
        30,
    ]


def test_who_is_asked_of_whom() -> None:
    delegated = {"delegate_to": "web-2", "remote_user": "eve"}
    named = {"ansible_lxd_instance": "web-3"}
    plugin = {"ansible_user": "root"}
    own = {**plugin, "ansible_lxd_user": "bob"}
    assert [
        one[:2] for one in taken(({}, {}), (delegated, {}), (delegated, named), ({}, own), (delegated, plugin))
    ] == [
        ["web-1", "root"],
        ["web-2", "eve"],
        ["web-3", "eve"],
        ["web-1", "bob"],
        ["web-2", "root"],
    ]


def test_an_item_of_a_loop_takes_what_is_its_own() -> None:
    again = {"again": True}
    given: list[tuple[dict[str, t.Any], dict[str, t.Any]]] = [
        ({"remote_user": "eve", "args": {"a": 1}}, {}),
        ({"remote_user": "eve", "args": {"a": 2}, **again}, {}),
        ({"remote_user": "bob", **again}, {}),
        ({"remote_user": "bob", **again}, {"ansible_lxd_timeout": 30}),
        ({"remote_user": "bob", "delegate_to": "web-2", **again}, {"ansible_lxd_timeout": 30}),
        ({"remote_user": "bob", **again}, {"ansible_lxd_timeout": 30}),
    ]
    assert taken(*given) == [
        ["web-1", "eve", 600],
        ["web-1", "eve", 600],
        ["web-1", "bob", 600],
        ["web-1", "bob", 30],
        ["web-2", "bob", 30],
        ["web-1", "bob", 30],
    ]


def test_an_item_of_a_loop_runs_where_and_as_whom_it_says() -> None:
    eve = {"ansible_user": "eve"}
    given: list[tuple[dict[str, t.Any], list[t.Any]]] = [
        # What is as it was leaves the connection open: items are quick by that.
        ({}, ["unix:///nowhere", "default", "web-1", 0, False]),
        ({}, ["unix:///nowhere", "default", "web-1", 0, True]),
        ({"ansible_lxd_project": "shop"}, ["unix:///nowhere", "shop", "web-1", 0, False]),
        ({"ansible_lxd_project": "blog"}, ["unix:///nowhere", "blog", "web-1", 0, False]),
        ({"ansible_lxd_endpoint": "unix:///there"}, ["unix:///there", "default", "web-1", 0, False]),
        ({}, ["unix:///nowhere", "default", "web-1", 0, False]),
        (eve, ["unix:///nowhere", "default", "web-1", 1001, True]),
        ({**eve, "ansible_lxd_instance": "web-2"}, ["unix:///nowhere", "default", "web-2", 1002, True]),
        ({**eve, "delegate_to": "web-3"}, ["unix:///nowhere", "default", "web-3", 1003, True]),
        ({"ansible_user": "1004", "delegate_to": "web-4"}, ["unix:///nowhere", "default", "web-4", 1004, True]),
        ({**eve, "ansible_lxd_project": "shop"}, ["unix:///nowhere", "shop", "web-1", 1001, False]),
    ]
    assert in_ansible(ITEMS, [{**SERVER, **item} for item, _found in given]) == [found for _item, found in given]
