# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""The near end of a byte bridge: a thread that serves sockets which lead to a server behind a command's pipes."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import threading
import time
import typing as t

from .._errors import ServerUnreachable
from . import lookup, mux
from .options import ServerOptions

# Seconds after its last stream in which a bridge waits for another one.
IDLE = 10.0
_POLL = 1.0
_GONE = "the bridge to it is gone"
# How many bridges that end as they are asked are made anew for one socket.
_TRIES = 3


class Trunk(mux.Trunk, t.Protocol):
    """The pipes of the command that opens the bridge. ``told`` is what it said to its standard error."""

    @property
    def told(self) -> str:
        """What it said."""

    def end(self) -> None:
        """Tell the command that no more comes."""

    def close(self) -> None:
        """End the command."""


class _Waiter:
    """Somebody who waits for a stream to be open."""

    def __init__(self, far: socket.socket) -> None:
        self.far = far
        self.done = threading.Event()
        # Whether the far end may have been asked.
        self.begun = False
        self.problem: t.Optional[str] = None

    def finish(self, problem: t.Optional[str]) -> None:
        self.problem = problem
        self.done.set()


class _Near(mux.Mux):
    """The near end of the streams: here they are opened."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__(trunk)
        self._waiters: dict[int, _Waiter] = {}
        self._last = 0

    def open(self, waiter: _Waiter) -> None:
        """Have the far end open a stream."""
        waiter.begun = True
        self._last += 1
        self._waiters[self._last] = waiter
        self.send(self._last, mux.OPEN)

    def frame(self, number: int, kind: int, payload: bytes) -> None:
        """Act on a frame."""
        waiter = self._waiters.pop(number, None)
        if waiter is None:
            super().frame(number, kind, payload)
        elif kind == mux.OPENED:
            self.streams[number] = mux.Stream(waiter.far)
            waiter.finish(None)
        else:
            waiter.far.close()
            waiter.finish(payload.decode("utf-8", "replace"))

    @property
    def busy(self) -> bool:
        """Whether a stream is open, or about to be."""
        return bool(self.streams or self._waiters)

    def close(self) -> None:
        """Close every stream; nobody waits any longer."""
        super().close()
        for waiter in self._waiters.values():
            waiter.far.close()
            waiter.finish(_GONE)
        self._waiters.clear()


class Bridge:
    """Sockets over one command's pipes, as long as anybody uses them."""

    def __init__(self, trunk: Trunk) -> None:
        self._trunk = trunk
        self._near = _Near(trunk)
        self._bell, self._rope = socket.socketpair()
        self._bell.setblocking(False)
        self._lock = threading.Lock()
        self._new: list[_Waiter] = []
        self.over = False
        threading.Thread(target=self._run, daemon=True).start()

    def connect(self, timeout: float) -> t.Optional[socket.socket]:
        """A socket to the server, or None if the bridge ended before it was asked for one. Raises OSError."""
        near, far = socket.socketpair()
        waiter = _Waiter(far)
        with self._lock:
            if self.over:
                near.close()
                far.close()
                return None
            self._new.append(waiter)
            self._rope.send(b"!")
        if not waiter.done.wait(timeout):
            near.close()
            raise TimeoutError
        if waiter.problem is not None:
            near.close()
            if not waiter.begun:
                return None
            raise OSError(errno.ECONNABORTED, waiter.problem)
        return near

    def _run(self) -> None:
        quiet_since = time.monotonic()
        try:
            while time.monotonic() - quiet_since < IDLE:
                if self._near.turn(_POLL if not self._near.busy else None, self._bell):
                    self._begin()
                if self._near.busy:
                    quiet_since = time.monotonic()
        except (EOFError, OSError):
            # The other end is gone.
            pass
        finally:
            self._finish()

    def _finish(self) -> None:
        """Nobody waits for a bridge that is over."""
        with self._lock:
            self.over = True
            left, self._new = self._new, []
        for waiter in left:
            waiter.far.close()
            waiter.finish(_GONE)
        self._near.close()
        self._trunk.close()
        self._bell.close()
        self._rope.close()

    def _begin(self) -> None:
        self._bell.recv(4096)
        with self._lock:
            new, self._new = self._new, []
        for waiter in new:
            self._near.open(waiter)
        self._trunk.flush()


