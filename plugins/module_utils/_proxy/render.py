# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Vhosts as files for nginx, and names as a block of a hosts file. Plain Python: managed hosts have no jinja2.

Nothing reaches a file but through ``quoted`` or ``_word``, which take what they know to be harmless and raise on the
rest: that would be a fault of ours, since what users write is parsed before. ``raw`` alone is written as it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
import typing as t

MAIN = "nginx.conf"
UPSTREAMS = "upstream.conf"
VHOSTS = "vhosts"
GENERATION = "generation.conf"
PROBES = "probes"
REFUSED = "refused"

# What a proxied request is answered by where no instance has an address: a port that nothing listens on.
NOWHERE = "127.0.0.1:9"
PROBE_NAME = "mage-probe"
PATH_MARK = "# "
HOSTS_BEGIN = "# BEGIN mage.lxd: instances"
HOSTS_END = "# END mage.lxd"

_HOSTS_BLOCK = re.compile(
    rf"^{re.escape(HOSTS_BEGIN)}\n(?:(?!{re.escape(HOSTS_BEGIN)}).*\n)*?{re.escape(HOSTS_END)}(?:\n|\Z)", re.MULTILINE
)
_SERVER_NAME = re.compile(r"^    server_name (\S+);$", re.MULTILINE)
_OF = re.compile(rf"^    {PATH_MARK}(\S+) of ([^()\n]+?)(?: \(([0-9a-f]+)\))?$", re.MULTILINE)
_WORD = re.compile(r"[A-Za-z0-9_.:/@*\[\]-]+", re.ASCII)
_QUOTABLE = re.compile(r"[^\x00-\x1f\x7f\"\\$']*")


@dataclasses.dataclass(frozen=True)
class Target:
    """Where the requests of a location go.

    ``servers`` are addresses with their ports; or else ``dynamic``, host:port, is looked up by nginx while it runs.
    ``host`` is sent as Host; empty: the client's own. ``path`` takes the place of the location's; None: it is kept.
    """

    scheme: str = "http"
    servers: tuple[str, ...] = ()
    dynamic: str = ""
    host: str = ""
    path: t.Optional[str] = None


@dataclasses.dataclass(frozen=True)
class Location:
    """A path of a vhost. ``owners`` are the instances that ask for it, as project/name, sorted. ``mark`` is short for
    what they ask for."""

    path: str
    target: Target
    owners: tuple[str, ...]
    raw: str = ""
    mark: str = ""


@dataclasses.dataclass(frozen=True)
class Vhost:
    """A hostname, with locations sorted by path."""

    name: str
    locations: tuple[Location, ...]


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the proxy's instance is like: who nginx runs as, its nameservers, its version (empty: not installed)."""

    user: str = "www-data"
    resolvers: tuple[str, ...] = ("127.0.0.53",)
    version: str = ""


def tree(vhosts: t.Sequence[Vhost], facts: Facts, refused: t.Optional[t.Mapping[str, str]] = None) -> dict[str, str]:
    """The whole configuration: text by path in nginx's folder. ``refused``: words of nginx by ``fingerprint``."""
    files = {MAIN: _main(vhosts, facts), UPSTREAMS: _upstreams(vhosts)}
    for vhost in vhosts:
        files[vhost_file(vhost.name)] = _vhost(vhost)
    names = {vhost.name for vhost in vhosts}
    files[PROBES] = "".join(f"{_probe(vhost.name, names)} {vhost.name}\n" for vhost in vhosts)
    files[REFUSED] = "".join(f"{mark} {words}\n" for mark, words in sorted((refused or {}).items()))
    files[GENERATION] = _generation(files)
    return files


def refused_from(text: str) -> dict[str, str]:
    """What the file of refused locations holds: nginx's words by fingerprint."""
    pairs = (line.partition(" ") for line in text.splitlines())
    return {mark: words for mark, _blank, words in pairs}


def generation(files: t.Mapping[str, str]) -> str:
    """The name of a configuration: a hash of all that is in it."""
    digest = hashlib.sha256()
    for path in sorted(set(files) - {GENERATION}):
        digest.update(f"{path}\0{files[path]}\0".encode())
    return digest.hexdigest()[:16]


def fingerprint(vhost: str, location: Location, facts: Facts) -> str:
    """What nginx refused once it refuses again, as long as this is the same: the location and nginx's version."""
    text = "\0".join((facts.version, vhost, location.path, *_location(vhost, location)))
    return hashlib.sha256(text.encode()).hexdigest()


def vhost_file(name: str) -> str:
    """The path of a vhost's file. No two hostnames have the same one, and none is too long for a file system."""
    stem = name.replace("*.", "wildcard@", 1)
    if len(stem) > 200:
        stem = f"{stem[:180]}@{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return f"{VHOSTS}/{stem}.conf"


