# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""The few exceptions of the collection. Each message is one that a user can act on."""

from __future__ import annotations

import typing as t


class MageError(Exception):
    """The root of all errors that the collection raises on purpose."""


class InvalidInput(MageError):
    """What the user wrote cannot be meant. Holds every problem, each as ``path: value: rule``."""

    def __init__(self, problems: t.Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


class NotHere(InvalidInput):
    """What the user wrote can be meant, but what it names is not there: a server, a remote of a client, a file."""


class MissingLibrary(MageError):
    """A Python package that the module needs is not there."""

    def __init__(self, package: str, interpreter: str) -> None:
        super().__init__(
            f"The Python package {package} is missing for {interpreter}. "
            f"The role mage.lxd.lxd_host installs it, or: {interpreter} -m pip install {package}"
        )


class ServerUnreachable(MageError):
    """No server answered at the endpoint."""

    def __init__(self, endpoint: str, cause: str) -> None:
        self.endpoint = endpoint
        super().__init__(f"Cannot reach the server at {endpoint}: {cause}")


class ConnectionLost(ServerUnreachable):
    """The line broke after a request was sent: the server may have done what was asked, or not."""


class NoBridge(ServerUnreachable):
    """The instance around a nested server has no program that could open a bridge to it: the client program may do."""


class ServerError(MageError):
    """The server answered with an error. ``status`` is the HTTP status or the status code of an operation."""

    def __init__(self, status: int, message: str, request: str = "") -> None:
        self.status = status
        self.message = message
        self.request = request
        super().__init__(f"{request}: {message} ({status})" if request else f"{message} ({status})")


class NotFound(ServerError):
    """404: there is no such object."""


class PreconditionFailed(ServerError):
    """412: somebody else has changed the object since it was read."""


class OperationForgotten(MageError):
    """The server has restarted, or ended the operation long ago: whether it was done, only its object tells."""

    def __init__(self, request: str) -> None:
        super().__init__(f"{request}: the server has forgotten the operation, as after a restart")


class DeadlinePassed(MageError):
    """Something did not happen in time. The message says the last state seen."""


class CommandFailed(MageError):
    """A command ended with an exit code that means failure."""

    def __init__(self, argv: t.Sequence[str], rc: int, output: str) -> None:
        self.argv = tuple(argv)
        self.rc = rc
        self.output = output
        super().__init__(f"{' '.join(argv)}: exit code {rc}: {output.strip()[-2000:]}")
