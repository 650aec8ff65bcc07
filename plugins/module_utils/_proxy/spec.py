# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What a user may say of a route: one entry of ``proxy``."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import typing as t
import urllib.parse

from .. import _values
from .._values import Problems

KEYS = ("name", "path", "pass", "port", "raw")
POLICY_KEYS = ("projects", "allow_raw")
EXAMPLE = "[{name: shop.example.org, port: 80}]"
DEFAULT_PORTS = {"http": 80, "https": 443}

_BACKEND_RULE = "must be a URL of a server, such as http://192.0.2.10:8080 or https://app.example.org/base/"
_RAW_RULE = (
    "must be nginx directives of a location, each ended by ;, without blocks and comments, at most 4096 characters, "
    "such as proxy_read_timeout 1h;"
)
# Whole directives only: they cannot reach out of their location, and what nginx says of one names its line.
_TOKEN = r"""(?:[^\s;{}"'#\\]+|"(?:[^"\\{}\n]|\\.)*"|'(?:[^'\\{}\n]|\\.)*')"""
_DIRECTIVES = re.compile(rf"(?:\s*{_TOKEN}(?:\s+{_TOKEN})*\s*;)+")
_FOLDER = re.compile(r"(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)+", re.ASCII)

ARGUMENTS: dict[str, t.Any] = {
    "instance": {"type": "str", "default": "mageproxy"},
    "declared": {"type": "list", "elements": "dict", "default": []},
    # Raw: Ansible's own check would tell of one mistake alone, and suggest nothing.
    "proxy_policy": {"type": "raw"},
    "config_dir": {"type": "str", "default": "/etc/nginx"},
    "install": {"type": "bool", "default": True},
}


@dataclasses.dataclass(frozen=True)
class Backend:
    """A server that a route passes to. ``path`` None keeps the request's path; else it replaces the route's path."""

    scheme: str
    host: str
    port: int
    path: t.Optional[str] = None

    @property
    def is_address(self) -> bool:
        """Whether the host is an address, so that nothing needs to be resolved."""
        return ":" in self.host or _is_ipv4(self.host)

    @property
    def netloc(self) -> str:
        """host:port, with the brackets of IPv6."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The canonical URL."""
        return f"{self.scheme}://{self.netloc}{self.path or ''}"


@dataclasses.dataclass(frozen=True)
class Route:
    """A path of a vhost that an instance serves: itself on ``port``, or ``backend`` instead (``pass``).

    ``name`` is a hostname in lower case, or ``*.`` and a hostname. ``raw`` holds directives for nginx as they are.
    """

    name: str
    path: str = "/"
    port: int = 80
    backend: t.Optional[Backend] = None
    raw: str = ""

    @property
    def mark(self) -> str:
        """A short name for what is served, that two routes share if they are the same but for name and path."""
        value = {key: said for key, said in self.to_json().items() if key not in ("name", "path")}
        return hashlib.sha256(_values.canonical_json(value).encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, t.Any]:
        """The canonical form, with the keys that a user writes: what ``user.mage.proxy`` holds a list of."""
        value: dict[str, t.Any] = {"name": self.name, "path": self.path}
        if self.backend:
            value["pass"] = self.backend.url
        else:
            value["port"] = self.port
        if self.raw:
            value["raw"] = self.raw
        return value


@dataclasses.dataclass(frozen=True)
class Policy:
    """Who may publish: ``projects`` are restricted ones that may; ``raw`` is taken only with ``allow_raw``."""

    projects: frozenset[str] = frozenset()
    allow_raw: bool = False


@dataclasses.dataclass(frozen=True)
class Desired:
    """What a run is asked for: the proxy's instance, and what ``mage.lxd.instances`` has just declared."""

    instance: str
    project: str
    declared: tuple[t.Mapping[str, t.Any], ...] = ()
    policy: Policy = Policy()
    config_dir: str = "/etc/nginx"
    install: bool = True


def parse(params: t.Mapping[str, t.Any], project: str) -> Desired:
    """The parameters of the module as a value. Raises InvalidInput."""
    problems = Problems()
    name = _values.instance_name(params["instance"], "instance", problems)
    folder = params["config_dir"]
    if not _FOLDER.fullmatch(folder):
        problems.add("config_dir", folder, "must be an absolute path, such as /etc/nginx")
    for index, item in enumerate(params["declared"]):
        if not {"project", "name", "status"} <= set(item):
            rule = "must be an item of what mage.lxd.instances returned as instances"
            problems.add(f"declared[{index}]", item, rule)
    policy = _parse_policy(params.get("proxy_policy"), "proxy_policy", problems)
    problems.raise_if_any()
    return Desired(name or "", project, tuple(params["declared"]), policy, folder, params["install"])


