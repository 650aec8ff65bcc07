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
import secrets
import selectors
import time
import typing as t

from .._errors import DeadlinePassed, MageError, NotFound, ServerError, ServerUnreachable
from .driver import Completed, Response, api, error_for
from .transport import Pending, Transport
from .websocket import BINARY, TEXT, WebSocket

STDIN, STDOUT, STDERR, CONTROL = "0", "1", "2", "control"
SIGKILL = 9
CHUNK = 1 << 17
# Incus and newer LXD say in words what a shell and older LXD say by an exit code.
_NOT_STARTED = {"Command not found": 127, "Command not executable": 126}
# How long a killed command, or the rest of an ended one's output, is waited for.
GRACE = 5.0
# Marks a command with a deadline and what it starts, so that all of it can be found and killed.
MARK = "MAGE_COMMAND"
# Kills what has $1 in its environment, and its descendants: sudo, for one, does not hand the environment on.
_KILL_ALL = """
found=" "
for folder in /proc/[0-9]*; do
    grep -qs "MAGE_COMMAND=$1" "$folder/environ" && found="$found${folder#/proc/} "
done
before=
while [ "$found" != "$before" ]; do
    before=$found
    for folder in /proc/[0-9]*; do
        pid=${folder#/proc/} parent=
        while read -r key value; do
            if [ "$key" = PPid: ]; then parent=$value; break; fi
        done <"$folder/status"
        case "$found" in *" $pid "*) continue ;; *" $parent "*) found="$found$pid " ;; esac
    done 2>/dev/null
done
kill -9 $found
"""


class Gate(t.Protocol):
    """Holds a command's stdin back, and speaks to its prompts instead, until it lets go."""

    def __call__(self, stdout: bytes, stderr: bytes) -> tuple[bool, bytes]:
        """From all output so far: whether stdin may flow now, and what to send before. May raise.

        Asked at each output, and after every second without any.
        """


# Says, from the ends of stdout and stderr, that all of a command's output has come. One that stays nevertheless is not
# waited for: the client of LXD 5.0 sometimes does.
Ended = t.Callable[[bytes, bytes], bool]
LINGERING = 1.0
# Seconds after which a gate is asked again.
PATIENCE = 1.0
TAIL = 4096


@dataclasses.dataclass(frozen=True)
class Command:
    """What to run. ``stdin`` is bytes or an open binary file; None for user, group and cwd means root in /root."""

    instance: str
    argv: t.Sequence[str]
    project: str = "default"
    stdin: t.Union[bytes, t.BinaryIO] = b""
    environment: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    user: t.Optional[int] = None
    group: t.Optional[int] = None
    cwd: t.Optional[str] = None
    timeout: t.Optional[float] = None
    gate: t.Optional[Gate] = None
    ended: t.Optional[Ended] = None
    mark: str = dataclasses.field(default_factory=lambda: secrets.token_hex(8))

    def body(self) -> dict[str, t.Any]:
        """The request's body."""
        body: dict[str, t.Any] = {
            "command": list(self.argv),
            "environment": {**self.environment, **({MARK: self.mark} if self.timeout is not None else {})},
            "wait-for-websocket": True,
            "interactive": False,
        }
        options = {"user": self.user, "group": self.group, "cwd": self.cwd}
        return {**body, **{key: value for key, value in options.items() if value is not None}}

    def killer(self) -> Command:
        """The command that kills this one with all that it has started, where the instance has a shell."""
        argv = ["sh", "-c", _KILL_ALL, "sh", self.mark]
        return Command(self.instance, argv, self.project, cwd="/")


def run(transport: Transport, command: Command, start: t.Callable[[dict[str, t.Any]], Response]) -> Completed:
    """Run a command to its end. ``start`` posts its body. Raises DeadlinePassed after having killed it."""
    return _run(transport, command, start, functools.partial(_kill_all, transport, command, start))


def _run(
    transport: Transport,
    command: Command,
    start: t.Callable[[dict[str, t.Any]], Response],
    kill_all: t.Callable[[], None],
) -> Completed:
    operation = start(command.body()).metadata or {}
    identifier = str(operation.get("id", ""))
    keys = (operation.get("metadata") or {}).get("fds") or {}
    ask = functools.partial(transport.begin, "GET", api("operations", identifier, "wait"), {"timeout": "-1"})
    session = _Session(transport.options.endpoint, command, kill_all, ask)
    try:
        names = (CONTROL, STDIN, STDOUT, STDERR)
        secrets_of = [{"secret": str(keys.get(name, ""))} for name in names]
        opened = transport.upgrade(api("operations", identifier, "websocket"), secrets_of, session.ask_for_end)
        session.sockets = dict(zip(names, opened))
        return session.loop()
    finally:
        session.close()


def _kill_all(transport: Transport, command: Command, start: t.Callable[[dict[str, t.Any]], Response]) -> None:
    """Kill a command with all that it has started. An instance that has no shell keeps what the command left."""
    killer = dataclasses.replace(command.killer(), timeout=GRACE)
    with contextlib.suppress(MageError):
        # Whether the command has ended is seen by the command itself.
        _run(transport, killer, start, lambda: None)


