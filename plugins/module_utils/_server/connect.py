# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Which driver serves whom."""

from __future__ import annotations

import dataclasses
import importlib.util
import typing as t

from .._errors import NoBridge, ServerError, ServerUnreachable
from . import sockets
from .core import CoreDriver
from .options import ServerOptions

if t.TYPE_CHECKING:
    from .cli import CliDriver

    # What every door offers: the Driver of driver.py, and commands and files as the connection plugin needs them.
    Door = t.Union[CoreDriver, CliDriver]


def connect(options: ServerOptions) -> Door:
    """The driver of modules. Raises MissingLibrary, ServerUnreachable."""
    if options.driver == "cli" or (options.driver == "auto" and not _has_pylxd() and _has_client()):
        return _cli(options)
    from .rest import RestDriver

    try:
        return RestDriver(options)
    except NoBridge:
        if options.driver == "rest":
            raise
        return _inside(options)


def connect_core(options: ServerOptions) -> Door:
    """The driver of plugins, which need no pylxd. Raises ServerUnreachable."""
    if options.driver == "cli":
        return _cli(options)
    if options.via and options.driver == "auto":
        try:
            sockets.connect(options).close()
        except NoBridge:
            return _inside(options)
    return CoreDriver(options)


def begin_afresh(options: ServerOptions) -> None:
    """Have the next connection know nothing of those before: whose groups a login has is known since it began."""
    if options.endpoint.startswith("ssh://"):
        from . import ssh

        ssh.leave(options)


def _has_pylxd() -> bool:
    return importlib.util.find_spec("pylxd") is not None


def _has_client() -> bool:
    from .runner import local_client

    return local_client() is not None


def _cli(options: ServerOptions) -> CliDriver:
    """Imported only where it is asked for: a connection plugin is loaded for every task."""
    if options.via:
        return _inside(options)
    from .cli import CliDriver

    return CliDriver(options)


def _inside(options: ServerOptions) -> CliDriver:
    """The client program in the last instance of ``via``, which the server around runs. The outermost server is
    spoken to directly. Raises ServerUnreachable."""
    from . import lookup, runner
    from .cli import CliDriver
    from .nested import around_failed, parent

    around, instance = parent(options), options.via[-1]
    outer = connect_core(around if around.via else dataclasses.replace(around, driver="rest"))
    try:
        clients = runner.find_clients(outer, instance, around.project)
        if len(clients) != 1:
            told = f"neither lxc nor incus in {instance} reaches a server there"
            raise ServerUnreachable(options.shown, lookup.both_inside(instance) if clients else told)
        return CliDriver(options, runner.ExecRunner(outer, instance, around.project), clients[0])
    except BaseException as e:
        outer.close()
        if isinstance(e, ServerError):
            raise around_failed(options, e) from e
        raise
