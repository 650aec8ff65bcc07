# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Commands one after the other, as a loop has them: their shells are started ahead.

To start one takes a server longer than to run most commands in it. A shell waits for its command as a line on
standard input, and becomes it: what runs is the same as without, in streams of its own.

The next command's shell starts when the command before has ended, while the caller is between the two. The server is
asked for it two commands before, since to answer takes as long as to start. Beside a command that takes its time, it
has some to spare: then shells start for as many commands as came since the one before of that kind, itself included.
Such a shell could miss that its directory is another one now. So it waits in the root directory, where it is in
nobody's way, and is told where to go with its command. The environment that a server gives to a command is that of when
it was asked, so no old shell is used.
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
from .transport import Pending, Transport
from .websocket import BINARY, TEXT, Message, WebSocket

_SHELL = "/bin/sh"
# It says that it is there, so that a command is never sent to one that does not start. It leaves no trace in the
# command's environment, to which some shells add: but bash leaves SHLVL=0, which is as good as none, and its own _.
_OWN = ("PWD", "OLDPWD", "SHLVL", "mage_command")
_WAITER = (_SHELL, "-c", f'unset {" ".join(_OWN)}; echo && IFS= read -r mage_command && eval "$mage_command"')
_READY = Message(BINARY, b"\n")
# Where the server would have started the command: in a container that has no such directory, in the root one.
_THERE = "cd -P -- {} >&- 2>&-; unset PWD OLDPWD; "
# A shell reads a line byte by byte, and not every shell all bytes.
_LINE = re.compile(r"[ -~]{1,4000}")
_PLACE = re.compile(r"/[ -~]{0,1000}")
# How many a server is asked for ahead; and in seconds, how long it is expected to wait for their streams: it waits 5.
_ASKED = 2
_AWAITED = 3.0
# What takes less leaves a server no time to spare. Then, how often it is looked at, and how many shells start at most.
_BESIDE = 0.05
_STEP = 0.02
_MOST = 4
# An instance may be frozen in the meantime, which is for the server to tell; and what takes long gains nothing.
_FRESH = 1.0
# From when the server was asked: what it makes of a command's environment may be another thing by then.
_OLD = 4.0
_START = 10.0
_END = 1.0
# A caller that has no use for shells gets no more.
_MISSES = 3


