# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role lxd_provisioning, the seed's playbook and the demo on the real server, as a user runs them."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.mage.lxd.tests.integration import server
from ansible_collections.mage.lxd.tests.integration.namespace import Namespace
from ansible_collections.mage.lxd.tests.integration.playbook import BIN, ROOT, PlaybookRun, ansible_environment

Run = t.Callable[..., PlaybookRun]
Query = t.Callable[..., t.Any]
Unique = t.Callable[[str], str]

# What a token says of its server, and the containers know it by.
PIN = "5c" * 32
PLAY = """
- hosts: localhost
  gather_facts: false
  roles:
    - role: mage.lxd.lxd_provisioning

- hosts: lxd_containers
  gather_facts: false
  tasks:
    - name: Ask who it is
      ansible.builtin.raw: hostname
      changed_when: false
"""


class Site:
    """A list of busybox containers, with files of its own where the host's would be."""

    def __init__(self, run_playbook: Run, unique: Unique, folder: Path) -> None:
        self._run = run_playbook
        self.hosts = folder / "hosts"
        self.hosts.write_text("127.0.0.1 localhost\n", encoding="utf-8")
        self.inventory = folder / "inventory.ini"
        self.names = [unique("web").replace("-web", "_web"), unique("tcp"), unique("off")]
        self.web, self.tcp, self.off = (name.replace("_", "-") for name in self.names)
        self.proxy = unique("proxy")

    def items(self, **common: t.Any) -> list[dict[str, t.Any]]:
        image = {"image": "mage-test/busybox", **common}
        return [
            {"name": self.names[0], "nat": [{"extport": 39180, "intport": 80}], **image},
            {"name": self.names[1], "hostnames": [f"{self.tcp}.example.org"], **image},
            {"name": self.names[2], "state": "stopped", **image},
        ]

    def provision(self, items: list[dict[str, t.Any]], playbook: str | Path = PLAY, **options: t.Any) -> PlaybookRun:
        variables = {
            "lxd_provisioning_inventory": items,
            "lxd_provisioning_python": False,
            "lxd_provisioning_owner": self.proxy,
            "lxd_provisioning_hosts_file": str(self.hosts),
            "lxd_provisioning_static_inventory": str(self.inventory),
            "mageproxy_name": self.proxy,
            "mageproxy_nat": [],
            **options.pop("extra", {}),
        }
        return self._run(playbook, extra_vars=variables, **options)


@pytest.fixture
def site(run_playbook: Run, unique_name: Unique, tmp_path: Path) -> Site:
    return Site(run_playbook, unique_name, tmp_path)


def rules() -> list[str]:
    """The rules of the tables that we write, without counters."""
    lines = [line for table in ("nat", "filter") for line in server.run("iptables-save", "-t", table).splitlines()]
    return [line for line in lines if line.startswith("-A")]


