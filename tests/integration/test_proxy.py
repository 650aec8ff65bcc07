# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The proxy on a real server with a real nginx. One proxy serves all tests; every test declares its own hostnames."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import http.client
import http.server
import ipaddress
import json
import socket
import ssl
import subprocess
import threading
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils._context import Context
from ansible_collections.mage.lxd.plugins.module_utils._errors import InvalidInput, MageError
from ansible_collections.mage.lxd.plugins.module_utils._proxy import nginx, plan, render, scripts, spec
from ansible_collections.mage.lxd.plugins.module_utils._server import options
from ansible_collections.mage.lxd.tests.integration import playbook, server, tls

SET_UP = """
- hosts: localhost
  gather_facts: false
  tasks:
    - name: Bring up the proxy
      ansible.builtin.import_role:
        name: mage.lxd.mageproxy
        tasks_from: container.yml
    - name: Run two containers
      mage.lxd.instances:
        instances:
          - name: "{{ prefix }}-a"
            image: mage-test/busybox
            hostnames: ["{{ prefix }}-back.example.org"]
            proxy:
              - name: "{{ prefix }}.example.org"
          - name: "{{ prefix }}-b"
            image: mage-test/busybox
            proxy:
              - name: "{{ prefix }}.example.org"
              - name: "{{ prefix }}.example.org"
                path: /index
              - name: "*.{{ prefix }}.example.org"
                pass: "http://{{ prefix }}-back.example.org"
      register: declared
    - name: Serve them
      ansible.builtin.import_role:
        name: mage.lxd.mageproxy
        tasks_from: upstreams.yml
      vars:
        mageproxy_declared: "{{ declared.instances }}"
"""


# A refused configuration comes and goes beside what is served: folders and the lock show that.
_FILES = ("!", "-type", "d", "!", "-name", "lock")


@dataclasses.dataclass
class Proxy:
    """The proxy of these tests, and what runs behind it."""

    prefix: str
    address: str
    first: playbook.PlaybookRun
    variables: dict[str, t.Any]

    @property
    def name(self) -> str:
        return f"{self.prefix}-proxy"

    @property
    def host(self) -> str:
        return f"{self.prefix}.example.org"

    def exec(self, *argv: str) -> str:
        return server.run("lxc", "exec", self.name, "--", *server.LINGER, *argv)

    def tree(self) -> str:
        """All that a run could write, with its times."""
        listed = self.exec("find", "/etc/nginx", "/etc/hosts", *_FILES, "-printf", "%p %l %s %T@ %i\\n")
        return "\n".join(sorted(listed.splitlines()))

    def publish(self, routes: list[dict[str, t.Any]], suffix: str = "a") -> None:
        """Write a key by hand."""
        server.run("lxc", "config", "set", f"{self.prefix}-{suffix}", f"user.mage.proxy={json.dumps(routes)}")

    def published(self, suffix: str = "a", key: str = "proxy") -> str:
        return server.run("lxc", "config", "get", f"{self.prefix}-{suffix}", f"user.mage.{key}").strip()

    def named(self, names: list[str]) -> None:
        """Write the names of the second container by hand."""
        server.run("lxc", "config", "set", f"{self.prefix}-b", f"user.mage.hostnames={json.dumps(names)}")

    def get(self, host: str, path: str = "/", **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.address, 80, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"Host": host, **headers})
            answer = connection.getresponse()
            return answer.status, answer.read().decode().strip()

    def unchanged(self, changed: bool = True) -> None:
        """A run that follows another changes nothing. Others may use the server: what they publish comes between."""
        tries = 3
        while changed and tries:
            before = self.tree()
            made, _result = self.converge()
            changed, tries = made.changed, tries - 1
            assert changed == (before != self.tree())
        assert not changed

    def converge(self, declared: t.Sequence[str] = (), check_mode: bool = False) -> tuple[plan.ProxyPlan, t.Any]:
        """A run of the module in this process. Routes of the ``declared`` suffixes are this run's own."""
        items = [{"project": "default", "name": f"{self.prefix}-{one}", "status": "Running"} for one in declared]
        desired = spec.Desired(self.name, "default", tuple(items), spec.Policy(allow_raw=True))
        context = Context({}, check_mode, options.parse({}))
        with contextlib.closing(context):
            observed = nginx.observe(desired, context)
            made = plan.plan(desired, observed, check_mode)
            report = nginx.apply(desired, observed, made, context) if made.changed and not check_mode else None
            return made, nginx.result(desired, observed, made, report)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Proxy]:
    prefix = server.own_prefix()
    variables = {"prefix": prefix, "mageproxy_name": f"{prefix}-proxy", "mageproxy_nat": []}
    try:
        before = [one["name"] for one in server.instances()]
        checked = playbook.run_playbook(
            tmp_path_factory.mktemp("check"), SET_UP, extra_vars=variables, check=True, diff=True
        ).succeeded()
        assert not [one["name"] for one in server.instances(prefix)], before
        assert f"{prefix}-proxy:/etc/nginx/vhosts/{prefix}.example.org.conf (created)" in checked.output
        first = playbook.run_playbook(tmp_path_factory.mktemp("first"), SET_UP, extra_vars=variables).succeeded()
        address = server.lxd_query(f"/1.0/instances/{prefix}-proxy/state")["network"]["eth0"]["addresses"][0]["address"]
        yield Proxy(prefix, address, first, variables)
    finally:
        server.delete_instances(f"{prefix}-")


