# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""How an instance is stopped: ``stop``, in words and as a value. Pure."""

from __future__ import annotations

import dataclasses

from .._values import Problems, boolean, integer, mapping

# Seconds that what runs in an instance has to end before it is asked again.
TIMEOUT = 15
# A request is a signal to PID 1, and is lost where it does not listen for that one: before systemd is up, or in the
# moment in which a shell blocks all signals, when liblxc takes it for systemd and sends SIGRTMIN+3.
ATTEMPTS = 2


@dataclasses.dataclass(frozen=True)
class Stop:
    """``attempts`` times it is asked to end within ``timeout`` seconds (0: nobody said). Then it is ended by ``force``,
    or stays as it is, and that is an error."""

    timeout: int = 0
    attempts: int = ATTEMPTS
    force: bool = True

    def patience(self, limit: int) -> int:
        """Seconds for one attempt. Where nobody said, the server is to give up before ``limit`` is over."""
        return self.timeout or min(TIMEOUT, max(1, limit // (2 * ATTEMPTS)))


def parse(raw: object, path: str, problems: Problems) -> Stop:
    """What a user says of it."""
    fields = mapping(raw or {}, path, ("timeout", "attempts", "force"), problems) or {}
    default = Stop()
    force = boolean(fields.get("force", default.force), f"{path}.force", problems)
    attempts = integer(fields.get("attempts", default.attempts), f"{path}.attempts", problems, 0, 10)
    timeout = integer(fields["timeout"], f"{path}.timeout", problems, 1, 86400) if "timeout" in fields else 0
    if attempts == 0 and force is False:
        problems.add_text(f"{path}: neither asks it to end nor ends it: attempts must be 1 or more, or force true")
    return Stop(timeout or 0, default.attempts if attempts is None else attempts, force is not False)