def path_at(text: str, line: int) -> str:
    """The path of the location of a vhost's file that a line (from 1) is in, or nothing."""
    for each in reversed(text.splitlines()[:line]):
        stripped = each.strip()
        if stripped.startswith(PATH_MARK):
            return stripped[len(PATH_MARK) :].partition(" ")[0]
    return ""


class Served(t.NamedTuple):
    """Who a path of a vhost is served for now: their ``label``, and the mark of what they asked for."""

    owners: frozenset[str]
    mark: str


def served(files: t.Mapping[str, str]) -> dict[tuple[str, str], Served]:
    """What a configuration says of its vhosts, by name and path."""
    found: dict[tuple[str, str], Served] = {}
    for path, text in files.items():
        name = _SERVER_NAME.search(text) if path.startswith(f"{VHOSTS}/") else None
        for line in _OF.finditer(text) if name else ():
            found[name[1] if name else "", line[1]] = Served(frozenset(line[2].split()), line[3] or "")
    return found


def quoted(*parts: str) -> str:
    """A string of nginx's configuration that means its own text and nothing else."""
    text = "".join(parts)
    if not _QUOTABLE.fullmatch(text):
        raise ValueError(f"not for nginx: {text!r}")
    return f'"{text}"'


def _word(text: str) -> str:
    """A bare word of nginx's configuration: a hostname, an address, a label."""
    if not _WORD.fullmatch(text):
        raise ValueError(f"not for nginx: {text!r}")
    return text


def _main(vhosts: t.Sequence[Vhost], facts: Facts) -> str:
    resolvers = " ".join(_word(f"[{one}]" if ":" in one else one) for one in facts.resolvers)
    # nginx warns if the table of names is too small for them.
    names = max(1024, 1 << (8 * len(vhosts)).bit_length())
    return f"""\
# Written by mage.lxd from what the instances publish. The next run undoes what is changed here by hand.
user {_word(facts.user)};
worker_processes auto;
worker_rlimit_nofile 8192;
error_log /var/log/nginx/error.log;

events {{
    worker_connections 4096;
}}

http {{
    access_log /var/log/nginx/access.log;
    default_type text/plain;
    server_tokens off;
    absolute_redirect off;
    client_max_body_size 64m;
    server_names_hash_bucket_size 512;
    server_names_hash_max_size {names};
    proxy_headers_hash_max_size 1024;
    proxy_headers_hash_bucket_size 128;
{f"    resolver {resolvers} valid=30s;" if resolvers else "    # No nameserver is known."}

    map $http_upgrade $mage_connection {{
        default upgrade;
        "" close;
    }}
    map $http_host $mage_host_port {{
        default "";
        "~(?<mage_digits>:[0-9]+)$" $mage_digits;
    }}
    map $http_host $mage_port {{
        default $server_port;
        "~:(?<mage_number>[0-9]+)$" $mage_number;
    }}
    include {GENERATION};

    # What a client says of itself is not believed.
    proxy_http_version 1.1;
    proxy_connect_timeout 5s;
    proxy_set_header Host $mage_to;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $mage_connection;
    proxy_set_header X-Real-IP $remote_addr;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Host $host$mage_host_port;
    proxy_set_header X-Forwarded-Port $mage_port;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header X-Forwarded-Prefix "";
    proxy_set_header X-Forwarded-Server "";
    proxy_set_header Forwarded "";
    proxy_set_header Proxy "";
    proxy_ssl_server_name on;
    # Else a backend is asked for by the name of its upstream, which nobody but this nginx knows.
    proxy_ssl_name $host;

    # An unknown host: the connection is closed without an answer.
    server {{
        listen 80 default_server;
        server_name "";
        if ($mage_probe) {{
            return 200 "default $mage_probe\\n";
        }}
        return 444;
    }}

    include {UPSTREAMS};
    include {VHOSTS}/*.conf;
}}
"""


def _generation(files: t.Mapping[str, str]) -> str:
    """How a probe from the instance itself learns which configuration a worker serves. It reaches no backend."""
    return f"""\
map "$remote_addr $http_x_mage_probe" $mage_probe {{
    default "";
    "127.0.0.1 {PROBE_NAME}" {generation(files)};
}}
"""


def _upstreams(vhosts: t.Sequence[Vhost]) -> str:
    blocks = []
    for vhost in vhosts:
        for location in vhost.locations:
            if location.target.dynamic:
                continue
            servers = [f"    server {_word(one)};" for one in location.target.servers]
            lines = servers or [f"    server {NOWHERE} down;"]
            blocks.append("\n".join((f"upstream {upstream(vhost.name, location.path)} {{", *lines, "}\n")))
    return "".join(blocks)