@pytest.fixture
def published(proxy: Proxy) -> t.Iterator[Proxy]:
    """The proxy; what a test publishes is taken back afterwards."""
    before = {(one, key): proxy.published(one, key) for one in ("a", "b") for key in ("proxy", "hostnames")}
    yield proxy
    for (suffix, key), text in before.items():
        server.run("lxc", "config", "set", f"{proxy.prefix}-{suffix}", f"user.mage.{key}={text}")
    proxy.converge()


class Echo(http.server.BaseHTTPRequestHandler):
    """A backend that answers with the request that it got; it switches protocols when asked to."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.headers.get("Upgrade"):
            self.send_response(101)
            self.send_header("Upgrade", self.headers["Upgrade"])
            self.send_header("Connection", self.headers["Connection"])
            self.end_headers()
            self.wfile.write(self.rfile.readline().upper())
            self.close_connection = True
            return
        body = json.dumps({"path": self.path, "headers": {k.lower(): v for k, v in self.headers.items()}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: t.Any, **more: t.Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def echo() -> t.Iterator[str]:
    """host:port of a backend on the bridge's own address."""
    bridge = server.lxd_query("/1.0/networks/lxdbr0")["config"]["ipv4.address"]
    address = str(ipaddress.ip_interface(bridge).ip)
    with http.server.ThreadingHTTPServer((address, 0), Echo) as backend:
        threading.Thread(target=backend.serve_forever, daemon=True).start()
        yield f"{address}:{backend.server_port}"
        backend.shutdown()


def test_routes_reach_their_containers(proxy: Proxy) -> None:
    answers = {proxy.get(proxy.host) for _try in range(8)}
    assert answers == {(200, f"{proxy.prefix}-a"), (200, f"{proxy.prefix}-b")}
    assert proxy.get(proxy.host.upper() + ":8081") in answers
    assert proxy.get(f"x.{proxy.host}") == (200, f"{proxy.prefix}-a")
    assert {proxy.get(proxy.host, "/index")[0] for _try in range(4)} == {404}
    vhosts = {
        one["name"] + one["path"]: one for one in proxy.first.result("Serve what the instances publish")["vhosts"]
    }
    assert vhosts[f"{proxy.host}/index"]["instances"] == [f"default/{proxy.prefix}-b"]
    assert len(vhosts[f"{proxy.host}/"]["servers"]) == 2


def test_an_unknown_host_gets_no_answer(proxy: Proxy) -> None:
    for request in (b"GET / HTTP/1.1\r\nHost: unknown.example.org\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n"):
        with socket.create_connection((proxy.address, 80), timeout=10) as connection:
            connection.sendall(request)
            assert connection.recv(100) == b""


def test_a_probe_is_not_answered_from_outside(proxy: Proxy) -> None:
    status, body = proxy.get(proxy.host, **{"X-Mage-Probe": render.PROBE_NAME})
    assert (status, body[: len(proxy.prefix)]) == (200, proxy.prefix)


def test_the_containers_stand_in_the_hosts_file(proxy: Proxy) -> None:
    found = proxy.exec("getent", "hosts", f"{proxy.prefix}-a", f"{proxy.prefix}-back.example.org").split()
    assert found[0] == found[2]
    assert proxy.exec("getent", "ahostsv4", "localhost").startswith("127.0.0.1")


