# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""A driver of the standard library alone: importing pylxd would cost a connection plugin 0.1 s at every task.

For the same reason what runs commands and what moves files is imported with the first of them.
"""

from __future__ import annotations

import typing as t

from . import trust
from .driver import Completed, Response, checked
from .options import ServerOptions
from .transport import Transport, encoded, lowered
from .whole import WholeFiles

if t.TYPE_CHECKING:
    from . import ahead, command, files


class CoreDriver(WholeFiles):
    """A way to one server, safe to share between threads. See ``driver.Driver``."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.transport = Transport(options)
        self._ahead: t.Optional[ahead.Ahead] = None

    @property
    def endpoint(self) -> str:
        """Where the server is, as a person would write it."""
        return self.options.shown

    @property
    def requests(self) -> list[tuple[str, str]]:
        """Every request so far: method and path."""
        return self.transport.requests

    def request(
        self,
        method: str,
        path: str,
        query: t.Optional[t.Mapping[str, str]] = None,
        body: t.Any = None,
        headers: t.Optional[t.Mapping[str, str]] = None,
        timeout: t.Optional[float] = None,
    ) -> Response:
        """One HTTP request. ``body`` is sent as it is if bytes or a file, else as JSON. ServerError from 400 on."""
        data, sent = encoded(body, headers)
        limit = timeout or self.options.request_timeout
        with self.transport.exchange(method, path, query, data, sent, limit) as answer:
            response = Response(answer.status, lowered(answer), answer.read())
        with trust.explained(self.options):
            return checked(response, f"{method} {path}")

    def execute(
        self,
        instance: str,
        argv: t.Sequence[str],
        project: str = "default",
        stdin: t.Union[bytes, t.BinaryIO] = b"",
        environment: t.Optional[t.Mapping[str, str]] = None,
        timeout: t.Optional[float] = None,
        user: t.Optional[int] = None,
        group: t.Optional[int] = None,
        cwd: t.Optional[str] = None,
        gate: t.Optional[command.Gate] = None,
        ended: t.Optional[command.Ended] = None,
        output: t.Optional[t.BinaryIO] = None,
        more: bool = False,
    ) -> Completed:
        """Run a command in a running instance and wait for its end; as root in /root, unless told otherwise.

        Standard output goes to ``output`` if that is given. Raises DeadlinePassed after ``timeout`` seconds, having
        killed the command. ``more`` says that another one like it follows soon, from the same thread.
        """
        from . import command
        from . import exec as execution

        given = command.Command(
            instance, argv, project, stdin, environment or {}, user, group, cwd, timeout, gate, ended, output
        )
        if not more:
            return execution.run(self.transport, given)
        if self._ahead is None:
            from . import ahead

            self._ahead = ahead.Ahead(self.transport)
        return self._ahead.run(given)

    def push_stream(self, place: files.Place, data: t.BinaryIO, size: int) -> None:
        """Write ``size`` bytes of an open file to a file in an instance."""
        from . import files, transfer

        def execute(argv: t.Sequence[str]) -> Completed:
            return self.execute(place.instance, argv, place.project, cwd="/", timeout=files.TIMEOUT)

        with trust.explained(self.options):
            transfer.push(self.transport, place, data, size, execute)

    def pull_stream(self, place: files.Place, output: t.BinaryIO) -> None:
        """Write a file's content to an open file. Raises NotFound."""
        from . import transfer

        with trust.explained(self.options):
            transfer.pull(self.transport, place, output)

    def close(self) -> None:
        """Let go of every connection."""
        if self._ahead is not None:
            self._ahead.close()
        self.transport.close()
