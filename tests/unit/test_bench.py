# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The harness of the benchmarks: turns, medians, targets and the table."""

from __future__ import annotations

import contextlib
import os
import typing as t

import pytest

from ansible_collections.mage.lxd.bench import bare, harness, room
from ansible_collections.mage.lxd.bench.harness import FLOOR, OURS, Contender, Limit, Peer, Row
from ansible_collections.mage.lxd.bench.jobs import JOBS, inventory


def clock(name: str, seconds: t.Sequence[float], calls: list[str]) -> Contender:
    """A contender that takes these times, one after another."""
    left = iter(seconds)

    def contender() -> float:
        calls.append(name)
        return next(left)

    return contender


class Sample(harness.Job):
    name = "sample"
    title = "a job"
    room = "sample"
    runs = 3
    peers = (Peer("peer", "", 0.5), Peer("other", "beside another"))
    floor_limit = 1.5

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    @contextlib.contextmanager
    def contenders(self) -> t.Iterator[t.Mapping[str, Contender]]:
        times = {OURS: (9, 1, 3, 2), "peer": (9, 8, 4, 6), FLOOR: (9, 1, 2, 3), "other": (9, 1, 1, 1)}
        try:
            yield {name: clock(name, seconds, self.calls) for name, seconds in times.items()}
        finally:
            self.calls.append("gone")

    def limits(self) -> list[Limit]:
        return [Limit("memory", 250, 300, "MB")]


def test_contenders_take_turns_and_what_warms_up_does_not_count() -> None:
    calls: list[str] = []
    rows, limits = harness.run(Sample(calls))
    assert calls == [OURS, "peer", FLOOR, "other"] * 4 + ["gone"]
    first, other = rows
    assert (first.ours, first.peer, first.floor) == ([1, 3, 2], [8, 4, 6], [1, 2, 3])
    assert first.to_peer == pytest.approx(2 / 6)
    assert (first.to_floor, first.reached) == (1.0, True)
    assert (other.title, other.to_peer, other.to_floor, other.reached) == ("a job, beside another", 2.0, None, None)
    assert [limit.reached for limit in limits] == [True]


def test_what_fails_is_not_measured_and_is_cleared_away() -> None:
    calls: list[str] = []
    with pytest.raises(RuntimeError, match="no server"):
        harness.run(Failing(calls))
    assert calls == ["gone"]


class Failing(Sample):
    @contextlib.contextmanager
    def contenders(self) -> t.Iterator[t.Mapping[str, Contender]]:
        def fail() -> float:
            raise RuntimeError("no server")

        with super().contenders():
            yield {OURS: fail}


@pytest.mark.parametrize(
    ("peer", "floor", "limits", "reached"),
    [
        ([4.0], [2.0], (0.5, 1.0), True),
        ([3.9], [2.0], (0.5, 1.0), False),
        ([4.0], [1.9], (0.5, 1.0), False),
        ([], [2.0], (None, 1.0), True),
        ([4.0], [2.0], (None, None), None),
    ],
)
def test_a_target_is_reached_when_every_limit_holds(
    peer: list[float], floor: list[float], limits: tuple[float | None, float | None], reached: bool | None
) -> None:
    assert Row("", [2.0], peer, floor, *limits).reached is reached


def test_one_slow_run_does_not_move_a_ratio() -> None:
    assert harness.ratio([1.0, 50.0, 1.0], [2.0, 2.0, 0.1]) == 0.5
    assert harness.ratio([1.0], []) is None


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        ([], "-"),
        ([1.234], "1.23 s"),
        ([12.0, 11.0, 100.0], "12.0 s (11.0-100.0)"),
        ([0.0131, 0.012, 0.0202], "13.1 ms (12.0-20.2)"),
        ([0.4], "400 ms"),
    ],
)
def test_times_are_shown_with_their_spread(seconds: list[float], shown: str) -> None:
    assert harness.spread(seconds) == shown


def test_the_table() -> None:
    rows = [Row("first", [1.0], [20.0], [0.5], 0.1, 1.5), Row("second job", [0.02], [], [0.03])]
    assert harness.table(rows).splitlines() == [
        "| job        | ours    | peer   | floor   | ours/peer | ours/floor | target              | reached |",
        "|------------|---------|--------|---------|-----------|------------|---------------------|---------|",
        "| first      | 1.00 s  | 20.0 s | 500 ms  | 0.050     | 2.00       | peer 0.1, floor 1.5 | NO      |",
        "| second job | 20.0 ms | -      | 30.0 ms | -         | 0.67       | shown               | -       |",
    ]
    assert harness.limit_line(Limit("memory", 301, 300, "MB")) == "memory: 301 MB, target at most 300 MB: NOT reached"


def test_every_job_has_a_name_of_its_own() -> None:
    names = [job.name for job in JOBS]
    assert len(set(names)) == len(names)


def test_only_what_a_dead_run_left_is_an_orphan() -> None:
    assert not room.is_orphan(f"{room.PREFIX}-{os.getpid()}-inventory")
    # More than the kernel gives.
    assert room.is_orphan(f"{room.PREFIX}-99999999-inventory")
    assert not room.is_orphan("shop")
    assert not room.is_orphan("default")


def test_a_static_inventory_says_what_the_listing_says() -> None:
    listed = {
        "_meta": {"hostvars": {"web-1": {"x": 1}}},
        "all": {"children": ["ungrouped", "lxd_instances"]},
        "lxd_instances": {"hosts": ["web-1"]},
    }
    assert inventory.as_static(listed) == {
        "all": {"hosts": {"web-1": {"x": 1}}, "children": {"lxd_instances": {"hosts": {"web-1": {}}}}}
    }


def test_the_floor_masks_its_frames_as_a_client_has_to() -> None:
    assert bare.frame(bare.TEXT, b"") == b"\x81\x80\0\0\0\0"
    assert bare.frame(2, b"ab") == b"\x82\x82\0\0\0\0ab"
    assert bare.frame(2, b"x" * 200)[:10] == b"\x82\xff" + (200).to_bytes(8, "big")