def test_the_second_run_changes_nothing_and_check_mode_writes_nothing(published: Proxy, run_playbook: t.Any) -> None:
    again = run_playbook(SET_UP, extra_vars=published.variables).succeeded()
    published.unchanged(again.task("Serve what the instances publish").changed)
    before = published.tree()
    published.publish([{"name": f"new.{published.prefix}.test"}])
    made, _result = published.converge(check_mode=True)
    assert f"{published.name}:/etc/nginx/vhosts/new.{published.prefix}.test.conf" in [x.subject for x in made.changes]
    assert published.tree() == before


def test_headers_and_paths_are_as_documented(published: Proxy, echo: str) -> None:
    name = f"echo.{published.prefix}.test"
    routes = [
        {"name": name, "pass": f"http://{echo}"},
        {"name": name, "path": "/cut/", "pass": f"http://{echo}/"},
        {"name": name, "path": "/moved", "pass": f"http://{echo}/to/here"},
        {"name": name, "path": "/moved/kept/", "pass": f"http://{echo}"},
        {"name": name, "path": "/~a(1)+*,=&/", "pass": f"http://{echo}/b/"},
    ]
    published.publish(routes)
    assert published.converge()[1]["left_out"] == []
    forged = {
        "X-Forwarded-For": "1.2.3.4",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "evil",
        "X-Real-IP": "1.2.3.4",
        "Forwarded": "for=1.2.3.4",
        "Proxy": "http://evil",
    }
    status, body = published.get(f"{name}:8081", "/a?b=c", **forged)
    told = json.loads(body)
    assert (status, told["path"]) == (200, "/a?b=c")
    with socket.create_connection((published.address, 80)) as connection:
        ours = connection.getsockname()[0]
    assert {key: value for key, value in told["headers"].items() if not key.startswith("accept")} == {
        "host": f"{name}:8081",
        "connection": "close",
        "x-real-ip": ours,
        "x-forwarded-for": ours,
        "x-forwarded-host": f"{name}:8081",
        "x-forwarded-port": "8081",
        "x-forwarded-proto": "http",
    }
    for asked, got in {
        "/cut/x%20y?z": "/x%20y?z",
        "/moved": "/to/here",
        "/moved/on": "/to/here/on",
        "/movedon": "/movedon",
        "/moved/kept/x": "/moved/kept/x",
        "/~a(1)+*,=&/x": "/b/x",
    }.items():
        assert json.loads(published.get(name, asked)[1])["path"] == got


def test_a_backend_with_tls_is_asked_for_by_the_name_that_the_client_said(
    published: Proxy, echo: str, tmp_path: Path
) -> None:
    asked: list[str] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*tls.make_certificate(tmp_path, "backend"))
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    name = f"safe.{published.prefix}.test"
    with http.server.ThreadingHTTPServer((echo.rpartition(":")[0], 0), Echo) as backend:
        backend.socket = context.wrap_socket(backend.socket, server_side=True)
        threading.Thread(target=backend.serve_forever, daemon=True).start()
        published.publish([{"name": name, "pass": f"https://{echo.rpartition(':')[0]}:{backend.server_port}"}])
        published.converge()
        status, body = published.get(f"{name}:8081")
        backend.shutdown()
    assert (status, json.loads(body)["headers"]["host"]) == (200, f"{name}:8081")
    assert set(asked) == {name}