class _Session:
    """One running command: four websockets and the answer that tells its end, in one loop."""

    def __init__(
        self, endpoint: str, command: Command, kill_all: t.Callable[[], None], ask: t.Callable[[], Pending]
    ) -> None:
        self.sockets: dict[str, WebSocket] = {}
        self.pending: t.Optional[Pending] = None
        self._endpoint = endpoint
        self._command = command
        self._kill_all = kill_all
        self._ask = ask
        self._gate = command.gate
        stdin = command.stdin
        self._stdin: t.Optional[t.BinaryIO] = io.BytesIO(stdin) if isinstance(stdin, (bytes, bytearray)) else stdin
        self._output = {STDOUT: bytearray(), STDERR: bytearray()}
        self._ended = {STDOUT: False, STDERR: False}
        self._whole: set[str] = set()
        self._operation: t.Optional[dict[str, t.Any]] = None
        self._end: t.Optional[float] = None
        self._killed = False

    def ask_for_end(self) -> None:
        """Before the command can have ended: a server soon forgets how one did."""
        self.pending = self._ask()

    def loop(self) -> Completed:
        """Move bytes until the command has ended and all of its output is here."""
        if self._command.timeout is not None:
            self._end = time.monotonic() + self._command.timeout
        self._feed()
        while not self._done():
            if self._end is not None and time.monotonic() >= self._end and self._late():
                break
            if not self._turn() and self._has_ended():
                return Completed(0, bytes(self._output[STDOUT]), bytes(self._output[STDERR]))
        return self._completed()

    def _has_ended(self) -> bool:
        ended = self._command.ended
        return ended is not None and ended(*(bytes(self._output[name][-TAIL:]) for name in (STDOUT, STDERR)))

    def _done(self) -> bool:
        if self._operation is None:
            return False
        failed = int(self._operation.get("status_code", 0)) >= 400
        return failed or all(self._ended.values())

    def _late(self) -> bool:
        """Whether to stop waiting. The first time, the command is killed and gets a little while to end."""
        if self._operation is not None and not self._killed:
            return True
        if self._killed:
            raise self._passed()
        self._killed = True
        self._end = time.monotonic() + GRACE
        self._stdin = None
        self._kill_all()
        self.sockets[CONTROL].queue(TEXT, b'{"command":"signal","signal":%d}' % SIGKILL)
        self.sockets[CONTROL].flush()
        return False

    def _passed(self) -> DeadlinePassed:
        what = f"{self._command.instance}: {' '.join(self._command.argv)[:200]}"
        fate = "killed" if self._operation is not None else "it did not even end when killed"
        return DeadlinePassed(f"{what}: not done after {self._command.timeout:g} s; {fate}")

    def _turn(self) -> bool:
        """Wait until something can be moved, and move it. Says whether there was anything."""
        with selectors.DefaultSelector() as selector:
            instant = False
            for name, ws in self.sockets.items():
                events = selectors.EVENT_WRITE if ws.unsent and not ws.deaf else 0
                if not ws.closed and not self._ended.get(name, False):
                    events |= selectors.EVENT_READ
                    instant = instant or ws.waiting
                if events:
                    selector.register(ws, events, name)
            if self.pending is not None and self._operation is None:
                selector.register(self.pending, selectors.EVENT_READ, "operation")
            ready = {key.data: events for key, events in selector.select(0 if instant else self._patience())}
        for name, ws in self.sockets.items():
            events = ready.get(name, 0)
            if events & selectors.EVENT_WRITE:
                ws.flush()
            if events & selectors.EVENT_READ or ws.waiting:
                self._receive(name, ws)
        self._feed()
        if "operation" in ready:
            self._finish()
        return instant or bool(ready)

    def _patience(self) -> t.Optional[float]:
        """How long to wait for more."""
        limits = [] if self._end is None else [max(0.0, self._end - time.monotonic())]
        limits += [] if self._gate is None else [PATIENCE]
        limits += [LINGERING] if self._has_ended() else []
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
            elif not self._ended[name]:
                self._output[name] += message.data
        self._ended[name] = self._ended[name] or ws.closed

    def _feed(self) -> None:
        """Send more of stdin when the last piece is gone; an empty text message at its end is the server's EOF."""
        ws = self.sockets[STDIN]
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
        if self.pending is None:
            return
        try:
            answer = self.pending.finish()
        except NotFound as e:
            raise ServerUnreachable(self._endpoint, "it was restarted while a command ran") from e
        except ServerError as e:
            if e.message not in _NOT_STARTED:
                raise
            self._operation = {"status_code": e.status, "metadata": {"return": _NOT_STARTED[e.message]}}
            return
        if answer is None:
            return
        self._operation = answer.metadata or {}
        if not all(self._ended.values()):
            self._end = min(self._end or float("inf"), time.monotonic() + GRACE)

    def _completed(self) -> Completed:
        operation = self._operation or {}
        if self._killed:
            raise self._passed()
        code = int(operation.get("status_code", 0))
        rc = (operation.get("metadata") or {}).get("return")
        if rc is None or (code >= 400 and rc == -1):
            request = f"{self._command.instance}: {' '.join(self._command.argv)[:200]}"
            raise error_for(
                code if code >= 400 else 500, str(operation.get("err") or "it ended without an exit code"), request
            )
        if any(self._ended[name] and name not in self._whole for name in self._output):
            raise ServerUnreachable(self._endpoint, "the connection was lost before a command's whole output came")
        return Completed(int(rc), bytes(self._output[STDOUT]), bytes(self._output[STDERR]))

    def close(self) -> None:
        """Let go of every socket."""
        for ws in self.sockets.values():
            ws.close()
        if self.pending is not None:
            self.pending.close()
