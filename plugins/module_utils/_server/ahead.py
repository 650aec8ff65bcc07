# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Commands one after the other, as a loop has them: while the caller is between two, the server starts the next shell.

To start one takes a server longer than to run most commands in it. The shell waits for its command as a line on
standard input, and becomes it: what runs is the same as without, in streams of its own. It starts after the command
before has ended, so it finds all that this one did.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import secrets
import selectors
import shlex
import time
import typing as t

from .._errors import MageError
from . import exec as execution
from . import streams
from .command import Command
from .driver import Completed
from .transport import Transport
from .websocket import BINARY, TEXT, Message, WebSocket

_SHELL = "/bin/sh"
# It says that it is there, so that a command is never sent to one that does not start. It leaves no trace in the
# command's environment, to which some shells add.
_OWN = ("PWD", "OLDPWD", "SHLVL", "mage_command")
_WAITER = (_SHELL, "-c", f'unset {" ".join(_OWN)}; echo && IFS= read -r mage_command && eval "$mage_command"')
_READY = Message(BINARY, b"\n")
# A shell reads a line byte by byte, and not every shell all bytes.
_LINE = re.compile(r"[ -~]{1,4000}")
# Seconds. A server gives a command up 5 s after it was asked for it; we ask when the command before begins.
_FIRST = 3.0
# An instance may be frozen in the meantime, which is for the server to tell; and what takes long gains nothing.
_FRESH = 1.0
_START = 10.0
_END = 1.0
# A caller that has no use for shells gets no more.
_MISSES = 3


class Ahead:
    """Runs commands over a transport, one at a time. Keeps one shell at most."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._waiting: t.Optional[_Waiting] = None
        # Shells that were of no use, and whether the last command was a short one.
        self._missed = 0
        self._brief = True
        self._pid = os.getpid()

    def run(self, command: Command) -> Completed:
        """Run a command to its end, and have a shell started for the next one. Returns and raises as ``exec.run``."""
        waiting = self._handed_out()
        joined = waiting.taken(command) if waiting is not None else None
        self._missed += waiting is not None and joined is None
        began = time.monotonic()
        try:
            done = self._run(command, waiting, joined)
        except BaseException:
            self.close()
            raise
        self._brief = time.monotonic() - began < _FRESH
        self._waiting = _joining(self._waiting)
        return done

    def _run(self, command: Command, waiting: t.Optional[_Waiting], joined: t.Optional[streams.Joined]) -> Completed:
        def ask() -> None:
            self._ask(command)

        if waiting is None or joined is None:
            return execution.run(self._transport, command, ask)
        marked = dataclasses.replace(command, mark=waiting.command.mark)
        return execution.Session(self._transport, marked, joined, opening=_line(command)).loop(ask)

    def _ask(self, command: Command) -> None:
        """Ask for the next shell, if the next command is likely to be one for it."""
        self.close()
        if self._brief and self._missed < _MISSES and _line(command):
            with contextlib.suppress(MageError):
                # The next command will be told the same.
                self._waiting = _Waiting(self._transport, command)

    def close(self) -> None:
        """End the shell that waits."""
        waiting = self._handed_out()
        if waiting is not None:
            waiting.end()

    def _handed_out(self) -> t.Optional[_Waiting]:
        waiting, self._waiting = self._waiting, None
        if self._pid != os.getpid():
            # After a fork it is the parent's.
            waiting, self._pid = None, os.getpid()
        return waiting


class _Waiting:
    """A shell for a command like another one: for the same instance, user and so on. ``command`` is the shell's own."""

    def __init__(self, transport: Transport, like: Command) -> None:
        self.command = dataclasses.replace(_bare(like), mark=secrets.token_hex(8))
        self._asked_at = time.monotonic()
        self._joined_at: t.Optional[float] = None
        self._asked = streams.Asked(transport, self.command)

    def joins(self) -> bool:
        """Have it start, if the server still waits for that."""
        try:
            left = _FIRST - (time.monotonic() - self._asked_at)
            if left > 0:
                self._asked.answered(left)
                self._asked.join(wait=True)
                self._joined_at = time.monotonic()
                return True
        except MageError:
            # It has not started: whatever is wrong, the next command will be told.
            pass
        self._asked.close()
        return False

    def taken(self, command: Command) -> t.Optional[streams.Joined]:
        """The shell, to be told its command; or None, and it is gone."""
        fresh = self._joined_at is not None and time.monotonic() - self._joined_at < _FRESH
        if not fresh or not _line(command) or _bare(command) != _bare(self.command):
            self.end()
            return None
        try:
            joined = self._asked.joined()
            if _is_ready(joined):
                return joined
        except (MageError, streams.TooLate):
            # It never got a command: the next one starts by itself, and is told what is wrong.
            pass
        self._asked.close()
        return None

    def end(self) -> None:
        """End it, and wait for that: the instance is left as it was. One that has not joined never starts."""
        if self._joined_at is not None:
            with contextlib.suppress(MageError, streams.TooLate):
                # What cannot be told so has no standard input any more once we are gone, and ends of that.
                self._told_to_end(self._asked.joined())
        self._asked.close()

    def _told_to_end(self, joined: streams.Joined) -> None:
        stdin = joined.streams[streams.STDIN]
        stdin.queue(TEXT, b"")
        stdin.flush()
        if joined.end is not None:
            joined.end.wait(_END)


def _joining(waiting: t.Optional[_Waiting]) -> t.Optional[_Waiting]:
    return waiting if waiting is not None and waiting.joins() else None


def _is_ready(joined: streams.Joined) -> bool:
    """Wait for the shell's word. Says whether it is there, and runs. Raises as ``Pending.finish``."""
    output, end = joined.streams[streams.STDOUT], joined.end
    said: list[Message] = []
    until = time.monotonic() + _START
    while end is not None and end.finish() is None and not output.closed:
        said += output.receive()
        if output.waiting:
            continue
        if said:
            return said == [_READY] and not any(_has_news(ws) for ws in joined.streams.values())
        left = until - time.monotonic()
        if left <= 0:
            break
        with selectors.PollSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            selector.register(end, selectors.EVENT_READ)
            selector.select(left)
    return False


def _has_news(ws: WebSocket) -> bool:
    """Whether anything has come that a shell which waits does not say, such as its end."""
    messages = ws.receive()
    while ws.waiting:
        messages += ws.receive()
    return bool(messages) or ws.closed or ws.deaf


def _bare(command: Command) -> Command:
    """Which shell a command needs: commands that need the same are equal in this."""
    timeout = None if command.timeout is None else 0.0
    same = dataclasses.replace(command, argv=_WAITER, stdin=b"", timeout=timeout, gate=None, ended=None, output=None)
    return dataclasses.replace(same, mark="")


def _line(command: Command) -> bytes:
    """What the shell is to read, or nothing if the command is not one for it."""
    argv = tuple(command.argv)
    if len(argv) != 3 or argv[:2] != (_SHELL, "-c") or not _LINE.fullmatch(argv[2]):
        return b""
    if not command.environment.keys().isdisjoint(_OWN):
        return b""
    return f"exec {shlex.join(command.argv)}\n".encode("ascii")
