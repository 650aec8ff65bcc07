# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Where the server is: the options that every module shares, and the endpoint that they mean."""

from __future__ import annotations

import dataclasses
import os
import socket
import stat
import typing as t

from .._values import Problems

CONNECT_TIMEOUT = 10.0
REQUEST_TIMEOUT = 60.0
OPERATION_TIMEOUT = 600.0

# The packages' and the snap's sockets, in the order in which they are looked for.
SOCKETS = (
    ("lxd", "/var/lib/lxd/unix.socket"),
    ("lxd", "/var/snap/lxd/common/lxd/unix.socket"),
    ("incus", "/var/lib/incus/unix.socket"),
    ("incus", "/run/incus/unix.socket"),
)

ARGUMENTS: dict[str, t.Any] = {
    "endpoint": {"type": "str"},
    "project": {"type": "str", "default": "default"},
    "client_cert": {"type": "path"},
    "client_key": {"type": "path"},
    "server_cert": {"type": "path"},
}


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """Where a server is and who we are. ``endpoint`` is ``unix:///path`` or ``https://host:port``."""

    endpoint: str
    project: str = "default"
    client_cert: t.Optional[str] = None
    client_key: t.Optional[str] = None
    server_cert: t.Optional[str] = None

    @property
    def socket_path(self) -> t.Optional[str]:
        """The path of the local socket, or None for a remote server."""
        return self.endpoint[len("unix://") :] if self.endpoint.startswith("unix://") else None


def parse(params: t.Mapping[str, t.Any], environment: t.Optional[t.Mapping[str, str]] = None) -> ServerOptions:
    """The options that a module or plugin got. Raises InvalidInput."""
    problems = Problems()
    endpoint = str(params.get("endpoint") or "") or find_socket(
        os.environ if environment is None else environment, problems
    )
    if endpoint.startswith("/"):
        endpoint = "unix://" + endpoint
    if endpoint.startswith("ssh://"):
        problems.add_text(
            f"endpoint: the server is on {endpoint[len('ssh://') :]}, and its socket cannot be opened from here: "
            "run the play there, or let the server listen and say https://host:8443"
        )
    elif endpoint and not endpoint.startswith(("unix:///", "https://")):
        problems.add(
            "endpoint", endpoint, "must be unix:///path or https://host:8443, or left out for the local server"
        )
    files = {key: _file(params, key, problems) for key in ("client_cert", "client_key", "server_cert")}
    if endpoint.startswith("https://") and not (files["client_cert"] and files["client_key"]):
        problems.add_text("client_cert, client_key: a server at https:// needs both")
    problems.raise_if_any()
    return ServerOptions(endpoint=endpoint, project=str(params.get("project") or "default"), **files)


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
