# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""The driver of the client programs: ``lxc`` for LXD, ``incus`` for Incus, here or inside another server's instance."""

from __future__ import annotations

import dataclasses
import json
import posixpath
import typing as t

from .._errors import (
    DeadlinePassed,
    InvalidInput,
    MageError,
    NotFound,
    PreconditionFailed,
    ServerError,
    ServerUnreachable,
)
from . import cli_exec, cli_texts, files, operations, runner, sockets, transport, trust
from .command import Command, Ended, Gate
from .core import CoreDriver
from .driver import Completed, Response, api, error_for
from .options import SOCKETS, ServerOptions
from .relay import Relay
from .whole import WholeFiles

PROGRAMS = {"lxd": "lxc", "incus": "incus"}
_NO_SUCH_COMMAND = 127
# What a file of the kernel's own claims to hold at most, and how long reading one may take.
_PAGE = 1 << 16
_SAID_WITHIN = 60.0
# Seconds after which a client that edits has probably missed that it is done.
_MISSED = 30.0
_CONSOLE_HEAD = b"\nConsole log:\n\n"


class CliDriver(WholeFiles):
    """A way to one server by its client program. See ``driver.Driver``; safe to share between threads.

    Without a runner, the client runs on this machine. ``requests`` counts as a transport does: (method, path).
    """

    def __init__(
        self,
        options: ServerOptions,
        run_by: t.Optional[runner.Runner] = None,
        client: t.Optional[str] = None,
    ) -> None:
        self.options = options
        self.requests: list[tuple[str, str]] = []
        self._client = client or _program(options)
        self._relay = None if run_by is not None or options.socket_path else Relay(options)
        if self._relay is not None:
            # The client does not say what a server that does not know us wants.
            try:
                transport.greet(options)
            except BaseException:
                self._relay.close()
                raise
        self._is_here = run_by is None
        path = self._relay.path if self._relay else options.socket_path or ""
        self._runner = run_by or runner.LocalRunner(path)

    @property
    def endpoint(self) -> str:
        """Where the server is, as a person would write it."""
        return self.options.shown

    def request(
        self,
        method: str,
        path: str,
        query: t.Optional[t.Mapping[str, str]] = None,
        body: t.Any = None,
        headers: t.Optional[t.Mapping[str, str]] = None,
        timeout: t.Optional[float] = None,
    ) -> Response:
        """One request, by the command of the client that does it. What has none is refused: see docs/servers.md."""
        self.requests.append((method, path))
        value = body if hasattr(body, "read") else _parsed(body)
        asked = _Asked(method, path, dict(query or {}), value, timeout or self.options.request_timeout)
        with trust.explained(self.options):
            return self._done(asked, headers or {})

    def _done(self, asked: _Asked, headers: t.Mapping[str, str]) -> Response:
        if asked.method == "GET":
            return self._get(asked)
        expected = {name.lower(): value for name, value in headers.items()}.get("if-match")
        current = None
        if expected or asked.method == "PATCH":
            current = self._get(asked._replace(method="GET", body=None))
            if expected and current.headers.get("etag") != expected:
                raise PreconditionFailed(412, "it was changed since it was read", asked.name)
        return self._write(asked, current)

    def _write(self, asked: _Asked, current: t.Optional[Response]) -> Response:
        is_image = (asked.method, asked.path) == ("POST", "/1.0/images")
        if asked.body is None or cli_texts.is_plain(asked.body) or (is_image and cli_texts.is_fetch(asked.body)):
            return self._query(asked)
        flags = cli_texts.target_flags(asked.query)
        if is_image and flags is not None and hasattr(asked.body, "read"):
            late = asked._replace(timeout=max(asked.timeout, self.options.timeout))
            # What an exec hands in may be read, and not be opened by name.
            before = () if self._is_here else ("sh", "-c", 'cat | "$@"', "sh")
            self._run(["image", "import", *flags, "--", "/dev/stdin", "local:"], late, asked.body, before)
            return _DONE
        if isinstance(asked.body, dict):
            cli_texts.check_types(asked.body, asked.name)
            edit = cli_texts.edit_of(asked.path)
            if edit and flags is not None and asked.method in ("PUT", "PATCH"):
                body = cli_texts.merged(current.metadata, asked.body) if current and asked.method == "PATCH" else None
                return self._edit(edit, flags, body or asked.body, asked)
            if (asked.method, asked.path) == ("POST", "/1.0/instances") and flags is not None:
                copy = cli_texts.copy_of(asked.body)
                if copy:
                    return self._copy(*copy, flags, asked)
                creation = cli_texts.creation_of(self._with_local_image(asked))
                if creation:
                    return self._create(creation, flags, asked)
        told = f"{self._client} takes this only on its command line, where everybody can read it: use driver: rest"
        raise ServerError(501, told, asked.name)

    def _get(self, asked: _Asked) -> Response:
        console = cli_texts.console_of(asked.path)
        if console:
            # By a plain query the server would hand the log out twice, and has it only once.
            flags = cli_texts.target_flags(asked.query) or []
            said = self._run(["console", "--show-log", *flags, "--", console], asked).stdout
            return Response(200, {}, said.removeprefix(_CONSOLE_HEAD))
        response = self._query(asked)
        return response._replace(headers={"etag": cli_texts.etag(_metadata(response))})

    def _query(self, asked: _Asked) -> Response:
        words = ["query", "--raw", "--request", asked.method]
        words += [] if asked.body is None else ["--data", json.dumps(asked.body)]
        body = self._run([*words, "--", cli_texts.with_query(asked.path, asked.query)], asked).stdout
        envelope = _envelope(body)
        if envelope.get("type") == "error":
            # Incus hands the server's refusal out as it is, LXD only its text.
            raise error_for(int(envelope.get("error_code") or 500), str(envelope.get("error")), asked.name)
        return Response(202 if envelope.get("type") == "async" else 200, {}, body)

    def _edit(
        self, edit: cli_texts.Edit, flags: t.Sequence[str], body: t.Mapping[str, t.Any], asked: _Asked
    ) -> Response:
        """The client waits for the operation itself, and LXD's now and then misses its end. To write the same once more
        does no harm."""
        words, stdin = [*edit.command, *flags, "--", edit.operand], cli_texts.as_yaml(body)
        late = asked._replace(timeout=self.options.timeout)
        try:
            self._run(words, late._replace(timeout=min(late.timeout, _MISSED)), stdin)
        except DeadlinePassed:
            if late.timeout <= _MISSED:
                raise
            self._run(words, late, stdin)
        return _DONE

    def _create(self, creation: cli_texts.Creation, flags: t.Sequence[str], asked: _Asked) -> Response:
        late = asked._replace(timeout=self.options.timeout)
        self._run(["init", *creation.flags, *flags, "--", *creation.operands], late, creation.stdin)
        if creation.description:
            made = self._get(late._replace(method="GET", path=creation.path, body=None)).metadata
            if made.get("description") != creation.description:
                edit = t.cast(cli_texts.Edit, cli_texts.edit_of(creation.path))
                self._edit(edit, flags, {**cli_texts.writable(made), "description": creation.description}, late)
        return _DONE

    def _copy(
        self, plain: t.Mapping[str, t.Any], own: t.Mapping[str, t.Any], flags: t.Sequence[str], asked: _Asked
    ) -> Response:
        """A copy gets what is its own when it is there: it may be secret, and only an edit takes it unseen."""
        late = asked._replace(timeout=self.options.timeout)
        operations.wait(self, self._query(late._replace(body=plain)), asked.name, self.options.timeout)
        path = api("instances", str(plain.get("name", "")))
        if own:
            made = self._get(late._replace(method="GET", path=path, body=None)).metadata
            self._edit(t.cast(cli_texts.Edit, cli_texts.edit_of(path)), flags, cli_texts.merged(made, own), late)
        return _DONE

    def _with_local_image(self, asked: _Asked) -> dict[str, t.Any]:
        """The body of a creation, where the image of another server has come to this one first."""
        body: dict[str, t.Any] = asked.body
        if not cli_texts.is_remote(body.get("source")):
            return body
        fetch = {"source": body["source"], "auto_update": False}
        query = {"project": asked.query["project"]} if "project" in asked.query else {}
        found = operations.run(self, "POST", api("images"), query, fetch, timeout=self.options.timeout)
        return {**body, "source": {"type": "image", "fingerprint": str((found or {}).get("fingerprint") or "")}}

    def execute(
        self,
        instance: str,
        argv: t.Sequence[str],
        project: str = "default",
        stdin: t.Union[bytes, t.BinaryIO] = b"",
        environment: t.Optional[t.Mapping[str, str]] = None,
        timeout: t.Optional[float] = None,
        user: t.Optional[int] = None,
        group: t.Optional[int] = None,
        cwd: t.Optional[str] = None,
        gate: t.Optional[Gate] = None,
        ended: t.Optional[Ended] = None,
        output: t.Optional[t.BinaryIO] = None,
        more: bool = False,
    ) -> Completed:
        """Run a command in a running instance and wait for its end; as root in /root, unless told otherwise.

        Standard output goes to ``output`` if that is given. Raises DeadlinePassed after ``timeout`` seconds, having
        killed the command. Whether ``more`` follow makes no difference to a client program.
        """
        self.requests.append(("POST", f"/1.0/instances/{instance}/exec"))
        command = Command(
            instance, argv, project, stdin, environment or {}, user, group, cwd, timeout, gate, ended, output
        )

        def running() -> t.Any:
            asked = _Asked("GET", "/1.0/operations", {"recursion": "1", "project": project}, None, 60.0)
            return self._query(asked).metadata

        def failed(stderr: bytes) -> MageError:
            return self._error(cli_texts.message_of(stderr), f"exec {instance}")

        return cli_exec.run(self._runner, self._words(), command, running, failed)

    def push_stream(self, place: files.Place, data: t.BinaryIO, size: int) -> None:
        """Write ``size`` bytes of an open file to a file in an instance."""

        def execute(argv: t.Sequence[str]) -> Completed:
            return self.execute(place.instance, argv, place.project, cwd="/", timeout=files.TIMEOUT)

        def write(target: files.Place, request: str) -> None:
            owner = ["--mode", f"{target.mode:04o}", "--uid", str(target.uid), "--gid", str(target.gid)]
            body = files.Sized(data, size)
            self._file(["push", *owner], ["-", _operand(target)], target, request, t.cast(t.BinaryIO, body))
            body.check(request)

        def forget(target: files.Place) -> None:
            try:
                self._file(["delete"], [_operand(target)], target, target.request("delete"))
            except ServerError:
                # It may never have come to be.
                return

        files.deliver(place, data, size, execute, write, forget)

    def pull_stream(self, place: files.Place, output: t.BinaryIO) -> None:
        """Write a file's content to an open file. Links are followed inside the instance. Raises NotFound."""
        request = place.request("pull")
        for _link in range(files.MOST_LINKS):
            try:
                self._read(place, request, output)
                return
            except NotFound as e:
                # The client of Incus would make the link on this machine.
                if not e.message.startswith("symlink "):
                    raise
            place = self._followed(place)
        raise ServerError(400, "too many links", request)

    def _read(self, place: files.Place, request: str, output: t.BinaryIO) -> None:
        start = output.tell()
        broken: t.Optional[ServerUnreachable] = None
        try:
            self._file(["pull"], [_operand(place), "-"], place, request, output=output)
        except ServerUnreachable as e:
            broken = e
        size = output.tell() - start
        # LXD's client believes the size that a file claims, and the kernel's own claim none or a page.
        if self._client == PROGRAMS["lxd"] and (size < _PAGE if broken else size == 0):
            found = self._said(place)
            if found is not None:
                output.seek(start)
                output.truncate()
                output.write(found)
                return
        if broken:
            raise broken

    def _said(self, place: files.Place) -> t.Optional[bytes]:
        """What the instance itself reads in a file, if it can."""
        try:
            done = self.execute(place.instance, ["cat", "--", place.path], place.project, cwd="/", timeout=_SAID_WITHIN)
        except MageError:
            return None
        return done.stdout if done.rc == 0 else None

    def _followed(self, place: files.Place) -> files.Place:
        """What a link leads to."""
        query = {"path": place.path, "project": place.project}
        asked = _Asked("GET", api("instances", place.instance, "files"), query, None, self.options.request_timeout)
        link = self._query(asked).body.decode("utf-8", "surrogateescape").removesuffix("\n")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(place.path), link))
        return dataclasses.replace(place, path=target)

    def _file(
        self,
        words: t.Sequence[str],
        operands: t.Sequence[str],
        place: files.Place,
        request: str,
        stdin: runner.Source = b"",
        output: t.Optional[t.BinaryIO] = None,
    ) -> None:
        self.requests.append(("FILE", words[0]))
        argv = [*self._words(), "file", *words, "--project", place.project, "--", *operands]
        done = self._runner.run(argv, stdin, output, files.TIMEOUT)
        if done.rc:
            error = self._error(cli_texts.file_message(cli_texts.message_of(done.stderr)), request)
            if isinstance(error, NotFound):
                # The client does not say whether it is the file that is missing, or the instance.
                path, query = api("instances", place.instance), {"project": place.project}
                self._get(_Asked("GET", path, query, None, self.options.request_timeout))
            raise error

    def close(self) -> None:
        """Let go of what leads to the server."""
        self._runner.close()
        if self._relay is not None:
            self._relay.close()

    def _words(self) -> list[str]:
        """How every command begins. No configuration of a user has a say in where it leads."""
        return [self._client, "--force-local", "--quiet"]

    def _run(
        self, words: t.Sequence[str], asked: _Asked, stdin: runner.Source = b"", before: t.Sequence[str] = ()
    ) -> Completed:
        try:
            done = self._runner.run([*before, *self._words(), *words], stdin, timeout=asked.timeout)
        except DeadlinePassed as e:
            raise DeadlinePassed(f"{asked.name}: no answer after {asked.timeout:g} s") from e
        if done.rc == _NO_SUCH_COMMAND:
            raise ServerUnreachable(self.endpoint, f"there is no {self._client} in it")
        if done.rc:
            raise self._error(cli_texts.message_of(done.stderr), asked.name)
        return done

    def _error(self, message: str, request: str) -> MageError:
        """The exception for what the client said; for a server that is not there, the one of every driver."""
        if cli_texts.is_unreachable(message):
            if self._is_here:
                sockets.connect(self.options).close()
            return ServerUnreachable(self.endpoint, message)
        error = cli_texts.error_of(message, request)
        return NotFound(404, message, request) if files.tells_of_missing(message) else error


