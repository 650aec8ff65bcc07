# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures jobs in turns and shows medians as a table. Knows no server and no Ansible."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import statistics
import typing as t

OURS = "ours"
FLOOR = "floor"
NONE = "-"

# Does the job once, and says what it took.
Contender = t.Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Peer:
    """What ours is compared with in a row, which may take ``limit`` times as long; without a limit it is only shown."""

    name: str
    label: str
    limit: t.Optional[float] = None


@dataclasses.dataclass(frozen=True)
class Limit:
    """A figure that a job found beside its times, and the most that it may be."""

    label: str
    value: float
    limit: float
    unit: str

    @property
    def reached(self) -> bool:
        return self.value <= self.limit


class Job(abc.ABC):
    """One job, done by several contenders. ``ours`` and ``floor`` have their places, all others are peers."""

    name: str
    title: str
    # Jobs of one room share its instances.
    room: str
    runs = 5
    warm_up = 1
    peers: t.Sequence[Peer] = ()
    floor_limit: t.Optional[float] = None

    @abc.abstractmethod
    def contenders(self) -> contextlib.AbstractContextManager[t.Mapping[str, Contender]]:
        """Sets up what the job needs; the contenders are called in their order, again and again."""

    def limits(self) -> t.Sequence[Limit]:
        """Asked after the last run."""
        return ()


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table. Times are in seconds, each list in the order of the runs."""

    title: str
    ours: t.Sequence[float]
    peer: t.Sequence[float] = ()
    floor: t.Sequence[float] = ()
    peer_limit: t.Optional[float] = None
    floor_limit: t.Optional[float] = None

    @property
    def to_peer(self) -> t.Optional[float]:
        return ratio(self.ours, self.peer)

    @property
    def to_floor(self) -> t.Optional[float]:
        return ratio(self.ours, self.floor)

    @property
    def reached(self) -> t.Optional[bool]:
        """None where the row has no target."""
        pairs = ((self.to_peer, self.peer_limit), (self.to_floor, self.floor_limit))
        held = [found <= limit for found, limit in pairs if found is not None and limit is not None]
        return all(held) if held else None


def ratio(ours: t.Sequence[float], other: t.Sequence[float]) -> t.Optional[float]:
    """Of the medians."""
    return statistics.median(ours) / statistics.median(other) if ours and other else None


def measure(contenders: t.Mapping[str, Contender], runs: int, warm_up: int) -> dict[str, list[float]]:
    """Let every contender do the job in turn. The first turns warm up and do not count."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warm_up + runs):
        for name, contender in contenders.items():
            seconds = contender()
            if turn >= warm_up:
                found[name].append(seconds)
    return found


def rows(job: Job, found: t.Mapping[str, t.Sequence[float]]) -> list[Row]:
    """A row with the first peer and the floor, and one for each other peer."""
    first, *others = job.peers or [Peer("", "")]
    title = f"{job.title}, {first.label}" if first.label else job.title
    floor = found.get(FLOOR, ())
    made = [Row(title, found[OURS], found.get(first.name, ()), floor, first.limit, job.floor_limit)]
    for peer in others:
        made.append(Row(f"{job.title}, {peer.label}", found[OURS], found[peer.name], (), peer.limit))
    return made


def run(job: Job) -> tuple[list[Row], list[Limit]]:
    """Set a job up, measure it, and clear it away."""
    with job.contenders() as contenders:
        found = measure(contenders, job.runs, job.warm_up)
        return rows(job, found), list(job.limits())


HEAD = ("job", "ours", "peer", "floor", "ours/peer", "ours/floor", "target", "reached")


def table(found: t.Sequence[Row]) -> str:
    """The rows as Markdown, in columns that a person can read without a viewer."""
    lines = [HEAD, *(_cells(row) for row in found)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    shown = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([shown[0], rule, *shown[1:]])


def _cells(row: Row) -> tuple[str, ...]:
    limits = (("peer", row.peer_limit), ("floor", row.floor_limit))
    target = ", ".join(f"{name} {limit:g}" for name, limit in limits if limit is not None)
    reached = {True: "yes", False: "NO", None: NONE}[row.reached]
    times = (spread(row.ours), spread(row.peer), spread(row.floor))
    return (row.title, *times, _factor(row.to_peer), _factor(row.to_floor), target or "shown", reached)


def _factor(found: t.Optional[float]) -> str:
    return NONE if found is None else f"{found:.3f}" if found < 0.1 else f"{found:.2f}"


def spread(seconds: t.Sequence[float]) -> str:
    """The median, and the least and the most beside it."""
    if not seconds:
        return NONE
    middle, least, most = statistics.median(seconds), min(seconds), max(seconds)
    unit, factor = ("s", 1.0) if middle >= 1 else ("ms", 1000.0)
    digits = 0 if middle * factor >= 100 else 1 if middle * factor >= 10 else 2
    values = [f"{value * factor:.{digits}f}" for value in (middle, least, most)]
    return f"{values[0]} {unit}" + (f" ({values[1]}-{values[2]})" if len(seconds) > 1 else "")


def limit_line(found: Limit) -> str:
    """A limit as a line below the table."""
    reached = "reached" if found.reached else "NOT reached"
    return f"{found.label}: {found.value:.4g} {found.unit}, target at most {found.limit:g} {found.unit}: {reached}"
