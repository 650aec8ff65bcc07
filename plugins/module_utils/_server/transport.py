# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""HTTP/1.1 over a server's socket by the standard library: connections kept alive, deadlines, errors translated."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import socket
import ssl
import threading
import time
import typing as t
import urllib.parse

from .._errors import ConnectionLost, ServerError, ServerUnreachable
from . import sockets, trust, websocket
from .driver import Response, checked
from .options import ServerOptions

# Seconds after which an idle connection is not used again: Incus closes it after 30, perhaps as the request comes.
IDLE = 20.0
# What is seen when a kept connection was closed at the other end before this request reached it.
_STALE = (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError)


class Connection(http.client.HTTPConnection):
    """One connection to the server. ``used`` says whether it has served a request; ``since`` is when it became idle."""

    def __init__(self, options: ServerOptions) -> None:
        super().__init__(host_of(options), blocksize=1 << 18)
        self.options = options
        self.used = False
        self.since = 0.0
        self.timed: t.Optional[sockets.TimedSocket] = None
        self.sock: t.Any = None

    def connect(self) -> None:
        """Open the socket, unless it is open. Raises ServerUnreachable."""
        self.timed = sockets.TimedSocket(sockets.connect(self.options))
        self.sock = self.timed

    def again(self) -> Connection:
        """The same socket for another request, after an answer that http.client did not read itself."""
        fresh = Connection(self.options)
        fresh.timed = fresh.sock = self.timed
        return fresh

    def is_alive(self) -> bool:
        """Whether the idle connection is fresh, and was neither closed by the server nor spoken on unasked."""
        if time.monotonic() - self.since >= IDLE:
            return False
        try:
            return self.timed is not None and not self.timed.arrived()
        except OSError:
            return False


class Pending:
    """A request that was sent, and whose answer may come late."""

    def __init__(self, connection: Connection, request: str, keep: t.Callable[[Connection], None]) -> None:
        self._connection = connection
        self._request = request
        self._keep = keep
        self._data = b""

    def fileno(self) -> int:
        """For select: readable when the answer is there."""
        timed = self._connection.timed
        return timed.sock.fileno() if timed else -1

    def wait(self, timeout: float) -> Response:
        """Read the whole answer, for at most so many seconds. Raises as ``finish`` does, and DeadlinePassed."""
        deadline = sockets.Deadline(timeout, self._request)
        while True:
            answer = self.finish()
            if answer is not None:
                return answer
            with translated(self._connection.options, deadline):
                if self._connection.timed is not None:
                    self._connection.timed.wait(deadline)

    def finish(self) -> t.Optional[Response]:
        """Read what is there: the answer, or None if it is not whole yet. Raises ServerError, ServerUnreachable.

        Incus sends the head of an answer at once, and its body when the operation ends.
        """
        with translated(self._connection.options):
            data = self._connection.timed.take() if self._connection.timed else b""
            if data is None:
                return None
            self._data += data
            response, reusable = _parsed(self._data)
            if response is None and not data:
                raise ConnectionResetError
        if response is not None and reusable and data:
            self._connection, done = Connection(self._connection.options), self._connection
            self._keep(done.again())
        return checked(response, self._request) if response else None

    def close(self) -> None:
        """Let go of the connection, unless it has gone back already."""
        self._connection.close()


