# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What a file for the inventory plugin may say: words in, values out, every error at once, each with its key."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import typing as t

import jinja2

from ansible_collections.mage.lxd.plugins.module_utils import _errors, _filters
from ansible_collections.mage.lxd.plugins.module_utils._filters import Filters, texts
from ansible_collections.mage.lxd.plugins.module_utils._host_variables import CONNECTION, SSH, Prefer, Shape
from ansible_collections.mage.lxd.plugins.module_utils._server import options
from ansible_collections.mage.lxd.plugins.module_utils._values import (
    Problems,
    boolean,
    choice,
    mapping,
    nearest,
    sequence,
    show,
)

NEEDS = ("addresses", "state", "snapshots")
ON_UNREACHABLE = ("fail", "warn")
# What stands beside the options of a server, for one server or for each of many.
OF_A_SERVER = ("name", "projects", "on_unreachable", *options.NAMES)
# What names one server cannot hold for all of them.
OF_ONE_SERVER = ("name", "endpoint", "via")
FILES = ("client_cert", "client_key", "server_cert")
# What Ansible reads by itself, and takes for false or tells without a place where it is wrong.
SWITCHES = ("strict", "use_extra_vars", "leading_separator", "cache")
OF_A_CACHE = ("cache_plugin", "cache_connection", "cache_prefix")
OF_A_KEYED_GROUP = ("key", "prefix", "separator", "parent_group", "default_value", "trailing_separator")
MISSING = "its instances are missing"
# Variables that cost requests, by what has to be read for them.
COSTLY = {
    "addresses": re.compile(r"\b(lxd_addresses|lxd_ipv4|lxd_ipv6|lxd_nics|ansible_host)\b"),
    "state": re.compile(r"\blxd_state\b"),
    "snapshots": re.compile(r"\blxd_snapshots\b"),
}
_SERVER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", re.ASCII)
_JINJA = jinja2.Environment(autoescape=False)


@dataclasses.dataclass(frozen=True)
class Server:
    """One server of the file. ``path`` is where it stands (``servers[1].``), ``projects`` empty for all of them."""

    path: str
    name: str
    options: options.ServerOptions
    projects: tuple[str, ...] = ()
    fails: bool = True
    projects_key: str = "projects"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the file says, of what the plugin does not leave to Ansible. ``absent`` tells of the servers that cannot be
    looked for, and need not be there."""

    servers: tuple[Server, ...]
    absent: tuple[str, ...]
    filters: Filters
    hostnames: tuple[str, ...]
    shape: Shape
    needs: frozenset[str]
    restricted_projects: frozenset[str]


def parse(
    raw: t.Mapping[str, t.Any],
    known: t.Collection[str],
    environment: t.Mapping[str, str],
    absolute: t.Callable[[str], str] = str,
) -> Settings:
    """The content of a file. ``environment`` holds options that the file leaves out. ``absolute`` makes the path of a
    file from one that the user wrote. Raises InvalidInput."""
    problems = Problems()
    for key in raw:
        if key not in known:
            hint = nearest(str(key), known) or "; known are " + ", ".join(sorted(known))
            problems.add_text(f"{key}: unknown key{hint}")
    expressions = _expressions(raw, problems)
    hostnames = texts(raw.get("hostnames"), "hostnames", problems)
    for index, text in enumerate(hostnames):
        _check_expression(text, f"hostnames[{index}]", problems)
    filters = _parse_filters(raw.get("filters"), problems)
    _check_ansibles_own(raw, problems)
    absent = Problems()
    settings = Settings(
        servers=_servers(raw, environment, absolute, problems, absent),
        absent=absent.texts,
        filters=filters,
        hostnames=tuple(hostnames),
        shape=Shape(
            choice(raw.get("connection", CONNECTION), "connection", (CONNECTION, SSH), problems) or CONNECTION,
            _prefer(raw.get("prefer"), problems),
        ),
        needs=_needs(raw, [*expressions, *hostnames, *filters.expressions], problems),
        restricted_projects=frozenset(texts(raw.get("restricted_projects"), "restricted_projects", problems)),
    )
    problems.raise_if_any()
    return settings


def _servers(
    raw: t.Mapping[str, t.Any],
    environment: t.Mapping[str, str],
    absolute: t.Callable[[str], str],
    problems: Problems,
    absent: Problems,
) -> tuple[Server, ...]:
    shared = {key: raw[key] for key in OF_A_SERVER if raw.get(key) is not None}
    if raw.get("servers") is None:
        found = [_server(_over(environment, shared), "", absolute, problems, absent)]
    else:
        for key in OF_ONE_SERVER:
            if key in shared:
                problems.add_text(f"{key}: cannot stand beside servers: say it for each server")
        general = {key: value for key, value in _over(environment, shared).items() if key not in OF_ONE_SERVER}
        found = []
        entries = sequence(raw["servers"], "servers", problems)
        if not entries and isinstance(raw["servers"], list):
            problems.add_text("servers: must name at least one server")
        for index, entry in enumerate(entries):
            own = mapping(entry, f"servers[{index}]", OF_A_SERVER, problems)
            if own is not None:
                found.append(_server(_over(general, own), f"servers[{index}].", absolute, problems, absent))
    servers = [one for one in found if one is not None]
    seen: dict[str, str] = {}
    for one in servers:
        other = seen.setdefault(one.name, one.path)
        if other != one.path:
            problems.add(f"{one.path}name", one.name, f"is the name of {other[:-1]} already: say another")
    return tuple(servers)


def _over(general: t.Mapping[str, t.Any], own: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What holds for one, where ``own`` counts for more. One project and several say the same thing."""
    other = {"project": "projects", "projects": "project"}
    hidden = {other[key] for key in own if key in other}
    return {**{key: value for key, value in general.items() if key not in hidden}, **own}


