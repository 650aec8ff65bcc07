# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection plugin, as Ansible uses it."""

from __future__ import annotations

import subprocess
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.tests.integration import doors as doors_module
from ansible_collections.mage.lxd.tests.integration import playbook, server
from ansible_collections.mage.lxd.tests.integration.conftest import RunPlaybook

BUSYBOX = "mage-test/busybox"
DEBIAN = "debian/bookworm"
SETUP = """set -e
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -qy --no-install-recommends python3 sudo
useradd -m -s /bin/bash bob
useradd -m eve
echo 'bob ALL=(ALL) ALL' >/etc/sudoers.d/bob
printf 'bob:secret\\nroot:toor\\n' | chpasswd
"""


@pytest.fixture(scope="module")
def box() -> t.Iterator[str]:
    """A running busybox container: a shell, no Python."""
    name = server.own_prefix() + "-box"
    server.run("lxc", "launch", BUSYBOX, name)
    yield name
    server.delete_instances(name)


@pytest.fixture(scope="module")
def debian() -> t.Iterator[str]:
    """A running Debian container with Python, sudo, and the users bob (who has a password) and eve."""
    name = server.own_prefix() + "-debian"
    server.run("lxc", "launch", DEBIAN, name)
    resolved = f"getent hosts {server.mirror_host()} >/dev/null"
    script = f"for i in $(seq 600); do {resolved} && break; sleep 0.2; done\n" + SETUP
    server.run("lxc", "exec", name, "--", "sh", "-c", script, timeout=900)
    yield name
    server.delete_instances(name)


def inventory(*hosts: str) -> str:
    lines = ["[boxes]", *hosts, "[boxes:vars]", "ansible_connection=mage.lxd.lxd"]
    return "\n".join([*lines, "ansible_python_interpreter=/usr/bin/python3", ""])


def play(tasks: str, head: str = "") -> str:
    return f"- hosts: boxes\n  gather_facts: false\n{head}  tasks:\n{tasks}"


RAW = play("""
    - name: Ask
      ansible.builtin.raw: |
        echo out "$HOME" $(id -u) "$PATH"; echo 'fatal: UNREACHABLE: Permission denied' >&2; exit {{ rc }}
      ignore_errors: true
    - name: Speak no UTF-8
      ansible.builtin.raw: printf '\\303\\244 \\377'
    - name: Use another shell
      ansible.builtin.raw: echo "$0"
      vars:
        ansible_lxd_executable: /bin/ash
    - name: Copy with a shell alone
      ansible.builtin.script: "{{ playbook_dir }}/script.sh one 'two words'"
""")


def test_a_box_with_nothing_but_a_shell(run_playbook: RunPlaybook, tmp_path: Path, box: str) -> None:
    (tmp_path / "run-1").mkdir()
    (tmp_path / "run-1" / "script.sh").write_text('#!/bin/sh\nfor word; do echo "[$word]"; done\n', encoding="utf-8")
    (tmp_path / "run-1").rename(tmp_path / "kept")
    text = RAW.replace("{{ playbook_dir }}", str(tmp_path / "kept"))
    # An address, which the inventory may have for other reasons, is never used.
    hosts = inventory(box, f"a_box ansible_lxd_instance={box} ansible_host=198.51.100.7")
    run = run_playbook(text, inventory=hosts, extra_vars={"rc": 3}).succeeded()
    for host in (box, "a_box"):
        asked = run.result("Ask", host)
        assert asked["rc"] == 3
        assert asked["stdout"].startswith("out /root 0 /usr/local/sbin:")
        assert asked["stderr"] == "fatal: UNREACHABLE: Permission denied\n"
        assert run.result("Speak no UTF-8", host)["stdout"].startswith("ä ")
        assert run.result("Use another shell", host)["stdout"] == "/bin/ash\n"
        assert run.result("Copy with a shell alone", host)["stdout_lines"] == ["[one]", "[two words]"]


DELEGATED = """
- hosts: localhost:{0}
  gather_facts: false
  tasks:
    - name: Enter the other one
      ansible.builtin.raw: cat /proc/sys/kernel/hostname
      delegate_to: "{1}"
    - name: Enter each
      ansible.builtin.raw: cat /proc/sys/kernel/hostname
      delegate_to: "{{{{ item }}}}"
      loop: "{{{{ groups['boxes'] }}}}"
    - name: Put a file there
      ansible.builtin.script: "{2}"
      delegate_to: "{{{{ groups['boxes'][1] }}}}"
"""


