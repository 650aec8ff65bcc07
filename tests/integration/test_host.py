# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role lxd_host: on this machine, which is a host already, and on a Debian 13 with systemd that has nothing."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import tempfile
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.tests.integration import host_bare, playbook, server, sshd
from ansible_collections.mage.lxd.tests.integration.playbook import ROOT

PLAY = """
- hosts: all
  gather_facts: false
  roles:
    - role: mage.lxd.lxd_host
  post_tasks:
    - name: Read what later roles read
      ansible.builtin.debug:
        msg: "{{ lxd_host_ready }} {{ lxd_host_endpoint }}"
"""
PROVISION = """
- hosts: outer
  gather_facts: false
  roles:
    - role: mage.lxd.lxd_provisioning
- hosts: lxd_containers
  gather_facts: false
  tasks:
    - name: Enter it
      ansible.builtin.raw: hostname
"""
PUBLISH = """
- hosts: localhost
  gather_facts: false
  roles:
    - role: mage.lxd.lxd_provisioning
"""
FACTS = "Read what later roles read"
FORESEEN = "Say what would be done, in check mode"
TRIXIE: dict[str, t.Any] = {
    "alias": "mage-test/trixie",
    "build": {"suite": "trixie", "packages": ["ca-certificates", "python3"]},
}


def write_image(path: Path, description: str) -> None:
    """An image of a few bytes, enough for the server to take it."""
    metadata = (
        f"architecture: x86_64\ncreation_date: 1\nproperties:\n  description: {description}\n  mage.definition: t\n"
    )
    with tarfile.open(path, "w") as archive:
        file = tarfile.TarInfo("metadata.yaml")
        file.size = len(metadata)
        archive.addfile(file, io.BytesIO(metadata.encode()))
        folder = tarfile.TarInfo("rootfs")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(folder)


def snapshot() -> list[t.Any]:
    """What the role could change on the server. What belongs to others, and who uses what, does not count."""
    networks = [network for network in server.lxd_query("/1.0/networks?recursion=1") if network["managed"]]
    pools = server.lxd_query("/1.0/storage-pools?recursion=1")
    found = [*networks, *pools, server.lxd_query("/1.0/profiles/default")]
    for item in found:
        item.pop("used_by", None)
    return [item for item in found if not server.is_of_others(item["name"])]


def aliases() -> dict[str, str]:
    return {alias["name"]: alias["target"] for alias in server.lxd_query("/1.0/images/aliases?recursion=1") or []}


def fingerprints() -> set[str]:
    return {url.rsplit("/", 1)[1] for url in server.lxd_query("/1.0/images") or []}


@pytest.fixture
def alias() -> t.Iterator[str]:
    """The name of an image that is gone after the test."""
    name = f"{server.own_prefix()}/image"
    yield name
    target = aliases().get(name)
    if target:
        server.run("lxc", "image", "alias", "delete", name)
    if target and target not in aliases().values():
        server.run("lxc", "image", "delete", target)


def test_a_host_that_is_ready_is_left_alone(run_playbook: t.Any) -> None:
    before = snapshot()
    run_playbook(PLAY).succeeded()
    again = run_playbook(PLAY).unchanged()
    assert again.result(FACTS)["msg"] == "True unix:///var/lib/lxd/unix.socket"
    assert snapshot() == before


def test_an_image_comes_from_a_file_and_follows_it(run_playbook: t.Any, tmp_path: Path, alias: str) -> None:
    file = tmp_path / "image.tar"
    wanted = {"lxd_host_images": [{"alias": alias, "file": str(file)}]}
    write_image(file, "first")
    checked = run_playbook(PLAY, extra_vars=wanted, check=True).succeeded()
    assert checked.changed == 1
    assert f"file the image {alias}" in checked.result(FORESEEN)["msg"]
    assert alias not in aliases()
    assert run_playbook(PLAY, extra_vars=wanted).succeeded().changed == 1
    first = aliases()[alias]
    run_playbook(PLAY, extra_vars=wanted).unchanged()

    write_image(file, "second")
    assert run_playbook(PLAY, extra_vars=wanted).succeeded().changed == 1
    assert aliases()[alias] != first
    assert first not in fingerprints()
    run_playbook(PLAY, extra_vars=wanted).unchanged()


