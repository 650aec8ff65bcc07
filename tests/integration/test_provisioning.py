# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role lxd_provisioning, the seed's playbook and the demo on the real server, as a user runs them."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.mage.lxd.tests.integration import server
from ansible_collections.mage.lxd.tests.integration.namespace import Namespace
from ansible_collections.mage.lxd.tests.integration.playbook import (
    BIN,
    LOCALHOST,
    ROOT,
    PlaybookRun,
    ansible_environment,
)

Run = t.Callable[..., PlaybookRun]
Query = t.Callable[..., t.Any]
Unique = t.Callable[[str], str]

# What a token says of its server, and the containers know it by.
PIN = "5c" * 32
ASK = """
- hosts: lxd_containers
  gather_facts: false
  tasks:
    - name: Ask who it is
      ansible.builtin.raw: hostname
      changed_when: false
"""
PLAY = f"""
- hosts: localhost
  gather_facts: false
  roles:
    - role: mage.lxd.lxd_provisioning
{ASK}"""


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


def test_what_cannot_be_published_is_told_at_once_before_anything_is_made(site: Site, run_playbook: Run) -> None:
    """A port that a process has, an interface that is not there, raw directives, and a port of the proxy's own."""
    items = site.items()
    items[0].update(proxy=[{"name": "raw.example.org", "raw": "return 204;"}])
    items[1]["nat"] = [{"extif": "nowhere0", "extport": 39186, "intport": 80}]
    items[2]["nat"] = [{"extport": 39185, "intport": 80}]
    items[2]["image"] = "no-such/image"
    with socket.create_server(("0.0.0.0", 39180)):
        message = site.provision(items, extra={"mageproxy_nat": [{"extport": 39185, "intport": 80}]}).failed()
        assert server.instances(site.web.rsplit("-", 1)[0]) == []
        role = "- hosts: localhost\n  gather_facts: false\n  roles: [mage.lxd.mageproxy]\n"
        own = {"mageproxy_name": site.proxy, "mageproxy_nat": [{"extport": 39180, "intport": 80}]}
        alone = run_playbook(role, extra_vars={**own, "mageproxy_image": "mage-test/busybox"}).failed()
        assert server.instances(site.proxy) == []
    taken = rf"nat\[0\]: tcp port 39180: .*\(pid {os.getpid()}\).* on this host"
    assert re.search(f"default/{site.web}: {taken}", message), message
    assert re.search(f"default/{site.proxy}: {taken}", alone), alone
    assert f"default/{site.tcp}: nat[0]: tcp port 39186 on nowhere0: this host has no interface nowhere0" in message
    assert f"default/{site.proxy}: nat[0]: tcp port 39185: default/{site.off} has it already" in message
    assert 'instances[2].image: "no-such/image": no image on the server has this alias' in message
    assert f"default/{site.web}: raw.example.org/: raw directives are only taken with proxy_policy.allow_raw" in message
    assert site.hosts.read_text(encoding="utf-8") == "127.0.0.1 localhost\n"


BATCHES = """
- hosts: one two skips
  gather_facts: false
  serial: 1
  tasks:
    - name: Make its list true
      ansible.builtin.include_role:
        name: mage.lxd.lxd_provisioning
      vars:
        lxd_provisioning_owner: "{{ owner }}-{{ inventory_hostname }}"
        lxd_provisioning_inventory:
          - {name: "{{ owner }}-{{ inventory_hostname }}", image: mage-test/busybox}
      when: inventory_hostname != 'skips'
"""


def test_hosts_in_batches_and_one_that_skips_the_role(site: Site, run_playbook: Run) -> None:
    """All their containers are in the inventory."""
    inventory = LOCALHOST + "".join(LOCALHOST.replace("localhost", name) for name in ("one", "two", "skips"))
    owner = site.web.rsplit("-", 1)[0]
    variables = {"owner": owner, "lxd_provisioning_python": False, "lxd_provisioning_hosts_file": str(site.hosts)}
    done = run_playbook(BATCHES + ASK, inventory=inventory, extra_vars=variables)
    for name in ("one", "two"):
        said = done.succeeded().result("Ask who it is", f"{owner}-{name}")
        assert said["stdout"].strip() == f"{owner}-{name}"


