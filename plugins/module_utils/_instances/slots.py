# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""How many instances are worked on at once: one that only waits lets another one go on."""

from __future__ import annotations

import contextlib
import threading
import typing as t


class Slots:
    """``count`` instances are worked on at once, and as many more may wait: where all boot at once, each takes long.

    With one, the next begins when the one before is ready.
    """

    def __init__(self, count: int) -> None:
        self._free = threading.Semaphore(count)
        self.workers = 2 * count if count > 1 else 1

    @contextlib.contextmanager
    def held(self) -> t.Iterator[None]:
        """While an instance is worked on."""
        with self._free:
            yield

    @contextlib.contextmanager
    def left(self) -> t.Iterator[None]:
        """While it only waits, in ``held``."""
        self._free.release()
        try:
            yield
        finally:
            self._free.acquire()
