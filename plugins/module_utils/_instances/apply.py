# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""The door of the instances: reads what is there, carries plans out, and tells what came of them. Decides nothing."""

from __future__ import annotations

import typing as t

from .._context import Context, Report
from .._plan import Plan
from . import reading
from .observed import Observed
from .present import present
from .spec import Desired


def observe(desired: Desired, context: Context) -> Observed:
    """Read the server: one list, and what ``needs()`` asks for besides."""
    return reading.read(desired, context.driver)


def apply(desired: Desired, observed: Observed, planned: Plan, context: Context) -> Report:
    """Carry a plan out, ``concurrency`` instances at once. One that fails does not stop the others.

    ``values["instances"]`` holds the state afterwards, read anew.
    """
    # A list that is true already needs none of it, and every module compiles what it imports.
    from .rounds import Run

    return Run(desired, observed, context.driver).carry_out(planned)


def result(desired: Desired, observed: Observed, planned: Plan, report: t.Optional[Report]) -> t.Mapping[str, t.Any]:
    """The return values: as read after the changes, or as planned where none were carried out."""
    return report.values if report else {"instances": present(desired, observed.snapshot, planned.changes, False, {})}
