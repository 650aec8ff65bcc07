# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers at https://: which certificates are trusted, and by whom; and the remotes of the client programs."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import threading
import time
import typing as t
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingUnixStreamServer

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._server import options, snapshot
from ansible_collections.mage.lxd.plugins.module_utils._server.core import CoreDriver
from ansible_collections.mage.lxd.plugins.module_utils._server.relay import Relay
from ansible_collections.mage.lxd.tests.integration import listener, server, tls
from ansible_collections.mage.lxd.tests.integration.doors import (
    DRIVERS,
    INCUS,
    INCUS_SOCKET,
    LXD,
    LXD_SOCKET,
    Doors,
    Driver,
    Server,
)
from ansible_collections.mage.lxd.tests.integration.playbook import BIN, ROOT, ansible_environment

BOTH = pytest.mark.parametrize("make", DRIVERS.values(), ids=DRIVERS)
CLIENT = ("client_cert", "client_key")
SOCKETS = {LXD: LXD_SOCKET, INCUS: INCUS_SOCKET}


@dataclasses.dataclass(frozen=True)
class Remote:
    """A server that listens, and a client's certificate that it does not know."""

    host: Server
    endpoint: str
    pair: tuple[str, str]

    def parse(self, **params: t.Any) -> options.ServerOptions:
        return options.parse({"endpoint": self.endpoint, **dict(zip(CLIENT, self.pair)), **params}, {})

    def pin(self) -> str:
        """The fingerprint of the server's certificate, as its own client says it."""
        return str(self.host.query("/1.0")["environment"]["certificate_fingerprint"])


@pytest.fixture(params=[LXD, INCUS], ids=lambda host: host.name)
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> t.Iterator[Remote]:
    host: Server = request.param
    with listener.listening(host.run) as endpoint:
        yield Remote(host, endpoint, tls.make_certificate(tmp_path, "stranger"))


def flavor(driver: Driver) -> str:
    """Asks what only a trusted client is told."""
    with contextlib.closing(driver):
        return str(driver.request("GET", "/1.0").metadata["environment"]["server"])


def refusal(make: t.Callable[[options.ServerOptions], Driver], door: options.ServerOptions) -> str:
    with pytest.raises(_errors.MageError) as refused:
        flavor(make(door))
    return str(refused.value)


def test_a_token_makes_trusted_once(remote: Remote, tmp_path: Path) -> None:
    """Its fingerprint pins the server, so that nobody is trusted on first use."""
    core, pylxd = DRIVERS["core"], DRIVERS["pylxd"]
    pinned = remote.parse(server_fingerprint=remote.pin())
    for make in (core, pylxd):
        assert "its certificate is not trusted: self-signed certificate; name it in server_cert" in refusal(
            make, remote.parse()
        )
        assert f"it does not trust the certificate {remote.pair[0]}: have `lxc config trust add`" in refusal(
            make, pinned
        )
    token = listener.make_token(remote.host.run)
    wrong = remote.parse(trust_token=token, server_fingerprint="ab" * 32)
    assert f"the server's certificate is {remote.pin()}, and not {'ab' * 32}, the pinned one" in refusal(core, wrong)
    door = remote.parse(trust_token=token)
    assert flavor(core(door)) == remote.host.name
    for make in (core, pylxd):
        assert flavor(make(door)) == remote.host.name
        assert flavor(make(pinned)) == remote.host.name
        assert flavor(make(remote.parse(insecure_skip_verify=True))) == remote.host.name
    other = dict(zip(CLIENT, tls.make_certificate(tmp_path, "other")))
    for make in (core, pylxd):
        message = refusal(make, remote.parse(trust_token=token, **other))
        assert "it refused the trust_token (No matching certificate add operation found)" in message
        assert token not in message
    listener.forget(remote.host.run, remote.pair[0])
    assert "it refused the trust_token" in refusal(pylxd, door)
    again = listener.make_token(remote.host.run)
    assert flavor(pylxd(remote.parse(trust_token=again))) == remote.host.name
    listener.forget(remote.host.run, remote.pair[0])