class Registry:
    """The bridges of this process, one for each server. A forked process has none of its parent's."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._bridges: dict[ServerOptions, Bridge] = {}
        # What makes a bridge may itself ask for it: what opens the way of an ssh login does.
        self._makers: dict[ServerOptions, t.ContextManager[t.Any]] = {}

    def serves(self, options: ServerOptions) -> bool:
        """Whether there is a bridge to a server."""
        bridge = self._bridges.get(options) if self._pid == os.getpid() else None
        return bridge is not None and not bridge.over

    def socket(self, options: ServerOptions, make: t.Callable[[], t.Union[Bridge, socket.socket]]) -> socket.socket:
        """A socket to a server over its bridge. ``make`` opens one, or gives a socket that needs no other."""
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            maker = self._makers.setdefault(options, threading.RLock())
        for _time in range(_TRIES):
            with maker:
                bridge = self._bridges.get(options)
                if bridge is None or bridge.over:
                    made = make()
                    if isinstance(made, socket.socket):
                        return made
                    self._bridges[options] = bridge = made
            found = bridge.connect(options.connect_timeout)
            if found is not None:
                return found
            # It has ended of itself in this very moment.
        raise OSError(errno.ECONNABORTED, _GONE)


def joined(trunk: Trunk, options: ServerOptions, host: str) -> t.Union[Bridge, socket.socket]:
    """What leads to the server, once the command has found it. Raises ServerUnreachable."""
    end = time.monotonic() + options.connect_timeout
    head = b""
    try:
        answer = None
        while answer is None:
            if time.monotonic() >= end:
                raise ServerUnreachable(options.shown, f"no answer in time from {host}")
            _wait(trunk, None, bytearray(), 0.2)
            try:
                trunk.flush()
                head += trunk.read()
            except EOFError as e:
                raise ServerUnreachable(options.shown, trunk.told or f"{host} is gone ({e})") from e
            answer = lookup.first_line(head)
        early = lookup.after_first_line(head)
        lookup.check(answer, options, host)
        if answer.word == "python":
            return Bridge(trunk)
        near, far = socket.socketpair()
        threading.Thread(target=_carry, args=(trunk, far, early), daemon=True).start()
    except BaseException:
        trunk.close()
        raise
    return near


def _carry(trunk: Trunk, far: socket.socket, early: bytes) -> None:
    """One socket alone over the pipes of a command: where there is no Python."""
    inbox = bytearray(early)
    listening = True
    far.setblocking(False)
    with contextlib.suppress(OSError, EOFError):
        while True:
            _wait(trunk, far, inbox, listening=listening)
            trunk.flush()
            if len(inbox) < mux.WINDOW:
                inbox += trunk.read()
            with contextlib.suppress(BlockingIOError):
                while inbox:
                    del inbox[: far.send(inbox)]
            if listening and trunk.unsent < mux.WINDOW:
                listening = _send_on(trunk, far)
    with contextlib.suppress(OSError):
        # What came before the end still has a reader.
        far.setblocking(True)
        far.sendall(inbox)
    far.close()
    trunk.close()


def _send_on(trunk: Trunk, far: socket.socket) -> bool:
    """Pass on what the socket has to say. Says whether it may say more. Raises EOFError when it is closed."""
    try:
        data = far.recv(mux.CHUNK)
    except BlockingIOError:
        return True
    if data:
        trunk.queue(data)
    elif mux.hung_up(far):
        raise EOFError
    else:
        trunk.end()
    trunk.flush()
    return bool(data)


def _wait(
    trunk: Trunk,
    far: t.Optional[socket.socket],
    inbox: bytearray,
    timeout: t.Optional[float] = None,
    listening: bool = True,
) -> None:
    """Until something can be moved."""
    with selectors.DefaultSelector() as selector:
        for watched, events in trunk.watched(len(inbox) < mux.WINDOW):
            selector.register(watched, events)
        events = (mux.WRITE if inbox else 0) | (mux.READ if listening and trunk.unsent < mux.WINDOW else 0)
        if far is not None and events:
            selector.register(far, events)
        selector.select(0 if trunk.waiting() else timeout)