def upstream(name: str, path: str) -> str:
    """The name of a location's upstream."""
    digest = hashlib.sha256(f"{name} {path}".encode()).hexdigest()[:12]
    return _word(f"mage_{re.sub('[^a-z0-9.-]', '_', name)[:100]}_{digest}")


def _vhost(vhost: Vhost) -> str:
    lines = [
        "server {",
        "    listen 80;",
        f"    server_name {_word(vhost.name)};",
        "    if ($mage_probe) {",
        '        return 200 "$server_name $mage_probe\\n";',
        "    }",
    ]
    for location in vhost.locations:
        lines += _location(vhost.name, location, [one.path for one in vhost.locations])
    if all(location.path != "/" for location in vhost.locations):
        lines += ["    location / {", "        return 404;", "    }"]
    return "\n".join((*lines, "}\n"))


def _location(vhost: str, location: Location, paths: t.Sequence[str] = ()) -> list[str]:
    """A path that ends in a slash holds all below it. One that does not holds itself and all below it: /api is not
    /apis. The longest wins."""
    mark = f"    {PATH_MARK}{quoted(location.path)[1:-1]} of {' '.join(label(one) for one in location.owners)}"
    mark += f" ({_word(location.mark)})" if location.mark else ""
    blocks = [(location.path, location.path, location.target.path)]
    if not location.path.endswith("/"):
        below = location.path + "/"
        replaced = location.target.path
        blocks = [("= " + location.path, location.path, replaced)]
        if below not in paths:
            blocks.append((below, below, None if replaced is None else replaced.rstrip("/") + "/"))
    lines = []
    for pattern, path, replaced in blocks:
        sign, _blank, prefix = pattern.rpartition(" ")
        lines += [mark, f"    location {sign + ' ' if sign else ''}{quoted(prefix)} {{"]
        lines += [f"        {line}" for line in _proxied(vhost, location, path, replaced, bool(sign))]
        lines.append("    }")
    return lines


def _proxied(vhost: str, location: Location, path: str, replaced: t.Optional[str], exact: bool) -> list[str]:
    target = location.target
    to = quoted(target.host) if target.host else "$host$mage_host_port"
    lines = [f"set $mage_to {to};"]
    if target.dynamic:
        lines.append(f"proxy_ssl_name {_word(target.dynamic.rpartition(':')[0])};")
        lines.append(f"set $mage_backend {quoted(target.dynamic)};")
        if replaced is not None:
            tail = ("", "") if exact else ("(.*)", "$1")
            lines.append(f'rewrite "^{_pattern(path)}{tail[0]}$" {quoted(replaced)[:-1]}{tail[1]}" break;')
        lines.append(f"proxy_pass {target.scheme}://$mage_backend;")
    else:
        lines.append(f"proxy_pass {target.scheme}://{upstream(vhost, location.path)}{quoted(replaced or '')[1:-1]};")
    return [*lines, *location.raw.splitlines()]


def _pattern(path: str) -> str:
    """A path as a regular expression inside nginx's quotes."""
    quoted(path)
    return re.sub(r"([.()*+])", r"\\\1", path)


def label(text: str) -> str:
    """An instance's name for a comment; projects may have stranger names than nginx should read."""
    return re.sub(r"[^A-Za-z0-9_./-]", "?", text)


def _probe(name: str, names: t.Container[str]) -> str:
    """The hostname to ask for a vhost by. For a wildcard, one that is no vhost of its own."""
    if not name.startswith("*."):
        return _word(name)
    labels = itertools.chain((PROBE_NAME,), (f"{PROBE_NAME}-{number}" for number in itertools.count(2)))
    return _word(next(host for host in (f"{label}.{name[2:]}" for label in labels) if host not in names))


def hosts_block(names: t.Mapping[str, str]) -> str:
    """The marked block of a hosts file: addresses by name, as sorted lines of an address and its names."""
    if not names:
        return ""
    lines = [f"{names[name]} {_word(name)}" for name in sorted(names)]
    return "\n".join((HOSTS_BEGIN, *lines, HOSTS_END)) + "\n"


def hosts(text: str, names: t.Mapping[str, str]) -> str:
    """A hosts file with our block in it, where it was or at the end; all other lines stay as they are."""
    block = hosts_block(names)
    found = _HOSTS_BLOCK.search(text)
    rest = _HOSTS_BLOCK.sub("", text)
    if found is None:
        return rest + ("\n" if block and rest and not rest.endswith("\n") else "") + block
    return rest[: found.start()] + block + rest[found.start() :]
