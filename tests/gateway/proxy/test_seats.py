"""Connections of an identity, counted by all workers together."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.proxy.seats import COLUMNS, PLACES, Seats

SMALL = PLACES * 4


@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "give", "end"]), st.integers(0, 2), st.sampled_from("abc")), max_size=80
    ),
    st.integers(1, 5),
)
def test_it_counts_as_a_plain_count_does(acts: list[tuple[str, int, str]], most: int) -> None:
    whole = Seats.private(SMALL)
    workers = [Seats(whole._memory, column) for column in range(3)]
    plain: Counter[tuple[int, str]] = Counter()
    for act, worker, identity in acts:
        held = sum(plain[each, identity] for each in range(3))
        if act == "take":
            assert workers[worker].take(identity, most) == (held < most)
            plain[worker, identity] += held < most
        elif act == "give" and plain[worker, identity]:
            workers[worker].give_back(identity)
            plain[worker, identity] -= 1
        elif act == "end":
            whole.clear(worker)
            for each in "abc":
                plain[worker, each] = 0


def test_those_without_a_place_are_counted_by_their_own_worker() -> None:
    seats = Seats.private(PLACES)
    names = [f"n{number}" for number in range(PLACES + 3)]
    assert all(seats.take(name, 1) for name in names)
    assert not any(seats.take(name, 1) for name in names)
    for name in names:
        seats.give_back(name)
    assert all(seats.take(name, 1) for name in names)


def test_processes_together_take_no_more_than_there_are(tmp_path: Path) -> None:
    path, most, children = tmp_path / "seats", 50, 4
    Seats.shared(path, 0, SMALL).close()
    reading, writing = os.pipe()
    pids = []
    for column in range(children):
        pid = os.fork()
        if pid == 0:
            seats = Seats.shared(path, column, SMALL)
            taken = sum(seats.take("all", most) for _ in range(most))
            os.write(writing, bytes([taken]))
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    assert sum(os.read(reading, 100)) == most
    seats = Seats.shared(path, 5, SMALL)
    assert not seats.take("all", most)
    for column in range(children):
        seats.clear(column)
    assert seats.take("all", most)


def test_a_worker_of_too_high_a_number_counts_for_itself(tmp_path: Path) -> None:
    seats = Seats.shared(tmp_path / "seats", COLUMNS, SMALL)
    assert (seats.take("a", 1), seats.take("a", 1)) == (True, False)
    seats.clear(COLUMNS)


def test_a_file_that_cannot_be_is_told(tmp_path: Path) -> None:
    with pytest.raises(Fault) as caught:
        Seats.shared(tmp_path / "none" / "seats", 0)
    assert caught.value.reason is Reason.FILE_UNREADABLE
