# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Commands in an instance: stdin, stdout and stderr over one websocket each, the exit code from the operation."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import selectors
import time
import typing as t

from .._errors import DeadlinePassed, MageError, NotFound, ServerError, ServerUnreachable
from . import streams
from .command import GRACE, LINGERING, PATIENCE, TAIL, Command, too_long
from .driver import Completed, error_for
from .streams import CONTROL, STDERR, STDIN, STDOUT
from .transport import Transport
from .websocket import BINARY, TEXT, WebSocket

# What servers say of a command that the kernel did not take as a whole.
_TOO_LONG = "argument list too long"
SIGKILL = 9
CHUNK = 1 << 17
# Incus and newer LXD say in words what a shell and older LXD say by an exit code.
_NOT_STARTED = {"Command not found": 127, "Command not executable": 126}
# What it says where it gives up in the moment in which the last stream comes.
_GIVEN_UP = "Timed out waiting for websockets to connect"
_LOST = "the connection was lost before a command's whole output came"
_SILENT = "the rest of a command's output did not come in time"
# What is done while a command runs, from when it has what it needs to begin: each part of it says in how many seconds
# the next one is due.
Meanwhile = t.Callable[[], t.Iterator[float]]


def _nothing() -> t.Iterator[float]:
    return iter(())


def run(transport: Transport, command: Command, meanwhile: Meanwhile = _nothing) -> Completed:
    """Run a command to its end. Raises DeadlinePassed after having killed it."""
    try:
        return _run(transport, command, meanwhile)
    except ServerError as e:
        if _TOO_LONG in e.message:
            raise too_long("the instance's kernel does not take so many words") from e
        # What was read of an open file is gone.
        if _GIVEN_UP not in e.message or not isinstance(command.stdin, (bytes, bytearray)):
            raise
    return _run(transport, command, meanwhile)


def _run(transport: Transport, command: Command, meanwhile: Meanwhile) -> Completed:
    return Session(transport, command, streams.start(transport, command, wait=True)).loop(meanwhile)


def _kill_all(transport: Transport, command: Command) -> None:
    """Kill a command with all that it has started. An instance that has no shell keeps what the command left."""
    killer = dataclasses.replace(command.killer(), timeout=GRACE)
    with contextlib.suppress(MageError):
        # Whether the command has ended is seen by the command itself.
        Session(transport, killer, streams.start(transport, killer, wait=True), lambda: None).loop()


