# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the other tests lean on, tried once by itself."""

from __future__ import annotations

import socket
import threading
import typing as t

from ansible_collections.mage.lxd.tests.integration import namespace, nested, server

PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    - name: Change something
      ansible.builtin.copy:
        content: "{{ content }}"
        dest: "{{ folder }}/file"
        mode: "0644"
    - name: Stop here
      ansible.builtin.fail:
        msg: the reason
      when: stop | default(false)
"""


def test_a_playbook_is_read_back_by_task(run_playbook: t.Any, tmp_path: t.Any) -> None:
    values = {"content": "one", "folder": str(tmp_path)}
    checked = run_playbook(PLAY, extra_vars=values, check=True, diff=True).succeeded()
    assert checked.changed == 1
    assert not (tmp_path / "file").exists()
    first = run_playbook(PLAY, extra_vars=values).succeeded()
    assert first.task("Change something").changed
    assert first.task("Stop here").status == "skipped"
    assert first.stats["localhost"]["changed"] == 1
    run_playbook(PLAY, extra_vars=values).unchanged()
    assert run_playbook(PLAY, extra_vars={**values, "stop": True}).failed() == "the reason"


def test_the_server_answers_its_own_client(lxd_query: t.Any) -> None:
    assert lxd_query("/1.0")["api_version"] == "1.0"


def test_the_namespace_reaches_the_host_and_is_gone_afterwards() -> None:
    with namespace.client_namespace() as client, socket.create_server((client.host_address, 0)) as listener:
        answered: list[str] = []
        thread = threading.Thread(target=lambda: answered.append(listener.accept()[1][0]))
        thread.start()
        assert client.connects(client.host_address, listener.getsockname()[1])
        thread.join(30)
        assert answered == [client.address]
    assert client.name not in server.run("ip", "netns", "list")
    assert client.interface not in server.run("ip", "-br", "link")


def test_only_names_of_dead_runs_are_orphans() -> None:
    assert not server.is_orphan(server.own_prefix() + "-web")
    assert not server.is_orphan("web-1")
    assert server.is_orphan("mt4194305-abcd-web")


def test_a_host_goes_with_what_is_frozen_in_it(tmp_path: t.Any) -> None:
    with nested.nested_hosts(tmp_path) as hosts:
        hosts.two.launch("ice")
        hosts.two.run("lxc", "pause", "ice")
        (name,) = hosts.one.via
    assert not server.instances(name)
