# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user may say of a server: every option, every problem, all at once."""

from __future__ import annotations

import base64
import json
import socket
import sys
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils._errors import InvalidInput, NotHere
from ansible_collections.mage.lxd.plugins.module_utils._server import options, ssh
from ansible_collections.mage.lxd.plugins.module_utils._server import sockets as sockets_module

PIN = "ab" * 32
UNIX = "unix:///s"
NO_PAIR = "client_cert, client_key: one is of no use without the other"
NO_TOKEN = "trust_token: must be a token as lxc config trust add and incus config trust add show it"


def make_token(**changes: str) -> str:
    said = {"client_name": "x", "fingerprint": PIN, "addresses": [], "secret": "s3cret", **changes}
    return base64.b64encode(json.dumps(said).encode()).decode()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A user's home, in which the client lxc knows some remotes."""
    folder = tmp_path / ".config/lxc"
    (folder / "servercerts").mkdir(parents=True)
    (folder / "clientcerts").mkdir()
    for name in ("client.crt", "client.key", "servercerts/pinned.crt", "clientcerts/own.crt", "clientcerts/own.key"):
        (folder / name).touch()
    (folder / "config.yml").write_text(
        """
default-remote: local
remotes:
  images: {addr: "https://images.example.org", protocol: simplestreams, public: true}
  open: {addr: "https://open.example.org:8443", protocol: lxd, public: true}
  login: {addr: "https://login.example.org:8443", protocol: lxd, auth_type: oidc, public: false}
  pinned: {addr: "https://pinned.example.org:8443", protocol: lxd, auth_type: tls, project: shop, public: false}
  own: {addr: "https://own.example.org:8443", protocol: lxd, auth_type: tls, public: false}
  socket: {addr: "unix:///run/other.socket", public: false}
"""
    )
    return tmp_path


def parse(home: Path, **params: t.Any) -> options.ServerOptions:
    return options.parse(params, {"HOME": str(home), "LXD_SOCKET": "/run/lxd.socket"})


def problems(home: Path, **params: t.Any) -> list[str]:
    with pytest.raises(InvalidInput) as refused:
        parse(home, **params)
    return list(refused.value.problems)


def test_what_is_left_out_has_defaults(home: Path) -> None:
    assert parse(home) == options.ServerOptions("unix:///run/lxd.socket")
    assert (options.ServerOptions(UNIX).connect_timeout, options.ServerOptions(UNIX).request_timeout) == (10, 60)


@pytest.mark.parametrize(
    ("params", "field", "value"),
    [
        ({"endpoint": "/s"}, "endpoint", UNIX),
        ({"endpoint": "ssh://root@host:2222"}, "endpoint", "ssh://root@host:2222"),
        ({"endpoint": "https://[2001:db8::1]:8443"}, "endpoint", "https://[2001:db8::1]:8443"),
        ({"endpoint": UNIX, "via": "outer"}, "via", ("outer",)),
        ({"endpoint": UNIX, "via": "outer, middle"}, "via", ("outer", "middle")),
        ({"endpoint": UNIX, "via": ["outer", "middle"]}, "shown", "unix:///s via outer via middle"),
        ({"endpoint": UNIX, "via": ["outer"]}, "socket_path", None),
        ({"endpoint": UNIX}, "socket_path", "/s"),
        ({"endpoint": UNIX, "driver": "cli"}, "driver", "cli"),
        ({"endpoint": UNIX, "project": "shop"}, "project", "shop"),
        ({"endpoint": UNIX, "ssh_args": "-i key"}, "ssh_args", "-i key"),
        ({"endpoint": UNIX, "insecure_skip_verify": True}, "insecure_skip_verify", True),
        ({"endpoint": UNIX, "server_fingerprint": ":".join(["AB"] * 32)}, "server_fingerprint", PIN),
        ({"endpoint": UNIX, "timeout": 1200}, "request_timeout", 120),
        ({"endpoint": UNIX, "timeout": 1200}, "connect_timeout", 20),
        ({"endpoint": UNIX, "timeout": 5}, "request_timeout", 5),
        ({"endpoint": UNIX, "timeout": "30"}, "connect_timeout", 10),
        ({"endpoint": UNIX, "trust_token": make_token()}, "server_fingerprint", PIN),
        (
            {"endpoint": UNIX, "trust_token": make_token(), "server_fingerprint": "cd" * 32},
            "server_fingerprint",
            "cd" * 32,
        ),
    ],
)
def test_an_option_is_taken(home: Path, params: dict[str, t.Any], field: str, value: t.Any) -> None:
    assert getattr(parse(home, **params), field) == value


