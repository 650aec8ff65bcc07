# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What the client programs lxc and incus know of their user: the certificate, and the remotes."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
import typing as t

from .._values import Problems, show

# Each client: the variable that names its folder, and else the folders where it is, in the user's home.
_FOLDERS = {
    "lxc": ("LXD_CONF", (".config/lxc", "snap/lxd/common/config")),
    "incus": ("INCUS_CONF", (".config/incus",)),
}
CLIENTS = tuple(_FOLDERS)
# The server's own socket, which no configuration has to mention.
LOCAL = {"addr": "unix://"}

Environment = t.Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Remote:
    """What a remote says of itself; a ``unix://`` without a path is the local server of that client."""

    endpoint: str
    project: t.Optional[str] = None
    client_cert: t.Optional[str] = None
    client_key: t.Optional[str] = None
    server_cert: t.Optional[str] = None


def folders(client: str, environment: Environment) -> list[str]:
    """Where a client's configuration may be."""
    variable, usual = _FOLDERS[client]
    if environment.get(variable):
        return [environment[variable]]
    home = environment.get("HOME") or os.path.expanduser("~")
    return [os.path.join(home, folder) for folder in usual]


def certificate(environment: Environment) -> t.Optional[tuple[str, str]]:
    """The first client's own certificate and key."""
    for folder in places(environment):
        pair = _pair(os.path.join(folder, "client"))
        if pair:
            return pair
    return None


def places(environment: Environment) -> list[str]:
    """Every folder where a client's own certificate is looked for."""
    return [folder for client in CLIENTS for folder in folders(client, environment)]


def find(endpoint: str, environment: Environment, problems: Problems) -> t.Optional[Remote]:
    """The remote that ``lxc:NAME`` or ``incus:NAME`` means. Adds to the problems where there is none."""
    client, _colon, name = endpoint.partition(":")
    where = folders(client, environment)
    folder = next((one for one in where if os.path.isfile(os.path.join(one, "config.yml"))), where[0])
    path = os.path.join(folder, "config.yml")
    try:
        known = {"local": LOCAL, **_read(path)}
    except (OSError, ValueError) as e:
        problems.add_text(f"endpoint: {show(endpoint)}: {path}: {e}")
        return None
    if name not in known:
        names = ", ".join(sorted(known))
        problems.add_text(f"endpoint: {show(endpoint)}: there is no such remote in {path}, which has {names}")
        return None
    said = known[name]
    refusal = _refusal(said)
    if refusal:
        problems.add_text(f"endpoint: {show(endpoint)}: {refusal}")
        return None
    pair = _pair(os.path.join(folder, "clientcerts", name)) or _pair(os.path.join(folder, "client"))
    pin = os.path.join(folder, "servercerts", f"{name}.crt")
    return Remote(
        endpoint=_endpoint(str(said["addr"])),
        project=str(said.get("project") or "") or None,
        client_cert=pair[0] if pair else None,
        client_key=pair[1] if pair else None,
        server_cert=pin if os.path.isfile(pin) else None,
    )


def _read(path: str) -> dict[str, t.Mapping[str, t.Any]]:
    """The remotes of a file. Raises OSError, or ValueError with the reason."""
    if not os.path.exists(path):
        return {}
    try:
        yaml = importlib.import_module("yaml")
    except ImportError as e:
        raise ValueError(f"the Python package PyYAML, which reads it, is missing for {sys.executable}") from e
    with open(path, encoding="utf-8") as file:
        try:
            content = yaml.safe_load(file)
        except yaml.YAMLError as e:
            raise ValueError("it is no YAML: " + " ".join(str(e).split())) from e
    remotes = (content or {}).get("remotes") if isinstance(content or {}, dict) else None
    if remotes is None:
        return {}
    if not isinstance(remotes, dict) or not all(isinstance(one, dict) for one in remotes.values()):
        raise ValueError("its remotes are no mapping")
    return {str(name): one for name, one in remotes.items()}


def _refusal(said: t.Mapping[str, t.Any]) -> str:
    """Why a remote is no way to instances."""
    protocol = str(said.get("protocol") or "")
    login = str(said.get("auth_type") or "tls")
    if protocol not in ("", "lxd", "incus"):
        return f"it only has images ({protocol}), and no instances"
    if said.get("public") is True:
        return "it only has images (it is public), and no instances"
    if login != "tls":
        return f"it is logged in to by {login}, which needs a browser: name the server by https:// and a certificate"
    if not said.get("addr"):
        return "it has no addr"
    return ""


def _endpoint(address: str) -> str:
    """``unix:`` may have no slashes, and no path."""
    if not address.startswith("unix:"):
        return address
    return "unix://" + address[len("unix:") :].replace("//", "", 1)


def _pair(base: str) -> t.Optional[tuple[str, str]]:
    cert, key = base + ".crt", base + ".key"
    return (cert, key) if os.path.isfile(cert) and os.path.isfile(key) else None
