# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Servers in instances: a command in the instance, run by the server around it, joins us with the inner socket.

One command serves all connections of a process. A server two instances deep is reached over the bridge to the first.
"""

from __future__ import annotations

import dataclasses
import socket
import typing as t

from .._errors import MageError, NotFound, ServerError, ServerUnreachable
from . import bridge, lookup, mux
from .command import Command
from .core import CoreDriver
from .options import ServerOptions
from .streams import CONTROL, STDERR, STDIN, STDOUT, start
from .websocket import BINARY, TEXT, WebSocket

_bridges = bridge.Registry()
# How much of what the command says to its standard error is kept.
_TOLD = 500


def parent(options: ServerOptions) -> ServerOptions:
    """The server around a nested one. The instances that lead inside are in its project default."""
    return dataclasses.replace(options, via=options.via[:-1], project="default")


def around_failed(options: ServerOptions, error: ServerError) -> ServerUnreachable:
    """What the server around said of the last instance of ``via``, as a way that is closed."""
    instance = options.via[-1]
    if isinstance(error, NotFound):
        return ServerUnreachable(options.shown, f"there is no instance {instance} on {parent(options).shown}")
    return ServerUnreachable(options.shown, f"{instance}: {error.message}")


def connect(options: ServerOptions) -> socket.socket:
    """A socket to the server in the last instance of ``via``. Raises ServerUnreachable, NoBridge, OSError."""
    same = dataclasses.replace(options, project="default", driver="auto")
    return _bridges.socket(same, lambda: _opened(same))


def _opened(options: ServerOptions) -> t.Union[bridge.Bridge, socket.socket]:
    around, instance = parent(options), options.via[-1]
    try:
        trunk = ExecTrunk(around, instance, lookup.command(lookup.BRIDGE))
    except ServerError as e:
        raise around_failed(options, e) from e
    except ServerUnreachable:
        raise
    except MageError as e:
        raise ServerUnreachable(options.shown, str(e)) from e
    return bridge.joined(trunk, options, instance)


class ExecTrunk:
    """The pipes of a command that runs in an instance."""

    def __init__(self, around: ServerOptions, instance: str, argv: t.Sequence[str]) -> None:
        self._told = ""
        self._ended = False
        self._driver = CoreDriver(around)
        self._sockets: t.Mapping[str, WebSocket] = {}
        try:
            self._sockets = start(self._driver.transport, Command(instance, argv, cwd="/")).streams
        except BaseException:
            self._driver.close()
            raise

    @property
    def told(self) -> str:
        """The last line of what the command said to its standard error."""
        return (self._told.strip().splitlines() or [""])[-1]

    @property
    def unsent(self) -> int:
        """How many bytes wait to be sent."""
        return self._sockets[STDIN].unsent

    def watched(self, reading: bool = True) -> list[mux.Watched]:
        """What to wait for."""
        found: list[mux.Watched] = []
        for name, ws in self._sockets.items():
            events = mux.WRITE if ws.unsent and not ws.deaf else 0
            events |= mux.READ if not ws.closed and (reading or name != STDOUT) else 0
            if events:
                found.append((ws, events))
        return found

    def waiting(self) -> bool:
        """Whether there is something to read that select cannot see."""
        return any(ws.waiting for ws in self._sockets.values())

    def queue(self, data: bytes) -> None:
        """Have bytes sent."""
        self._sockets[STDIN].queue(BINARY, data)

    def end(self) -> None:
        """Tell the command that no more comes."""
        self._sockets[STDIN].queue(TEXT, b"")

    def flush(self) -> None:
        """Send what can be sent without waiting."""
        self._sockets[STDIN].flush()

    def read(self) -> bytes:
        """What has arrived."""
        for name in (CONTROL, STDIN):
            self._sockets[name].receive()
        told = b"".join(message.data for message in self._sockets[STDERR].receive() if message.kind == BINARY)
        self._told = (self._told + told.decode("utf-8", "replace"))[-_TOLD:]
        messages = self._sockets[STDOUT].receive()
        data = b"".join(message.data for message in messages if message.kind == BINARY)
        self._ended = self._ended or self._sockets[STDOUT].closed or any(one.kind == TEXT for one in messages)
        if self._ended and not data:
            raise EOFError("the command in it has ended")
        return data

    def close(self) -> None:
        """End the command: the server kills it when nobody holds its control line."""
        for ws in self._sockets.values():
            ws.close()
        self._driver.close()
