# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A driver whose server is in memory: for speed, and for faults at every call."""

from __future__ import annotations

import copy
import enum
import itertools
import json
import threading
import typing as t
import urllib.parse

from ansible_collections.mage.lxd.plugins.module_utils._errors import NotFound, ServerUnreachable
from ansible_collections.mage.lxd.plugins.module_utils._server.driver import Completed, Response, checked
from ansible_collections.mage.lxd.tests.memory.store import BRIDGE, Raw, Refused, Store

EXTENSIONS = ("instances", "etag", "projects", "network_leases", "virtual-machines", "container_exec_user_group_cwd")
# The numbers that Incus gives to operations that failed; to LXD, each is 400.
_INCUS = (("already defined on another NIC", 409), ("already stopped", 400))


class Fault(enum.Enum):
    """What goes wrong at a call."""

    LOST = "the request never reaches the server"
    UNANSWERED = "the server does it, and the line drops before the answer"
    REFUSED = "the server has an error of its own"
    RESTART = "the server does it, restarts, and has forgotten every operation"
    UNDONE = "the server takes it, restarts before it is done, and has forgotten every operation"
    HALF = "as before, and of an instance that it was to make there is a record, and nothing in it"
    KILLED = "the caller is killed before the call"
    KILLED_AFTER = "the caller is killed after the call"


class Killed(BaseException):
    """The process that planned is gone: nothing of it runs on."""


