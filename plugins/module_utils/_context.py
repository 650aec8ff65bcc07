# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What a run hands to a wing's steps, and what they hand back."""

from __future__ import annotations

import dataclasses
import typing as t

if t.TYPE_CHECKING:
    from ._server.driver import Driver
    from ._server.options import ServerOptions


@dataclasses.dataclass
class Context:
    """What a run hands to its steps: the way to the server, and whether this is check mode."""

    params: t.Mapping[str, t.Any]
    check_mode: bool
    server: ServerOptions
    _driver: t.Optional[Driver] = None

    @property
    def driver(self) -> Driver:
        """The way to the server, opened when it is first asked for."""
        if self._driver is None:
            from ._server import connect

            self._driver = connect.connect(self.server)
        return self._driver

    def close(self) -> None:
        """Let go of the server."""
        if self._driver is not None:
            self._driver.close()


@dataclasses.dataclass(frozen=True)
class Report:
    """What carrying out a plan led to. ``failures`` are told, all of them, when everything else is done."""

    failures: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    values: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