@pytest.mark.parametrize("client", ["lxc", "incus"])
def test_an_image_goes_where_the_roles_look_whatever_the_client_is_switched_to(client: str, tmp_path: Path) -> None:
    """Another remote, and another project that has images of its own."""
    name = server.own_prefix()
    write_image(tmp_path / "image.tar", name)
    switched = server.switched_client(tmp_path, name)
    script = str(ROOT / "roles/lxd_host/files/mage-lxd-image.sh")
    server.run(client, "project", "create", name, "-c", "features.images=true")
    try:
        argv = ["env", *switched, "bash", script, client, name, "file", str(tmp_path / "image.tar")]
        said = server.run(*argv)
        alias = json.loads(server.run(client, "query", f"/1.0/images/aliases/{name}?project=default"))
        assert said == f"{name} {alias['target']}\n"
        assert server.run(*argv) == ""
        server.run(client, "image", "delete", alias["target"])
    finally:
        server.run(client, "project", "delete", name)


def test_a_build_is_shared_by_two_aliases(run_playbook: t.Any, alias: str) -> None:
    """debian/bookworm is there (setup.yml): the same definition under another name is no second build."""
    images = [{"alias": name, "build": {"suite": "bookworm"}} for name in ("debian/bookworm", alias)]
    assert run_playbook(PLAY, extra_vars={"lxd_host_images": images}).succeeded().changed == 1
    assert aliases()[alias] == aliases()["debian/bookworm"]


def test_a_failed_build_says_why_and_leaves_nothing(run_playbook: t.Any, alias: str) -> None:
    build = {"suite": "bookworm", "mirror": "http://127.0.0.1:9/debian"}
    failed = run_playbook(PLAY, extra_vars={"lxd_host_images": [{"alias": alias, "build": build}]})
    assert failed.rc != 0
    assert "mmdebstrap bookworm failed" in failed.output
    assert alias not in aliases()
    assert not Path("/var/cache/mage-lxd/build").exists()


def test_over_ssh_others_may_speak_on_the_same_stream(run_playbook: t.Any) -> None:
    """sudo complains of a machine whose own name does not resolve."""
    with tempfile.TemporaryDirectory() as folder, sshd.sshd() as host:
        # For a user who may not look into the folders of these tests.
        Path(folder).chmod(0o755)
        loud = Path(folder) / "sudo"
        loud.write_text('#!/bin/sh\necho "sudo: unable to resolve host new" >&2\nexec sudo "$@"\n', encoding="utf-8")
        loud.chmod(0o755)
        words = {
            "ansible_connection": "ssh",
            "ansible_host": "127.0.0.1",
            "ansible_port": host.port,
            "ansible_user": "sudoer",
            "ansible_ssh_args": f"{host.args} -o ControlPath=none",
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_become": True,
            "ansible_become_exe": str(loud),
        }
        line = "new " + " ".join(f"{key}={json.dumps(str(value))}" for key, value in words.items()) + "\n"
        done = run_playbook(PLAY, inventory=line, check=True).succeeded()
    assert "unable to resolve host new" in done.output + json.dumps([one.result for one in done.tasks])
    assert done.result(FACTS, "new")["msg"].endswith(" unix:///var/lib/lxd/unix.socket")