class Ahead:
    """Runs commands over a transport, one at a time. Keeps a few shells at most."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        # In the order in which they were asked for.
        self._shells: list[_Waiting] = []
        # How often they were of no use, and whether the last command was a short one.
        self._missed = 0
        self._brief = True
        # How many shells are started beside a command, and how many commands came since the last one that had time.
        self._spare = 1
        self._came = 0
        self._began = 0.0
        self._pid = os.getpid()

    def run(self, command: Command) -> Completed:
        """Run a command to its end, and have shells started for the next ones. Returns and raises as ``exec.run``."""
        others = self._handed_out()
        shell = others.pop(0) if others else None
        joined = shell.taken(command) if shell is not None else None
        if shell is not None and joined is None:
            # The others would serve it no better.
            _end(others)
            self._missed += 1
            others = []
        self._shells = others
        self._began = time.monotonic()
        try:
            done = self._run(command, shell, joined)
        except BaseException:
            self.close()
            raise
        self._learn(time.monotonic() - self._began)
        self._start(1, wait=True)
        return done

    def _learn(self, seconds: float) -> None:
        self._brief = seconds < _FRESH
        self._came += 1
        if seconds >= _BESIDE:
            self._spare, self._came = min(self._came, _MOST), 0

    def _run(self, command: Command, shell: t.Optional[_Waiting], joined: t.Optional[streams.Joined]) -> Completed:
        def meanwhile() -> t.Iterator[float]:
            return self._meanwhile(command)

        if shell is None or joined is None:
            return execution.run(self._transport, command, meanwhile)
        marked = dataclasses.replace(command, mark=shell.command.mark)
        opening = shell.line(command)
        return execution.Session(self._transport, marked, joined, opening=opening).loop(meanwhile)

    def _meanwhile(self, command: Command) -> t.Iterator[float]:
        """Ask for the next shell, if the next command is likely to be one for it, and after a while for more."""
        if not self._brief or self._missed >= _MISSES or not _exec(command):
            return
        asked = self._ask(command, _ASKED)
        self._began = time.monotonic()
        if not asked or not self._shells[0].elsewhere:
            return
        yield _BESIDE
        for count in range(1, self._spare + 1):
            if not self._ask(command, count):
                return
            while not all(one.is_answered() for one in self._shells[:count]):
                yield _STEP
            if not self._start(count):
                return

    def _ask(self, command: Command, count: int) -> bool:
        """Ask for shells until there are so many. Says whether there are."""
        with contextlib.suppress(MageError):
            # The next command will be told the same.
            while len(self._shells) < count:
                self._shells.append(_Waiting(self._transport, command))
        return len(self._shells) >= count

    def _start(self, count: int, wait: bool = False) -> bool:
        """Have so many start, and drop those that do not. Says whether so many have. All that have count as seen now.

        ``wait``: for the server's answer.
        """
        shells, self._shells = self._shells, []
        for one in shells:
            due = one.started or (len(self._shells) < count and (wait or one.is_answered()))
            if not due or one.joins():
                self._shells.append(one)
        return sum(one.started for one in self._shells) >= count

    def close(self) -> None:
        """End the shells that wait."""
        _end(self._handed_out())

    def _handed_out(self) -> list[_Waiting]:
        shells, self._shells = self._shells, []
        if self._pid != os.getpid():
            # After a fork they are the parent's.
            shells, self._pid = [], os.getpid()
        return shells


class _Waiting:
    """A shell for a command like another one: for the same instance, user and so on. ``command`` is the shell's own.

    ``elsewhere`` says whether it may wait elsewhere than where it is to run its command: root may go there, and others
    perhaps not.
    """

    def __init__(self, transport: Transport, like: Command) -> None:
        self._like = _bare(like)
        there = like.environment.get("HOME", "/") if like.cwd is None else like.cwd
        self.elsewhere = (
            like.user in (None, 0) and _PLACE.fullmatch(there) is not None and "CDPATH" not in like.environment
        )
        cwd = "/" if self.elsewhere else like.cwd
        self.command = dataclasses.replace(self._like, mark=secrets.token_hex(8), cwd=cwd)
        self._asked_at = time.monotonic()
        # When it joined; then, when a command that ran beside it ended, for then the instance was not frozen.
        self._seen_at: t.Optional[float] = None
        self._asked = streams.Asked(transport, self.command)

    def line(self, command: Command) -> bytes:
        """What it is to read, to become a command."""
        home = '"$HOME"' if command.cwd is None else shlex.quote(command.cwd)
        return ((_THERE.format(home) if self.elsewhere else "") + _exec(command) + "\n").encode("ascii")

    @property
    def started(self) -> bool:
        """Whether it has joined."""
        return self._seen_at is not None

    def is_answered(self) -> bool:
        """Whether ``joins`` would not have to wait."""
        try:
            return self._asked.has_answer() or self._late()
        except MageError:
            return True

    def _late(self) -> bool:
        return time.monotonic() - self._asked_at >= _AWAITED

    def joins(self) -> bool:
        """Have it start, unless it has. Says whether it did; if not, it is gone."""
        if not self.started and not self._join():
            self._asked.close()
            return False
        self._seen_at = time.monotonic()
        return True

    def _join(self) -> bool:
        """Says whether the server still waited for that."""
        # If it does not start, then whatever is wrong, the next command will be told.
        with contextlib.suppress(MageError):
            if not self._late():
                self._asked.answered(self._asked_at + _AWAITED - time.monotonic())
                self._asked.join(wait=True)
                return True
        return False

    def taken(self, command: Command) -> t.Optional[streams.Joined]:
        """The shell, to be told its command; or None, and it is gone."""
        now = time.monotonic()
        fresh = self._seen_at is not None and now - self._seen_at < _FRESH and now - self._asked_at < _OLD
        if not fresh or not _exec(command) or _bare(command) != self._like:
            _end([self])
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

    def ends(self) -> t.Optional[Pending]:
        """Tell it to end. Returns the answer that will tell when it has; one that has not joined never starts."""
        if self.started:
            with contextlib.suppress(MageError, streams.TooLate):
                joined = self._asked.joined()
                stdin = joined.streams[streams.STDIN]
                stdin.queue(TEXT, b"")
                stdin.flush()
                return joined.end
        return None

    def close(self) -> None:
        """Let go of it: it has no standard input any more, and ends of that if it has not yet."""
        self._asked.close()


def _end(shells: t.Sequence[_Waiting]) -> None:
    """End them, and wait for that: the instance is left as it was."""
    until = time.monotonic() + _END
    for end in [shell.ends() for shell in shells]:
        if end is not None:
            with contextlib.suppress(MageError):
                end.wait(max(0.0, until - time.monotonic()))
    for shell in shells:
        shell.close()


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


def _exec(command: Command) -> str:
    """How a shell becomes a command, or nothing if the command is not one for that."""
    argv = tuple(command.argv)
    if len(argv) != 3 or argv[:2] != (_SHELL, "-c") or not _LINE.fullmatch(argv[2]):
        return ""
    if not command.environment.keys().isdisjoint(_OWN):
        return ""
    return f"exec {shlex.join(command.argv)}"
