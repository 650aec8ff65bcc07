# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""How a command in an instance gets its streams: asked for, then joined to a websocket for each of them."""

from __future__ import annotations

import socket
import typing as t

from .._errors import ConnectionLost, NotFound, ServerError, ServerUnreachable
from . import trust
from .command import Command
from .driver import api
from .transport import Pending, Transport, close_all
from .websocket import Handshake, WebSocket

STDIN, STDOUT, STDERR, CONTROL = "0", "1", "2", "control"
STREAMS = (CONTROL, STDIN, STDOUT, STDERR)
# A server waits 5 s for a command's streams, gives the command up, says so to what comes later, and then forgets it.
LATE_STREAMS = 3
_LATE = f"it gave a command up {LATE_STREAMS} times before the command's streams were connected"
# The second is what LXD 5.0 makes of the first where the instance is on another member of its cluster.
_NO_LONGER = ("running operations can be connected", "websocket: bad handshake")
_OPERATIONS = api("operations", "")


class Joined(t.NamedTuple):
    """A command that the server runs: its streams by name, and the answer that will tell its end, if asked for."""

    streams: t.Mapping[str, WebSocket]
    end: t.Optional[Pending]

    def close(self) -> None:
        """Let go of every connection."""
        for ws in self.streams.values():
            ws.close()
        if self.end is not None:
            self.end.close()


class TooLate(Exception):
    """A command's streams came when the server no longer waited for them: it has not run, and will not."""


class Asked:
    """A command that a server was asked for. It runs once ``join`` was called: within 5 s, or never.

    All that is called here raises what ``Driver`` does.
    """

    def __init__(self, transport: Transport, command: Command) -> None:
        self._transport = transport
        self._socks: list[socket.socket] = []
        self._operation: t.Optional[dict[str, t.Any]] = None
        self._handshakes: list[Handshake] = []
        self._end: t.Optional[Pending] = None
        path = api("instances", command.instance, "exec")
        self._answer = transport.begin("POST", path, {"project": command.project}, command.body())
        try:
            # The server takes its time.
            self._socks = transport.connections(len(STREAMS), _OPERATIONS)
        except BaseException:
            self.close()
            raise

    def answered(self, limit: t.Optional[float] = None) -> Asked:
        """Wait until the server has said how the command's streams are called, for ``limit`` seconds. Returns self."""
        try:
            with trust.explained(self._transport.options):
                if not self.has_answer():
                    limit = self._transport.options.request_timeout if limit is None else limit
                    self._operation = self._answer.wait(limit).metadata or {}
        except BaseException:
            self.close()
            raise
        return self

    def has_answer(self) -> bool:
        """Whether it has said so, without waiting."""
        if self._operation is None:
            answer = self._answer.finish()
            self._operation = None if answer is None else (answer.metadata or {})
        return self._operation is not None

    def join(self, wait: bool) -> None:
        """Ask for the streams, and if ``wait`` for the end: before the command can have ended, since a server soon
        forgets how one did."""
        operation = self._operation or {}
        identifier = str(operation.get("id", ""))
        keys = (operation.get("metadata") or {}).get("fds") or {}
        secrets_of = [{"secret": str(keys.get(name, ""))} for name in STREAMS]
        path = api("operations", identifier, "websocket")
        self._handshakes = self._transport.ask_for_websockets(self._socks, path, _OPERATIONS, secrets_of)
        if wait:
            self._end = self._transport.begin("GET", api("operations", identifier, "wait"), {"timeout": "-1"})

    def joined(self) -> Joined:
        """The streams that ``join`` asked for. Raises TooLate where the server can no longer run the command."""
        answers = self._transport.websockets(self._handshakes)
        streams = {name: _stream(name, sock, found) for name, sock, found in zip(STREAMS, self._socks, answers)}
        return Joined(streams, self._end)

    def close(self) -> None:
        """Let go of every connection."""
        close_all(self._socks)
        self._answer.close()
        if self._end is not None:
            self._end.close()


def start(transport: Transport, command: Command, wait: bool = False) -> Joined:
    """Start a command; if ``wait``, its end is asked for."""
    for _late in range(LATE_STREAMS):
        try:
            return _started(transport, command, wait)
        except TooLate:
            # The server has given the command up before it ran.
            continue
    raise ServerUnreachable(transport.options.shown, _LATE)


def _started(transport: Transport, command: Command, wait: bool) -> Joined:
    try:
        asked = Asked(transport, command).answered()
    except ConnectionLost:
        # No command runs before its streams are connected: to ask again does no harm.
        asked = Asked(transport, command).answered()
    try:
        asked.join(wait)
        return asked.joined()
    except BaseException:
        asked.close()
        raise


def _stream(name: str, sock: socket.socket, answer: t.Union[WebSocket, ServerError]) -> WebSocket:
    """The stream. Raises TooLate where the server can no longer run the command."""
    if isinstance(answer, WebSocket):
        return answer
    if not isinstance(answer, NotFound) and not any(words in answer.message for words in _NO_LONGER):
        raise answer
    if name != CONTROL:
        raise TooLate from answer
    # Newer servers do not wait for this one: the command may have run to its end.
    unheard = WebSocket(sock)
    unheard.closed = unheard.deaf = True
    return unheard
