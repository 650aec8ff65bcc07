# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the reports of scripts/test, says how each part went, and ends with one plain line of totals."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def count(reports: Path, part: str, code: int) -> tuple[int, int]:
    """Passed and failed of one part: its tests where it has them, else the part itself is the one check."""
    report = reports / f"{part}.xml"
    if not report.exists():
        return (0, 1) if code else (1, 0)
    cases = list(ET.parse(report).getroot().iter("testcase"))
    bad = sum(any(case.find(kind) is not None for kind in ("failure", "error", "skipped")) for case in cases)
    # A part that failed for a reason that no test shows has failed all the same.
    return len(cases) - bad, bad or (1 if code else 0)


def main(reports: Path, parts: list[str]) -> int:
    """Print the table and the totals; the exit code is 1 if anything failed or was skipped."""
    passed = failed = 0
    print("\n==> Result")
    for part in parts:
        code, seconds = (int(word) for word in (reports / f"{part}.result").read_text(encoding="utf-8").split())
        good, bad = count(reports, part, code)
        passed, failed = passed + good, failed + bad
        print(f"    {part:<12} {'FAILED' if bad else 'passed':<7} {seconds:>5} s   {good} passed, {bad} failed")
    print(f"\n{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
