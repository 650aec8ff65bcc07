# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory plugin on the real server, which other tests use at the same time: only own instances are looked at."""

from __future__ import annotations

import json
import subprocess
import typing as t
import urllib.parse
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _keys
from ansible_collections.mage.lxd.tests.integration import doors, playbook, server

IMAGE = "mage-test/busybox"
EVIL = "{{ lookup('ansible.builtin.pipe', 'id') }}"


@pytest.fixture(scope="module")
def prefix() -> t.Iterator[str]:
    """Instances of every kind, by their suffixes: run, off, copy, bare, and other in a project of its own."""
    name = server.own_prefix()
    declared = {
        _keys.MANAGED: _keys.encode({}, "default", f"{name}-run"),
        _keys.INVENTORY_NAME: _keys.encode(f"{name}_run".replace("-", "_"), "default", f"{name}-run"),
        "user.note": EVIL,
    }
    settings = [word for key, value in declared.items() for word in ("-c", f"{key}={value}")]
    server.run("lxc", "launch", IMAGE, f"{name}-run", *settings)
    server.run("lxc", "init", IMAGE, f"{name}-off")
    server.run("lxc", "copy", f"{name}-run", f"{name}-copy")
    server.run("lxc", "init", IMAGE, f"{name}-bare", "-c", "image.note={{ 7 * 7 }}")
    server.run("lxc", "config", "device", "add", f"{name}-bare", "eth0", "none")
    server.lxd_query(f"/1.0/instances/{name}-bare", "PATCH", {"description": EVIL})
    server.run("lxc", "project", "create", name, "-c", "features.images=false", "-c", "features.profiles=false")
    server.run("lxc", "--project", name, "init", IMAGE, f"{name}-off")
    yield name
    server.delete_instances(f"{name}-")
    server.run("lxc", "project", "delete", name)


def write(folder: Path, text: str, name: str = "lxd.yml") -> Path:
    path = folder / name
    path.write_text("plugin: mage.lxd.lxd\n" + text, encoding="utf-8")
    return path


