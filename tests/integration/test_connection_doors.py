# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection plugin on every way to a server: ansible-core's own test of a connection, and what it leaves out."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import json
import shutil
import subprocess
import sys
import tarfile
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible.release import __version__ as ansible_version

from ansible_collections.mage.lxd.plugins.module_utils._server import options
from ansible_collections.mage.lxd.tests.integration import doors as doors_module
from ansible_collections.mage.lxd.tests.integration import playbook, server
from ansible_collections.mage.lxd.tests.integration.conftest import RunPlaybook

CACHE = playbook.ROOT / ".cache" / "ansible-core"
TARGET = "test/integration/targets/connection"
# The machine's own Python serves a box of busybox, which then starts in a tenth of a second.
USR = ("usr", "disk", "source=/usr", "path=/usr", "readonly=true")
LINKS = "for name in lib lib64; do ln -sf usr/$name /$name; done; ln -sf /proc/mounts /etc/mtab"
# Root has the password toor, by which eve becomes root with busybox's su.
USERS = """chmod u+s /bin/busybox
echo 'root:$1$ab$8y6vgCgl/Zqe.7RgmtdMl1:0:0:root:/root:/bin/sh' >/etc/passwd
echo 'eve:x:1000:1000::/tmp:/bin/sh' >>/etc/passwd"""
GIB = 1 << 30
CLI = {"ansible_lxd_driver": "cli"}
# What a task's host says of the server: a way to it, and the driver if it is not the plugin's own.
DOORS: dict[str, tuple[str, dict[str, str]]] = {
    "lxd": ("lxd", {}),
    "incus": ("incus", {}),
    "https": ("https", {}),
    "ssh": ("ssh", {}),
    "nested": ("nested", {}),
    "nested2": ("nested2", {}),
    "cli-lxd": ("lxd", CLI),
    "cli-incus": ("incus", CLI),
    "cli-nested": ("nested", CLI),
    "cli-nested2": ("nested2", CLI),
}


@dataclasses.dataclass(frozen=True)
class Box:
    """A container with Python, and the variables by which the plugin finds it."""

    name: str
    where: options.ServerOptions
    variables: dict[str, t.Any]


@pytest.fixture(scope="module")
def boxes(doors: doors_module.Doors) -> t.Iterator[dict[str, Box]]:
    """A box for each door; doors to one server share it. Beside it, one that is stopped, and a frozen one."""
    name = server.own_prefix() + "-py"
    servers: dict[str, doors_module.Server] = {}
    made = {}
    for door, (way, further) in DOORS.items():
        at, where = doors.way(way)
        servers[at.name] = at
        made[door] = Box(name, where, {**variables(where), **further})
    with concurrent.futures.ThreadPoolExecutor(len(servers)) as pool:
        list(pool.map(make_boxes, servers.values(), [name] * len(servers)))
    yield made
    with concurrent.futures.ThreadPoolExecutor(len(servers)) as pool:
        list(pool.map(doors_module.Server.delete, servers.values(), [name] * len(servers)))


def make_boxes(at: doors_module.Server, name: str) -> None:
    at.run("init", at.image, name)
    at.run("init", at.image, f"{name}-off")
    at.run("launch", at.image, f"{name}-ice")
    at.run("pause", f"{name}-ice")
    at.run("config", "device", "add", name, *USR)
    at.run("start", name)
    at.run("exec", name, "--", "sh", "-c", f"{LINKS}\n{USERS}")


def variables(where: options.ServerOptions) -> dict[str, t.Any]:
    """The server's options as a host's variables."""
    named = {f"ansible_lxd_{key}": getattr(where, key) for key in options.NAMES}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in named.items() if value}


def inventory(folder: Path, hosts: t.Mapping[str, t.Mapping[str, t.Any]]) -> Path:
    common = {"ansible_connection": "mage.lxd.lxd", "ansible_python_interpreter": "/usr/bin/python3"}
    path = folder / "boxes.yml"
    found = {"boxes": {"hosts": {name: dict(values) for name, values in hosts.items()}, "vars": common}}
    path.write_text(yaml.safe_dump(found), encoding="utf-8")
    return path


def entered(box: Box, **further: t.Any) -> dict[str, t.Any]:
    """The variables of a host that is a box."""
    return {**box.variables, "ansible_lxd_instance": box.name, **further}