def test_bad_input_is_refused_at_once(run_playbook: t.Any) -> None:
    """The table of all that is refused is in tests/unit/test_host_survey.py."""
    wanted = {
        "lxd_host_images": [{"alais": "a", "file": "/nowhere"}, {"alias": "b"}],
        "lxd_host_sysctls": {"vm.max_map_count": "many"},
        "lxd_host_ipv4": "10.8.0.1",
        "lxd_host_extra_packages": ["-x"],
    }
    message = run_playbook(PLAY, extra_vars=wanted).failed()
    assert message.splitlines()[0].startswith('lxd_host_ipv4: "10.8.0.1": must be auto, none, or a host\'s address')
    assert message.splitlines()[1:] == [
        'lxd_host_extra_packages[0]: "-x": must be a package\'s name, such as nginx-light',
        'lxd_host_sysctls.vm.max_map_count: "many": must be a whole number, such as 262144',
        "lxd_host_images[0].alais: unknown key (did you mean alias?)",
        "lxd_host_images[0].alias: missing: must be a name, such as debian/bookworm",
        'lxd_host_images[0].file: "/nowhere": there is no such file on this host',
        'lxd_host_images[1]: "b": must have one of server, file and build',
    ]


def test_numbers_may_be_written_as_text(run_playbook: t.Any) -> None:
    wanted = {
        "lxd_host_sysctls": {"vm.max_map_count": "1"},
        "lxd_host_wait": "60",
        "lxd_host_extra_packages": "lxd",
    }
    run_playbook(PLAY, extra_vars=wanted, check=True).succeeded()


