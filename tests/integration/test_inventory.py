# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory plugin on the real server, which other tests use at the same time: only own instances are looked at."""

from __future__ import annotations

import json
import subprocess
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _keys
from ansible_collections.mage.lxd.tests.integration import playbook, server

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


def listed(path: Path, **environment: str) -> tuple[dict[str, t.Any], dict[str, set[str]]]:
    """Every host's variables, and the hosts of each group."""
    done = ansible("ansible-inventory", path, "--list", ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED="1", **environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout, object_hook=lambda value: value.get("__ansible_unsafe", value))
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("endpont: x\n", "endpont: unknown key (did you mean endpoint?)"),
        ("endpoint: ftp://x\n", 'endpoint: "ftp://x": must be unix:///path, https://host:8443, ssh://user@host'),
        ("endpoint: unix:///nope\n", "Cannot reach the server at unix:///nope: there is no such socket"),
        ("endpoint: https://x\n", "client_cert, client_key: a server at https:// needs both"),
        ("project: nope\n", 'project: "nope": there is none on unix:///var/lib/lxd/unix.socket'),
        ("strict: true\ncompose: {a: nope}\n", "Could not set a for host"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_name(prefix: str, tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    done = ansible("ansible-inventory", path, "--list", ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED="1")
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert str(path) in said
    assert message in said