def test_a_delegated_task_runs_where_it_is_sent(run_playbook: RunPlaybook, tmp_path: Path, box: str) -> None:
    script = tmp_path / "script.sh"
    script.write_text("cat /proc/sys/kernel/hostname\n", encoding="utf-8")
    other = f"{box}-other"
    server.run("lxc", "launch", BUSYBOX, other)
    hosts = playbook.LOCALHOST + inventory(box, other, f"a_box ansible_lxd_instance={box}")
    run = run_playbook(DELEGATED.format(box, other, script), inventory=hosts).succeeded()
    for host in ("localhost", box):
        assert run.result("Enter the other one", host)["stdout"] == f"{other}\n"
        entered = [one["stdout"].strip() for one in run.result("Enter each", host)["results"]]
        assert entered == [box, other, box]
        assert run.result("Put a file there", host)["stdout"].strip() == other


ITEMS = play("""
    - name: Enter each project
      ansible.builtin.raw: id -u
      vars:
        ansible_lxd_project: "{{ item }}"
      loop: [default, "{{ project }}", default]
    - name: Enter each server
      ansible.builtin.raw: id -u
      vars:
        ansible_lxd_endpoint: "unix://{{ item }}"
      loop: ["{{ lxd }}", "{{ incus }}", "{{ lxd }}"]
    - name: Put a file on each server
      ansible.builtin.script: "{{ script }}"
      delegate_to: "{{ item }}"
      loop: [here, there, here]
""")


def test_each_item_of_a_loop_runs_where_and_as_whom_it_says(
    run_playbook: RunPlaybook, doors: doors_module.Doors, tmp_path: Path, box: str
) -> None:
    """Three instances of one name: on each server one, and one in a project. Each has another number for eve."""
    incus, _options = doors.way("incus")
    name, project = f"{box}-loop", server.own_prefix()
    script = tmp_path / "script.sh"
    script.write_text("id -u\n", encoding="utf-8")
    server.run("lxc", "project", "create", project, "-c", "features.images=false", "-c", "features.profiles=false")
    try:
        for uid, client in enumerate((("lxc",), ("lxc", "--project", project), ("incus",)), 1000):
            server.run(*client, "init", BUSYBOX, name)
            # One network takes a name once.
            server.run(*client, "config", "device", "add", name, "eth0", "none")
            server.run(*client, "start", name)
            line = f"echo 'eve:x:{uid}:{uid}::/tmp:/bin/sh' >>/etc/passwd"
            server.run(*client, "exec", name, "--", "sh", "-c", line)
        address = f"ansible_lxd_instance={name} ansible_user=eve ansible_host=198.51.100.7 ansible_lxd_endpoint=unix://"
        hosts = inventory(f"here {address}{doors_module.LXD_SOCKET}", f"there {address}{doors_module.INCUS_SOCKET}")
        given = {"lxd": doors_module.LXD_SOCKET, "incus": doors_module.INCUS_SOCKET}
        given |= {"project": project, "script": str(script)}
        run = run_playbook(ITEMS, inventory=hosts, extra_vars=given, arguments=("--limit", "here")).succeeded()
        found = {
            task: [one["stdout"].strip() for one in run.result(task, "here")["results"]]
            for task in ("Enter each project", "Enter each server", "Put a file on each server")
        }
    finally:
        incus.delete(name)
        server.delete_instances(name)
        server.run("lxc", "project", "delete", project)
    assert found == {
        "Enter each project": ["1000", "1001", "1000"],
        "Enter each server": ["1000", "1002", "1000"],
        "Put a file on each server": ["1000", "1002", "1000"],
    }


MODULES = play("""
    - name: Ping
      ansible.builtin.ping:
    - name: Wait for a job in the background
      ansible.builtin.command: sh -c 'sleep 0.5; echo done'
      async: 60
      poll: 1
    - name: Begin afresh
      ansible.builtin.meta: reset_connection
    - name: Wait for the connection
      ansible.builtin.wait_for_connection:
        timeout: 60
    - name: Become eve by sudo
      ansible.builtin.command: id -un
      become: true
      become_user: eve
    - name: Become eve by su
      ansible.builtin.command: id -un
      become: true
      become_method: su
      become_user: eve
    - name: Give standard input
      ansible.builtin.command:
        cmd: wc -c
        stdin: "{{ 'x' * 200000 }}"
        stdin_add_newline: false
""")


def test_modules_and_become(run_playbook: RunPlaybook, debian: str) -> None:
    named = f"ansible_lxd_instance={debian} ansible_pipelining"
    hosts = inventory(f"pipelining {named}=true", f"files {named}=false")
    run = run_playbook(MODULES, inventory=hosts).succeeded()
    for host in ("pipelining", "files"):
        assert run.result("Ping", host)["ping"] == "pong"
        assert run.result("Wait for a job in the background", host)["stdout"] == "done"
        assert run.result("Become eve by sudo", host)["stdout"] == "eve"
        assert run.result("Become eve by su", host)["stdout"] == "eve"
        assert run.result("Give standard input", host)["stdout"] == "200000"