def _server(
    raw: t.Mapping[str, t.Any],
    path: str,
    absolute: t.Callable[[str], str],
    problems: Problems,
    absent: Problems,
) -> t.Optional[Server]:
    params = {key: raw.get(key) for key in options.NAMES}
    for key in FILES:
        if params[key]:
            params[key] = absolute(str(params[key]))
    verify = params["insecure_skip_verify"]
    params["insecure_skip_verify"] = (
        boolean(verify, f"{path}insecure_skip_verify", problems) if verify is not None else False
    )
    on_unreachable = choice(raw.get("on_unreachable", "fail"), f"{path}on_unreachable", ON_UNREACHABLE, problems)
    key = "projects" if raw.get("project") is None else "project"
    projects = texts(raw.get("projects"), f"{path}projects", problems)
    if key == "project":
        if projects:
            problems.add_text(f"{path}project: cannot stand beside projects: name it there")
        projects = [str(raw["project"])]
    name = raw.get("name")
    if name is not None and not (isinstance(name, str) and _SERVER_NAME.fullmatch(name)):
        problems.add(f"{path}name", name, "must be letters, digits, dots, hyphens and underscores, such as rack-1")
        name = None
    try:
        made = options.parse(params)
    except _errors.InvalidInput as e:
        is_absent = isinstance(e, _errors.NotHere) and on_unreachable == "warn"
        for text in e.problems:
            if is_absent:
                absent.add_text(f"{path}{text}: {MISSING}")
            else:
                problems.add_text(f"{path}{text}")
        return None
    name = name or default_name(str(params["endpoint"] or made.endpoint), made.via)
    return Server(path, name, made, tuple(dict.fromkeys(projects)), on_unreachable != "warn", key)


def default_name(endpoint: str, via: t.Sequence[str]) -> str:
    """What a server is called that has no name: its host, its remote, or which of the local servers it is."""
    scheme, _colon, rest = endpoint.partition(":")
    if scheme in ("https", "ssh"):
        authority = rest.lstrip("/").split("/")[0].rpartition("@")[2]
        host = re.sub(r":\d*$", "", authority).strip("[]")
    elif scheme in options.CLIENTS:
        host = rest
    else:
        host = next((flavor for flavor, path in options.SOCKETS if path == endpoint[-len(path) :]), "local")
    return re.sub(r"[^A-Za-z0-9_.-]", "-", ".".join((host, *via))).lstrip("-._") or "local"


def _parse_filters(raw: t.Any, problems: Problems) -> Filters:
    found = mapping(raw, "filters", (*_filters.WORDS, "expression"), problems) if raw is not None else {}
    if not found:
        return Filters()
    filters = _filters.parse(found, "filters", problems)
    expressions = tuple(texts(found.get("expression"), "filters.expression", problems))
    for text in expressions:
        _check_expression(text, "filters.expression", problems)
    return dataclasses.replace(filters, expressions=expressions)


