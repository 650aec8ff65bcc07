# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""From every state that an instance may be in to every state that may be declared: one table. Pure."""

from __future__ import annotations

import typing as t

from .._server.published import ABSENT

# A server names more states than an instance stays in: each is planned for like the one that it is close to.
_LIKE = {
    "Ready": "Running",
    "Starting": "Running",
    "Thawed": "Running",
    "Freezing": "Frozen",
    "Stopping": "Stopped",
    "Aborting": "Stopped",
}
# What the server calls a declared state.
STATUS = {
    "started": "Running",
    "restarted": "Running",
    "stopped": "Stopped",
    "frozen": "Frozen",
    "absent": ABSENT,
}
# The steps by status and declared state. A frozen instance thaws before it stops: what runs in it is to end cleanly.
# One in Error answers to nothing but force.
STEPS: t.Mapping[str, t.Mapping[str, tuple[str, ...]]] = {
    ABSENT: {
        "started": ("create", "start"),
        "restarted": ("create", "start"),
        "stopped": ("create",),
        "frozen": ("create", "start", "freeze"),
        "absent": (),
    },
    "Stopped": {
        "started": ("start",),
        "restarted": ("start",),
        "stopped": (),
        "frozen": ("start", "freeze"),
        "absent": ("delete",),
    },
    "Running": {
        "started": (),
        "restarted": ("restart",),
        "stopped": ("stop",),
        "frozen": ("freeze",),
        "absent": ("delete",),
    },
    "Frozen": {
        "started": ("unfreeze",),
        "restarted": ("unfreeze", "restart"),
        "stopped": ("unfreeze", "stop"),
        "frozen": (),
        "absent": ("delete",),
    },
    "Error": {
        "started": ("kill", "start"),
        "restarted": ("kill", "start"),
        "stopped": ("kill",),
        "frozen": ("kill", "start", "freeze"),
        "absent": ("delete",),
    },
}
# The actions of a server, and the state that each ends in.
ENDS_IN = {
    "start": "Running",
    "restart": "Running",
    "unfreeze": "Running",
    "freeze": "Frozen",
    "stop": "Stopped",
}


def like(status: str) -> str:
    """The state of the table that a server's word for a state stands for."""
    known = _LIKE.get(status, status)
    return known if known in STEPS else "Error"


def steps(status: str, declared: str) -> tuple[str, ...]:
    """The steps from what the server says to what is declared."""
    return STEPS[like(status)][declared]


def with_restart(status: str, declared: str, refused: bool) -> tuple[str, ...]:
    """The steps where a change needs a restart. ``refused``: the server does not even take it while the instance runs,
    so that it has to be written (``update``) in between."""
    now = like(status)
    if now not in ("Running", "Frozen") or declared in ("stopped", "absent"):
        # It stops or starts anyway, and an update comes before the start.
        plain = steps(status, declared)
        return (*(step for step in plain), "update") if refused and "stop" in plain else ("update", *plain)
    thaw = ("unfreeze",) if now == "Frozen" else ()
    freeze = ("freeze",) if declared == "frozen" else ()
    middle = ("stop", "update", "start") if refused else ("update", "restart")
    return (*thaw, *middle, *freeze)
