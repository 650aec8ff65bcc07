# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What a client program is told and what it says: requests as its commands, bodies as YAML, errors as exceptions."""

from __future__ import annotations

import hashlib
import json
import re
import typing as t
import urllib.parse

from .._errors import InvalidInput, ServerError
from .driver import error_for

# The objects that the client edits as YAML from its standard input: the path, and the command with its operands.
_EDITS = (
    (re.compile(r"/1\.0"), ("config", "edit"), "local:"),
    (re.compile(r"/1\.0/instances/([^/]+)"), ("config", "edit"), "local:{0}"),
    (re.compile(r"/1\.0/profiles/([^/]+)"), ("profile", "edit"), "local:{0}"),
    (re.compile(r"/1\.0/projects/([^/]+)"), ("project", "edit"), "local:{0}"),
    (re.compile(r"/1\.0/networks/([^/]+)"), ("network", "edit"), "local:{0}"),
    (re.compile(r"/1\.0/storage-pools/([^/]+)"), ("storage", "edit"), "local:{0}"),
    (re.compile(r"/1\.0/images/([^/]+)"), ("image", "edit"), "local:{0}"),
)
_CONSOLE = re.compile(r"/1\.0/instances/([^/]+)/console")
# What a client of an object may write, whatever its kind.
_WRITABLE = frozenset(
    (
        "architecture",
        "auto_update",
        "config",
        "description",
        "devices",
        "ephemeral",
        "expires_at",
        "profiles",
        "properties",
        "public",
        "stateful",
    )
)
# Fields that say what to do, and never hold what a user wrote in confidence. They may stand on a command line.
_PLAIN = frozenset(
    ["action", "force", "live", "name", "pool", "project", "stateful", "timeout", "instance_only", "container_only"]
)
_LONGEST_PLAIN = 256
_CREATED = frozenset(["name", "type", "source", "config", "devices", "description", "profiles", "ephemeral"])
_SOURCES = ({"type", "alias"}, {"type", "fingerprint"}, {"type"})
# What a server is told to fetch an image by. Nothing of it is secret; a ``secret`` is.
_FETCHED = frozenset(["type", "mode", "server", "protocol", "alias", "fingerprint", "certificate"])
# Characters that JSON leaves as they are, and YAML refuses or takes for a line's end.
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_UNREACHABLE = (
    "dial unix",
    "connect: ",
    "connection reset",
    "broken pipe",
    "unexpected EOF",
    'http://unix.socket/1.0": EOF',
)
_PREFIXES = ("Failed instance creation: ", "Create instance: ", "Failed creating instance: ")

# What the other drivers say in words of their own.
_FILE_MESSAGES = {
    "Can't pull a directory without --recursive": "it is a directory",
    "Too many links": "too many links",
    "too many levels of symbolic links": "too many links",
    "Not Found": "no such file or directory",
    "file does not exist": "no such file or directory",
}


class Edit(t.NamedTuple):
    """How the client edits an object."""

    command: tuple[str, ...]
    operand: str


class Creation(t.NamedTuple):
    """How the client creates an instance. It takes no description: that is written afterwards."""

    flags: list[str]
    operands: list[str]
    stdin: bytes
    path: str
    description: str


def with_query(path: str, query: t.Mapping[str, str]) -> str:
    """What ``query`` is to ask for."""
    return f"{path}?{urllib.parse.urlencode(query)}" if query else path


def edit_of(path: str) -> t.Optional[Edit]:
    """The command that edits the object at a path, or None."""
    for pattern, command, operand in _EDITS:
        match = pattern.fullmatch(path)
        if match:
            return Edit(command, operand.format(*(urllib.parse.unquote(group) for group in match.groups())))
    return None


def console_of(path: str) -> t.Optional[str]:
    """The instance whose console's log is at a path, or None."""
    match = _CONSOLE.fullmatch(path)
    return f"local:{urllib.parse.unquote(match[1])}" if match else None


def target_flags(query: t.Mapping[str, str]) -> t.Optional[list[str]]:
    """The flags for a request's query, or None where there are none for all of it."""
    if set(query) - {"project", "target"}:
        return None
    return [word for key, value in sorted(query.items()) for word in (f"--{key}", value)]


def is_plain(body: t.Any) -> bool:
    """Whether a body may stand on a command line, where every user of the machine can read it."""
    if not isinstance(body, dict) or set(body) - _PLAIN:
        return False
    values = body.values()
    return all(
        value is None or isinstance(value, (bool, int)) or (isinstance(value, str) and len(value) <= _LONGEST_PLAIN)
        for value in values
    )


def is_fetch(body: t.Any) -> bool:
    """Whether a body has a server fetch an image from another one, and holds nothing in confidence."""
    if not isinstance(body, dict) or set(body) - {"source", "auto_update"}:
        return False
    return is_remote(body.get("source")) and isinstance(body.get("auto_update", False), bool)


def is_remote(source: t.Any) -> bool:
    """Whether the source of an instance is an image of another server."""
    if not isinstance(source, dict) or set(source) - _FETCHED or not source.get("server"):
        return False
    return source.get("type") == "image" and all(isinstance(value, str) for value in source.values())