@pytest.mark.parametrize(
    ("params", "problem"),
    [
        ({"endpoint": "ftp://x"}, f'endpoint: "ftp://x": {options.ENDPOINT_RULE}'),
        ({"endpoint": "https://x:0"}, f'endpoint: "https://x:0": {options.ENDPOINT_RULE}'),
        ({"endpoint": "https://x:port"}, f'endpoint: "https://x:port": {options.ENDPOINT_RULE}'),
        ({"endpoint": "unix://relative"}, f'endpoint: "unix://relative": {options.ENDPOINT_RULE}'),
        ({"driver": "grpc"}, 'driver: "grpc": must be one of auto, rest, cli'),
        ({"via": ["outer", "a.b"]}, 'via[1]: "a.b": must be the name of an instance, such as outer'),
        ({"via": ["-x"]}, 'via[0]: "-x": must be the name of an instance, such as outer'),
        ({"client_cert": "/none"}, 'client_cert: "/none": there is no such file'),
        ({"server_cert": "/none"}, 'server_cert: "/none": there is no such file'),
        (
            {"server_fingerprint": "abc"},
            'server_fingerprint: "abc": must be the certificate\'s SHA-256, 64 hexadecimal digits',
        ),
        ({"timeout": 0}, "timeout: 0: must be 1 to 86400 seconds"),
        ({"timeout": "soon"}, 'timeout: "soon": must be 1 to 86400 seconds'),
        ({"trust_token": "s3cret"}, NO_TOKEN),
        ({"trust_token": make_token(fingerprint="none")}, NO_TOKEN),
        ({"trust_token": make_token(secret="")}, NO_TOKEN),
        ({"trust_token": base64.b64encode(b"[]").decode()}, NO_TOKEN),
    ],
)
def test_an_option_is_refused(home: Path, params: dict[str, t.Any], problem: str) -> None:
    assert problem in problems(home, **params)


def test_every_problem_is_told_at_once(home: Path) -> None:
    found = problems(
        home,
        endpoint="ftp://x",
        driver="grpc",
        via=["a.b"],
        client_key=__file__,
        server_cert="/none",
        server_fingerprint="1",
        trust_token="s3cret",
        timeout=-1,
    )
    fields = "endpoint server_cert client_cert trust_token driver via[0] server_fingerprint timeout"
    assert [text.partition(":")[0].partition(",")[0] for text in found] == fields.split()
    assert NO_PAIR in found
    assert "s3cret" not in str(found)


@pytest.mark.parametrize(
    ("params", "kind"),
    [
        ({"endpoint": "lxc:nope"}, NotHere),
        ({"endpoint": "lxc:images"}, NotHere),
        ({"endpoint": UNIX, "server_cert": "/none"}, NotHere),
        ({"endpoint": "https://x", "client_cert": "/none", "client_key": "/none"}, NotHere),
        ({"endpoint": "ftp://x"}, InvalidInput),
        ({"endpoint": "lxc:nope", "timeout": 0}, InvalidInput),
    ],
)
def test_what_is_not_there_is_told_apart_from_what_cannot_be_meant(
    home: Path, params: dict[str, t.Any], kind: type
) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse(home, **params)
    assert isinstance(refused.value, NotHere) == (kind is NotHere)


def test_a_token_is_in_no_representation() -> None:
    assert make_token() not in repr(options.ServerOptions(UNIX, trust_token=make_token()))


