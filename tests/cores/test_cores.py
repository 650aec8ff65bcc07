# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a controller runs of the collection, by every ansible-core that is promised.

On Incus: tests that look at all of LXD run at the same time.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import tempfile
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _keys
from ansible_collections.mage.lxd.tests.cores.environments import Core, cores
from ansible_collections.mage.lxd.tests.integration import doors, nested, playbook, server

EVIL = "{{ lookup('pipe', 'id') }}"
PURE = ("inventory", "inventory_cache", "inventory_file", "inventory_read", "server_options")
# Users and the rules of su, for a container that has hardly more than the machine's /usr.
SETUP = """set -e
echo 'eve:x:1000:1000::/home/eve:/bin/sh' >>/etc/passwd
echo 'eve:x:1000:' >>/etc/group
mkdir -p /etc/pam.d /home/eve /root
chown 1000:1000 /home/eve
for kind in auth account session; do echo "$kind required pam_permit.so"; done >/etc/pam.d/su
"""
# What the instance says of itself, in each place where it can.
SAID = {
    "config": "lxd_config['user.note']",
    "own variable": "own",
    "description": "lxd_description",
    "image": "lxd_image.note",
    "composed": "composed",
    "joined": "joined",
}
INVENTORY = f"""plugin: mage.lxd.lxd
endpoint: unix://{doors.INCUS_SOCKET}
project: default
need: []
filters: {{name: PREFIX-*}}
compose:
  composed: lxd_config['user.note']
  joined: "'<' ~ lxd_description ~ '>'"
groups:
  noted: lxd_config['user.note'] is defined
keyed_groups: [{{key: lxd_type, prefix: kind, separator: '-'}}]
cache: true
cache_plugin: ansible.builtin.jsonfile
cache_connection: CACHE
"""
SAYING = """
- hosts: PREFIX-evil
  gather_facts: false
  tasks:
    - name: groups
      ansible.builtin.debug: {msg: "{{ group_names }}"}
"""
TELL = """
    - name: PLACE in a template
      ansible.builtin.debug: {msg: "{{ VALUE | b64encode }}"}
    - name: PLACE as a variable
      ansible.builtin.debug: {var: "VALUE"}
"""
ENTER = """
- hosts: PREFIX-usr
  gather_facts: false
  vars: {ansible_python_interpreter: /usr/bin/python3}
  tasks:
    - name: raw
      ansible.builtin.raw: hostname
    - name: command
      ansible.builtin.command: {argv: [sh, -c, 'cat; id -un'], stdin: in, stdin_add_newline: false}
    - name: copy
      ansible.builtin.copy: {content: "ü\\n", dest: /root/file, mode: "0640"}
    - name: copy again
      ansible.builtin.copy: {content: "ü\\n", dest: /root/file, mode: "0640"}
    - name: look
      ansible.builtin.raw: cat /root/file; stat -c %a /root/file; rm /root/file
    - name: become
      ansible.builtin.command: id -un
      become: true
      become_method: ansible.builtin.su
      become_user: eve
    - name: become by pipelining
      ansible.builtin.command: id -un
      become: true
      become_method: ansible.builtin.su
      become_user: eve
      vars: {ansible_pipelining: true}
    - name: delegate
      ansible.builtin.raw: hostname
      delegate_to: PREFIX-box
    - name: delegate to the controller
      ansible.builtin.command: echo {{ inventory_hostname }}
      delegate_to: localhost
      vars: {ansible_python_interpreter: "{{ ansible_playbook_python }}"}
"""
EXPECTED = {
    "raw": "PREFIX-usr",
    "command": "inroot",
    "look": "ü\n640",
    "become": "eve",
    "become by pipelining": "eve",
    "delegate": "PREFIX-box",
    "delegate to the controller": "PREFIX-usr",
}


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[str]:
    """Instances by their suffixes: usr has Python, box runs and has none, evil says what it should not."""
    name = server.own_prefix()
    incus = doors.INCUS
    for alias in incus.query("/1.0/images/aliases?recursion=1"):
        if server.is_orphan(alias["name"].replace("/", "-")):
            incus.run("image", "delete", alias["name"])
    archive = tmp_path_factory.mktemp("image") / "usr.tar.gz"
    nested.write_image(archive)
    incus.run("image", "import", str(archive), "--alias", f"{name}/usr")
    try:
        incus.run("init", f"{name}/usr", f"{name}-usr", "-c", "raw.lxc=lxc.init.cmd=/usr/bin/sleep infinity")
        incus.run("config", "device", "add", f"{name}-usr", "usr", "disk", "source=/usr", "path=/usr", "readonly=true")
        incus.run("start", f"{name}-usr")
        incus.run("exec", f"{name}-usr", "--", "sh", "-c", SETUP)
        incus.run("launch", doors.IMAGE, f"{name}-box")
        said = {"user.note": EVIL, "image.note": EVIL, _keys.VARS: json.dumps({"own": EVIL})}
        words = [word for key, value in said.items() for word in ("-c", f"{key}={value}")]
        incus.run("init", doors.IMAGE, f"{name}-evil", "--description", EVIL, *words)
        yield name
    finally:
        incus.delete(f"{name}-")
        incus.run("image", "delete", f"{name}/usr")