def copy_of(body: t.Mapping[str, t.Any]) -> t.Optional[tuple[dict[str, t.Any], dict[str, t.Any]]]:
    """What makes a copy of an instance, and what is the copy's own and has to follow; None where it is no copy."""
    source = body.get("source") or {}
    if set(body) - _CREATED or set(source) - _PLAIN - {"type", "source"} or source.get("type") != "copy":
        return None
    own = {key: body[key] for key in ("config", "devices", "description") if body.get(key)}
    return {key: value for key, value in body.items() if key not in ("config", "devices", "description")}, own


def creation_of(body: t.Mapping[str, t.Any]) -> t.Optional[Creation]:
    """How to create an instance from a local image or from none, or None where the client cannot."""
    source = body.get("source") or {}
    if set(body) - _CREATED or set(source) not in _SOURCES or source.get("type") not in ("image", "none"):
        return None
    if (source["type"] == "none") != (set(source) == {"type"}):
        return None
    flags = ["--vm"] if body.get("type") == "virtual-machine" else []
    flags += ["--ephemeral"] if body.get("ephemeral") else []
    operands = [f"local:{body.get('name', '')}"]
    if source["type"] == "none":
        flags.append("--empty")
    else:
        operands.insert(0, "local:" + (source.get("alias") or source.get("fingerprint") or ""))
    if body.get("profiles") is not None:
        for name in body["profiles"]:
            flags += ["--profile", name]
        flags += [] if body["profiles"] else ["--no-profiles"]
    stdin = as_yaml({key: body[key] for key in ("config", "devices") if body.get(key)})
    path = "/1.0/instances/" + urllib.parse.quote(str(body.get("name", "")), safe="")
    return Creation(flags, operands, stdin, path, str(body.get("description") or ""))


def check_types(body: t.Mapping[str, t.Any], request: str) -> None:
    """Refuse what the API refuses; the client would take a number in YAML for a string. Raises ServerError 400."""
    config, devices = body.get("config") or {}, body.get("devices") or {}
    tables = {"config": config} if isinstance(config, dict) else {}
    if isinstance(devices, dict):
        tables.update({f"devices.{name}": options for name, options in devices.items()})
    if not isinstance(config, dict) or not isinstance(devices, dict):
        raise ServerError(400, "config and devices must be mappings", request)
    for where, table in tables.items():
        for key, value in table.items() if isinstance(table, dict) else [("", None)]:
            if not isinstance(value, str):
                raise ServerError(400, f"{where}: {key}: must be a string", request)


def merged(current: t.Mapping[str, t.Any], patch: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What a PATCH makes of an object: an empty value removes a key of its config."""
    body = {**writable(current), **patch}
    body["config"] = {
        key: value
        for key, value in {**(current.get("config") or {}), **(patch.get("config") or {})}.items()
        if value != ""
    }
    for table in ("devices", "properties"):
        if table in body:
            body[table] = {**(current.get(table) or {}), **(patch.get(table) or {})}
    return body


def writable(metadata: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What of an object can be written."""
    return {key: value for key, value in metadata.items() if key in _WRITABLE}


def etag(metadata: t.Any) -> str:
    """A mark of an object's content, since the client hands no ETag out."""
    text = json.dumps(writable(metadata), sort_keys=True) if isinstance(metadata, dict) else ""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def as_yaml(value: t.Any) -> bytes:
    """A value as YAML that every parser of it reads in the same way: JSON, with its odd characters escaped."""
    text = json.dumps(value, ensure_ascii=False)
    text = _NOT_IN_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    try:
        return text.encode("utf-8") + b"\n"
    except UnicodeEncodeError as e:
        raise InvalidInput(["the request holds half of a surrogate pair, which is no character"]) from e


def message_of(stderr: bytes) -> str:
    """What the client said went wrong."""
    text = stderr.decode("utf-8", "replace").strip()
    start = 0 if text.startswith("Error: ") else text.rfind("\nError: ") + 1
    text = text[start:].removeprefix("Error: ") or "it gave no reason"
    for prefix in _PREFIXES:
        text = text.removeprefix(prefix)
    return text


def file_message(message: str) -> str:
    """What went wrong with a file, as every driver says it."""
    return next((ours for theirs, ours in _FILE_MESSAGES.items() if theirs in message), message)


def is_unreachable(message: str) -> bool:
    """Whether the client did not reach the server."""
    return any(text in message for text in _UNREACHABLE)


def error_of(message: str, request: str) -> ServerError:
    """The exception for what the client said. It does not say the status: what is not known is 400."""
    low = message.lower().rstrip(".")
    status = 400
    if low.endswith(("not found", "does not exist", "doesn't exist")):
        status = 404
    elif "etag doesn't match" in low or "precondition failed" in low:
        status = 412
    elif low.endswith(("not authorized", "forbidden", "certificate is restricted")) or low.startswith(
        ("forbidden", "not authorized")
    ):
        status = 403
    return error_for(status, message, request)