class _Bytes:
    """Bytes as a socket that http.client can read."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *args: t.Any, **kwargs: t.Any) -> io.BytesIO:
        """A reader of the bytes."""
        return io.BytesIO(self._data)


def _parsed(data: bytes) -> tuple[t.Optional[Response], bool]:
    """The answer in the bytes, or None if it is not whole; and whether the connection can serve another request."""
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        return None, False
    status, headers = websocket.parsed_head(head)
    size = headers.get("content-length", "")
    if status and size.isdigit() and headers.keys().isdisjoint(("connection", "transfer-encoding")):
        # What nearly every command ends with; http.client reads any, and takes several times as long.
        whole = Response(status, headers, rest[: int(size)]) if len(rest) >= int(size) else None
        return whole, len(rest) == int(size)
    answer = http.client.HTTPResponse(t.cast(socket.socket, _Bytes(data)))
    answer.begin()
    # A last line that is still on its way would be taken for the next answer.
    reusable = not answer.will_close and (not answer.chunked or data.endswith(b"0\r\n\r\n"))
    try:
        return Response(answer.status, lowered(answer), answer.read()), reusable
    except http.client.IncompleteRead:
        return None, False


class Transport:
    """Requests to one server, safe to share between threads. ``requests`` counts them: (method, path)."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.requests: list[tuple[str, str]] = []
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self._pid = os.getpid()
        # Only servers at https:// may not know us; a local socket's owner is root.
        self._trusted = bool(options.via) or not options.endpoint.startswith("https://")
        self._greeting = threading.RLock()
        # Found out at the first file.
        self.lacks_sftp = False

    def greet(self) -> None:
        """Before the first request, find out whether the server trusts us. Raises ServerUnreachable if it does not."""
        with self._greeting:
            if self._trusted:
                return
            # The questions themselves are requests, too.
            self._trusted = True
            try:
                trust.ensure(self.options, self._ask_once)
            except BaseException:
                self._trusted = False
                raise

    def _ask_once(self, method: str, path: str, body: t.Any) -> Response:
        data, sent = encoded(body)
        with self.exchange(method, path, None, data, sent, self.options.request_timeout) as answer:
            response = Response(answer.status, lowered(answer), answer.read())
        return checked(response, f"{method} {path}")

    @contextlib.contextmanager
    def exchange(
        self,
        method: str,
        path: str,
        query: t.Optional[t.Mapping[str, str]],
        body: t.Any,
        headers: t.Mapping[str, str],
        timeout: t.Optional[float],
    ) -> t.Iterator[http.client.HTTPResponse]:
        """Send a request and hand out its answer, to be read inside. ``body`` is bytes, an open file, or None."""
        self.greet()
        self.requests.append((method, path))
        deadline = sockets.Deadline(timeout, f"{method} {path}")
        connection = self._take()
        try:
            with translated(self.options, deadline):
                try:
                    answer = _ask(connection, method, target(path, query), body, headers, deadline)
                except _STALE:
                    if method != "GET" or not connection.used:
                        raise
                    connection.close()
                    connection = Connection(self.options)
                    answer = _ask(connection, method, target(path, query), body, headers, deadline)
                yield answer
                answer.read()
        except BaseException:
            connection.close()
            raise
        self._keep(connection)

    def begin(self, method: str, path: str, query: t.Mapping[str, str], body: t.Any = None) -> Pending:
        """Send a request on a connection of its own, and do not wait for the answer. ``body`` is sent as JSON."""
        self.greet()
        self.requests.append((method, path))
        connection = self._take()
        data, headers = encoded(body)
        deadline = sockets.Deadline(self.options.request_timeout, f"{method} {path}")
        try:
            with translated(self.options, deadline):
                _send(connection, method, target(path, query), data, headers, deadline)
        except BaseException:
            connection.close()
            raise
        return Pending(connection, f"{method} {path}", self._keep)

    def connections(self, count: int, begun: str) -> list[socket.socket]:
        """So many sockets, for websockets. The path that they will ask for begins so. Raises ServerUnreachable."""
        self.greet()
        socks: list[socket.socket] = []
        try:
            with translated(self.options):
                for _number in range(count):
                    socks.append(sockets.connect(self.options))
                    socks[-1].settimeout(self.options.request_timeout)
                    # A server takes no other connection while it waits for the first 8 bytes of one.
                    with sockets.lost():
                        socks[-1].sendall(websocket.beginning(begun))
        except BaseException:
            close_all(socks)
            raise
        return socks

    def ask_for_websockets(
        self, socks: t.Sequence[socket.socket], path: str, begun: str, queries: t.Sequence[t.Mapping[str, str]]
    ) -> list[websocket.Handshake]:
        """Ask that each socket of ``connections`` becomes a websocket, for ``websockets``. Raises ServerUnreachable."""
        host = host_of(self.options)
        started = []
        with translated(self.options), sockets.lost():
            for sock, query in zip(socks, queries):
                self.requests.append(("GET", path))
                where = target(path, query)
                started.append(websocket.Handshake(sock, where, host, self.options.shown, begun=begun))
        return started

    def websockets(
        self, handshakes: t.Iterable[websocket.Handshake]
    ) -> list[t.Union[websocket.WebSocket, ServerError]]:
        """What has become of each: a websocket, or what the server said instead. Raises ServerUnreachable."""
        with translated(self.options), sockets.lost():
            return [handshake.outcome() for handshake in handshakes]

    def switch(self, path: str, query: t.Mapping[str, str], protocol: str) -> socket.socket:
        """A connection that has been switched to another protocol, with the request's own timeout."""
        self.greet()
        self.requests.append(("GET", path))
        sock = sockets.connect(self.options)
        try:
            sock.settimeout(self.options.request_timeout)
            with translated(self.options), sockets.lost():
                websocket.Handshake(
                    sock, target(path, query), host_of(self.options), self.options.shown, protocol
                ).accepted()
        except BaseException:
            sock.close()
            raise
        return sock

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self) -> Connection:
        with self._lock:
            if self._pid != os.getpid():
                # After a fork the parent goes on with these sockets: two would talk on one line.
                self._idle, self._pid = [], os.getpid()
            while self._idle:
                connection = self._idle.pop()
                if connection.is_alive():
                    return connection
                connection.close()
        return Connection(self.options)

    def _keep(self, connection: Connection) -> None:
        connection.used = True
        connection.since = time.monotonic()
        if connection.sock is None:
            return
        with self._lock:
            self._idle.append(connection)