def ansible(command: str, path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(playbook.BIN / command), "-i", str(path), *arguments],
        env=playbook.ansible_environment(**environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def listed(path: Path, *arguments: str) -> tuple[dict[str, t.Any], dict[str, set[str]]]:
    """Every host's variables, and the hosts of each group."""
    done = ansible("ansible-inventory", path, "--list", *arguments, ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED="1")
    assert done.returncode == 0, done.stderr
    return shown(done.stdout)


def shown(output: str) -> tuple[dict[str, t.Any], dict[str, set[str]]]:
    found = json.loads(output, object_hook=lambda value: value.get("__ansible_unsafe", value))
    hosts = found.pop("_meta")["hostvars"]
    return hosts, {name: set(group.get("hosts", ())) for name, group in found.items()}


def test_names_groups_and_variables(prefix: str, tmp_path: Path) -> None:
    hosts, groups = listed(write(tmp_path, ""))
    run = f"{prefix}_run".replace("-", "_")
    ours = {name for name, variables in hosts.items() if variables["lxd_instance"].startswith(f"{prefix}-")}
    assert ours == {run, f"{prefix}-off", f"{prefix}-copy", f"{prefix}-bare", f"{prefix}-off.{prefix}"}
    assert ours <= groups["lxd_instances"]
    assert ours & groups["lxd_containers"] == {run}
    assert ours & groups["status_running"] == {run}
    assert groups["project_" + prefix.replace("-", "_")] == {f"{prefix}-off.{prefix}"}
    assert ours <= groups["type_container"] | groups["profile_default"]
    assert hosts[run]["ansible_lxd_instance"] == f"{prefix}-run"
    assert hosts[run]["lxd_profiles"] == ["default"]
    for name in ours:
        assert hosts[name]["ansible_connection"] == "mage.lxd.lxd"
        assert hosts[name]["ansible_user"] == "root"
        assert hosts[name]["ansible_lxd_endpoint"] == "unix:///var/lib/lxd/unix.socket"
    assert hosts[f"{prefix}-off.{prefix}"]["ansible_lxd_project"] == prefix


BOTH = f"""servers:
  - name: lxd
    endpoint: unix://{doors.LXD_SOCKET}
    project: default
  - name: incus
    endpoint: unix://{doors.INCUS_SOCKET}
  - name: gone
    endpoint: unix:///nope
    on_unreachable: warn
timeout: 300
filters:
  name: PREFIX-*
  expression: "'bare' not in lxd_instance"
"""


@pytest.fixture(scope="module")
def incus(prefix: str) -> t.Iterator[doors.Server]:
    """Incus has an instance that names groups and variables, one that LXD has too, and one with a snapshot."""
    own = {
        _keys.GROUPS: f"{prefix}_web".replace("-", "_"),
        _keys.VARS: json.dumps({"http_port": 8080, "evil": EVIL, "ansible_connection": "local"}),
        _keys.NAT: '[{"extport": 8080, "intport": 80}]',
        "limits.memory": "64MiB",
    }
    settings = [word for key, value in own.items() for word in ("-c", f"{key}={value}")]
    doors.INCUS.run("launch", IMAGE, f"{prefix}-web", *settings)
    doors.INCUS.run("init", IMAGE, f"{prefix}-off")
    doors.INCUS.run("snapshot", "create", f"{prefix}-off", "before")
    yield doors.INCUS
    doors.INCUS.delete(f"{prefix}-")


def test_half_of_a_character_in_a_variable_is_left_out(prefix: str, incus: doors.Server, tmp_path: Path) -> None:
    """JSON may hold it; YAML and files do not."""
    name, target = f"{prefix}-off", tmp_path / "all.json"
    path = write(tmp_path, f"endpoint: unix://{doors.INCUS_SOCKET}\nfilters: {{name: {prefix}-*}}\nneed: []\n")
    incus.run("config", "set", name, _keys.VARS, '{"a": "x\\ud800y"}')
    try:
        for how in (("--yaml",), ("--output", str(target))):
            done = ansible("ansible-inventory", path, "--list", *how)
            assert done.returncode == 0, done.stderr
            assert "half of a character" in done.stderr
            assert f"{prefix}-web" in (done.stdout or target.read_text(encoding="utf-8"))
    finally:
        incus.run("config", "unset", name, _keys.VARS)


def test_two_servers_and_one_that_is_gone(prefix: str, incus: doors.Server, tmp_path: Path) -> None:
    path = write(tmp_path, BOTH.replace("PREFIX", prefix) + "prefer: {family: ipv4}\nneed: [state, snapshots]\n")
    done = ansible("ansible-inventory", path, "--list")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert f"{path}:9: servers[2].endpoint: Cannot reach the server at unix:///nope" in said
    hosts, groups = shown(done.stdout)
    run, group = f"{prefix}_run".replace("-", "_"), f"{prefix}_web".replace("-", "_")
    # Both servers have it, and so has neither that name.
    assert set(hosts) == {run, f"{prefix}-copy", f"{prefix}-web", f"{prefix}-off.lxd", f"{prefix}-off.incus"}
    assert groups["server_incus"] == {f"{prefix}-web", f"{prefix}-off.incus"}
    assert groups["network_incusbr0"] == groups["server_incus"]
    assert groups[group] == {f"{prefix}-web"}
    web = hosts[f"{prefix}-web"]
    assert (web["http_port"], web["evil"]) == (8080, EVIL)
    assert f'{_keys.VARS}: "ansible_connection": an instance has no say in this variable' in said
    assert web["ansible_connection"] == "mage.lxd.lxd"
    assert web["ansible_lxd_endpoint"] == f"unix://{doors.INCUS_SOCKET}"
    assert web["ansible_lxd_timeout"] == 300
    assert web["lxd_limits"] == {"memory": "64MiB"}
    assert web["lxd_nat"] == [{"extport": 8080, "intport": 80}]
    assert web["lxd_state"]["processes"] > 0
    assert hosts[f"{prefix}-off.incus"]["lxd_snapshots"][0]["name"] == "before"
    assert hosts[f"{prefix}-off.lxd"]["lxd_snapshots"] == []
    # Its state told the address, if it had one; only the leases are asked besides, for those that are left.
    assert web.get("ansible_host") == (web["lxd_ipv4"][0] if web["lxd_ipv4"] else None)
    assert web["lxd_nics"]["eth0"]["ipv4"] == web["lxd_ipv4"]


def test_hosts_of_two_servers_can_be_used_at_once(prefix: str, incus: doors.Server, tmp_path: Path) -> None:
    path = write(tmp_path, BOTH.replace("PREFIX", prefix))
    run = f"{prefix}_run".replace("-", "_")
    # A variable that the instance names itself is no template either.
    tell = "echo $(hostname) {{ evil | default('none') | urlencode }}"
    done = ansible("ansible", path, f"{run}:{prefix}-web", "-m", "ansible.builtin.raw", "-a", tell)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{run} | CHANGED | rc=0 >>\n{prefix}-run none\n" in done.stdout
    assert f"{prefix}-web | CHANGED | rc=0 >>\n{prefix}-web {urllib.parse.quote(EVIL)}\n" in done.stdout


def test_ssh_by_addresses_and_names_by_template(prefix: str, tmp_path: Path) -> None:
    text = (
        f"connection: ssh\nfilters: {{name: '~{prefix}-(run|off)$', project: default}}\n"
        "hostnames: [lxd_status | lower ~ '-' ~ lxd_instance ~ '-' ~ (more | default('none'))]\n"
        "use_extra_vars: true\ncompose: {told: more}\n"
        f"cache: true\ncache_plugin: ansible.builtin.jsonfile\ncache_connection: {tmp_path}/cache\n"
    )
    path = write(tmp_path, text)
    hosts, _groups = listed(path, "-e", "more=x")
    run, off = f"running-{prefix}-run-x", f"stopped-{prefix}-off-x"
    assert set(hosts) == {run, off}
    assert hosts[run]["ansible_host"] == hosts[run]["lxd_ipv4"][0]
    assert hosts[off]["ansible_host"] == f"{prefix}-off.invalid"
    assert {host["ansible_connection"] for host in hosts.values()} == {"ssh"}
    assert {host["told"] for host in hosts.values()} == {"x"}
    # What the cache holds was made with other variables.
    assert set(listed(path, "-e", "more=y")[0]) == {f"running-{prefix}-run-y", f"stopped-{prefix}-off-y"}


def test_the_graph_and_one_host(prefix: str, tmp_path: Path) -> None:
    # By the client program, too: it says the same.
    path = write(tmp_path, f"filters: {{name: {prefix}-off}}\nproject: {prefix}\ndriver: cli\n")
    assert f"|--@server_lxd:\n  |  |--{prefix}-off\n" in ansible("ansible-inventory", path, "--graph").stdout
    one = json.loads(ansible("ansible-inventory", path, "--host", f"{prefix}-off").stdout)
    assert one["lxd_profiles"] in (["default"], [{"__ansible_unsafe": "default"}])


def test_addresses_are_those_of_the_leases(prefix: str, tmp_path: Path) -> None:
    address = ""
    for _try in range(100):
        state = server.lxd_query(f"/1.0/instances/{prefix}-run/state")["network"]["eth0"]["addresses"]
        address = next((one["address"] for one in state if one["family"] == "inet"), "")
        if address:
            break
    hosts, _groups = listed(write(tmp_path, ""))
    assert address
    assert hosts[f"{prefix}_run".replace("-", "_")]["lxd_ipv4"] == [address]
    assert hosts[f"{prefix}-bare"]["lxd_addresses"] == []


def test_one_project_and_ones_own_groups_and_variables(prefix: str, tmp_path: Path) -> None:
    text = (
        f"project: {prefix}\nstrict: true\ngroups: {{ones_own: lxd_status == 'Stopped'}}\n"
        "keyed_groups: [{prefix: of, key: lxd_type}]\ncompose: {ansible_user: \"'deploy' ~ 1\"}\n"
    )
    hosts, groups = listed(write(tmp_path, text))
    assert set(hosts) == {f"{prefix}-off"}
    assert groups["ones_own"] == groups["of_container"] == {f"{prefix}-off"}
    assert hosts[f"{prefix}-off"]["ansible_user"] == "deploy1"


def test_what_the_server_says_is_never_a_template(prefix: str, tmp_path: Path) -> None:
    path = write(tmp_path, "")
    tell = ["-m", "ansible.builtin.debug", "-a", "msg={{ lxd_description }}{{ lxd_image.note }}"]
    done = ansible("ansible", path, f"{prefix}-bare", *tell)
    assert done.returncode == 0, done.stdout + done.stderr
    assert EVIL in done.stdout
    assert "{{ 7 * 7 }}" in done.stdout
    assert "uid=" not in done.stdout


def test_hosts_can_be_used_at_once_and_stopped_ones_are_unreachable(prefix: str, tmp_path: Path) -> None:
    path = write(tmp_path, "", "shop.incus.yaml")
    run = f"{prefix}_run".replace("-", "_")
    done = ansible("ansible", path, f"{run}:{prefix}-off", "-m", "ansible.builtin.raw", "-a", "hostname")
    assert f"{run} | CHANGED | rc=0 >>\n{prefix}-run\n" in done.stdout
    assert f"{prefix}-off | UNREACHABLE!" in done.stdout
    assert "instance is not running" in done.stdout


def test_a_cache_is_used_until_it_is_flushed(prefix: str, tmp_path: Path) -> None:
    text = f"cache: true\ncache_plugin: ansible.builtin.jsonfile\ncache_connection: {tmp_path}/cache\n"
    path = write(tmp_path, text)
    before = listed(path)
    server.run("lxc", "init", IMAGE, f"{prefix}-new")
    assert listed(path) == before
    ansible("ansible-inventory", path, "--list", "--flush-cache")
    assert f"{prefix}-new" in listed(path)[0]
    server.delete_instances(f"{prefix}-new")


def test_a_cache_answers_for_no_other_server(prefix: str, tmp_path: Path) -> None:
    text = f"cache: true\ncache_plugin: ansible.builtin.jsonfile\ncache_connection: {tmp_path}/cache\n"
    path = write(tmp_path, text + f"filters: {{name: {prefix}-*}}\n")
    there = ansible("ansible-inventory", path, "--graph", LXD_SOCKET=doors.LXD_SOCKET)
    assert f"{prefix}-off" in there.stdout
    elsewhere = ansible("ansible-inventory", path, "--graph", LXD_SOCKET="/nope")
    assert f"{prefix}-off" not in elsewhere.stdout
    assert "Cannot reach the server at unix:///nope" in " ".join(elsewhere.stderr.split())


ABSENT = """servers:
  - name: here
    endpoint: unix://SOCKET
    projects: [default, nope]
  - name: remote
    endpoint: lxc:nope
  - name: certificate
    endpoint: https://rack-1.example.org:8443
    server_cert: none.crt
on_unreachable: warn
"""


def test_servers_that_are_not_there_lose_nobody_else(prefix: str, tmp_path: Path) -> None:
    text = ABSENT.replace("SOCKET", doors.LXD_SOCKET)
    path = write(tmp_path, text)
    done = ansible("ansible-inventory", path, "--list", ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED="1")
    assert done.returncode == 0, done.stderr
    assert f"{prefix}-off" in shown(done.stdout)[0]
    said = " ".join(done.stderr.split())
    for line, words in (
        (5, 'servers[0].projects: "nope": there is none on'),
        (7, 'servers[1].endpoint: "lxc:nope": there is no such remote'),
        (10, f'servers[2].server_cert: "{tmp_path}/none.crt": there is no such file: its instances are missing'),
    ):
        assert f"{path}:{line}: {words}" in said, said
    write(tmp_path, text.replace("warn", "fail"))
    refused = ansible("ansible-inventory", path, "--list", ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED="1")
    assert refused.returncode != 0


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (
            "endpont: x\nservers:\n  - endpoint: ftp://x\n  - {timeout: 0, endpoint: /b}\nfilters:\n  name: ~(\n",
            [
                ":2: endpont: unknown key (did you mean endpoint?)",
                ':4: servers[0].endpoint: "ftp://x": must be unix:///path, https://host:8443',
                ":5: servers[1].timeout: 0: must be 1 to 86400 seconds",
                ':7: filters.name: "~(": is no regular expression',
            ],
        ),
        ("need: []\nendpoint: /nope\n", [":3: endpoint: Cannot reach the server at unix:///nope: there is no such"]),
        ("project: nope\n", [f':2: project: "nope": there is none on unix://{doors.LXD_SOCKET}']),
        ("strict: true\ncompose:\n  b: lxd_type\n  a: nope\n", [":5: compose.a: Could not set a for host"]),
        ("strict: true\nfilters:\n  expression: nope\n", [":4: filters.expression: "]),
        ("groups: {}\ncompose: {a: b\n", [":4: is no YAML: expected ',' or '}'"]),
        (
            "strict: maybe\nkeyed_groups:\n  - key: lxd_type\n    prefx: x\ncache_timeout: x\n",
            [
                ':2: strict: "maybe": must be true or false',
                ":5: keyed_groups[0].prefx: unknown key (did you mean prefix?)",
                ':6: cache_timeout: "x": must be a number of seconds',
            ],
        ),
        ("cache: true\ncache_plugin: nope\n", [":3: cache_plugin: Unable to load the cache plugin"]),
        (
            "cache: true\ncache_plugin: ansible.builtin.jsonfile\ncache_connection: /proc/nope\n",
            [":4: cache_connection: "],
        ),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_place(
    prefix: str, tmp_path: Path, text: str, messages: list[str]
) -> None:
    path = write(tmp_path, text)
    # A file that is no YAML comes to no plugin that others choose by what is in it.
    alone = {"ANSIBLE_INVENTORY_ENABLED": "mage.lxd.lxd", "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "1"}
    done = ansible("ansible-inventory", path, "--list", **alone)
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    for message in messages:
        assert f"{path}{message}" in said, said
