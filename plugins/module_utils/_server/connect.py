# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Which driver serves whom."""

from __future__ import annotations

from .options import ServerOptions
from .rest import RestDriver


def connect(options: ServerOptions) -> RestDriver:
    """The driver of modules. Raises MissingLibrary, ServerUnreachable."""
    return RestDriver(options)