def close_all(socks: t.Iterable[socket.socket]) -> None:
    """Let go of sockets that nobody else has."""
    for sock in socks:
        sock.close()


def encoded(body: t.Any, headers: t.Optional[t.Mapping[str, str]] = None) -> tuple[t.Any, dict[str, str]]:
    """A body and its headers as they are sent: an open file as it is, so that it need not fit into memory."""
    if body is None or isinstance(body, (bytes, bytearray)) or hasattr(body, "read"):
        return bytes(body) if isinstance(body, bytearray) else body, dict(headers or {})
    return json.dumps(body).encode("utf-8"), {"Content-Type": "application/json", **(headers or {})}


def greet(options: ServerOptions) -> None:
    """Find out whether the server trusts us. Raises ServerUnreachable if it does not."""
    transport = Transport(options)
    try:
        transport.greet()
    finally:
        transport.close()


def _ask(
    connection: Connection,
    method: str,
    where: str,
    body: t.Any,
    headers: t.Mapping[str, str],
    deadline: sockets.Deadline,
) -> http.client.HTTPResponse:
    try:
        _send(connection, method, where, body, headers, deadline)
    except BrokenPipeError:
        # A server that refuses a long body answers before it has read all of it.
        if body is None:
            raise
    return connection.getresponse()


def _send(
    connection: Connection,
    method: str,
    where: str,
    body: t.Any,
    headers: t.Mapping[str, str],
    deadline: sockets.Deadline,
) -> None:
    if connection.timed is None:
        connection.connect()
    if connection.timed is not None:
        connection.timed.deadline = deadline
    connection.request(method, where, body=body, headers=dict(headers))


def target(path: str, query: t.Optional[t.Mapping[str, str]]) -> str:
    """What stands in the request line."""
    # The name of a file may have bytes that are not UTF-8.
    return f"{path}?{urllib.parse.urlencode(query, errors='surrogateescape')}" if query else path


def host_of(options: ServerOptions) -> str:
    """The Host header's value."""
    remote = options.endpoint.startswith("https://") and not options.via
    return urllib.parse.urlsplit(options.endpoint).netloc if remote else "localhost"


def lowered(answer: http.client.HTTPResponse) -> dict[str, str]:
    """The headers of an answer, names in lower case."""
    return {name.lower(): value for name, value in answer.getheaders()}


@contextlib.contextmanager
def translated(options: ServerOptions, deadline: t.Optional[sockets.Deadline] = None) -> t.Iterator[None]:
    """Turn what sockets and http.client raise into the collection's exceptions."""
    try:
        yield
    except (TimeoutError, socket.timeout) as e:
        if deadline is not None and deadline.seconds is not None:
            raise deadline.passed() from e
        raise ServerUnreachable(options.shown, "no answer in time") from e
    except (ConnectionError, http.client.IncompleteRead, ssl.SSLError) as e:
        raise ConnectionLost(options.shown, "the connection was lost before the whole answer came") from e
    except http.client.HTTPException as e:
        raise ServerUnreachable(options.shown, f"what answers there does not speak HTTP ({type(e).__name__})") from e