def test_a_token_that_has_expired(remote: Remote) -> None:
    remote.host.run("config", "set", "core.remote_token_expiry", "1S")
    try:
        token = listener.make_token(remote.host.run)
    finally:
        remote.host.run("config", "unset", "core.remote_token_expiry")
    time.sleep(1.1)
    assert "the trust_token has expired (2" in refusal(CoreDriver, remote.parse(trust_token=token))


def test_a_restricted_certificate_says_so_where_it_ends(remote: Remote) -> None:
    project = server.own_prefix()
    remote.host.run("project", "create", project)
    try:
        token = listener.make_token(remote.host.run, "--restricted", "--projects", project)
        for make in DRIVERS.values():
            with contextlib.closing(make(remote.parse(trust_token=token))) as driver:
                assert driver.request("GET", "/1.0/instances", query={"project": project}).metadata == []
                snapshot.check_project(driver, project)
                with pytest.raises(_errors.InvalidInput, match=rf"no such project \(there are {project}\)$"):
                    snapshot.check_project(driver, "no-such")
                restricted = rf"\(the certificate {remote.pair[0]} is restricted on this server\)"
                with pytest.raises(_errors.ServerError, match=restricted):
                    driver.request("GET", "/1.0/instances", query={"project": "default"})
                with pytest.raises(_errors.ServerError, match=restricted):
                    driver.request("PATCH", "/1.0", body={"config": {"user.mage": "1"}})
        listener.forget(remote.host.run, remote.pair[0])
    finally:
        remote.host.run("project", "delete", project)


ANSWER = b'{"type":"sync","status_code":200,"metadata":{"auth":"untrusted","auth_methods":["oidc"]}}'


class _Oidc(StreamRequestHandler):
    """Answers as a server does that takes no client certificates."""

    def handle(self) -> None:
        while self.rfile.readline():
            while self.rfile.readline().strip():
                pass
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER))