class MemoryDriver:
    """See ``driver.Driver``. ``requests`` lists every call: method and path. ``faults`` maps the number of a call to
    what goes wrong there. ``meanwhile`` is called before each request with its number, as another controller would
    write between two calls. Drivers with one ``store`` are clients of one server."""

    def __init__(
        self,
        store: t.Optional[Store] = None,
        faults: t.Optional[t.Mapping[int, Fault]] = None,
        meanwhile: t.Callable[[int], None] = lambda number: None,
    ) -> None:
        self.store = store or Store()
        self.requests: list[tuple[str, str]] = []
        self.executed: list[tuple[str, tuple[str, ...]]] = []
        self._faults = dict(faults or {})
        self._meanwhile = meanwhile
        self._dead = False
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        self._operations: dict[str, t.Union[Raw, Refused, None]] = {}

    @property
    def endpoint(self) -> str:
        """As a person would write it."""
        return "memory"

    @property
    def writes(self) -> list[tuple[str, str]]:
        """The requests that change something."""
        return [one for one in self.requests if one[0] != "GET"]

    def request(
        self,
        method: str,
        path: str,
        query: t.Optional[t.Mapping[str, str]] = None,
        body: t.Any = None,
        headers: t.Optional[t.Mapping[str, str]] = None,
        timeout: t.Optional[float] = None,
    ) -> Response:
        """One request, one at a time."""
        with self._lock:
            number = next(self._numbers)
            self._meanwhile(number)
            fault = self._strike(number)
            self.requests.append((method, path))
            if fault is Fault.LOST:
                raise ServerUnreachable(self.endpoint, "the connection was lost before the whole answer came")
            if fault is Fault.REFUSED:
                return checked(_failed(Refused(500, "database is locked")), f"{method} {path}")
            is_file = hasattr(body, "read")
            sent = json.loads(json.dumps(body)) if body is not None and not is_file else {}
            before = copy.deepcopy(self.store.__dict__) if fault in (Fault.UNDONE, Fault.HALF) else None
            try:
                answer = self._answer(method, path, dict(query or {}), sent, dict(headers or {}))
            except Refused as e:
                answer = _failed(e)
            if before is not None and answer.json.get("type") == "async":
                self._undo(before, dict(query or {}), sent if fault is Fault.HALF else {})
            if fault in (Fault.RESTART, Fault.UNDONE, Fault.HALF):
                self._operations.clear()
            if fault is Fault.KILLED_AFTER:
                self._dead = True
                raise Killed
            if fault is Fault.UNANSWERED:
                raise ServerUnreachable(self.endpoint, "the connection was lost before the whole answer came")
            return checked(answer, f"{method} {path}")

    def _undo(self, before: Raw, query: Raw, sent: Raw) -> None:
        made = self.store.instances.get((query.get("project", "default"), str(sent.get("name"))))
        self.store.__dict__.update(before)
        if made and (made["project"], made["name"]) not in self.store.instances:
            made["config"].pop("volatile.apply_template")
            made["hollow"] = True
            self.store.instances[made["project"], made["name"]] = made

    def _strike(self, number: int) -> t.Optional[Fault]:
        fault = self._faults.get(number)
        if fault is Fault.KILLED:
            self._dead = True
        if self._dead:
            raise Killed
        return fault

    # --- routes -------------------------------------------------------------------------------------------------------

    def _answer(self, method: str, path: str, query: Raw, body: Raw, headers: Raw) -> Response:
        parts = [urllib.parse.unquote(part) for part in path.strip("/").split("/")][1:]
        kind, rest = (parts[0] if parts else ""), parts[1:]
        if kind == "instances":
            return self._instances(method, rest, query, body, headers)
        if kind == "operations":
            # Nothing goes on longer than its request.
            return self._operation(rest[0]) if rest else _sync({})
        if kind == "images" and method == "POST":
            fingerprint = headers.get("X-LXD-fingerprint", "")
            return self._start(lambda: self.store.bring_image(body.get("source") or {}, fingerprint))
        return _sync(self._read(kind, rest, query))

    def _read(self, kind: str, rest: list[str], query: Raw) -> t.Any:
        store = self.store
        if kind == "":
            environment: Raw = {"server": store.flavor, "server_version": "5.0.2", "architectures": ["x86_64"]}
            environment["kernel_features"] = store.features
            return {"environment": environment, "api_extensions": list(EXTENSIONS), "auth": "trusted"}
        if kind == "profiles":
            return [
                {"name": name, "config": store.profile_config.get(name, {}), "devices": devices}
                for name, devices in store.profiles.items()
            ]
        if kind == "images":
            return [
                {"fingerprint": fingerprint, "aliases": [{"name": alias}], "properties": {"os": alias}}
                for alias, fingerprint in store.images.items()
            ]
        if kind == "projects":
            return [{"name": name, "config": config} for name, config in store.projects.items()]
        if kind == "networks" and not rest:
            config = {"ipv4.address": str(store.subnet), "ipv4.nat": "true"}
            return [{"name": BRIDGE, "type": "bridge", "managed": True, "config": config}]
        if kind == "networks" and rest == [BRIDGE, "leases"]:
            return store.leases(query.get("project", "default"))
        raise Refused(404, "Failed loading network: Network not found" if kind == "networks" else "not found")

    def _instances(self, method: str, rest: list[str], query: Raw, body: Raw, headers: Raw) -> Response:
        store, project = self.store, query.get("project", "default")
        if not rest and method == "GET":
            everywhere = query.get("all-projects") == "true"
            return _sync([store.shown(raw) for key, raw in store.instances.items() if everywhere or key[0] == project])
        if not rest:
            store.check_create(project, body)
            return self._start(lambda: store.create(project, body))
        raw = store.find(project, rest[0])
        if rest[1:]:
            return self._below(method, raw, rest[1:], body)
        return self._instance(method, raw, body, headers)

    def _below(self, method: str, raw: Raw, rest: list[str], body: Raw) -> Response:
        store, kind = self.store, rest[0]
        if kind == "state":
            if method == "GET":
                return _sync({"status": raw["status"], "network": store.addresses(raw) or None})
            if body.get("action") not in ("start", "stop", "restart", "freeze", "unfreeze"):
                raise Refused(400, f"Unknown action: '{body.get('action')}'")
            return self._start(lambda: store.change_state(raw, body["action"]))
        if kind == "console":
            return Response(200, {}, b"")
        if rest == ["logs"]:
            return _sync([])
        if kind == "files":
            return _sync(store.files(raw))
        if kind == "snapshots" and method == "POST":
            return self._start(lambda: store.take_snapshot(raw, body["name"]))
        snapshots = raw.get("snapshots", {})
        if rest == ["snapshots"]:
            return _sync(list(snapshots.values()))
        if kind == "snapshots" and rest[1] in snapshots:
            return _sync(snapshots[rest[1]])
        raise Refused(404, "not found")

    def _instance(self, method: str, raw: Raw, body: Raw, headers: Raw) -> Response:
        store = self.store
        if method == "GET":
            return _sync(store.shown(raw), {"etag": f'"{store.etag(raw)}"'})
        if method == "POST":
            return self._start(lambda: store.move(raw))
        store.check_etag(raw, headers.get("If-Match", ""))
        if method == "PATCH":
            store.patch(raw, body)
            return _sync({})
        if method == "PUT":
            return self._start(lambda: store.put(raw, body))
        if raw["status"] not in ("Stopped", "Error"):
            raise Refused(400, "Instance is running")
        return self._start(lambda: store.delete(raw))

    def _start(self, work: t.Callable[[], t.Optional[Raw]]) -> Response:
        """What goes on in the background is done at once; how it ended is told to who asks."""
        identifier = f"operation-{len(self.requests)}"
        try:
            self._operations[identifier] = work()
        except Refused as e:
            self._operations[identifier] = e
        body = {"type": "async", "status_code": 100, "operation": f"/1.0/operations/{identifier}", "metadata": {}}
        return Response(202, {}, json.dumps(body).encode())

    def _operation(self, identifier: str) -> Response:
        if identifier not in self._operations:
            raise Refused(404, "Operation not found")
        refused = self._operations[identifier]
        if not isinstance(refused, Refused):
            return _sync({"status_code": 200, "status": "Success", "err": "", "metadata": refused})
        if self.store.is_incus:
            status = next((status for words, status in _INCUS if words in refused.message), 500)
            return Response(200, {}, _failed(Refused(status, refused.message)).body)
        return _sync({"status_code": 400, "status": "Failure", "err": refused.message, "metadata": None})

    # --- commands and files -------------------------------------------------------------------------------------------

    def execute(
        self,
        instance: str,
        argv: t.Sequence[str],
        project: str = "default",
        stdin: bytes = b"",
        environment: t.Optional[t.Mapping[str, str]] = None,
        timeout: t.Optional[float] = None,
    ) -> Completed:
        """Every command succeeds and says nothing; ``executed`` keeps them."""
        with self._lock:
            self._strike(next(self._numbers))
            try:
                raw = self.store.find(project, instance)
            except Refused as e:
                raise NotFound(e.status, e.message) from None
            if raw["status"] != "Running":
                checked(_failed(Refused(400, "Instance is not running")), "POST exec")
            self.executed.append((instance, tuple(argv)))
            return Completed(0, b"", b"")

    def push(
        self,
        instance: str,
        path: str,
        data: bytes,
        project: str = "default",
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
    ) -> None:
        """Keep a file with its instance."""
        with self._lock:
            self._strike(next(self._numbers))
            self.store.find(project, instance).setdefault("files", {})[path] = data

    def pull(self, instance: str, path: str, project: str = "default") -> bytes:
        """Read a file that was pushed."""
        with self._lock:
            files = self.store.find(project, instance).get("files", {})
            if path not in files:
                raise NotFound(404, "not found")
            return bytes(files[path])

    def push_folder(self, *_args: t.Any, **_more: t.Any) -> None:
        """Nothing that is planned copies folders."""
        raise NotImplementedError

    pull_folder = push_folder

    def close(self) -> None:
        """Nothing to let go of."""


def _sync(metadata: t.Any, headers: t.Optional[t.Mapping[str, str]] = None) -> Response:
    return Response(200, headers or {}, json.dumps({"type": "sync", "status_code": 200, "metadata": metadata}).encode())


def _failed(refused: Refused) -> Response:
    body = {"type": "error", "error_code": refused.status, "error": refused.message}
    # No blanks: that is how Incus tells a failure in an answer of status 200.
    return Response(refused.status, {}, json.dumps(body, separators=(",", ":")).encode())
