# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Errors that say nothing against a declaration: somebody else was faster, or the server was away. Pure."""

from __future__ import annotations

import typing as t

from .._errors import MageError, OperationForgotten, PreconditionFailed, ServerError, ServerUnreachable

# What a server says where somebody else was faster: with the address, the name, or the instance as a whole.
ADDRESS_TAKEN = "already defined on another NIC"
BUSY = ("is busy running", "A matching non-reusable operation has now succeeded")
_RACED = (
    ADDRESS_TAKEN,
    'This "instances" entry already exists',
    "UNIQUE constraint failed: instances.",
    "Instance not found",
    "Instance is running",
    "already running",
    "already stopped",
    "already frozen",
    # A server that comes up answers before its networks are there.
    "unavailable on this server",
    # Several that are the first to ask an image server: each wants to make the folder of its index.
    ": file exists",
)
# An image that is not in the index of its server, or an index that is not whole: servers write it where others read it.
_UNSEEN = ("The requested image couldn't be found", "unexpected end of JSON input")
# What a server says while it goes down or comes up.
_AWAY = (
    "context canceled",
    "daemon not started yet",
    "daemon is starting",
    "database is closed",
    "is shutting down",
    "Operation was cancelled",
)


class Overtaken(MageError):
    """What was planned is no longer what there is to do."""


class Missed(Overtaken):
    """An address of a range was another's already: only a start gives it another one."""


def is_away(error: MageError) -> bool:
    """Whether the server was not there, or not quite: it may be back in a moment."""
    if isinstance(error, ServerError):
        return error.status == 503 or any(text.lower() in error.message.lower() for text in _AWAY)
    return isinstance(error, (ServerUnreachable, OperationForgotten))


def is_late(error: ServerError) -> bool:
    """Whether what was asked to end had not done so when the server gave up waiting."""
    return "Failed shutting down" in error.message


def is_busy(error: MageError) -> bool:
    """Whether something else goes on with the instance, which comes to its end."""
    return isinstance(error, ServerError) and any(text in error.message for text in BUSY)


def is_unseen(error: t.Optional[MageError]) -> bool:
    """Whether a server did not find an image. If it found it for another instance, it had read half an index."""
    return isinstance(error, ServerError) and any(text in error.message for text in _UNSEEN)


def is_raced(error: MageError) -> bool:
    """Whether it is worth to read and plan again. A write that was 412 three times is not: it has been."""
    if isinstance(error, PreconditionFailed):
        return False
    if is_away(error) or is_busy(error) or isinstance(error, Overtaken):
        return True
    return isinstance(error, ServerError) and any(text in error.message for text in _RACED)