def test_a_foreign_python_is_left_to_its_owner(run_playbook: t.Any, tmp_path: Path) -> None:
    server.run(sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv"))
    python = tmp_path / "venv/bin/python"
    message = run_playbook(PLAY, inventory=f"localhost ansible_connection=local ansible_python_interpreter={python}\n")
    assert message.failed() == (
        f"{python}: cannot import netaddr and pylxd, and the role only cares for the system's Python: "
        f"{python} -m pip install netaddr pylxd"
    )


# The loop file's name is this test's own: mkfs asks the kernel who has mounted one of that name.
BARE = {"lxd_host_pool": "bare"}


SITE = ROOT / "playbooks" / "site.yml"
RULES = "iptables -S; iptables -t nat -S"


class Bare:
    """A machine without an init system, a list for it, and all that a run could write there."""

    def __init__(self, run: t.Any, machine: host_bare.BareMachine, folder: Path) -> None:
        self._run = run
        self.machine = machine
        self.hosts = folder / "hosts"
        self.hosts.write_text("127.0.0.1 localhost\n", encoding="utf-8")
        host_bare.write_busybox(folder / "busybox.tar.gz")
        published = {"nat": [{"extport": 39187, "intport": 80}], "hostnames": ["in.example.org"]}
        routes = [{"name": "shop.example.org"}]
        self.wanted = {
            **BARE,
            "lxd_host_images": [{"alias": "busybox", "file": str(folder / "busybox.tar.gz")}],
            "lxd_provisioning_inventory": [{"name": "web", "image": "busybox", "proxy": routes, **published}],
            "lxd_provisioning_hosts_file": str(self.hosts),
            "mageproxy_image": "busybox",
        }

    def run(self, play: str | Path, **options: t.Any) -> playbook.PlaybookRun:
        inventory = f"[lxd_hosts]\n{playbook.LOCALHOST}"
        done = self._run(play, inventory=inventory, extra_vars=self.wanted, prefix=self.machine.prefix, **options)
        return t.cast("playbook.PlaybookRun", done.succeeded())

    def written(self) -> list[str]:
        """Files, rules, and what the server says where there is one."""
        files = self.machine.run("find", "/var/lib/lxd", "/etc/sysctl.d", "-type", "f")
        found = [files, self.machine.run("sh", "-c", RULES), self.hosts.read_text(encoding="utf-8")]
        kinds = ("instances", "networks", "profiles", "storage-pools", "images") if "server.crt" in files else ()
        return found + [self.machine.run("lxc", "query", f"/1.0/{kind}?recursion=1") for kind in kinds]


def test_a_machine_without_an_init_system_becomes_a_host(run_playbook: t.Any, tmp_path: Path) -> None:
    with host_bare.bare_machine() as machine:
        bare = Bare(run_playbook, machine, tmp_path)
        before = bare.written()
        checked = bare.run(SITE, check=True, diff=True)
        assert checked.changed == 1
        assert {"start lxd", "file the image busybox"} < set(checked.result(FORESEEN)["msg"])
        assert bare.written() == before
        assert {task.status for task in checked.tasks if task.action.startswith("mage.lxd.")} <= {"skipped"}
        assert bare.run(PLAY).result(FACTS)["msg"] == "True unix:///var/lib/lxd/unix.socket"
        bare.run(PLAY).unchanged()
        assert machine.run("lxc", "storage", "list", "--format", "csv").startswith("bare,btrfs,")

        # The site's playbook on a server that has nothing: what would come is shown, and nothing is written.
        before = bare.written()
        checked = bare.run(SITE, check=True, diff=True)
        (planned,) = checked.result("Make the list of instances true")["instances"]
        assert (planned["name"], planned["status"]) == ("web", "Running")
        for shown in (
            "instance default/mageproxy (create, start)",
            "instance default/web (create, start, python)",
            "--dport 39187 ",
            f"--to-destination {planned['address']}:80",
            "server_name shop.example.org;",
            f"server {planned['address']}:80",
            f"+{planned['address']} web in.example.org",
        ):
            assert shown in checked.output, checked.output
        assert bare.written() == before

        machine.run("lxc", "launch", "busybox", "inner")
        machine.wait("sh", "-c", "lxc list --format csv --columns 4 inner | grep -q eth0")

        # The daemon dies, its containers do not: it is started again, and nothing else changes.
        machine.kill("/run/lxd.pid")
        assert bare.run(PLAY).changed == 1
        assert machine.run("lxc", "list", "--format", "csv", "--columns", "ns") == "inner,RUNNING"
        machine.run("lxc", "delete", "--force", "inner")


# Rules go, rules and jumps go, and everything goes: what is left is not ours any more.
FLUSHES = (
    "iptables -t nat -F MAGE-LXD-PRE",
    "iptables -t nat -F PREROUTING; iptables -t nat -F OUTPUT; iptables -F FORWARD",
    "for table in nat filter; do iptables -t $table -F; iptables -t $table -X; done",
)


def test_a_play_restores_a_flushed_firewall(run_playbook: t.Any, tmp_path: Path) -> None:
    """In namespaces of its own: a flush takes the server's own rules, too."""
    host_bare.write_busybox(tmp_path / "busybox.tar.gz")
    host = {**BARE, "lxd_host_images": [{"alias": "busybox", "file": str(tmp_path / "busybox.tar.gz")}]}
    web = {"name": "web", "image": "busybox", "nat": [{"extport": 39180, "intport": 80}]}
    hosts_file = tmp_path / "hosts"
    hosts_file.write_text("127.0.0.1 localhost\n", encoding="utf-8")
    wanted = {
        "lxd_provisioning_inventory": [web],
        "lxd_provisioning_python": False,
        "lxd_provisioning_hosts_file": str(hosts_file),
    }
    with host_bare.bare_machine() as machine:

        def play() -> playbook.PlaybookRun:
            run: playbook.PlaybookRun = run_playbook(PUBLISH, extra_vars=wanted, prefix=machine.prefix, diff=True)
            return run.succeeded()

        def ours() -> list[str]:
            saved = [machine.run("iptables-save", "-t", table) for table in ("nat", "filter")]
            return [line for line in "\n".join(saved).splitlines() if "MAGE" in line and line.startswith("-A")]

        run_playbook(PLAY, extra_vars=host, prefix=machine.prefix).succeeded()
        assert play().changed > 0
        rules = ours()
        gateway = machine.run("lxc", "network", "get", "lxdbr0", "ipv4.address").partition("/")[0]
        for flush in FLUSHES:
            machine.run("sh", "-c", flush)
            assert ours() != rules
            restored = play()
            assert [task.action for task in restored.tasks if task.changed] == ["mage.lxd.nat"], restored.output
            assert "39180" in restored.output or "jump" in restored.output
            assert ours() == rules
            machine.run("curl", "-sS", "--noproxy", "*", "--max-time", "10", f"http://{gateway}:39180/")
            play().unchanged()
        machine.run("lxc", "delete", "--force", "web")


def test_a_daemon_that_does_not_start_is_quoted(run_playbook: t.Any) -> None:
    with host_bare.bare_machine() as machine:
        machine.run("touch", "/var/lib/lxd/database")
        failed = run_playbook(PLAY, extra_vars={"lxd_host_wait": 10}, prefix=machine.prefix).failed()
        assert "lxd did not answer within 10 s. Its log ends:" in failed
        assert "database" in failed
        machine.run("rm", "/var/lib/lxd/database")
        run_playbook(PLAY, extra_vars=BARE, prefix=machine.prefix).succeeded()


# Our rules with their chains and jumps, and how they go, while all others stay.
OURS = "for table in nat filter; do iptables -t $table -S; done | grep MAGE || true"
FORGET = "for table in nat filter; do iptables-save -t $table | grep -v MAGE | iptables-restore -T $table; done"


class Machine:
    """A container that is to become a host itself."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inventory = f"outer ansible_connection=mage.lxd.lxd ansible_lxd_instance={name}\n"

    def sh(self, script: str, timeout: float = 120) -> str:
        return server.run("lxc", "exec", self.name, "--", *server.LINGER, "sh", "-c", script, timeout=timeout).strip()

    def wait(self, script: str, seconds: float = 60) -> None:
        """Until the script succeeds in there."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.sh(script)
                return
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.2)

    def names(self, what: str) -> list[str]:
        return self.sh(f"lxc {what} list --format csv | grep -v ,NO, | cut -d, -f1").splitlines()

    def read(self, path: str) -> t.Any:
        """What its own server says, apart from who uses it."""
        found = json.loads(self.sh(f"lxc query {path}"))
        found.pop("used_by", None)
        return found

    def split_cgroups(self) -> None:
        """Where the outer machine has each of these v1 controllers alone, a link to both at once leads nowhere."""
        self.sh(
            "cd /sys/fs/cgroup; [ -L cpu ] || exit 0; mount -o remount,rw .; for c in cpu cpuacct;"
            " do rm $c; mkdir $c; mount -t cgroup -o $c cgroup $c; done"
        )