USERS = play("""
    - name: Ask
      ansible.builtin.command: sh -c 'id -un; pwd; echo $HOME'
    - name: Become root with a password
      ansible.builtin.command: id -un
      become: true
      when: password is defined
      vars:
        ansible_become_password: "{{ password }}"
    - name: Become root by su with a password
      ansible.builtin.command: id -un
      become: true
      become_method: su
      when: password is defined
      vars:
        ansible_become_password: toor
    - name: Become root without one
      ansible.builtin.command: id -un
      become: true
      when: password is not defined
    - name: Copy as the user
      ansible.builtin.copy:
        content: mine
        dest: ~/file
        mode: "0600"
    - name: Look
      ansible.builtin.command: sh -c 'stat -c "%U:%G" ~/file'
""")


def test_another_user_than_root(run_playbook: RunPlaybook, debian: str) -> None:
    named = f"ansible_lxd_instance={debian} ansible_user"
    client = f"client {named}=bob ansible_lxd_driver=cli"
    hosts = inventory(f"{debian} ansible_user=bob", f"by_number {named}=1000", client)
    run = run_playbook(USERS, inventory=hosts, extra_vars={"password": "secret"}).succeeded()
    for host in (debian, "by_number", "client"):
        assert run.result("Ask", host)["stdout_lines"] == ["bob", "/home/bob", "/home/bob"]
        assert run.result("Become root with a password", host)["stdout"] == "root"
        assert run.result("Become root by su with a password", host)["stdout"] == "root"
        assert run.result("Look", host)["stdout"] == "bob:bob"


WHO = """
- hosts: lxd_instances
  gather_facts: false
  remote_user: "1001"
  tasks:
    - name: Ask who it is
      ansible.builtin.raw: id -u
- hosts: lxd_instances
  gather_facts: false
  vars: {ansible_user: "1002"}
  tasks:
    - name: Ask who it is in this play
      ansible.builtin.raw: id -u
"""


def test_another_user_than_the_inventorys(run_playbook: RunPlaybook, box: str, tmp_path: Path) -> None:
    """The inventory plugin says root, which counts more than all but variables that are nearer."""
    found = tmp_path / "hosts" / "found.lxd.yml"
    found.parent.mkdir()
    found.write_text(f"plugin: mage.lxd.lxd\nfilters: {{name: {box}}}\n", encoding="utf-8")

    def asked(*arguments: str) -> list[str]:
        run = run_playbook(WHO, inventory=found, arguments=arguments).succeeded()
        names = ("Ask who it is", "Ask who it is in this play")
        return [run.result(name, box)["stdout"].strip() for name in names]

    assert asked("-u", "1003") == ["0", "1002"]
    assert asked("-e", "ansible_user=1004") == ["1004", "1004"]
    (found.parent / "group_vars").mkdir()
    (found.parent / "group_vars" / "all.yml").write_text("ansible_lxd_user: '1005'\n", encoding="utf-8")
    assert asked() == ["1005", "1005"]


REBOOT = play("""
    - name: Ask before
      ansible.builtin.raw: cat /proc/sys/kernel/random/boot_id
    - name: Reboot
      ansible.builtin.reboot:
        connect_timeout: 5
        reboot_timeout: 120
    - name: Ask after
      ansible.builtin.raw: cat /proc/sys/kernel/random/boot_id
    - name: Be there when it goes down
      ansible.builtin.raw: systemctl reboot; sleep 60
      ignore_unreachable: true
    - name: Wait until it is up
      ansible.builtin.wait_for_connection:
        sleep: 0
        timeout: 60
    - name: Ask at last
      ansible.builtin.raw: cat /proc/sys/kernel/random/boot_id; id -un
""")


def test_a_container_that_reboots(run_playbook: RunPlaybook, debian: str) -> None:
    run = run_playbook(REBOOT, inventory=inventory(debian)).succeeded()
    assert run.result("Reboot", debian)["rebooted"]
    assert run.result("Reboot", debian)["elapsed"] < 60
    asked = [run.result(name, debian)["stdout_lines"][0] for name in ("Ask before", "Ask after", "Ask at last")]
    assert len(set(asked)) == 3
    message = run.result("Be there when it goes down", debian)["msg"].removeprefix("Task failed: ")
    assert run.result("Be there when it goes down", debian)["unreachable"]
    assert message in (
        f"default/{debian}: the instance was going down or coming up, and its commands were ended",
        f"default/{debian}: instance is not running",
    )


