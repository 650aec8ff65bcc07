# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What scripts/bench calls: ``bench [JOB…]`` measures, and prints the machine and the table."""

from __future__ import annotations

import argparse
import signal
import sys
import time

from . import harness, machine
from .jobs import JOBS
from .place import Place


def main() -> None:
    """Measure the jobs that were asked for, or all."""
    names = [job.name for job in JOBS]
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measures this collection beside its peers.")
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"all of them if none is named: {', '.join(names)}")
    parser.add_argument("--runs", type=int, help="how often each contender does a job")
    wanted = parser.parse_args()
    unknown = sorted(set(wanted.jobs) - set(names))
    if unknown:
        parser.error(f"{', '.join(unknown)}: there is no such job; there are {', '.join(names)}")
    # So that an ended run clears up as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    head = machine.description()
    rows: list[harness.Row] = []
    limits: list[harness.Limit] = []
    try:
        with Place() as place:
            jobs = [job(place) for job in JOBS if not wanted.jobs or job.name in wanted.jobs]
            for number, job in enumerate(jobs):
                job.runs = wanted.runs or job.runs
                started = time.monotonic()
                print(f"{job.name}: {job.runs} runs …", end=" ", file=sys.stderr, flush=True)
                found, beside = harness.run(job)
                print(f"{time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
                rows += found
                limits += beside
                place.leave({job.room} - {later.room for later in jobs[number + 1 :]})
    finally:
        # What an interrupted run has measured took long enough.
        if rows:
            print(head, harness.table(rows), *[harness.limit_line(limit) for limit in limits], sep="\n\n")


try:
    main()
except KeyboardInterrupt:
    sys.exit(130)