@pytest.fixture
def trixie(run_playbook: t.Any, unique_name: t.Callable[[str], str]) -> Machine:
    """A Debian 13 with systemd and nothing else."""
    run_playbook(PLAY, extra_vars={"lxd_host_images": [TRIXIE]}).succeeded()
    machine = Machine(unique_name("trixie"))
    server.run("lxc", "launch", TRIXIE["alias"], machine.name, "-c", "security.nesting=true")
    machine.wait(f"getent hosts {server.mirror_host()}")
    # It trusts whom this machine trusts: there are networks that sign the package index anew.
    authorities = Path("/etc/ssl/certs/ca-certificates.crt")
    server.run("lxc", "file", "push", str(authorities), f"{machine.name}{authorities}")
    return machine


def run_in(run_playbook: t.Any, machine: Machine, **arguments: t.Any) -> playbook.PlaybookRun:
    run: playbook.PlaybookRun = run_playbook(PLAY, inventory=machine.inventory, **arguments)
    return run.succeeded()


def provision(run_playbook: t.Any, machine: Machine, item: dict[str, t.Any]) -> playbook.PlaybookRun:
    """Run the list on the machine, and a task in what it declares."""
    variables = {"lxd_provisioning_inventory": [item], "lxd_provisioning_python": False}
    run: playbook.PlaybookRun = run_playbook(PROVISION, inventory=machine.inventory, extra_vars=variables)
    return run


