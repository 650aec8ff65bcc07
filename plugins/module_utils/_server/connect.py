# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Which driver serves whom."""

from __future__ import annotations

import importlib.util
import typing as t

from . import runner
from .core import CoreDriver
from .options import ServerOptions

if t.TYPE_CHECKING:
    from .cli import CliDriver

    # What every door offers: the Driver of driver.py, and commands and files as the connection plugin needs them.
    Door = t.Union[CoreDriver, CliDriver]


def connect(options: ServerOptions) -> Door:
    """The driver of modules. Raises MissingLibrary, ServerUnreachable."""
    has_pylxd = importlib.util.find_spec("pylxd") is not None
    if options.driver == "cli" or (options.driver == "auto" and not has_pylxd and runner.local_client()):
        return _cli(options)
    from .rest import RestDriver

    return RestDriver(options)


def connect_core(options: ServerOptions) -> Door:
    """The driver of plugins, which need no pylxd. Raises ServerUnreachable."""
    return _cli(options) if options.driver == "cli" else CoreDriver(options)


def _cli(options: ServerOptions) -> CliDriver:
    """Imported only where it is asked for: a connection plugin is loaded for every task."""
    from .cli import CliDriver

    return CliDriver(options)