@pytest.fixture(scope="module")
def core_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ansible-core's test target, out of the source of the version that is installed."""
    name = f"ansible_core-{ansible_version}"
    archive = CACHE / f"{name}.tar.gz"
    if not archive.exists():
        new = CACHE / "new"
        wanted = ["--no-deps", "--no-binary", "ansible-core", "--dest", str(new), f"ansible-core=={ansible_version}"]
        server.run(sys.executable, "-m", "pip", "download", "--quiet", *wanted, timeout=300)
        (new / archive.name).rename(archive)
    folder = tmp_path_factory.mktemp("core")
    with tarfile.open(archive) as source:
        for one in source:
            file = source.extractfile(one) if one.name.startswith(f"{name}/{TARGET}/") else None
            if file is not None:
                (folder / Path(one.name).name).write_bytes(file.read())
    return folder


def asked(target: Path, folder: Path, hosts: t.Mapping[str, t.Mapping[str, t.Any]]) -> str:
    """Run the target's script on hosts, which it takes one by one. Returns what it printed."""
    # It writes beside itself.
    shutil.copytree(target, folder)
    values = {"target_hosts": "boxes", "action_prefix": "", "remote_tmp": f"/tmp/{folder.name}"}
    values["local_tmp"] = str(folder / "local")
    arguments = [word for key, value in values.items() for word in ("-e", f"{key}={value}")]
    done = subprocess.run(
        ["bash", "test.sh", *arguments],
        cwd=folder,
        env=playbook.ansible_environment(INVENTORY=str(inventory(folder, hosts))),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def test_what_ansible_core_asks_of_a_connection(boxes: dict[str, Box], core_target: Path, tmp_path: Path) -> None:
    # Both ways to bring a module in, in turns; by the first door, both.
    hosts = {door: entered(box, ansible_pipelining=bool(turn % 2)) for turn, (door, box) in enumerate(boxes.items())}
    hosts["lxd-pipelining"] = entered(boxes["lxd"], ansible_pipelining=True)
    half = len(hosts) // 2
    parts = [dict(itertools.islice(hosts.items(), half)), dict(itertools.islice(hosts.items(), half, None))]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        printed = list(pool.map(asked, [core_target] * 2, [tmp_path / "first", tmp_path / "second"], parts))
    for part, text in zip(parts, printed):
        recap = text.split("PLAY RECAP")[1].split("\n\n")[0]
        for host in part:
            (line,) = [line for line in recap.splitlines() if line.startswith(f"{host} ")]
            assert "unreachable=0    failed=0" in line


def test_what_the_inventory_plugin_finds_is_entered(boxes: dict[str, Box], tmp_path: Path) -> None:
    """Its hosts know the whole way: certificates, arguments of ssh, the servers around."""
    servers = []
    for door, box in boxes.items():
        said = {key.removeprefix("ansible_lxd_"): value for key, value in box.variables.items()}
        servers.append({**said, "name": door})
    name = boxes["lxd"].name
    path = tmp_path / "lxd.yml"
    content = {"plugin": "mage.lxd.lxd", "servers": servers, "filters": {"name": name, "status": "running"}}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    argv = [str(playbook.BIN / "ansible"), "all", "-i", str(path), "-m", "ansible.builtin.ping", "-o"]
    done = subprocess.run(
        argv, env=playbook.ansible_environment(), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for door in boxes:
        assert f"{name}.{door} | SUCCESS" in done.stdout
    assert done.stdout.count('"ping": "pong"') == len(boxes)


RAW = """
- hosts: boxes
  gather_facts: false
  tasks:
    - name: Exit with 1
      ansible.builtin.raw: cat /proc/sys/kernel/hostname; echo 'Error{{ ":" }} Instance not found' >&2; exit 1
      failed_when: false
    - name: End by a signal
      ansible.builtin.raw: kill -{{ item }} $$
      loop: [9, 15, 6]
      failed_when: false
"""


def test_codes_and_errors_are_the_same_by_every_door(
    run_playbook: RunPlaybook, boxes: dict[str, Box], tmp_path: Path
) -> None:
    hosts: dict[str, dict[str, t.Any]] = {}
    wrong = {}
    for door, box in boxes.items():
        hosts[door] = entered(box)
        reasons = {
            "off": "instance is not running",
            "ice": "instance is frozen",
            "none": f"there is no such instance on {box.where.shown}",
        }
        for kind, reason in reasons.items():
            hosts[f"{door}-{kind}"] = {**hosts[door], "ansible_lxd_instance": f"{box.name}-{kind}"}
            wrong[f"{door}-{kind}"] = f"default/{box.name}-{kind}: {reason}"
        hosts[f"{door}-project"] = {**hosts[door], "ansible_lxd_project": "nothing"}
        wrong[f"{door}-project"] = f"nothing/{box.name}: {reasons['none']}"
    run = run_playbook(RAW, inventory=inventory(tmp_path, hosts), arguments=("--forks", "4"))
    for door, box in boxes.items():
        ended = run.result("Exit with 1", door)
        assert (ended["rc"], ended["stdout"]) == (1, f"{box.name}\n"), door
        assert ended["stderr"] == "Error: Instance not found\n", door
        assert [one["rc"] for one in run.result("End by a signal", door)["results"]] == [137, 143, 134], door
    said = {one.host: (one.status, one.result["msg"].removeprefix("Task failed: ")) for one in run.failures}
    assert said == {host: ("unreachable", message) for host, message in wrong.items()}


TASKS = """
- hosts: boxes
  gather_facts: false
  tasks:
    - name: Copy a tree
      ansible.builtin.copy:
        src: "{{ tree }}/"
        dest: "/root/{{ inventory_hostname }}/"
        mode: preserve
    - name: Look at the tree
      ansible.builtin.raw: /usr/bin/find /root/{{ inventory_hostname }} -type f -printf '%m %u %s %f\\0'
    - name: Fetch what was copied
      ansible.builtin.fetch:
        src: "/root/{{ inventory_hostname }}/{{ item }}"
        dest: "{{ back }}/{{ inventory_hostname }}/{{ item }}"
        flat: true
      loop: "{{ names }}"
    - name: Fetch what is not there
      ansible.builtin.fetch:
        src: /root/none
        dest: "{{ back }}/none"
      ignore_errors: true
    - name: Start a job
      ansible.builtin.command: sh -c 'sleep 0.3; echo done'
      async: 30
      poll: 0
      register: job
    - name: Ask for the job
      ansible.builtin.async_status:
        jid: "{{ job.ansible_job_id }}"
      register: asked
      until: asked.finished
      delay: 1
      retries: 20
    - name: Set where and with what
      ansible.builtin.shell: echo "$GREETING"; pwd
      args:
        chdir: /tmp
      environment:
        GREETING: "grüß 'Gott'"
    - name: Clean up
      ansible.builtin.raw: rm -r /root/{{ inventory_hostname }}; find / -xdev -name '.mage-*'
    - name: Begin afresh
      ansible.builtin.meta: reset_connection
    - name: Wait for the connection
      ansible.builtin.wait_for_connection:
        timeout: 60
"""
NAMES = ["-rf", "new\nline ümläut $(id)", "sub/deep/quote'\"", "sub/empty"]
# What every door takes is asked of the drivers; all of it by Ansible, of two.
FEW = NAMES[1:2]


def test_what_ansible_core_does_not_ask(run_playbook: RunPlaybook, boxes: dict[str, Box], tmp_path: Path) -> None:
    tree, few, back = tmp_path / "tree", tmp_path / "few", tmp_path / "back"
    for path in (*(tree / name for name in NAMES), *(few / name for name in FEW)):
        name = path.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if "empty" in name else name.encode() * 30_000 + b"\0\xff\r\n")
        path.chmod(0o640)
    hosts = {}
    for turn, (door, box) in enumerate(boxes.items()):
        some = {"tree": str(tree), "names": NAMES} if door in ("lxd", "incus") else {"tree": str(few), "names": FEW}
        hosts[door] = entered(box, ansible_pipelining=bool(turn % 2), **some)
    run = run_playbook(
        TASKS, inventory=inventory(tmp_path, hosts), extra_vars={"back": str(back)}, arguments=("--forks", "10")
    ).succeeded()
    assert set(run.stats) == set(DOORS)
    for host in run.stats:
        names = hosts[host]["names"]
        found = set(run.result("Look at the tree", host)["stdout"].split("\0")) - {""}
        assert found == {f"640 root {(tree / name).stat().st_size} {Path(name).name}" for name in names}
        assert {name: (back / host / name).read_bytes() for name in names} == {
            name: (tree / name).read_bytes() for name in names
        }
        assert run.task("Fetch what is not there", host).status == "ignored"
        assert run.result("Ask for the job", host)["stdout"] == "done"
        assert run.result("Set where and with what", host)["stdout_lines"] == ["grüß 'Gott'", "/tmp"]
        assert run.result("Clean up", host)["stdout"] == ""


SHELL = """
- hosts: boxes
  gather_facts: false
  tasks:
    - name: Be eve
      ansible.builtin.raw: id -un; id -u; pwd; echo $HOME
      loop: [eve, "1000"]
      vars:
        ansible_user: "{{ item }}"
    - name: Become root by su
      ansible.builtin.raw: id -un
      become: true
      become_method: ansible.builtin.su
      vars:
        ansible_user: eve
        ansible_become_password: toor
    - name: Become root by a wrong password
      ansible.builtin.raw: id -un
      become: true
      become_method: ansible.builtin.su
      ignore_errors: true
      vars:
        ansible_user: eve
        ansible_become_password: wrong
    - name: Take too long
      ansible.builtin.raw: sleep 4718; true
      ignore_errors: true
      vars:
        ansible_lxd_command_timeout: 1
    - name: Say too much
      ansible.builtin.raw: echo {{ 'x' * 140000 }}
      ignore_errors: true
    - name: Look for what took too long
      ansible.builtin.raw: ps -o args
    - name: Run a script
      ansible.builtin.script: "{{ script }} one 'two words'"
"""


def test_what_needs_no_python(run_playbook: RunPlaybook, boxes: dict[str, Box], tmp_path: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_text('#!/bin/sh\nfor word; do echo "[$word]"; done\nexit 3\n', encoding="utf-8")
    hosts = inventory(tmp_path, {door: entered(box) for door, box in boxes.items()})
    text = f"{SHELL}      failed_when: false\n"
    run = run_playbook(text, inventory=hosts, extra_vars={"script": str(script)}, arguments=("--forks", "10"))
    assert set(run.succeeded().stats) == set(DOORS)
    for host in DOORS:
        for one in run.result("Be eve", host)["results"]:
            assert one["stdout_lines"] == ["eve", "1000", "/tmp", "/tmp"], host
        assert run.result("Become root by su", host)["stdout"] == "root\n", host
        wrong = run.task("Become root by a wrong password", host)
        assert (wrong.status, wrong.result["stderr"]) == ("ignored", "su: incorrect password\n"), host
        for name, message in (
            ("Take too long", "sleep 4718; true: not done after 1 s; killed"),
            ("Say too much", "command: it is too long: 140005 bytes in one word, and 131071 are the most"),
        ):
            failed = run.task(name, host)
            assert failed.status == "ignored", host
            assert failed.result["msg"].endswith(message), host
        assert "sleep 4718" not in run.result("Look for what took too long", host)["stdout"], host
        ended = run.result("Run a script", host)
        assert (ended["rc"], ended["stdout_lines"]) == (3, ["[one]", "[two words]"]), host


def test_commands_by_hand(boxes: dict[str, Box], tmp_path: Path) -> None:
    hosts = inventory(tmp_path, {door: entered(box) for door, box in boxes.items()})
    argv = [str(playbook.BIN / "ansible"), "boxes", "-i", str(hosts), "-f", "10", "-m", "raw", "-a", "id -un; exit 3"]
    done = subprocess.run(
        argv, env=playbook.ansible_environment(), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 2, done.stdout + done.stderr
    for door in boxes:
        assert f"{door} | FAILED | rc=3 >>\nroot\n" in done.stdout


REBOOT = """
- hosts: {0}
  gather_facts: false
  tasks:
    - name: Reboot
      ansible.builtin.reboot:
        # The box has no boot of its own: what is new is its first process.
        reboot_command: /bin/sh -c "(sleep 1; /bin/busybox reboot -f) >/dev/null 2>&1 &"
        boot_time_command: cut -d " " -f 22 /proc/1/stat
        test_command: "true"
        connect_timeout: 5
        reboot_timeout: 120
    - name: Ask afterwards
      ansible.builtin.raw: cat /proc/sys/kernel/hostname
"""


def test_a_reboot(run_playbook: RunPlaybook, doors: doors_module.Doors, boxes: dict[str, Box], tmp_path: Path) -> None:
    """Doors to one server share its box, and so they take turns."""
    by_server: dict[str, list[str]] = {}
    for door in boxes:
        by_server.setdefault(doors.way(DOORS[door][0])[0].name, []).append(door)
    turns = [[door for door in turn if door] for turn in itertools.zip_longest(*by_server.values())]
    hosts = inventory(tmp_path, {door: entered(box) for door, box in boxes.items()})
    text = "".join(REBOOT.format(":".join(turn)) for turn in turns)
    run = run_playbook(text, inventory=hosts, arguments=("--forks", "10")).succeeded()
    for door, box in boxes.items():
        assert run.result("Reboot", door)["rebooted"], door
        assert run.result("Ask afterwards", door)["stdout"] == f"{box.name}\n", door


INSIDE = """
- hosts: boxes
  gather_facts: false
  tasks:
    - name: Enter
      ansible.builtin.raw: cat; hostname
    - name: Ask by a module
      mage.lxd.instances_info:
        endpoint: "{{ ansible_lxd_endpoint }}"
        via: "{{ ansible_lxd_via }}"
        names: ["{{ ansible_lxd_instance }}"]
      delegate_to: localhost
      vars:
        ansible_connection: local
        ansible_python_interpreter: "{{ ansible_playbook_python }}"
"""


@pytest.fixture
def bare(doors: doors_module.Doors) -> t.Iterator[str]:
    """A box from which a client program reaches a server, and where nothing can join two sockets: no Python, no tool.

    The server is the machine's own.
    """
    at, where = doors.way("lxd")
    name = server.own_prefix() + "-bare"
    at.run("init", at.image, name)
    shared = {"/lib": "/usr/lib", "/lib64": "/usr/lib64", "/bin/lxc": shutil.which("lxc") or ""}
    for path, source in shared.items():
        if Path(source).exists():
            device = path.replace("/", "")
            at.run("config", "device", "add", name, device, "disk", f"source={source}", f"path={path}", "readonly=true")
    socket_path = f"unix:{where.socket_path}"
    at.run("start", name)
    at.run("exec", name, "--", "mkdir", "-p", str(Path(str(where.socket_path)).parent))
    ends = [f"connect={socket_path}", f"listen={socket_path}", "bind=instance", "mode=0600"]
    at.run("config", "device", "add", name, "server", "proxy", *ends)
    yield name
    at.delete(name)


def test_the_client_inside_serves_where_nothing_there_can_join_two_sockets(
    run_playbook: RunPlaybook, boxes: dict[str, Box], bare: str, tmp_path: Path
) -> None:
    box = boxes["lxd"]
    hosts = {
        driver: entered(box, ansible_lxd_via=[bare], ansible_lxd_driver=driver, ansible_pipelining=True)
        for driver in ("auto", "rest")
    }
    run = run_playbook(INSIDE, inventory=inventory(tmp_path, hosts))
    assert run.result("Enter", "auto")["stdout"] == f"{box.name}\n"
    (found,) = run.result("Ask by a module", "auto")["instances"]
    assert (found["name"], found["status"]) == (box.name, "Running")
    assert run.task("Enter", "rest").status == "unreachable"
    assert f"there is neither python3, socat nor nc -U in {bare}" in run.result("Enter", "rest")["msg"]


# How many commands and bytes each door has to bear. No file fits into what memory it may take.
BURDEN = {
    "lxd": (1000, GIB),
    "incus": (200, GIB // 4),
    "https": (200, GIB // 4),
    "ssh": (200, GIB // 4),
    "nested": (100, GIB // 5),
    "cli-lxd": (200, GIB // 5),
    "cli-incus": (60, GIB // 5),
    "cli-nested": (60, GIB // 5),
}


@pytest.mark.parametrize("door", BURDEN)
def test_many_commands_and_large_files(boxes: dict[str, Box], door: str) -> None:
    """In one process with four threads: nothing wrong, nothing left open, little memory; by rest no further process."""
    box = boxes[door]
    commands, size = BURDEN[door]
    worker = str(Path(__file__).with_name("connection_worker.py"))
    argv = [sys.executable, worker, box.name, str(commands), str(size)]
    for key, value in box.variables.items():
        argv.append(f"{key}={','.join(value) if isinstance(value, list) else value}")
    done = subprocess.run(
        argv, env=playbook.ansible_environment(), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["leaked"] <= 5
    assert found["same"]
    assert found["memory"] < 128 << 20
    assert found["started"] == (door in ("cli-lxd", "cli-incus"))
    assert not found["pylxd"]
    told = f"AnsibleConnectionFailure: default/mt-none: there is no such instance on {box.where.shown}"
    assert found["missing"] == [told] * 2
