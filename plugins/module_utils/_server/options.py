# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Where the server is: the options that every module shares, and the endpoint that they mean."""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import stat
import typing as t
import urllib.parse

from .._errors import NotHere
from .._values import Problems
from . import remotes, tokens

# Seconds: what the server may take for each. A longer timeout lengthens all three in proportion.
CONNECT_TIMEOUT = 10.0
REQUEST_TIMEOUT = 60.0
OPERATION_TIMEOUT = 600.0

DRIVERS = ("auto", "rest", "cli")
CLIENTS = {"lxc": "lxd", "incus": "incus"}

# The packages' and the snap's sockets, in the order in which they are looked for.
SOCKETS = (
    ("lxd", "/var/lib/lxd/unix.socket"),
    ("lxd", "/var/snap/lxd/common/lxd/unix.socket"),
    ("incus", "/var/lib/incus/unix.socket"),
    ("incus", "/run/incus/unix.socket"),
)

ARGUMENTS: dict[str, t.Any] = {
    "endpoint": {"type": "str"},
    "driver": {"type": "str", "choices": list(DRIVERS), "default": "auto"},
    "project": {"type": "str"},
    "via": {"type": "list", "elements": "str", "default": []},
    "client_cert": {"type": "path"},
    "client_key": {"type": "path"},
    "server_cert": {"type": "path"},
    "server_fingerprint": {"type": "str"},
    "trust_token": {"type": "str", "no_log": True},
    "insecure_skip_verify": {"type": "bool", "default": False},
    "ssh_args": {"type": "str"},
    "timeout": {"type": "int", "default": int(OPERATION_TIMEOUT)},
}
# What ServerOptions are made of, in modules and plugins alike.
NAMES = tuple(ARGUMENTS)
ENDPOINT_RULE = (
    "must be unix:///path, https://host:8443, ssh://user@host, lxc:REMOTE or incus:REMOTE, "
    "or left out for the local server"
)
_FILES = ("client_cert", "client_key", "server_cert")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_INSTANCE = re.compile(r"[A-Za-z]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """Where a server is and who we are. ``endpoint`` is ``unix:///path``, ``https://host:port`` or
    ``ssh://user@host:port/path/of/the/socket``; ``via`` leads from there into nested servers, from the outside in.
    """

    endpoint: str
    project: str = "default"
    client_cert: t.Optional[str] = None
    client_key: t.Optional[str] = None
    server_cert: t.Optional[str] = None
    driver: str = "auto"
    via: tuple[str, ...] = ()
    server_fingerprint: t.Optional[str] = None
    trust_token: t.Optional[str] = dataclasses.field(default=None, repr=False)
    insecure_skip_verify: bool = False
    ssh_args: str = ""
    timeout: float = OPERATION_TIMEOUT

    @property
    def socket_path(self) -> t.Optional[str]:
        """The path of the local socket, or None for a remote or nested server."""
        return self.endpoint[len("unix://") :] if self.endpoint.startswith("unix://") and not self.via else None

    @property
    def shown(self) -> str:
        """Where the server is, as a person would write it."""
        return " via ".join((self.endpoint, *self.via))

    @property
    def connect_timeout(self) -> float:
        """Seconds to connect in."""
        return max(min(self.timeout, CONNECT_TIMEOUT), self.timeout * CONNECT_TIMEOUT / OPERATION_TIMEOUT)

    @property
    def request_timeout(self) -> float:
        """Seconds for a request that starts nothing in the background."""
        return max(min(self.timeout, REQUEST_TIMEOUT), self.timeout * REQUEST_TIMEOUT / OPERATION_TIMEOUT)


class _Absences(Problems):
    """Problems of what is not there, among all that are found."""

    def __init__(self, found: Problems) -> None:
        super().__init__()
        self._found = found

    def add_text(self, text: str) -> None:
        """See ``Problems``."""
        super().add_text(text)
        self._found.add_text(text)


def parse(params: t.Mapping[str, t.Any], environment: t.Optional[t.Mapping[str, str]] = None) -> ServerOptions:
    """The options that a module or plugin got. Raises InvalidInput; NotHere if all is well but what it names is not
    there.

    A token names its server's certificate: it pins that, unless the user does.
    """
    problems = Problems()
    absences = _Absences(problems)
    environment = os.environ if environment is None else environment
    remote = _remote(str(params.get("endpoint") or ""), environment, problems, absences)
    endpoint = remote.endpoint
    files = {key: _file(params, key, absences) or getattr(remote, key) for key in _FILES}
    given = [key for key in ("client_cert", "client_key") if params.get(key)]
    if len(given) == 1:
        problems.add_text("client_cert, client_key: one is of no use without the other")
    elif endpoint.startswith("https://") and not given:
        files.update(_own_certificate(files, environment, absences))
    token = _token(params.get("trust_token"), problems)
    driver = str(params.get("driver") or "auto")
    if driver not in DRIVERS:
        problems.add("driver", driver, "must be one of " + ", ".join(DRIVERS))
    made = ServerOptions(
        endpoint=endpoint,
        project=str(params.get("project") or remote.project or "default"),
        driver=driver,
        via=_via(params.get("via"), problems),
        server_fingerprint=_fingerprint(params.get("server_fingerprint"), problems)
        or (token.fingerprint if token and not files["server_cert"] else None),
        trust_token=str(params["trust_token"]) if token else None,
        insecure_skip_verify=bool(params.get("insecure_skip_verify")),
        ssh_args=str(params.get("ssh_args") or ""),
        timeout=_timeout(params.get("timeout"), problems),
        **files,
    )
    if 0 < len(absences) == len(problems):
        raise NotHere(absences.texts)
    problems.raise_if_any()
    return made


def _remote(endpoint: str, environment: t.Mapping[str, str], problems: Problems, absences: Problems) -> remotes.Remote:
    """What the endpoint says, or the remote that it names. Its endpoint is empty where there is a problem."""
    client = endpoint.partition(":")[0]
    if not endpoint:
        return remotes.Remote(find_socket(environment, absences))
    if client in remotes.CLIENTS:
        found = remotes.find(endpoint, environment, absences) or remotes.Remote("")
        if found.endpoint == "unix://":
            found = dataclasses.replace(found, endpoint="unix://" + _socket_of(CLIENTS[client], environment))
        return found
    if endpoint.startswith("/"):
        endpoint = "unix://" + endpoint
    if _has_password(endpoint):
        problems.add_text("endpoint: it holds a password: ssh:// takes keys and agents, https:// certificates")
        return remotes.Remote("")
    if not _is_endpoint(endpoint):
        problems.add("endpoint", endpoint, ENDPOINT_RULE)
        return remotes.Remote("")
    return remotes.Remote(endpoint)


def _socket_of(flavor: str, environment: t.Mapping[str, str]) -> str:
    """The path of a local server's socket, whether it is there or not."""
    name = flavor.upper()
    if environment.get(f"{name}_SOCKET"):
        return environment[f"{name}_SOCKET"]
    if environment.get(f"{name}_DIR"):
        return environment[f"{name}_DIR"] + "/unix.socket"
    usual = [path for one, path in SOCKETS if one == flavor]
    return next((path for path in usual if _is_socket(path)), usual[0])


def _own_certificate(
    files: t.Mapping[str, t.Optional[str]], environment: t.Mapping[str, str], problems: Problems
) -> dict[str, t.Optional[str]]:
    """The client program's certificate, where neither the user nor the remote names one."""
    if files["client_cert"]:
        return {}
    pair = remotes.certificate(environment)
    if not pair:
        places = ", ".join(remotes.places(environment))
        problems.add_text(
            "client_cert, client_key: a server at https:// needs both, "
            f"and no client program has client.crt and client.key (looked in {places})"
        )
        return {}
    return {"client_cert": pair[0], "client_key": pair[1]}


def _token(value: t.Any, problems: Problems) -> t.Optional[tokens.Token]:
    """What a token says. It is a secret: no error shows it."""
    try:
        return tokens.read_token(str(value)) if value else None
    except ValueError as e:
        problems.add_text(f"trust_token: {e}")
        return None


def _has_password(endpoint: str) -> bool:
    """Whether it must not be shown to anybody."""
    scheme, _slashes, rest = endpoint.partition("://")
    return scheme in ("https", "ssh") and ":" in rest.partition("/")[0].rpartition("@")[0]


def _is_endpoint(endpoint: str) -> bool:
    if endpoint.startswith("unix:///"):
        return True
    try:
        url = urllib.parse.urlsplit(endpoint)
        return url.scheme in ("https", "ssh") and bool(url.hostname) and url.port != 0
    except ValueError:
        return False


def _via(value: t.Any, problems: Problems) -> tuple[str, ...]:
    # A text is taken as Ansible takes one for a list.
    names = [one.strip() for one in value.split(",")] if value and isinstance(value, str) else list(value or ())
    for index, name in enumerate(names):
        if not isinstance(name, str) or not _INSTANCE.fullmatch(name):
            problems.add(f"via[{index}]", name, "must be the name of an instance, such as outer")
    return tuple(str(name) for name in names)


def _fingerprint(value: t.Any, problems: Problems) -> t.Optional[str]:
    """SHA-256 of the server's certificate, with or without colons."""
    if not value:
        return None
    found = str(value).replace(":", "").lower()
    if not _FINGERPRINT.fullmatch(found):
        problems.add("server_fingerprint", value, "must be the certificate's SHA-256, 64 hexadecimal digits")
    return found


def _timeout(value: t.Any, problems: Problems) -> float:
    if value is None:
        return OPERATION_TIMEOUT
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 1 <= seconds <= 86400:
        problems.add("timeout", value, "must be 1 to 86400 seconds")
    return seconds


def _file(params: t.Mapping[str, t.Any], key: str, problems: Problems) -> t.Optional[str]:
    path = params.get(key)
    if path and not os.path.isfile(path):
        problems.add(key, path, "there is no such file")
    return str(path) if path else None


def find_socket(environment: t.Mapping[str, str], problems: Problems) -> str:
    """The endpoint of the local server: what the environment says, else the one socket that is there."""
    for variable, folder in (
        ("LXD_SOCKET", ""),
        ("INCUS_SOCKET", ""),
        ("LXD_DIR", "/unix.socket"),
        ("INCUS_DIR", "/unix.socket"),
    ):
        if environment.get(variable):
            return "unix://" + environment[variable] + folder
    found = {flavor: path for flavor, path in reversed(SOCKETS) if _is_socket(path)}
    if len(found) > 1:
        # A daemon that was stopped or killed leaves its socket behind.
        found = {flavor: path for flavor, path in found.items() if _answers(path)} or found
    if len(found) > 1:
        known = " or ".join(f"unix://{path}" for path in sorted(found.values()))
        problems.add_text(f"endpoint: LXD and Incus are both on this machine: say which one, {known}")
        return ""
    if not found:
        places = ", ".join(path for _flavor, path in SOCKETS)
        problems.add_text(
            f"endpoint: no LXD or Incus on this machine (looked for {places}); the role mage.lxd.lxd_host sets one up"
        )
        return ""
    return "unix://" + next(iter(found.values()))


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _answers(path: str) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(CONNECT_TIMEOUT)
            client.connect(path)
    except OSError:
        return False
    return True
