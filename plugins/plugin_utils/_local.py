# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Files of the controller."""

from __future__ import annotations

import contextlib
import os
import tempfile
import typing as t


@contextlib.contextmanager
def replacing(target: bytes) -> t.Iterator[t.BinaryIO]:
    """A file to write to, which takes the target's place at the end, if nothing was raised. Else it leaves nothing."""
    descriptor, temporary = tempfile.mkstemp(prefix=b".mage-", dir=os.path.dirname(target) or b".")
    try:
        with open(descriptor, "wb") as file:
            yield file
            os.fchmod(file.fileno(), 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    """What the process takes from the mode of new files. Only setting it tells, which other threads would notice."""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/self/status", encoding="ascii") as status:
        return int(status.read().split("\nUmask:")[1].split()[0], 8)
    mask = os.umask(0)
    os.umask(mask)
    return mask