@BOTH
def test_a_server_that_wants_a_login(make: t.Callable[[options.ServerOptions], Driver], tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with ThreadingUnixStreamServer(path, _Oidc) as fake, tls.tls_door(tmp_path, path) as door:
        threading.Thread(target=fake.serve_forever, daemon=True).start()
        message = refusal(make, door.options())
        fake.shutdown()
    assert "it wants a login by oidc, which needs a browser, and takes no client certificates" in message


@BOTH
def test_certificates_that_are_wrong(make: t.Callable[[options.ServerOptions], Driver], tmp_path: Path) -> None:
    with tls.tls_door(tmp_path, "/nowhere") as door:
        right: dict[str, t.Any] = {**dataclasses.asdict(door.options()), "via": ()}
        other, other_key = tls.make_certificate(tmp_path, "other")
        locked = str(tmp_path / "locked.key")
        server.run("openssl", "ec", "-aes256", "-passout", "pass:x", "-in", other_key, "-out", locked)
        empty = tmp_path / "empty"
        empty.touch()
        for changed, value, words in (
            ("server_cert", other, f"the server's certificate is not the one in {other}"),
            ("server_cert", None, "its certificate is not trusted: self-signed certificate"),
            ("server_cert", str(empty), f"server_cert: {empty} holds no certificate in PEM format"),
            ("client_key", other_key, f"{door.client_cert} and {other_key} do not belong together"),
            ("client_key", locked, f"{door.client_cert} and {locked} are not a certificate and its key"),
        ):
            assert words in refusal(make, options.ServerOptions(**{**right, changed: value}))


# In a mount namespace, where the machine trusts this authority alone.
TRUSTING = 'mount --bind "$1" /etc/ssl/certs && shift && exec "$@"'
ASK = """
import sys
from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._server import options
from ansible_collections.mage.lxd.tests.integration.doors import DRIVERS
for make in DRIVERS.values():
    for host in ("127.0.0.1", "localhost"):
        certificates = {"client_cert": sys.argv[2], "client_key": sys.argv[3]}
        way = options.parse({"endpoint": f"https://{host}:{sys.argv[1]}", **certificates})
        try:
            driver = make(way)
            print(driver.request("GET", "/1.0").metadata["auth"])
            driver.close()
        except _errors.MageError as e:
            print(e)
"""


def test_the_machines_own_authorities_vouch_for_a_server(tmp_path: Path) -> None:
    """By its name: then nothing has to be pinned."""
    authority, own = tls.make_authority(tmp_path)
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    (trusted / "authority.pem").write_bytes(Path(authority).read_bytes())
    server.run("openssl", "rehash", str(trusted))
    other = {"REQUESTS_CA_BUNDLE": authority, "SSL_CERT_FILE": authority, "SSL_CERT_DIR": str(trusted)}
    said = {}
    with tls.tls_door(tmp_path, LXD_SOCKET, own) as door:
        argv = [sys.executable, "-c", ASK, door.endpoint.rpartition(":")[2], door.client_cert, door.client_key]
        for name, before, more in (
            ("trusting", ["unshare", "--mount", "sh", "-c", TRUSTING, "sh", str(trusted)], {}),
            # The environment has no say in it.
            ("strange", [], other),
        ):
            environment = {**os.environ, "PYTHONPATH": str(ROOT / ".tree"), **more}
            done = subprocess.run([*before, *argv], env=environment, capture_output=True, text=True, check=True)
            said[name] = done.stdout
    right, wrong = said["trusting"].splitlines()[::2], said["trusting"].splitlines()[1::2]
    assert right == ["trusted"] * len(DRIVERS)
    for message in wrong:
        assert "its certificate is not trusted: Hostname mismatch, certificate is not valid for 'localhost'" in message
    for message in said["strange"].splitlines():
        assert "its certificate is not trusted: unable to get local issuer certificate; name it in server_" in message


def test_the_environment_changes_nothing(remote: Remote, run_playbook: t.Any, tmp_path: Path) -> None:
    """Certificate bundles and proxies are for others: a module's pylxd would take the first, and ask the second."""
    other, _key = tls.make_certificate(tmp_path, "other")
    bundles = dict.fromkeys(("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"), other)
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    token = listener.make_token(remote.host.run)
    play = f"""
- hosts: localhost
  gather_facts: false
  module_defaults:
    group/mage.lxd.lxd:
      endpoint: {remote.endpoint}
      client_cert: {remote.pair[0]}
      client_key: {remote.pair[1]}
      trust_token: "{token}"
  tasks:
    - name: Ask
      mage.lxd.instances_info:
"""
    done = run_playbook(play, environment={**bundles, **proxies}, arguments=["-vvv"]).succeeded()
    assert done.result("Ask")["server"]["flavor"] == remote.host.name
    assert done.result("Ask")["server"]["endpoint"] == remote.endpoint
    assert token not in done.output
    listener.forget(remote.host.run, remote.pair[0])


def test_what_tls_says_of_itself_holds_nothing_up(doors: Doors) -> None:
    """Servers send messages after the handshake that bear no data. A relay must not wait for data then."""
    relay = Relay(doors.way("https")[1])
    with contextlib.closing(relay), socket.socket(socket.AF_UNIX) as client:
        client.connect(relay.path)
        # They have come by then, and nothing else.
        time.sleep(0.3)
        client.settimeout(20)
        client.sendall(b"GET /1.0 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"


PROVISION = """
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


@pytest.mark.parametrize("remote", [LXD], indirect=True, ids=["lxd"])
def test_a_role_hands_on_how_the_server_is_reached(remote: Remote, run_playbook: t.Any, tmp_path: Path) -> None:
    """To the containers of this run, and to the inventory file that it keeps."""
    name, listed = server.own_prefix(), tmp_path / "listed.ini"
    token = listener.make_token(remote.host.run)
    wanted = {
        "lxd_provisioning_inventory": [{"name": name, "image": remote.host.image}],
        "lxd_provisioning_python": False,
        "lxd_provisioning_hosts_file": "",
        "lxd_provisioning_endpoint": remote.endpoint,
        "lxd_provisioning_client_cert": remote.pair[0],
        "lxd_provisioning_client_key": remote.pair[1],
        "lxd_provisioning_trust_token": token,
        "lxd_provisioning_static_inventory": str(listed),
    }
    try:
        run = run_playbook(PROVISION, extra_vars=wanted, arguments=["-v"]).succeeded()
        assert run.result("Ask who it is", name)["stdout"].strip() == name
        argv = [str(BIN / "ansible"), name, "-i", str(listed), "-m", "ansible.builtin.raw", "-a", "hostname"]
        done = subprocess.run(argv, env=ansible_environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"ansible_lxd_server_fingerprint={remote.pin()}" in listed.read_text(encoding="utf-8")
        assert token not in run.output + listed.read_text(encoding="utf-8")
    finally:
        remote.host.delete(name)
        listener.forget(remote.host.run, remote.pair[0])


# Remotes of the client programs


@pytest.mark.parametrize("remote", [LXD], indirect=True, ids=["lxd"])
def test_a_role_hands_on_a_remote(
    remote: Remote, run_playbook: t.Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the certificates that the client has of it, though nothing else vouches for the server."""
    monkeypatch.setenv("LXD_CONF", str(tmp_path / "conf"))
    name, token = server.own_prefix(), listener.make_token(remote.host.run)
    subprocess.run([remote.host.client[0], "remote", "add", "far", token], check=True, capture_output=True, input=b"")
    wanted = {
        "lxd_provisioning_inventory": [{"name": name, "image": remote.host.image}],
        "lxd_provisioning_python": False,
        "lxd_provisioning_hosts_file": "",
        "lxd_provisioning_endpoint": "lxc:far",
    }
    try:
        run = run_playbook(PROVISION, extra_vars=wanted).succeeded()
        assert run.result("Ask who it is", name)["stdout"].strip() == name
    finally:
        remote.host.delete(name)
        listener.forget(remote.host.run, str(tmp_path / "conf/client.crt"))


def test_a_remote_that_the_client_added(remote: Remote, tmp_path: Path) -> None:
    """As a user does it: the client adds the remote with a token, and we find all of it in the client's folder."""
    client = remote.host.client[0]
    variable = {"lxc": "LXD_CONF", "incus": "INCUS_CONF"}[client]
    environment = {variable: str(tmp_path / "conf")}

    def run(*argv: str) -> None:
        subprocess.run([client, *argv], env={**os.environ, **environment}, check=True, capture_output=True, input=b"")

    project = server.own_prefix()
    remote.host.run("project", "create", project)
    token = listener.make_token(remote.host.run)
    # The client tries every address of the token; the listener's is its only one.
    run("remote", "add", "far", token)
    run("remote", "add", "near", f"unix://{SOCKETS[remote.host]}")
    run("project", "switch", f"far:{project}")
    for name, expected in (("far", project), ("near", "default"), ("local", "default")):
        for make in DRIVERS.values():
            door = options.parse({"endpoint": f"{client}:{name}"}, environment)
            assert flavor(make(door)) == remote.host.name
            assert door.project == expected
    assert options.parse({"endpoint": f"{client}:far"}, environment).endpoint == remote.endpoint
    with pytest.raises(_errors.InvalidInput, match=r"no such remote in .*/conf/config\.yml, which has .*far, .*near"):
        options.parse({"endpoint": f"{client}:nope"}, environment)
    with pytest.raises(_errors.InvalidInput, match=r"it only has images \(simplestreams\)"):
        options.parse({"endpoint": f"{client}:images"}, environment)
    listener.forget(remote.host.run, str(tmp_path / "conf/client.crt"))
    remote.host.run("project", "delete", project)