def test_a_websocket_is_passed_on(published: Proxy, echo: str) -> None:
    published.publish([{"name": f"ws.{published.prefix}.test", "pass": f"http://{echo}"}])
    published.converge()
    with socket.create_connection((published.address, 80), timeout=10) as connection:
        head = (
            f"GET / HTTP/1.1\r\nHost: ws.{published.prefix}.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        )
        connection.sendall(head.encode())
        answer = connection.makefile("rb")
        assert b" 101 " in answer.readline()
        while answer.readline().strip():
            pass
        connection.sendall(b"hello\n")
        assert answer.readline() == b"HELLO\n"


def test_a_name_that_does_not_resolve_takes_nobody_down(published: Proxy) -> None:
    published.publish([{"name": f"lost.{published.prefix}.test", "pass": "http://no-such-host.invalid"}])
    assert published.converge()[1]["left_out"] == []
    assert published.get(f"lost.{published.prefix}.test")[0] == 502
    assert published.get(published.host) == (200, f"{published.prefix}-b")
    published.exec("systemctl", "restart", "nginx")
    assert published.get(published.host) == (200, f"{published.prefix}-b")


def test_a_declared_route_that_nginx_refuses_changes_nothing_and_is_named(
    published: Proxy, run_playbook: t.Any
) -> None:
    before = published.tree()
    bad = {"name": f"bad.{published.prefix}.test", "raw": "proxy_read_timeout soon;"}
    items = [{"name": f"{published.prefix}-a", "proxy": [{"name": published.host}, bad]}]
    play = """
- hosts: localhost
  gather_facts: false
  tasks:
    - mage.lxd.instances:
        instances: "{{ items }}"
      register: declared
    - name: Serve them
      mage.lxd.proxy_upstreams:
        instance: "{{ mageproxy_name }}"
        declared: "{{ declared.instances }}"
        proxy_policy:
          allow_raw: "{{ allowed }}"
"""
    variables = {**published.variables, "items": items, "allowed": True}
    message = run_playbook(play, extra_vars=variables).failed()
    assert (
        f'bad.{published.prefix}.test/ (default/{published.prefix}-a): nginx refuses it: "proxy_read_timeout"'
        in message
    )
    assert published.tree() == before
    assert published.get(published.host)[0] == 200
    message = run_playbook(play, extra_vars={**variables, "allowed": False}).failed()
    assert "raw directives are only taken with proxy_policy.allow_raw" in message
    assert published.tree() == before


def test_a_foreign_route_that_nginx_refuses_is_left_out_and_named(published: Proxy) -> None:
    name = f"new.{published.prefix}.test"
    published.publish(
        [
            {"name": name},
            {"name": name, "path": "/one", "raw": "no_such_directive on;"},
            {"name": f"bad.{published.prefix}.test", "raw": "proxy_read_timeout soon;"},
            {"name": f"{published.prefix}.test", "path": "bad"},
        ]
    )
    result = published.converge(declared=["b"])[1]
    assert len(result["left_out"]) == 3
    reasons = " ".join(one["reason"] for one in result["left_out"])
    for told in (f"{name}/one: nginx refuses it: unknown directive", f"bad.{published.prefix}.test/: ", "[3].path"):
        assert told in reasons
    assert published.get(name) == (200, f"{published.prefix}-a")
    published.unchanged()
    again = published.converge(declared=["b"])[1]["left_out"]
    assert sorted(one["reason"] for one in again) == sorted(one["reason"] for one in result["left_out"])


def test_nginxs_warnings_are_errors(proxy: Proxy) -> None:
    vhosts = [render.Vhost(name, (render.Location("/", render.Target(), ("default/a",)),)) for name in ("a", "b")]
    files = render.tree(vhosts, render.Facts())
    files["vhosts/b.conf"] = files["vhosts/b.conf"].replace("server_name b;", "server_name a;")
    with contextlib.closing(Context({}, False, options.parse({}))) as context:
        desired = spec.Desired(proxy.name, "default")
        live = nginx.observe(desired, context).live
        before = proxy.tree()
        answer = nginx.converge(desired, live, files, context.driver)
        assert (answer.rc, b'conflicting server name "a"' in answer.stdout) == (scripts.REFUSED, True)
        assert proxy.tree() == before
        moved = nginx.converge(desired, dataclasses.replace(live, current="elsewhere"), files, context.driver)
        assert (moved.rc, proxy.tree()) == (scripts.MOVED, before)


def test_a_configuration_that_nginx_does_not_take_up_is_rolled_back(published: Proxy) -> None:
    before = published.exec("readlink", "/etc/nginx/mage/current")
    published.publish([{"name": f"new.{published.prefix}.test"}])
    master = published.exec("cat", "/run/nginx.pid").strip()
    published.exec("sh", "-c", f"kill -STOP {master}")
    try:
        with pytest.raises(MageError, match=r"the former configuration is served: nginx does not take"):
            published.converge()
        assert published.exec("readlink", "/etc/nginx/mage/current") == before
        assert published.get(published.host)[0] == 200
    finally:
        published.exec("sh", "-c", f"kill -CONT {master}")
    assert published.converge()[0].changed
    assert published.get(f"new.{published.prefix}.test") == (200, f"{published.prefix}-a")


def test_what_was_changed_by_hand_is_put_right(published: Proxy) -> None:
    vhost = f"/etc/nginx/vhosts/{published.host}.conf"
    current = "/etc/nginx/mage/current/generation.conf"
    for damage in (
        f"echo 'broken {{' >{vhost}",
        "rm -r /etc/nginx/mage",
        "rm /etc/nginx/upstream.conf; echo mine >/etc/nginx/upstream.conf",
        "rm /etc/nginx/vhosts; mkdir /etc/nginx/vhosts; touch /etc/nginx/vhosts/mine.conf",
        "sed -i /mage/d /etc/hosts",
        "systemctl stop nginx",
        # Written, and never loaded: as a run leaves it that is killed before its reload.
        f"sed -i s/'\" .*;'/'\" older;'/ {current}; nginx -s reload; sleep 3; cp /tmp/saved {current}",
    ):
        published.exec("cp", "/etc/nginx/generation.conf", "/tmp/saved")
        published.exec("sh", "-c", damage)
        assert published.converge()[0].changed, damage
        assert published.get(published.host)[0] == 200, damage
        published.unchanged()
    assert published.exec("cat", "/etc/nginx/mage/before/vhosts/mine.conf") == ""


def test_a_start_that_fails_leaves_things_as_they_were(published: Proxy) -> None:
    published.exec("systemctl", "stop", "nginx")
    listen = "IO::Socket::INET->new(Listen => 1, LocalPort => 80, ReuseAddr => 1) or die; print 1; sleep 60"
    argv = ["lxc", "exec", published.name, "--", "perl", "-MIO::Socket::INET", "-e", f"$| = 1; my $s = {listen}"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as squatter:
        assert squatter.stdout is not None
        assert squatter.stdout.read(1) == b"1"
        before = published.exec("readlink", "/etc/nginx/mage/current")
        with pytest.raises(MageError, match="nginx does not start"):
            published.converge()
        assert published.exec("readlink", "/etc/nginx/mage/current") == before
        published.exec("sh", "-c", "kill $(grep -l '^perl' /proc/[0-9]*/comm | cut -d/ -f3)")
    assert published.converge()[0].changed
    assert published.get(published.host)[0] == 200


def test_reloads_under_load_lose_nothing(published: Proxy) -> None:
    counts: collections.Counter[str] = collections.Counter()
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            try:
                status, _body = published.get(published.host)
                counts[str(status)] += 1
            except (OSError, http.client.HTTPException) as error:
                counts[repr(error)] += 1

    threads = [threading.Thread(target=load) for _try in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(6):
            published.publish([{"name": published.host}, {"name": f"n{number}.{published.prefix}.test"}])
            assert published.converge()[0].changed
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(counts) == {"200"}, counts
    assert counts["200"] > 100


def test_runs_side_by_side_do_not_mix(published: Proxy) -> None:
    published.publish([{"name": published.host}, {"name": f"side.{published.prefix}.test"}])
    errors: list[BaseException] = []

    def run() -> None:
        try:
            published.converge()
        except (MageError, OSError) as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _try in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    published.unchanged()
    assert published.get(f"side.{published.prefix}.test") == (200, f"{published.prefix}-a")
    assert len(published.exec("ls", "/etc/nginx/mage").split()) <= 5


def test_a_run_that_is_late_undoes_nothing_of_another(published: Proxy) -> None:
    early, other = (f"{one}.{published.prefix}.test" for one in ("early", "other"))
    published.publish([{"name": published.host}, {"name": early}])
    with contextlib.closing(Context({}, False, options.parse({}))) as context:
        desired = spec.Desired(published.name, "default")
        observed = nginx.observe(desired, context)
        made = plan.plan(desired, observed, False)
        published.publish([{"name": published.host}, {"name": other}], "b")
        published.named(["other.example.org"])
        assert published.converge()[0].changed
        # What is served was read when the other run had ended, and who publishes before it began.
        for live in (observed.live, nginx.observe(desired, context).live):
            seen = dataclasses.replace(observed, live=live)
            report = nginx.apply(desired, seen, made, context)
            assert {early, other} <= {one["name"] for one in report.values["vhosts"]}
            assert published.get(early) == (200, f"{published.prefix}-a")
            assert published.get(other) == (200, f"{published.prefix}-b")
            assert "other.example.org" in published.exec("cat", "/etc/hosts")
    published.unchanged()


def test_a_route_stays_with_whom_it_is_served_for(published: Proxy) -> None:
    name = f"kept.{published.prefix}.test"
    published.publish([{"name": name}], "b")
    published.converge()
    published.publish([{"name": name, "port": 81}])
    made, result = published.converge()
    assert [one["instance"] for one in result["left_out"]] == [f"default/{published.prefix}-a"]
    before = published.tree()
    with pytest.raises(InvalidInput, match=f"default/{published.prefix}-a: {name}/: default/{published.prefix}-b has"):
        published.converge(declared=["a"])
    assert published.tree() == before
    assert published.get(name) == (200, f"{published.prefix}-b")
    # Its own run goes on: what somebody else asks for is left out there.
    made, result = published.converge(declared=["b"])
    assert (made.changed, len(result["left_out"])) == (False, 1)


def test_a_hosts_file_that_somebody_else_changes_loses_no_line(published: Proxy) -> None:
    with contextlib.closing(Context({}, False, options.parse({}))) as context:
        desired = spec.Desired(published.name, "default")
        published.named(["late.example.org"])
        observed = nginx.observe(desired, context)
        made = plan.plan(desired, observed, False)
        published.exec("sh", "-c", "echo 10.64.9.9 mine >>/etc/hosts")
        nginx.apply(desired, observed, made, context)
    found = published.exec("cat", "/etc/hosts")
    assert "10.64.9.9 mine" in found
    assert "late.example.org" in found
    published.unchanged()
    published.exec("sed", "-i", "/ mine$/d", "/etc/hosts")


@pytest.mark.parametrize(
    "step",
    [
        "stage=$(mktemp",
        "output=$(nginx -t -q -c",
        'point "${stage',
        "for link in upstream.conf",
        "output=$(nginx -t -q 2>&1)",
        'if [ "$was" = running ]; then\n    output',
        "unserved=\n",
        'for old in "$mage"',
    ],
)
def test_a_run_that_is_killed_is_finished_by_the_next(
    published: Proxy, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"killed.{published.prefix}.test"
    published.publish([{"name": published.host}, {"name": name}])
    with monkeypatch.context() as patched:
        assert step in scripts.CONVERGE
        patched.setattr(scripts, "CONVERGE", scripts.CONVERGE.replace(step, "kill -9 $$\n" + step, 1))
        with pytest.raises(MageError):
            published.converge()
    published.exec("nginx", "-t")
    published.converge()
    published.unchanged()
    assert published.get(published.host)[0] == 200
    assert published.get(name)[0] == 200


def test_a_container_that_comes_back_is_served_without_a_run(published: Proxy) -> None:
    alone = f"alone.{published.prefix}.test"
    published.publish([{"name": published.host}, {"name": alone}])
    published.converge()
    server.run("lxc", "stop", "--force", f"{published.prefix}-a")
    try:
        assert published.get(alone)[0] in (502, 504)
        assert {published.get(published.host) for _try in range(4)} == {(200, f"{published.prefix}-b")}
        published.unchanged()
    finally:
        server.run("lxc", "start", f"{published.prefix}-a")
    deadline = time.monotonic() + 120
    while published.get(alone) != (200, f"{published.prefix}-a"):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_many_and_strange_names_pass_nginxs_test(published: Proxy) -> None:
    tail = f".{published.prefix}.test"
    longest = ".".join(["a" * 63, "b" * 63, "c" * 63])
    names = [f"n{number}{tail}" for number in range(300)]
    names += [
        longest + "." + "d" * (252 - len(longest)),
        "_" + tail,
        "*" + tail,
        "_.x" + tail,
        "*.x" + tail,
        "1" + tail,
    ]
    paths = ["/", "/a", "/a/", "/~a", "/(b)", "/*", "/+,=&!@:._-", "/" + "p" * 1000]
    routes = [{"name": name} for name in names] + [{"name": f"paths{tail}", "path": path} for path in paths]
    published.publish(routes)
    result = published.converge()[1]
    assert result["left_out"] == []
    mine = [one for one in result["vhosts"] if one["instances"] == [f"default/{published.prefix}-a"]]
    assert len(mine) == len(routes)
    assert published.get(names[-1])[0] == 200
    assert published.get(longest + "." + "d" * (252 - len(longest)))[0] == 200


def test_the_proxy_comes_back_with_its_container(published: Proxy) -> None:
    server.run("lxc", "restart", published.name)
    deadline = time.monotonic() + 120
    while True:
        try:
            assert published.get(published.host)[0] == 200
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    published.unchanged()


def test_bad_input_is_told_at_once(proxy: Proxy) -> None:
    proxy.publish([{"name": "a b"}, {"nme": "x"}, {"name": "y", "port": 0}], "b")
    try:
        with pytest.raises(InvalidInput) as caught:
            proxy.converge(declared=["b"])
        assert len(caught.value.problems) >= 3
    finally:
        proxy.publish([{"name": proxy.host}], "b")