def test_a_list_runs_is_published_named_and_in_the_inventory(site: Site, client_namespace: Namespace) -> None:
    prune = {"lxd_provisioning_prune": True}
    first = site.provision(site.items()).succeeded()
    assert first.changed > 0
    assert client_namespace.curl(f"http://{client_namespace.host_address}:39180/").strip() == site.web
    asked = {task.host: task.result["stdout"].strip() for task in first.tasks if task.task == "Ask who it is"}
    assert asked[site.names[0]] == site.web
    assert asked[site.tcp] == site.tcp
    assert site.off not in asked
    hosts = site.hosts.read_text(encoding="utf-8")
    assert hosts.startswith("127.0.0.1 localhost\n")
    assert f" {site.tcp} {site.tcp}.example.org\n" in hosts
    assert "[lxd]" in site.inventory.read_text(encoding="utf-8")
    listed = subprocess.run(
        [BIN / "ansible", "lxd", "-i", site.inventory, "-m", "ansible.builtin.raw", "-a", "hostname"],
        env=ansible_environment(),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert listed.returncode == 0, listed.stdout + listed.stderr
    assert f"{site.names[0]} | CHANGED" in listed.stdout
    assert site.off not in listed.stdout

    site.provision(site.items()).unchanged()

    # One is declared absent, the others are no longer declared.
    gone = site.provision(site.items(state="absent")[:1], extra=prune).succeeded()
    assert gone.changed > 0
    assert site.tcp not in site.hosts.read_text(encoding="utf-8")
    assert site.web not in "\n".join(rules())
    assert server.instances(site.web.rsplit("-", 1)[0]) == []
    assert site.tcp not in site.inventory.read_text(encoding="utf-8")
    site.provision([], extra=prune).unchanged()


def test_the_plugin_and_the_role_agree(site: Site) -> None:
    debug = PLAY.replace("ansible.builtin.raw: hostname", "ansible.builtin.debug: {var: group_names}")
    done = site.provision(site.items(), debug).succeeded()
    role = {t.host: sorted(t.result["group_names"]) for t in done.tasks if t.task == "Ask who it is"}
    listing = subprocess.run(
        [BIN / "ansible-inventory", "-i", ROOT / "examples" / "containers.lxd.yml", "--list"],
        env=ansible_environment(),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    inventory = json.loads(listing.stdout)
    for name in (site.names[0], site.tcp):
        plugin = {group for group, value in inventory.items() if name in value.get("hosts", [])}
        # Only in the file of an inventory has a server a name.
        assert plugin == {*role[name], "server_lxd"}
    off = inventory["_meta"]["hostvars"][site.off]
    assert "mage.lxd.lxd" in str(off["ansible_connection"])


def test_check_mode_shows_everything_and_writes_nothing(site: Site) -> None:
    items = site.items()
    items[0]["proxy"] = [{"name": "checked.example.org"}]

    def seen() -> tuple[t.Any, ...]:
        return server.contents(), rules(), site.hosts.read_text(encoding="utf-8"), site.inventory.exists()

    before = seen()
    done = site.provision(items, check=True, diff=True, extra={"mageproxy_nat": [{"extport": 39182, "intport": 80}]})
    done.succeeded()
    assert seen() == before
    assert done.changed >= 4
    planned = {one["name"]: one for one in done.result("Make the list of instances true")["instances"]}
    (proxy,) = done.result("Make the proxy's container true")["instances"]
    assert len({one["address"] for one in (proxy, *planned.values())}) == 1 + len(planned)
    address = planned[site.web]["address"]
    assert address
    assert "--dport 39180" in done.output
    assert f"--to-destination {address}:80" in done.output
    assert "server_name checked.example.org;" in done.output
    assert f"server {address}:80" in done.output
    assert f"+{planned[site.tcp]['address']} {site.tcp} {site.tcp}.example.org" in done.output


def test_mistakes_are_told_before_the_proxy_is_made(site: Site, lxd_query: Query) -> None:
    items = site.items()
    items[0]["proxy"] = [{"name": "a;b"}]
    items[1]["hostname"] = ["x"]
    message = site.provision(items).failed()
    assert 'instances[0].proxy[0].name: "a;b": must be a hostname' in message
    assert "instances[1].hostname: unknown key (did you mean hostnames?)" in message
    assert server.instances(site.proxy) == []


@pytest.mark.parametrize(
    ("connection", "endpoint", "door"),
    [
        (
            "local",
            "unix:///var/lib/lxd/unix.socket",
            {"endpoint": "unix:///var/lib/lxd/unix.socket", "driver": "cli", "server_fingerprint": PIN},
        ),
        (
            "ssh ansible_user=ops ansible_port=2222",
            "unix:///var/lib/lxd/unix.socket",
            {"endpoint": "ssh://ops@elsewhere:2222/var/lib/lxd/unix.socket", "ssh_args": ""},
        ),
        (
            "ssh",
            "https://server.example:8443",
            {"endpoint": "https://server.example:8443", "driver": "cli", "server_fingerprint": PIN},
        ),
        (
            "mage.lxd.lxd ansible_lxd_via=outer,middle",
            "unix:///var/lib/lxd/unix.socket",
            {"endpoint": "", "via": ["outer", "middle", "elsewhere"]},
        ),
    ],
)
def test_the_way_to_the_containers_of_a_host(
    run_playbook: Run, connection: str, endpoint: str, door: dict[str, t.Any]
) -> None:
    play = f"""
- hosts: elsewhere
  gather_facts: false
  vars_files: ["{ROOT}/roles/lxd_provisioning/defaults/main.yml", "{ROOT}/roles/lxd_provisioning/vars/main.yml"]
  tasks:
    - name: Say it
      ansible.builtin.debug:
        msg: "{{{{ __lxd_provisioning_door }}}}"
"""
    token = base64.b64encode(json.dumps({"fingerprint": PIN}).encode()).decode()
    said = {"lxd_provisioning_driver": "cli", "lxd_provisioning_trust_token": token}
    seen = {"__lxd_provisioning_seen": {"server": {"endpoint": endpoint}}}
    done = run_playbook(play, inventory=f"elsewhere ansible_connection={connection}\n", extra_vars={**said, **seen})
    way = done.succeeded().result("Say it", "elsewhere")["msg"]
    assert {key: value for key, value in way.items() if value or key in door} == door


def test_a_host_that_nobody_reaches_is_one_clear_error(run_playbook: Run) -> None:
    play = """
- hosts: web-1
  gather_facts: false
  tasks:
    - name: Enter
      ansible.builtin.raw: "true"
"""
    line = "web-1 ansible_connection=mage.lxd.lxd ansible_lxd_endpoint=ssh://elsewhere\n"
    message = run_playbook(play, inventory=line).failed()
    assert "default/web-1: Cannot reach the server at ssh://elsewhere: ssh: Could not resolve hostname" in message


def test_three_lines_of_ones_own_with_the_installed_collection(site: Site, run_playbook: Run, tmp_path: Path) -> None:
    galaxy = [str(BIN / "ansible-galaxy"), "collection"]
    path = tmp_path / "collections"
    config = tmp_path / "empty.cfg"
    config.touch()
    stranger = {"ANSIBLE_COLLECTIONS_PATH": str(path), "ANSIBLE_CONFIG": str(config)}

    def run_galaxy(*arguments: str) -> None:
        subprocess.run(
            [*galaxy, *arguments], check=True, cwd=tmp_path, capture_output=True, env={**os.environ, **stranger}
        )

    run_galaxy("build", str(ROOT), "--output-path", str(tmp_path))
    (artifact,) = tmp_path.glob("mage-lxd-*.tar.gz")
    run_galaxy("install", str(artifact), "-p", str(path))
    items = json.dumps(site.items()[:1])
    role = f"{{role: mage.lxd.lxd_provisioning, lxd_provisioning_inventory: {items}}}"
    play = f"- hosts: localhost\n  roles:\n    - {role}\n"
    done = site.provision(
        site.items()[:1],
        play,
        environment=stranger,
    )
    assert done.succeeded().changed > 0
    assert str(ROOT / "plugins") not in done.output
    assert [one["status"] for one in server.instances(site.web)] == ["Running"]


def test_the_seeds_playbook_twice(site: Site, run_playbook: Run) -> None:
    ours = {"ubu-test-1", "ubu-test-2"}
    present = {one["name"] for one in server.instances("ubu-test-")}
    assert not present & ours, f"{present & ours} would be deleted by this test"
    variables = {
        "lxd_provisioning_hosts_file": str(site.hosts),
        "mageproxy_name": site.proxy,
        "mageproxy_nat": [{"extport": 39183, "intport": 80}],
    }
    playbook = ROOT / "examples" / "test-lxd.yml"
    try:
        first = run_playbook(playbook, extra_vars=variables).succeeded()
        assert first.changed > 0
        assert '"ubu_test_1": servers take no underscores: the instance is called ubu-test-1' in first.output
        assert "is a mount, not a route: taken as one; its key is mounts" in first.output
        run_playbook(playbook, extra_vars=variables).unchanged()
        assert {one["status"] for one in server.instances("ubu-test-")} == {"Running"}
        listing = server.run("lxc", "exec", site.proxy, "--", "cat", "/etc/nginx/upstream.conf")
        address = next(iter(server.run("lxc", "list", "-c4", "-fcsv", "^ubu-test-1$").split()))
        assert f"server {address}:80" in listing
        assert any("--dport 8080 " in rule and "default/ubu-test-1" in rule for rule in rules())
    finally:
        server.delete_instances("ubu-test-")


def test_the_example_is_the_seeds_word_for_word() -> None:
    """Apart from the unclosed quote and the name of the interface."""
    text = (ROOT / "examples" / "test-lxd.yml").read_text(encoding="utf-8")
    (play,) = yaml.safe_load(text)
    (role,) = play["roles"]
    one, two = role["lxd_provisioning_inventory"]
    assert (play["hosts"], role["role"]) == ("localhost", "mage.lxd-provisioning")
    assert (one["name"], one["image"]) == ("ubu_test_1", "ubuntu/xenial/amd64")
    assert {key: value for key, value in one["nat"][0].items() if key != "extif"} == {
        "intif": "lxdbr0",
        "extport": 8080,
        "intport": 8080,
    }
    assert one["proxy"] == [{"name": "ubu1.vaizard.xyz", "path": "/postgres/", "pass": ""}]
    assert two["proxy"] == ["/sys/fs/cgroup:/sys/fs/cgroup:ro"]