@pytest.mark.slow
def test_debian_13_with_systemd_becomes_a_host_from_nothing(
    run_playbook: t.Any, trixie: Machine, tmp_path: Path
) -> None:
    trixie.sh("touch /marker")
    checked = run_in(run_playbook, trixie, check=True)
    assert "start lxd" in checked.result(FORESEEN, "outer")["msg"]
    assert checked.result(FACTS, "outer")["msg"] == "False "
    assert trixie.sh("find /etc /usr /var/lib/dpkg /var/lib/apt -newer /marker -type f") == ""

    # As if an installation had been cut off.
    trixie.sh("dpkg-query -s netbase >/var/lib/dpkg/updates/0000")
    assert "dpkg was interrupted" in trixie.sh("apt-get install -y netbase 2>&1 || true")
    assert run_in(run_playbook, trixie).result(FACTS, "outer")["msg"] == "True unix:///var/lib/lxd/unix.socket"
    run_in(run_playbook, trixie).unchanged()
    assert trixie.sh("systemctl is-active lxd") == "active"
    assert trixie.names("network") == ["lxdbr0"]
    assert trixie.names("storage") == ["default"]
    trixie.sh("/usr/bin/python3 -c 'import netaddr, pylxd'")
    assert trixie.sh("dpkg --verify python3-minimal python3-requests 2>&1 || true").count("/usr/lib/python3") == 0

    # A container of its own, provisioned, published and entered from here as on any host.
    trixie.split_cgroups()
    busybox = tmp_path / "busybox.tar.gz"
    host_bare.write_busybox(busybox)
    server.run("lxc", "file", "push", str(busybox), f"{trixie.name}/root/busybox.tar.gz")
    trixie.sh("lxc image import /root/busybox.tar.gz --alias busybox")
    inner = {
        "name": "inner",
        "image": "busybox",
        "nat": [{"extport": 8080, "intport": 80}],
        "hostnames": ["in.example.org"],
    }
    first = provision(run_playbook, trixie, inner)
    assert first.stats["outer"]["failures"] == 0, first.output
    assert first.result("Enter it", "inner")["stdout"].strip() == "inner", first.output
    address = trixie.sh("ip -4 -o address show eth0").split()[3].split("/")[0]
    assert server.run("curl", "-sS", "--noproxy", "*", "--max-time", "10", f"http://{address}:8080/").strip() == "inner"
    assert "inner in.example.org" in trixie.sh("cat /etc/hosts")
    assert trixie.sh("systemctl is-enabled mage-lxd-nat-lxd.service") == "enabled"
    assert provision(run_playbook, trixie, inner).stats["outer"]["changed"] == 0

    # The unit brings back what is gone, once, and so does a boot.
    rules = sorted(trixie.sh(OURS).splitlines())
    assert len([rule for rule in rules if "-j MAGE-LXD-PRE" in rule]) == 1
    trixie.sh(FORGET)
    assert trixie.sh(OURS) == ""
    for _again in range(2):
        trixie.sh("systemctl restart mage-lxd-nat-lxd.service")
        assert sorted(trixie.sh(OURS).splitlines()) == rules
    server.run("lxc", "restart", trixie.name)
    trixie.wait("systemctl is-active mage-lxd-nat-lxd.service")
    assert sorted(trixie.sh(OURS).splitlines()) == rules
    gone = provision(run_playbook, trixie, {"name": "inner", "state": "absent"})
    assert gone.stats["outer"]["changed"] > 0
    assert "MAGE" not in trixie.sh("iptables-save")
    assert "example.org" not in trixie.sh("cat /etc/hosts")

    # What is missing comes back; what somebody else made is used, and left as it is.
    trixie.sh("lxc profile device remove default eth0; lxc network delete lxdbr0")
    trixie.sh("lxc network create other0 ipv4.address=10.65.0.1/24")
    before = trixie.read("/1.0/networks/other0"), trixie.read("/1.0/storage-pools/default")
    assert run_in(run_playbook, trixie).changed == 1
    assert trixie.names("network") == ["other0"]
    assert trixie.read("/1.0/profiles/default")["devices"]["eth0"]["network"] == "other0"
    assert (trixie.read("/1.0/networks/other0"), trixie.read("/1.0/storage-pools/default")) == before