def test_a_list_that_is_no_list_is_one_clear_error(site: Site) -> None:
    message = site.provision(t.cast("list[dict[str, t.Any]]", "web-1")).failed()
    assert message.startswith("Invalid input: instances[0]: is text: must be a mapping with the keys address, ")


SEEN = "unix:///var/lib/lxd/unix.socket"
FAR = "https://server.example:8443"
OF_CLIENT = {"lxd_provisioning_endpoint": "lxc:far", "lxd_provisioning_trust_token": ""}
ON_PORT = {"endpoint": "ssh://ops@elsewhere:2222/var/lib/lxd/unix.socket", "ssh_args": ""}
INSIDE = {"lxd_provisioning_via": ["inner"]}


@pytest.mark.parametrize(
    ("connection", "endpoint", "more", "door"),
    [
        ("local", SEEN, {}, {"endpoint": SEEN, "driver": "cli", "server_fingerprint": PIN}),
        ("local", FAR, OF_CLIENT, {"endpoint": "lxc:far", "driver": "cli"}),
        ("ssh ansible_user=ops ansible_port=2222", SEEN, {}, ON_PORT),
        ("ssh ansible_user=ops ansible_port=2222", SEEN, INSIDE, {**ON_PORT, "via": ["inner"]}),
        ("ssh", FAR, {}, {"endpoint": FAR, "driver": "cli", "server_fingerprint": PIN}),
        ("ssh", FAR, OF_CLIENT, {"endpoint": FAR, "driver": "cli", "server_fingerprint": PIN}),
        (
            "mage.lxd.lxd ansible_lxd_via=outer,middle",
            SEEN,
            {},
            {"endpoint": "", "via": ["outer", "middle", "elsewhere"]},
        ),
        (
            "mage.lxd.lxd ansible_lxd_driver=cli ansible_lxd_insecure_skip_verify=true",
            SEEN,
            INSIDE,
            {"endpoint": "", "via": ["elsewhere", "inner"], "driver": "cli", "insecure_skip_verify": True},
        ),
    ],
)
def test_the_way_to_the_containers_of_a_host(
    run_playbook: Run, connection: str, endpoint: str, more: dict[str, t.Any], door: dict[str, t.Any]
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
    said = {
        "lxd_provisioning_driver": "cli",
        "lxd_provisioning_trust_token": token,
        "lxd_provisioning_timeout": 30,
        **more,
    }
    seen = {"__lxd_provisioning_seen": {"server": {"endpoint": endpoint, "fingerprint": PIN}}}
    done = run_playbook(play, inventory=f"elsewhere ansible_connection={connection}\n", extra_vars={**said, **seen})
    way = done.succeeded().result("Say it", "elsewhere")["msg"]
    assert {key: value for key, value in way.items() if value or key in door} == {**door, "timeout": 30}


BLOCK = """# BEGIN instances of here, kept by mage.lxd
web-1 ansible_connection=mage.lxd.lxd ansible_user=root ansible_lxd_project=default ansible_lxd_instance=web-1
# END instances of here, kept by mage.lxd
"""
# Inventory files as they are found, as they are with a container, and as they are without one again.
FILES = {
    "new": (None, f"[lxd]\n{BLOCK}", "[lxd]\n"),
    "plain": ("old-1\n", f"old-1\n[lxd]\n{BLOCK}", "old-1\n[lxd]\n"),
    "group": ("[lxd] # 1\nmine\n[web]\nw1\n", f"[lxd] # 1\n{BLOCK}mine\n[web]\nw1\n", "[lxd] # 1\nmine\n[web]\nw1\n"),
    "sections": ("top\n[web]\nw1\n", f"top\n[lxd]\n{BLOCK}[web]\nw1\n", "top\n[lxd]\n[web]\nw1\n"),
    "elsewhere": (f"[lxd]\n[web]\n{BLOCK}w1\n", f"[lxd]\n{BLOCK}[web]\nw1\n", "[lxd]\n[web]\nw1\n"),
}


def test_the_inventory_file_keeps_the_sections_of_its_owner(run_playbook: Run, tmp_path: Path) -> None:
    play = f"""
- hosts: here
  gather_facts: false
  tasks:
    - ansible.builtin.include_role:
        name: mage.lxd.lxd_provisioning
        tasks_from: static.yml
      vars:
        lxd_provisioning_static_inventory: "{tmp_path}/{{{{ item }}}}"
      loop: {json.dumps([*FILES])}
"""
    host = {"name": "web-1", "inventory_name": "web-1", "project": "default", "door": {}}
    none: dict[str, list[str]] = {"__lxd_provisioning_ambiguous": []}

    def run(*hosts: dict[str, t.Any]) -> PlaybookRun:
        line = LOCALHOST.replace("localhost ", "here ")
        return run_playbook(play, inventory=line, extra_vars={"__lxd_provisioning_hosts": hosts, **none}).succeeded()

    def texts() -> dict[str, str]:
        return {name: (tmp_path / name).read_text(encoding="utf-8") for name in FILES}

    for name, (found, _filled, _emptied) in FILES.items():
        if found is not None:
            (tmp_path / name).write_text(found, encoding="utf-8")
    (tmp_path / "group").chmod(0o600)
    run(host)
    assert texts() == {name: filled for name, (_found, filled, _emptied) in FILES.items()}
    assert (tmp_path / "group").stat().st_mode & 0o777 == 0o600
    run(host).unchanged()
    (tmp_path / "plain").unlink()
    run()
    assert not (tmp_path / "plain").exists()
    (tmp_path / "plain").write_text(FILES["plain"][2], encoding="utf-8")
    assert texts() == {name: emptied for name, (_found, _filled, emptied) in FILES.items()}


TWINS = """
- hosts: rack-1 rack-2 member-2
  gather_facts: false
  serial: "{{ batch }}"
  # What is on the controller is not root's.
  become: true
  tasks:
    - ansible.builtin.set_fact:
        __lxd_provisioning_seen:
          server: {endpoint: "unix:///socket", fingerprint: "{{ certificate }}"}
          instances:
            - {name: db-1, inventory_name: db-1, project: default, status: Running, groups: [found]}
            - {name: "{{ own }}", inventory_name: "{{ own }}", project: default, status: Running, groups: [found]}
        __lxd_provisioning_result: {instances: [{name: db-1}, {name: "{{ own }}"}]}
    - ansible.builtin.include_role:
        name: mage.lxd.lxd_provisioning
        tasks_from: inventory.yml
      vars:
        lxd_provisioning_static_inventory: beside.ini
- hosts: found
  gather_facts: false
  tasks:
    - name: Say how it is reached
      ansible.builtin.debug:
        msg: "{{ ansible_lxd_endpoint }}"
"""


@pytest.mark.parametrize(("batch", "first"), [("100%", "db-1.rack-1"), ("1", "db-1")])
def test_containers_of_one_name_on_two_servers_are_two_hosts(
    run_playbook: Run, tmp_path: Path, batch: str, first: str
) -> None:
    """Also where the host is a member of a cluster, of which another host is one."""
    hosts = [("rack-1", "1", "web-1"), ("rack-2", "2", "web-2"), ("member-2", "2", "web-2")]
    inventory = "".join(f"{name} certificate={cert} own={own} ansible_connection=ssh\n" for name, cert, own in hosts)
    done = run_playbook(TWINS, inventory=inventory, extra_vars={"ansible_become_exe": "/bin/false", "batch": batch})
    done.succeeded()
    reached = {one.host: one.result["msg"] for one in done.tasks if one.task == "Say how it is reached"}
    assert reached == {
        first: "ssh://rack-1/socket",
        "db-1.rack-2": "ssh://rack-2/socket",
        "db-1.member-2": "ssh://member-2/socket",
        "web-1": "ssh://rack-1/socket",
        "web-2": "ssh://member-2/socket",
    }
    (path,) = tmp_path.rglob("beside.ini")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert {line.split()[0] for line in lines if "ansible_" in line} == {*reached}


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
        listing = server.run("lxc", "exec", site.proxy, "--", *server.LINGER, "cat", "/etc/nginx/upstream.conf")
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