def test_https_takes_the_clients_own_certificate(home: Path) -> None:
    own = str(home / ".config/lxc/client")
    found = parse(home, endpoint="https://x")
    assert (found.client_cert, found.client_key) == (own + ".crt", own + ".key")
    found = parse(home, endpoint="https://x", client_cert=__file__, client_key=__file__)
    assert (found.client_cert, found.client_key) == (__file__, __file__)
    assert parse(home, endpoint=UNIX).client_cert is None


def test_https_without_any_certificate_says_where_it_looked(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, endpoint="https://x")
    assert found.startswith("client_cert, client_key: a server at https:// needs both, and no client program has")
    assert f"(looked in {tmp_path}/.config/lxc, {tmp_path}/snap/lxd/common/config, {tmp_path}/.config/incus)" in found
    with pytest.raises(InvalidInput, match=r"looked in /a, /b\)"):
        options.parse({"endpoint": "https://x"}, {"HOME": str(tmp_path), "LXD_CONF": "/a", "INCUS_CONF": "/b"})


# Remotes


def test_a_remote_brings_its_certificates_and_project(home: Path) -> None:
    folder = f"{home}/.config/lxc"
    assert parse(home, endpoint="lxc:pinned") == options.ServerOptions(
        "https://pinned.example.org:8443",
        project="shop",
        client_cert=f"{folder}/client.crt",
        client_key=f"{folder}/client.key",
        server_cert=f"{folder}/servercerts/pinned.crt",
    )
    assert parse(home, endpoint="lxc:pinned", project="default").project == "default"
    assert parse(home, endpoint="lxc:own").client_cert == f"{folder}/clientcerts/own.crt"
    assert parse(home, endpoint="lxc:own").server_cert is None
    assert parse(home, endpoint="lxc:own", server_cert=__file__).server_cert == __file__


def test_a_remote_may_be_a_socket(home: Path) -> None:
    assert parse(home, endpoint="lxc:socket").endpoint == "unix:///run/other.socket"
    assert parse(home, endpoint="lxc:local").endpoint == "unix:///run/lxd.socket"
    assert parse(home, endpoint="incus:local").endpoint == "unix:///var/lib/incus/unix.socket"


@pytest.mark.parametrize(
    ("endpoint", "problem"),
    [
        ("lxc:nope", "there is no such remote in {}, which has images, local, login, open, own, pinned, socket"),
        ("lxc:images", "it only has images (simplestreams), and no instances"),
        ("lxc:open", "it only has images (it is public), and no instances"),
        (
            "lxc:login",
            "it is logged in to by oidc, which needs a browser: name the server by https:// and a certificate",
        ),
    ],
)
def test_a_remote_is_refused(home: Path, endpoint: str, problem: str) -> None:
    path = home / ".config/lxc/config.yml"
    assert problems(home, endpoint=endpoint) == [f'endpoint: "{endpoint}": {problem.format(path)}']


@pytest.mark.parametrize(
    ("text", "reason"),
    [("remotes: [", "it is no YAML: "), ("remotes: [a]\n", "its remotes are no mapping"), ("[]", "which has local")],
)
def test_a_configuration_that_cannot_be_read(home: Path, text: str, reason: str) -> None:
    path = home / ".config/lxc/config.yml"
    path.write_text(text)
    (found,) = problems(home, endpoint="lxc:pinned")
    assert str(path) in found
    assert reason in found