class _Asked(t.NamedTuple):
    """A request."""

    method: str
    path: str
    query: dict[str, str]
    body: t.Any
    timeout: float

    @property
    def name(self) -> str:
        """As messages call it."""
        return f"{self.method} {self.path}"


_DONE = Response(200, {}, b'{"type": "sync", "status": "Success", "status_code": 200, "metadata": null}')


def _program(options: ServerOptions) -> str:
    """The client for the server's flavor: the other one's speaks of files in other words. Raises ServerUnreachable."""
    flavor = {path: name for name, path in SOCKETS}.get(options.socket_path or "")
    if flavor is None:
        core = CoreDriver(options)
        try:
            flavor = str(((core.request("GET", "/1.0").metadata or {}).get("environment") or {}).get("server") or "lxd")
        finally:
            core.close()
    found = runner.local_client(flavor)
    if found is None:
        told = f"driver cli needs the program {PROGRAMS.get(flavor, 'lxc')}, and it is not on this machine"
        raise ServerUnreachable(options.shown, told)
    return found


def _parsed(body: t.Any) -> t.Any:
    """A body as a value."""
    if not isinstance(body, (bytes, bytearray)):
        return body
    try:
        return json.loads(body)
    except ValueError as e:
        raise InvalidInput(["the client program takes no request whose body is not JSON"]) from e


def _metadata(response: Response) -> t.Any:
    """What the envelope holds; None where the answer is none, such as a log."""
    return _envelope(response.body).get("metadata")


def _envelope(body: bytes) -> dict[str, t.Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _operand(place: files.Place) -> str:
    return f"local:{place.instance}{place.path}"