class Session:
    """One running command: four websockets and the answer that tells its end, in one loop.

    What it reads first is ``opening``. After its time has passed, ``kill`` is called, or all that it started is killed.
    """

    def __init__(
        self,
        transport: Transport,
        command: Command,
        joined: streams.Joined,
        kill: t.Optional[t.Callable[[], None]] = None,
        opening: bytes = b"",
    ) -> None:
        self._joined = joined
        self._sockets = joined.streams
        self._pending = joined.end
        self._endpoint = transport.options.endpoint
        # How long nothing may come of an ended command's output.
        self._silence = transport.options.request_timeout
        self._command = command
        self._kill = kill or functools.partial(_kill_all, transport, command)
        self._opening = opening
        self._gate = command.gate
        stdin = command.stdin
        self._stdin: t.Optional[t.BinaryIO] = io.BytesIO(stdin) if isinstance(stdin, (bytes, bytearray)) else stdin
        self._output = {STDOUT: bytearray(), STDERR: bytearray()}
        self._ended = {STDOUT: False, STDERR: False}
        self._whole: set[str] = set()
        self._operation: t.Optional[dict[str, t.Any]] = None
        self._end: t.Optional[float] = None
        self._killed = False
        # Whether the server says so.
        self._not_started = False
        self._meanwhile = _nothing()
        self._next: t.Optional[float] = None

    def loop(self, meanwhile: Meanwhile = _nothing) -> Completed:
        """Move bytes until the command has ended and all of its output is here. Lets go of every connection."""
        try:
            return self._looped(meanwhile)
        finally:
            self._joined.close()

    def _looped(self, meanwhile: Meanwhile) -> Completed:
        if self._command.timeout is not None:
            self._end = time.monotonic() + self._command.timeout
        if self._opening:
            self._sockets[STDIN].queue(BINARY, self._opening)
            self._sockets[STDIN].flush()
            if self._sockets[STDIN].deaf:
                # Without it, the shell would end of itself, and its exit code look like the command's.
                raise ServerUnreachable(self._endpoint, _LOST)
        self._feed()
        self._meanwhile = meanwhile()
        self._go_on()
        while not self._done():
            if self._end is not None and time.monotonic() >= self._end:
                # What has come by now has come in time.
                self._turn()
                if not self._done() and time.monotonic() >= self._end and self._late():
                    break
            elif self._is_due():
                self._go_on()
            elif not self._turn() and not self._is_due() and self._has_ended():
                return Completed(0, bytes(self._output[STDOUT]), bytes(self._output[STDERR]))
        return self._completed()

    def _go_on(self) -> None:
        """With what is done meanwhile."""
        seconds = next(self._meanwhile, None)
        self._next = None if seconds is None else time.monotonic() + seconds

    def _is_due(self) -> bool:
        return self._next is not None and time.monotonic() >= self._next

    def _has_ended(self) -> bool:
        ended = self._command.ended
        return ended is not None and ended(*(bytes(self._output[name][-TAIL:]) for name in (STDOUT, STDERR)))

    def _done(self) -> bool:
        return self._operation is not None and (self._code() is None or all(self._ended.values()))

    def _code(self) -> t.Optional[int]:
        """The exit code, if the command has run to an end of its own."""
        operation = self._operation or {}
        rc = (operation.get("metadata") or {}).get("return")
        failed = int(operation.get("status_code", 0)) >= 400
        return None if rc is None or (failed and rc == -1) else int(rc)

    def _late(self) -> bool:
        """Whether to stop waiting. The first time, the command is killed and gets a little while to end."""
        if self._operation is not None and not self._killed:
            return True
        if self._killed:
            raise self._passed()
        self._killed = True
        self._next = None
        self._stdin = None
        self._kill()
        self._end = time.monotonic() + GRACE
        self._sockets[CONTROL].queue(TEXT, b'{"command":"signal","signal":%d}' % SIGKILL)
        self._sockets[CONTROL].flush()
        return False

    def _passed(self) -> DeadlinePassed:
        what = f"{self._command.instance}: {' '.join(self._command.argv)[:200]}"
        fate = "killed" if self._operation is not None else "it did not even end when killed"
        return DeadlinePassed(f"{what}: not done after {self._command.timeout:g} s; {fate}")

    def _turn(self) -> bool:
        """Wait until something can be moved, and move it. Says whether there was anything."""
        # For a handful of sockets poll asks the kernel once, and epoll once for each.
        with selectors.PollSelector() as selector:
            instant = False
            for name, ws in self._sockets.items():
                events = selectors.EVENT_WRITE if ws.unsent and not ws.deaf else 0
                if not ws.closed and not self._ended.get(name, False):
                    events |= selectors.EVENT_READ
                    instant = instant or ws.waiting
                if events:
                    selector.register(ws, events, name)
            if self._pending is not None and self._operation is None:
                selector.register(self._pending, selectors.EVENT_READ, "operation")
            ready = {key.data: events for key, events in selector.select(0 if instant else self._patience())}
        for name, ws in self._sockets.items():
            events = ready.get(name, 0)
            if events & selectors.EVENT_WRITE:
                ws.flush()
            if events & selectors.EVENT_READ or ws.waiting:
                self._receive(name, ws)
        if instant or ready or not self._is_due():
            self._feed()
        if "operation" in ready:
            self._finish()
        return instant or bool(ready)

    def _patience(self) -> t.Optional[float]:
        """How long to wait for more."""
        limits = [max(0.0, limit - time.monotonic()) for limit in (self._end, self._next) if limit is not None]
        limits += [] if self._gate is None else [PATIENCE]
        limits += [] if self._command.ended is None else [LINGERING]
        return min(limits, default=None)

    def _receive(self, name: str, ws: WebSocket) -> None:
        messages = ws.receive()
        if name not in self._output:
            return
        for message in messages:
            if message.kind == TEXT:
                # The server's mark for the end of a stream.
                self._ended[name] = True
                self._whole.add(name)
            elif name == STDOUT and self._command.output is not None:
                self._command.output.write(message.data)
            elif not self._ended[name]:
                self._output[name] += message.data
        self._ended[name] = self._ended[name] or ws.closed
        # Bytes have come, if not a whole message.
        self._linger()

    def _linger(self) -> None:
        """Once the command has ended, what still comes of its output is waited for, however slow the line."""
        if self._operation is not None and not self._killed:
            self._end = time.monotonic() + (LINGERING if self._not_started else self._silence)

    def _feed(self) -> None:
        """Send more of stdin when the last piece is gone; an empty text message at its end is the server's EOF."""
        ws = self._sockets[STDIN]
        if self._gate is not None:
            opened, answer = self._gate(bytes(self._output[STDOUT]), bytes(self._output[STDERR]))
            if answer:
                ws.queue(BINARY, answer)
                ws.flush()
            if not opened:
                return
            self._gate = None
        while self._stdin is not None and not ws.unsent:
            if ws.deaf:
                self._stdin = None
                return
            data = self._stdin.read(CHUNK)
            if data:
                ws.queue(BINARY, data)
            else:
                ws.queue(TEXT, b"")
                self._stdin = None
            ws.flush()

    def _finish(self) -> None:
        """Take in how the command ended."""
        if self._pending is None:
            return
        try:
            answer = self._pending.finish()
        except NotFound as e:
            raise ServerUnreachable(self._endpoint, "it was restarted while a command ran") from e
        except ServerError as e:
            if e.message not in _NOT_STARTED:
                raise
            code = _NOT_STARTED[e.message]
            self._operation = {"status_code": e.status, "err": e.message, "metadata": {"return": code}}
        else:
            if answer is None:
                return
            self._operation = answer.metadata or {}
        # Servers say so of any command that ends with such a code, and it may have said something before.
        self._not_started = self._operation.get("err") in _NOT_STARTED
        self._linger()

    def _completed(self) -> Completed:
        if self._killed:
            raise self._passed()
        rc = self._code()
        if rc is None:
            operation = self._operation or {}
            code = int(operation.get("status_code", 0))
            request = f"{self._command.instance}: {' '.join(self._command.argv)[:200]}"
            raise error_for(
                code if code >= 400 else 500, str(operation.get("err") or "it ended without an exit code"), request
            )
        # A server marks the end of both streams before it says that the command has ended.
        missing = self._output.keys() - self._whole
        if missing and not self._not_started:
            lost = any(self._ended[name] for name in missing)
            raise ServerUnreachable(self._endpoint, _LOST if lost else _SILENT)
        return Completed(rc, bytes(self._output[STDOUT]), bytes(self._output[STDERR]))
