# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers behind SSH: one master for all, healed when it is lost, and every way to fail told in one sentence."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._server import bridge, options, ssh
from ansible_collections.mage.lxd.plugins.module_utils._server.core import CoreDriver
from ansible_collections.mage.lxd.plugins.module_utils._server.rest import RestDriver
from ansible_collections.mage.lxd.tests.integration import sshd
from ansible_collections.mage.lxd.tests.integration.doors import Doors
from ansible_collections.mage.lxd.tests.integration.playbook import BIN, ROOT, PlaybookRun, ansible_environment
from ansible_collections.mage.lxd.tests.integration.server import run
from ansible_collections.mage.lxd.tests.unix_server import UnixServer

SOCKET = "/var/lib/lxd/unix.socket"
ASK = """
import sys
from ansible_collections.mage.lxd.plugins.module_utils._server import core, options
driver = core.CoreDriver(options.ServerOptions(sys.argv[1], ssh_args=sys.argv[2]))
for _turn in range(20):
    assert driver.request("GET", "/1.0").status == 200
driver.close()
"""


@pytest.fixture(scope="module", autouse=True)
def runtime() -> t.Iterator[Path]:
    """Where the sockets are, apart from what a user of this machine has."""
    folder = Path(tempfile.mkdtemp(prefix="mage-run-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        yield folder
    # A master that ends takes its own socket away.
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def host() -> t.Iterator[sshd.Sshd]:
    with sshd.sshd() as made:
        yield made


def server(host: sshd.Sshd, user: str = "root", path: str = SOCKET, more: str = "") -> options.ServerOptions:
    return options.ServerOptions(host.endpoint(user, path), ssh_args=f"{more} {host.args}")


def answers(where: options.ServerOptions) -> bool:
    driver = CoreDriver(where)
    try:
        return driver.request("GET", "/1.0").status == 200
    finally:
        driver.close()


def logins(host: sshd.Sshd) -> int:
    return (host.folder / "log").read_text(encoding="utf-8").count("Accepted publickey")


def until(check: t.Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_many_processes_share_one_login(host: sshd.Sshd, runtime: Path) -> None:
    where = server(host)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".tree")}
    argv = [sys.executable, "-c", ASK, where.endpoint, where.ssh_args]
    asking = [subprocess.Popen(argv, env=environment) for _number in range(5)]
    assert [process.wait(60) for process in asking] == [0] * 5
    driver = RestDriver(where)
    assert driver.request("GET", "/1.0").status == 200
    driver.close()
    assert logins(host) == 1
    assert (runtime / "mage-lxd").stat().st_mode & 0o077 == 0


# In a mount namespace, where the user has a configuration of ours.
CONFIGURED = 'mkdir -m 700 -p "$2" && mount --bind "$1" "$2" && shift 2 && exec "$@"'
CONFIG = "Host far\n HostName 127.0.0.1\n Port {port}\n User root\n UserKnownHostsFile {folder}/known_hosts\n"


def test_the_users_configuration_and_agent_count(host: sshd.Sshd, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(CONFIG.format(port=host.port, folder=host.folder), encoding="utf-8")
    home = pwd.getpwuid(os.getuid()).pw_dir
    argv = ["unshare", "--mount", "sh", "-c", CONFIGURED, "sh", str(tmp_path), f"{home}/.ssh", sys.executable, "-c"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".tree"), "SSH_AUTH_SOCK": str(host.folder / "agent")}

    def ask() -> subprocess.CompletedProcess[str]:
        asked = [*argv, ASK, f"ssh://far{SOCKET}", ""]
        return subprocess.run(asked, env=environment, capture_output=True, text=True, check=False, timeout=120)

    agent = subprocess.Popen(["ssh-agent", "-D", "-a", environment["SSH_AUTH_SOCK"]], stdout=subprocess.DEVNULL)
    try:
        until(lambda: os.path.exists(environment["SSH_AUTH_SOCK"]))
        assert f"Cannot reach the server at ssh://far{SOCKET}: " in ask().stderr
        subprocess.run(["ssh-add", "-q", str(host.key)], env=environment, check=True)
        done = ask()
        assert done.returncode == 0, done.stderr
    finally:
        agent.terminate()
        agent.wait()
    assert logins(host) == 1


def test_a_host_that_comes_back_is_reached_again(host: sshd.Sshd) -> None:
    driver = CoreDriver(server(host))
    assert driver.request("GET", "/1.0").status == 200
    host.stop()
    deadline = time.monotonic() + 30
    told = ""
    while "Connection refused" not in told:
        # The login that is there notices a moment later.
        assert time.monotonic() < deadline, told
        with pytest.raises(_errors.ServerUnreachable, match=r"refused|connection was lost") as told_by:
            driver.request("GET", "/1.0")
        told = str(told_by.value)
    host.start()
    assert driver.request("GET", "/1.0").status == 200
    # What is left of a master that is gone is no obstacle, and one that has lost its socket makes a new one.
    place = ssh.place_of(driver.options)
    os.unlink(place.local)
    assert answers(driver.options)
    driver.close()
    assert logins(host) == 2


def test_a_master_that_hangs_is_replaced(host: sshd.Sshd) -> None:
    where = options.ServerOptions(**{**vars(server(host)), "timeout": 6})
    assert answers(where)
    place = ssh.place_of(where)
    check = subprocess.run(place.ssh("-O", "check"), capture_output=True, text=True, check=True)
    master = int(check.stderr.rpartition("pid=")[2].partition(")")[0])
    os.unlink(place.base + ".ok")
    os.kill(master, 19)
    driver = CoreDriver(where)
    try:
        assert driver.request("GET", "/1.0", timeout=60).status == 200
    finally:
        os.kill(master, 9)
        driver.close()
    assert logins(host) == 2


class Sleeper(UnixServer):
    """A server that answers nobody while it is ``asleep``."""

    def __init__(self, path: Path) -> None:
        self.asleep = threading.Event()
        super().__init__(path)

    def serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(BrokenPipeError):
            while sock.recv(65536):
                while self.asleep.is_set():
                    time.sleep(0.05)
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")


def test_a_server_that_sleeps_costs_nobody_the_line(host: sshd.Sshd, tmp_path: Path) -> None:
    sleeper = Sleeper(tmp_path / "socket")
    where = options.ServerOptions(**{**vars(server(host, path=str(tmp_path / "socket"))), "timeout": 5})
    with contextlib.closing(CoreDriver(where)) as other:
        assert other.request("GET", "/1.0").status == 200
        os.unlink(ssh.place_of(where).base + ".ok")
        sleeper.asleep.set()
        with pytest.raises(_errors.ServerUnreachable, match="no answer in time"):
            answers(where)
        sleeper.asleep.clear()
        connections = sleeper.connections
        assert other.request("GET", "/1.0").status == 200
        assert sleeper.connections == connections
    assert answers(where)
    assert logins(host) == 1


def test_a_server_that_sleeps_for_longer_than_it_takes_to_connect_is_waited_for(
    host: sshd.Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper = Sleeper(tmp_path / "socket")
    where = server(host, path=str(tmp_path / "socket"))
    assert answers(where)
    os.unlink(ssh.place_of(where).base + ".ok")
    monkeypatch.setattr(options, "CONNECT_TIMEOUT", 4.0)
    sleeper.asleep.set()
    threading.Timer(16, sleeper.asleep.clear).start()
    assert answers(where)
    assert logins(host) == 1


def test_a_master_goes_when_nobody_has_needed_it_for_a_while(host: sshd.Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "PERSIST", 6)
    where = server(host)
    driver = CoreDriver(where)
    assert driver.request("GET", "/1.0").status == 200
    place = ssh.place_of(where)
    # A connection that only waits keeps it.
    time.sleep(8)
    assert driver.request("GET", "/1.0").status == 200
    assert os.path.exists(place.master)
    driver.close()
    assert answers(where)
    assert logins(host) == 1
    until(lambda: not os.path.exists(place.master))
    until(lambda: place.base not in run("ps", "ax", "-o", "args"))
    assert answers(where)
    assert logins(host) == 2


RESET = """
- hosts: far
  gather_facts: false
  tasks:
    - name: Enter
      ansible.builtin.raw: hostname
    - name: Begin afresh
      ansible.builtin.meta: reset_connection
    - name: Enter again
      ansible.builtin.raw: hostname
"""


def test_a_reset_logs_in_anew(
    host: sshd.Sshd, run_playbook: t.Callable[..., PlaybookRun], unique_name: t.Callable[[str], str]
) -> None:
    """Whose groups a login has is known since it began. What others have open goes on."""
    name = unique_name("reset")
    run("lxc", "launch", "mage-test/busybox", name)
    where = server(host)
    other = CoreDriver(where)
    assert other.request("GET", "/1.0").status == 200
    variables = f"ansible_connection=mage.lxd.lxd ansible_lxd_instance={name} ansible_lxd_endpoint={where.endpoint}"
    entered = run_playbook(RESET, inventory=f'far {variables} ansible_lxd_ssh_args="{where.ssh_args}"\n').succeeded()
    for task in ("Enter", "Enter again"):
        assert entered.result(task, "far")["stdout"] == f"{name}\n"
    assert logins(host) == 2
    before = len(other.requests)
    assert other.request("GET", "/1.0").status == 200
    assert len(other.requests) == before + 1
    other.close()


def test_users_get_in_by_the_group_or_by_sudo_or_are_told(host: sshd.Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "IDLE", 0.5)
    monkeypatch.setattr(bridge, "_POLL", 0.1)
    assert answers(server(host, "member"))
    before = len(os.listdir("/proc/self/fd"))
    for make in (CoreDriver, RestDriver):
        driver = make(server(host, "sudoer"))
        assert driver.request("GET", "/1.0").status == 200
        driver.close()
    until(lambda: len(os.listdir("/proc/self/fd")) <= before)
    with pytest.raises(_errors.ServerUnreachable) as refused:
        answers(server(host, "stranger"))
    assert str(refused.value).endswith(
        f"permission denied on {SOCKET}: "
        "add the user on 127.0.0.1 to the group lxd, or allow it sudo without a password"
    )


def test_every_way_to_fail_is_one_sentence(host: sshd.Sshd) -> None:
    def problem(where: options.ServerOptions) -> str:
        with pytest.raises(_errors.ServerUnreachable) as refused:
            answers(where)
        text = str(refused.value)
        assert "\n" not in text
        assert text.startswith(f"Cannot reach the server at {where.endpoint}: ")
        return text.rpartition(f"{where.endpoint}: ")[2]

    assert problem(server(host, path="/none")) == "there is no socket /none on 127.0.0.1"
    assert "Permission denied (publickey)" in problem(server(host, "nobody-there"))
    strange = server(host, more="-o UserKnownHostsFile=/dev/null")
    assert "its host key is not known yet" in problem(strange)
    closed = options.ServerOptions("ssh://127.0.0.1:9", ssh_args="-F none")
    assert problem(closed) == "ssh: connect to host 127.0.0.1 port 9: Connection refused"
    nowhere = options.ServerOptions("ssh://mage.invalid", ssh_args="-F none")
    assert problem(nowhere).startswith("ssh: Could not resolve hostname mage.invalid")
    known = (host.folder / "known_hosts").read_text(encoding="utf-8")
    other = (host.folder / "user_key.pub").read_text(encoding="utf-8")
    (host.folder / "known_hosts").write_text(f"{known.split()[0]} {other}", encoding="utf-8")
    assert "its host key is another than the known one" in problem(server(host))
    (host.folder / "known_hosts").write_text(known, encoding="utf-8")
    deaf = host.folder / "deaf"
    code = "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(deaf)], check=True)
    assert problem(server(host, path=str(deaf))) == (
        f"nothing listens on {deaf} on 127.0.0.1: the daemon is not running"
    )
    host.stop()
    host.more = "AllowStreamLocalForwarding no"
    host.start()
    assert problem(server(host)).startswith(f"ssh does not forward {SOCKET}: does AllowStreamLocalForwarding")


def test_a_folder_that_another_user_could_change_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Path(tempfile.mkdtemp(prefix="mage-run-"))
    home = Path(tempfile.mkdtemp(prefix="mage-home-"))
    try:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        monkeypatch.setenv("HOME", str(home))
        where = options.ServerOptions("ssh://example.org")
        assert ssh.place_of(where).base.startswith(f"{runtime}/mage-lxd/")
        (runtime / "mage-lxd").chmod(0o755)
        assert ssh.place_of(where).base.startswith(f"{home}/.ansible/mage-lxd/")
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        long = tmp_path / ("x" * 100)
        long.mkdir()
        monkeypatch.setenv("HOME", str(long))
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
        assert ssh.place_of(where).base.startswith("/tmp/mage-lxd-")
    finally:
        shutil.rmtree(runtime)
        shutil.rmtree(home)


PLAY = """
- hosts: remote
  gather_facts: false
  roles:
    - role: mage.lxd.lxd_provisioning
- hosts: lxd_containers
  gather_facts: false
  tasks:
    - name: Ask who it is
      ansible.builtin.raw: hostname
      changed_when: false
    - name: Say where it was asked
      ansible.builtin.debug:
        var: ansible_lxd_endpoint
"""


def wanted(name: str, endpoint: str, **further: str) -> dict[str, t.Any]:
    return {
        "lxd_provisioning_inventory": [{"name": name, "image": "mage-test/busybox"}],
        "lxd_provisioning_python": False,
        "lxd_provisioning_hosts_file": "",
        "lxd_provisioning_endpoint": endpoint,
        **{f"lxd_provisioning_{key}": value for key, value in further.items()},
    }


def test_containers_of_a_host_are_entered_by_what_ansible_knows_of_it(
    host: sshd.Sshd,
    doors: Doors,
    run_playbook: t.Callable[..., PlaybookRun],
    unique_name: t.Callable[[str], str],
    tmp_path: Path,
) -> None:
    name, listed = unique_name("far"), tmp_path / "listed.ini"
    over_ssh = wanted(name, f"unix://{SOCKET}", static_inventory=str(listed))
    run = run_playbook(PLAY, inventory=host.inventory(), extra_vars=over_ssh).succeeded()
    assert run.result("Ask who it is", name)["stdout"].strip() == name
    # The file leads there as well, without the play.
    argv = [str(BIN / "ansible"), name, "-i", str(listed), "-m", "ansible.builtin.raw", "-a", "hostname"]
    done = subprocess.run(argv, cwd=ROOT, env=ansible_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"ansible_lxd_endpoint=ssh://root@127.0.0.1:{host.port}{SOCKET}" in listed.read_text(encoding="utf-8")

    # The same by the server's own listener, where the endpoint says so.
    https = doors.way("https")[1]
    trusted = {key: str(getattr(https, key)) for key in ("client_cert", "client_key", "server_fingerprint")}
    over_https = wanted(name, https.endpoint, **trusted)
    run = run_playbook(PLAY, inventory=host.inventory(), extra_vars=over_https).succeeded()
    assert run.result("Ask who it is", name)["stdout"].strip() == name
    assert run.result("Say where it was asked", name)["ansible_lxd_endpoint"] == https.endpoint
    refused = run_playbook(
        PLAY, inventory="remote ansible_connection=ansible.builtin.winrm\n", extra_vars=over_ssh
    ).failed()
    assert refused == (
        "remote: the connection ansible.builtin.winrm leads to no server that the controller could reach: "
        "use ssh, local or mage.lxd.lxd, or say in lxd_provisioning_endpoint where the server listens on https"
    )
    elsewhere = wanted(name, "ssh://root@elsewhere.example.org")
    assert run_playbook(PLAY, inventory=host.inventory(), extra_vars=elsewhere).failed() == (
        "lxd_provisioning_endpoint: ssh://root@elsewhere.example.org: only with ansible_connection: local, and remote "
        "is reached by ssh: make the machine with the server the host of the play, and leave the endpoint out"
    )