def _parse_policy(raw: object, path: str, problems: Problems) -> Policy:
    said = {} if raw is None else _values.mapping(raw, path, POLICY_KEYS, problems) or {}
    projects = _values.words(said.get("projects"), f"{path}.projects", problems, "[shop]")
    allow_raw = _values.boolean(said.get("allow_raw", False), f"{path}.allow_raw", problems)
    return Policy(frozenset(projects), bool(allow_raw))


def parse_entries(raw: object, path: str, problems: Problems) -> tuple[Route, ...]:
    """The routes of one instance. ``path`` is the field's, such as ``instances[2].proxy``."""
    entries = _values.sequence(raw, path, problems, EXAMPLE)
    return parse_indexed(list(enumerate(entries)), path, problems)


def parse_indexed(entries: t.Iterable[tuple[int, object]], path: str, problems: Problems) -> tuple[Route, ...]:
    """Like parse_entries, of a list from which something was taken: pairs of the original index and the entry."""
    found: dict[tuple[str, str], str] = {}
    routes = []
    for index, raw in entries:
        place = f"{path}[{index}]"
        route = parse_entry(raw, place, problems)
        if route is None:
            continue
        key = (route.name, route.path)
        if key in found:
            problems.add_text(f"{place}: {route.name}{route.path} is there already, in {found[key]}")
            continue
        found[key] = place
        routes.append(route)
    return tuple(routes)


def parse_entry(raw: object, path: str, problems: Problems) -> t.Optional[Route]:
    """One route, or None and the problems."""
    before = len(problems)
    fields = _values.mapping(raw, path, KEYS, problems)
    if fields is None:
        return None
    if "name" not in fields:
        problems.add_text(f"{path}.name: missing: the hostname that the route is for, such as shop.example.org")
    name = _values.hostname(fields["name"], f"{path}.name", problems, wildcard=True) if "name" in fields else None
    route_path = _path(fields.get("path", "/"), f"{path}.path", problems)
    backend = _backend(fields["pass"], f"{path}.pass", problems) if fields.get("pass", "") != "" else None
    if fields.get("pass", "") != "" and "port" in fields:
        problems.add_text(f"{path}.port: not together with pass, whose URL says the port")
    port = _values.port(fields.get("port", 80), f"{path}.port", problems)
    directives = _raw(fields.get("raw", ""), f"{path}.raw", problems)
    if len(problems) > before or name is None or route_path is None or port is None or directives is None:
        return None
    return Route(name, route_path, 80 if backend else port, backend, directives)


def _path(raw: object, path: str, problems: Problems) -> t.Optional[str]:
    value = _values.url_path(raw, path, problems)
    # nginx matches what is left after it has merged slashes and followed dots.
    if value is not None and ("//" in value or any(part in (".", "..") for part in value.split("/"))):
        problems.add(path, raw, "must be a path without //, /./ and /../, since no request would match it")
        return None
    return value


def _backend(raw: object, path: str, problems: Problems) -> t.Optional[Backend]:
    value = raw.strip() if isinstance(raw, str) else ""
    try:
        parts = urllib.parse.urlsplit(value)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        problems.add(path, raw, _BACKEND_RULE)
        return None
    checks = Problems()
    if ":" in host:
        _values.address(host, path, checks)
    else:
        _values.hostname(host, path, checks)
    if parts.path:
        _path(parts.path, path, checks)
    plain = parts.username is None and not re.search(r"[?#@\s]", value)
    if len(checks) or not plain or parts.scheme not in DEFAULT_PORTS or _bad_ipv4(host) or port == 0:
        problems.add(path, raw, _BACKEND_RULE)
        return None
    return Backend(parts.scheme, host, port or DEFAULT_PORTS[parts.scheme], parts.path or None)


def _raw(raw: object, path: str, problems: Problems) -> t.Optional[str]:
    text = "\n".join(line.strip() for line in raw.splitlines()).strip() if isinstance(raw, str) else ""
    if text == "" and isinstance(raw, str):
        return ""
    if len(text) > 4096 or re.search(r"[^\n\x20-\x7e]", text) or not _DIRECTIVES.fullmatch(text):
        problems.add(path, raw, _RAW_RULE)
        return None
    return text


def _is_ipv4(host: str) -> bool:
    return _bad_ipv4(host) is False and host.replace(".", "").isdigit()


def _bad_ipv4(host: str) -> bool:
    """Whether a host looks like an IPv4 address and is none: nginx would look 10.0.0.256 up as a name."""
    if not host.rpartition(".")[2].isdigit():
        return False
    problems = Problems()
    _values.address(host, "", problems)
    return len(problems) > 0