def test_by_hand(box: str, tmp_path: Path) -> None:
    """The programs ansible and ansible-console."""
    hosts = tmp_path / "hosts.ini"
    hosts.write_text(inventory(box), encoding="utf-8")

    def run(*argv: str, stdin: str = "") -> str:
        where = playbook.ansible_environment()
        done = subprocess.run(
            [*argv, "-i", str(hosts)], input=stdin, env=where, capture_output=True, text=True, check=False, timeout=60
        )
        return done.stdout + done.stderr

    assert f"{box} | CHANGED | rc=0 >>\nroot" in run("ansible", "boxes", "-m", "raw", "-a", "id -un")
    said = run("ansible", "boxes", "-u", "www-none", "-m", "raw", "-a", "id -un")
    assert "there is no user www-none in the instance" in said
    said = run("ansible-console", "boxes", stdin="raw echo $((40 + 2)) one\nraw exit 7\nexit\n")
    assert "42 one" in said
    assert "rc=7" in said


def test_who_may_not_enter(run_playbook: RunPlaybook, debian: str) -> None:
    hosts = {
        "wrong": ("bob password=wrong", "Incorrect sudo password"),
        "silent": ("bob", "Missing sudo password"),
        "wrong_by_cli": ("bob ansible_lxd_driver=cli password=wrong", "Incorrect sudo password"),
        "nobody": ("nobody-here", "there is no user nobody-here in the instance"),
    }
    lines = [f"{name} ansible_lxd_instance={debian} ansible_user={user}" for name, (user, _message) in hosts.items()]
    run = run_playbook(USERS, inventory=inventory(*lines))
    said = {task.host: task.result["msg"] for task in run.failures}
    assert said.keys() == hosts.keys()
    for name, (_user, message) in hosts.items():
        assert message in said[name]


PING = play("    - name: Ask\n      ansible.builtin.raw: 'true'\n")


@pytest.fixture(scope="module")
def unreachable(box: str) -> dict[str, str]:
    """Hosts that cannot be reached: a line of the inventory, and the whole message."""
    server.run("lxc", "init", BUSYBOX, f"{box}-off")
    server.run("lxc", "launch", BUSYBOX, f"{box}-ice")
    server.run("lxc", "pause", f"{box}-ice")
    local = "unix:///var/lib/lxd/unix.socket"
    inside = f"Cannot reach the server at {local} via mt-none: there is no instance mt-none on {local}"
    return {
        f"{box}-off": f"default/{box}-off: instance is not running",
        f"{box}-ice": f"default/{box}-ice: instance is frozen",
        "mt-none": f"default/mt-none: there is no such instance on {local}",
        f"other ansible_lxd_instance={box} ansible_lxd_project=none": (
            f"none/{box}: there is no such instance on {local}"
        ),
        "mt_none": (
            f"default/mt_none: there is no such instance on {local} "
            "(names of instances have no underscores: ansible_lxd_instance says which one is meant)"
        ),
        "nowhere ansible_lxd_endpoint=unix:///nope": (
            "default/nowhere: Cannot reach the server at unix:///nope: "
            "there is no such socket: LXD or Incus is not installed or was never started"
        ),
        "inner ansible_lxd_via=mt-none": f"default/inner: {inside}",
        "inner_cli ansible_lxd_via=mt-none ansible_lxd_driver=cli": f"default/inner_cli: {inside}",
        "odd ansible_lxd_endpoint=ftp://x": (
            'default/odd: endpoint: "ftp://x": must be unix:///path, https://host:8443, ssh://user@host, '
            "lxc:REMOTE or incus:REMOTE, or left out for the local server"
        ),
    }


def test_what_cannot_be_reached_is_unreachable_with_one_sentence(
    run_playbook: RunPlaybook, unreachable: dict[str, str]
) -> None:
    run = run_playbook(PING, inventory=inventory(*unreachable))
    assert {task.status for task in run.tasks} == {"unreachable"}
    said = {task.host: task.result["msg"].removeprefix("Task failed: ") for task in run.tasks}
    assert said == {line.split()[0]: message for line, message in unreachable.items()}


def test_a_command_that_takes_too_long_is_killed_inside(run_playbook: RunPlaybook, box: str) -> None:
    text = play("    - name: Sleep\n      ansible.builtin.raw: sleep 4714; true\n")
    run = run_playbook(text, inventory=inventory(box), extra_vars={"ansible_lxd_command_timeout": 1})
    assert run.tasks[0].status == "failed"
    assert "not done after 1 s; killed" in run.failed()
    assert "sleep 4714" not in server.run("lxc", "exec", box, "--", "ps", "-o", "stat,args")