@pytest.fixture(scope="module", params=cores(), ids=lambda core: str(core.name))
def core(request: pytest.FixtureRequest) -> Core:
    made: Core = request.param
    made.make()
    return made


@pytest.fixture
def inventory(prefix: str, tmp_path: Path) -> Path:
    path = tmp_path / "incus.yml"
    path.write_text(INVENTORY.replace("PREFIX", prefix).replace("CACHE", str(tmp_path / "cache")), encoding="utf-8")
    return path


def run(core: Core, program: str, *argv: str, **environment: str) -> str:
    """What a program of this ansible-core prints, when it ends well."""
    done = subprocess.run(
        [str(core.program(program)), *argv],
        cwd=playbook.ROOT,
        env=playbook.ansible_environment(**environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def play(core: Core, text: str, inventory: Path, folder: Path) -> tuple[str, dict[str, t.Any]]:
    """The output of a playbook, and each task's result."""
    folder.mkdir()
    (folder / "play.yml").write_text(text, encoding="utf-8")
    output = run(
        core,
        "ansible-playbook",
        *("-vvv", "-i", str(inventory), str(folder / "play.yml")),
        ANSIBLE_CALLBACK_PLUGINS=str(Path(playbook.__file__).parent / "callback"),
        ANSIBLE_CALLBACKS_ENABLED="jsonl",
        MAGE_TEST_RESULTS=str(folder / "results.jsonl"),
    )
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    return output, {line["task"]: line["result"] for line in lines if line["kind"] == "task"}


def test_the_pure_tests(core: Core) -> None:
    files = [f"tests/unit/test_{name}.py" for name in PURE]
    # The path of a socket is short.
    with tempfile.TemporaryDirectory(prefix="mage-") as folder:
        output = run(core, "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={folder}/t", *files)
    passed = re.search(r"^(\d+) passed", output, re.MULTILINE)
    assert passed
    assert int(passed[1]) > 200


def test_what_the_server_says_is_data_from_the_server_and_from_a_cache(
    core: Core, prefix: str, inventory: Path, tmp_path: Path
) -> None:
    """Each value is a template that would run a command, and is never more than its text."""
    tasks = "".join(TELL.replace("PLACE", place).replace("VALUE", value) for place, value in SAID.items())
    for is_first in (True, False):
        output, done = play(core, SAYING.replace("PREFIX", prefix) + tasks, inventory, tmp_path / str(is_first))
        assert ("3 hosts, " in output) is is_first, "the servers were read, or not"
        assert "uid=" not in output
        for place in SAID:
            expected = f"<{EVIL}>" if place == "joined" else EVIL
            assert base64.b64decode(done[f"{place} in a template"]["msg"]).decode() == expected, place
            assert expected in done[f"{place} as a variable"].values(), place
        assert {"noted", "kind_container", "server_incus"} <= set(done["groups"]["msg"])


def test_a_play_over_the_connection(core: Core, prefix: str, inventory: Path, tmp_path: Path) -> None:
    _output, done = play(core, ENTER.replace("PREFIX", prefix), inventory, tmp_path / "play")
    for task, expected in EXPECTED.items():
        assert done[task]["stdout"].strip() == expected.replace("PREFIX", prefix), task
    assert (done["copy"]["changed"], done["copy again"]["changed"]) == (True, False)