def test_without_pyyaml(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    (found,) = problems(home, endpoint="lxc:pinned")
    assert "the Python package PyYAML, which reads it, is missing for " + sys.executable in found


# The local server


@pytest.fixture
def sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[t.Callable[[str, str], str]]:
    """Makes one of the usual sockets: of a daemon that answers, or one that a daemon has left behind."""
    places = [
        (flavor, str(tmp_path / Path(path).name.replace("unix", f"{number}")))
        for number, (flavor, path) in enumerate(options.SOCKETS)
    ]
    monkeypatch.setattr(options, "SOCKETS", places)
    held = []

    def make(which: str, kind: str) -> str:
        number = ["lxd package", "lxd snap", "incus", "incus run"].index(which)
        held.append(socket.socket(socket.AF_UNIX))
        held[-1].bind(places[number][1])
        if kind == "answers":
            held[-1].listen()
        return f"unix://{places[number][1]}"

    yield make
    for one in held:
        one.close()


Make = t.Callable[[str, str], str]


def found(**environment: str) -> str:
    return options.parse({}, environment).endpoint


def test_the_socket_that_is_there_is_found(sockets: Make) -> None:
    with pytest.raises(
        InvalidInput, match=r"endpoint: no LXD or Incus on this machine \(looked for /.*, /.*, /.*, /.*\)"
    ):
        found()
    snap = sockets("lxd snap", "answers")
    assert found() == snap
    assert options.parse({"endpoint": "lxc:local"}, {"HOME": "/none"}).endpoint == snap
    # The package's comes first.
    assert sockets("lxd package", "answers") == found()


def test_of_both_servers_one_must_be_named(sockets: Make) -> None:
    lxd, incus = sockets("lxd package", "answers"), sockets("incus", "answers")
    with pytest.raises(InvalidInput) as refused:
        found()
    both = " or ".join(sorted((lxd, incus)))
    assert refused.value.problems == (f"endpoint: LXD and Incus are both on this machine: say which one, {both}",)


def test_a_socket_that_a_daemon_left_behind_is_none(sockets: Make) -> None:
    sockets("lxd package", "left")
    assert sockets("incus", "answers") == found()


def test_the_environment_names_the_socket(sockets: Make) -> None:
    for which in ("lxd package", "incus"):
        sockets(which, "answers")
    every = {"LXD_SOCKET": "/a", "INCUS_SOCKET": "/b", "LXD_DIR": "/c", "INCUS_DIR": "/d"}
    expected = ["unix:///a", "unix:///b", "unix:///c/unix.socket", "unix:///d/unix.socket"]
    for number, endpoint in enumerate(expected):
        assert found(**dict(list(every.items())[number:])) == endpoint
    assert options.parse({"endpoint": "/e"}, every).endpoint == "unix:///e"
    assert options.parse({"endpoint": "incus:local"}, every).endpoint == "unix:///b"


@pytest.mark.parametrize("endpoint", ["https://me:hunter2@host", "ssh://me:hunter2@host:22/socket"])
def test_a_password_in_an_endpoint_is_refused_and_not_shown(tmp_path: Path, endpoint: str) -> None:
    (found,) = [text for text in problems(tmp_path, endpoint=endpoint) if text.startswith("endpoint")]
    assert "it holds a password" in found
    assert "hunter2" not in found


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [("ssh://MyServer", "MyServer"), ("ssh://Me@MyServer:22/s", "MyServer"), ("ssh://[2001:DB8::1]:22", "2001:DB8::1")],
)
def test_a_name_in_the_configuration_of_ssh_keeps_its_capitals(
    endpoint: str, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(ssh, "_folder", lambda options: str(tmp_path))
    assert ssh.place_of(options.ServerOptions(endpoint)).ssh()[-1] == host


@pytest.mark.parametrize(
    ("endpoint", "machine"),
    [
        ("unix:///var/lib/lxd/unix.socket", ""),
        ("https://localhost:8443", ""),
        ("https://127.0.0.1:8443", ""),
        ("https://[::1]:8443", ""),
        ("https://198.51.100.99:8443", "198.51.100.99"),
        ("https://no-such-host.invalid:8443", "no-such-host.invalid"),
        ("ssh://ops@198.51.100.99", "198.51.100.99"),
    ],
)
def test_a_server_is_on_this_machine_or_elsewhere(endpoint: str, machine: str) -> None:
    assert sockets_module.elsewhere(options.ServerOptions(endpoint)) == machine
    inside = options.ServerOptions(endpoint, via=("outer",))
    assert sockets_module.elsewhere(inside) == inside.shown