def _prefer(raw: t.Any, problems: Problems) -> t.Optional[Prefer]:
    if raw is None:
        return None
    found = mapping(raw, "prefer", ("family", "nic", "network"), problems) or {}
    families = {"4": 4, "ipv4": 4, "6": 6, "ipv6": 6}
    family = found.get("family")
    if family is not None and str(family).lower() not in families:
        problems.add("prefer.family", family, "must be ipv4 or ipv6")
    nic = found.get("nic")
    if nic is not None and not isinstance(nic, str):
        problems.add("prefer.nic", nic, "must be the name of a network device, such as eth0")
    network = found.get("network")
    if network is not None:
        try:
            ipaddress.ip_network(str(network))
        except ValueError as e:
            problems.add_text(f"prefer.network: {show(network)}: must be a network, such as 192.0.2.0/24 ({e})")
    return Prefer(families.get(str(family).lower()), nic, str(network) if network is not None else None)


def _needs(raw: t.Mapping[str, t.Any], expressions: t.Sequence[str], problems: Problems) -> frozenset[str]:
    """What has to be read besides the list: what the file asks for, and what its expressions use."""
    asked = texts(raw.get("need", ["addresses"]), "need", problems)
    for index, word in enumerate(asked):
        choice(word, f"need[{index}]", NEEDS, problems)
    used = {what for what, pattern in COSTLY.items() if any(pattern.search(text) for text in expressions)}
    if raw.get("prefer") is not None or raw.get("connection") == SSH:
        used.add("addresses")
    return frozenset(asked) | used


def _expressions(raw: t.Mapping[str, t.Any], problems: Problems) -> list[str]:
    """The expressions that Ansible evaluates for us. Their syntax is checked, their meaning is not."""
    found: list[str] = []
    for section in ("compose", "groups"):
        entries = raw.get(section) or {}
        if not isinstance(entries, dict):
            problems.add(section, entries, "must be a mapping of names and expressions")
            continue
        for key, text in entries.items():
            found.append(str(text))
            _check_expression(text, f"{section}.{key}", problems)
    for index, entry in enumerate(sequence(raw.get("keyed_groups"), "keyed_groups", problems)):
        found += _keyed_group(entry, f"keyed_groups[{index}]", problems)
    return found


def _keyed_group(raw: t.Any, path: str, problems: Problems) -> list[str]:
    """The expression of an entry."""
    if not isinstance(raw, dict) or not raw.get("key"):
        problems.add(path, raw, "must be a mapping with a key, which is an expression")
        return []
    entry = mapping(raw, path, OF_A_KEYED_GROUP, problems) or {}
    for key in ("prefix", "separator", "parent_group", "default_value"):
        _check_text(entry.get(key), f"{path}.{key}", problems)
    if "trailing_separator" in entry:
        boolean(entry["trailing_separator"], f"{path}.trailing_separator", problems)
        if "default_value" in entry:
            problems.add_text(f"{path}.trailing_separator: cannot stand beside default_value")
    _check_expression(raw["key"], f"{path}.key", problems)
    return [str(raw["key"])]


def _check_ansibles_own(raw: t.Mapping[str, t.Any], problems: Problems) -> None:
    """What Ansible reads by itself must at least be of the right kind."""
    for key in SWITCHES:
        if raw.get(key) is not None:
            boolean(raw[key], key, problems)
    for key in OF_A_CACHE:
        _check_text(raw.get(key), key, problems)
    seconds = raw.get("cache_timeout")
    if seconds is not None and not re.fullmatch(r"[0-9]{1,9}", str(seconds), re.ASCII):
        problems.add("cache_timeout", seconds, "must be a number of seconds, such as 3600")


def _check_text(value: t.Any, path: str, problems: Problems) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (str, int))):
        problems.add(path, value, "must be text")


def _check_expression(text: t.Any, path: str, problems: Problems) -> None:
    try:
        _JINJA.parse("{{ (" + str(text) + ") }}")
    except jinja2.TemplateSyntaxError as e:
        problems.add(path, text, f"is no Jinja2 expression: {e.message}")
