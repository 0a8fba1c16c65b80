"""Which worker holds a node's tunnel, by a table that all workers share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.identifiers import Kind, SpiffeId
from foundation.reasons import Reason
from gateway.broker.siblings import GROUP, WORKERS, Owner, SiblingTable

NODES = [SpiffeId("fleet.example", Kind.NODE, f"n{number}") for number in range(3)]
ACTS = st.lists(
    st.tuples(st.sampled_from(["claim", "release", "stale", "end"]), st.integers(0, 3), st.sampled_from(NODES)),
    max_size=80,
)


def a_node(number: int) -> SpiffeId:
    return SpiffeId("fleet.example", Kind.NODE, f"m{number}")


@given(ACTS)
def test_the_newest_claim_has_it_until_it_is_released_or_its_worker_ends(acts: list[tuple[str, int, SpiffeId]]) -> None:
    whole = SiblingTable.private(places=GROUP)
    workers = [SiblingTable(whole._memory, number) for number in range(4)]
    newest: dict[SpiffeId, Owner | None] = dict.fromkeys(NODES)
    claims: dict[tuple[int, SpiffeId], list[int]] = {}
    last = 0
    for act, worker, node in acts:
        mine = claims.setdefault((worker, node), [])
        if act == "claim":
            epoch = workers[worker].claim(node)
            assert epoch > last
            last = epoch
            mine.append(epoch)
            newest[node] = Owner(worker, epoch)
        elif act == "release" and mine:
            workers[worker].release(node, mine[-1])
            if newest[node] == Owner(worker, mine[-1]):
                newest[node] = None
        elif act == "stale":  # any epoch that is not this worker's newest claim
            for epoch in range(last + 2):
                if newest[node] != Owner(worker, epoch):
                    workers[worker].release(node, epoch)
        elif act == "end":
            whole.clear(worker)
            newest = {each: None if held and held.worker == worker else held for each, held in newest.items()}
        for table in (whole, *workers):
            assert {each: table.owner(each) for each in NODES} == newest


def test_a_full_table_refuses_and_a_place_given_back_is_there_again() -> None:
    table = SiblingTable.private(places=GROUP)
    epochs = [table.claim(a_node(number)) for number in range(GROUP)]
    with pytest.raises(Fault) as caught:
        table.claim(a_node(GROUP))
    assert caught.value.reason is Reason.OVERLOADED
    assert table.owner(a_node(GROUP)) is None
    assert table.claim(a_node(3)) > epochs[-1]  # who has a place keeps it
    table.release(a_node(5), epochs[5])
    assert table.claim(a_node(GROUP)) > epochs[-1]
    assert table.owner(a_node(5)) is None


def test_as_many_nodes_as_a_fleet_has_find_a_place() -> None:
    table = SiblingTable.private()
    for number in range(20_000):
        table.claim(a_node(number))
    table.reset()
    assert table.owner(a_node(7)) is None


def test_epochs_go_on_rising_over_restarts(tmp_path: Path) -> None:
    table = SiblingTable.shared(tmp_path / "siblings", 0, GROUP)
    before = [table.claim(node) for node in NODES]
    table.reset()
    table.close()
    table = SiblingTable.shared(tmp_path / "siblings", 1, GROUP)
    assert [table.owner(node) for node in NODES] == [None] * 3
    assert table.claim(NODES[0]) > max(before)


def test_processes_at_once_never_make_the_same_claim_twice(tmp_path: Path) -> None:
    path, children, each = tmp_path / "siblings", 4, 200
    SiblingTable.shared(path, 0, GROUP).close()
    reading, writing = os.pipe()
    pids = []
    for worker in range(children):
        pid = os.fork()
        if pid == 0:
            table = SiblingTable.shared(path, worker, GROUP)
            for number in range(each):
                os.write(writing, b"%d %d\n" % (table.claim(NODES[number % 3]), worker))
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    os.close(writing)
    with os.fdopen(reading) as lines:
        made = dict(tuple(map(int, line.split())) for line in lines)  # type: ignore[misc]
    assert sorted(made) == list(range(1, children * each + 1))
    table = SiblingTable.shared(path, 5, GROUP)
    owners = [table.owner(node) for node in NODES]
    assert all(owner is not None and made[owner.epoch] == owner.worker for owner in owners)
    for worker in range(children):
        table.clear(worker)
    assert [table.owner(node) for node in NODES] == [None] * 3


def test_a_worker_killed_in_the_midst_of_claims_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "siblings"
    main = SiblingTable.shared(path, 0, GROUP)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        table = SiblingTable.shared(path, 1, GROUP)
        os.write(writing, b"x")
        while True:
            for node in NODES:
                table.claim(node)
    os.read(reading, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    main.clear(1)
    assert [main.owner(node) for node in NODES] == [None] * 3
    assert main.owner(NODES[0]) is None
    assert main.claim(NODES[0]) > 0


def test_a_worker_has_a_number_that_the_table_can_hold() -> None:
    with pytest.raises(ValueError, match="numbered"):
        SiblingTable.private(WORKERS)


def test_a_file_that_cannot_be_is_told(tmp_path: Path) -> None:
    with pytest.raises(Fault) as caught:
        SiblingTable.shared(tmp_path / "none" / "siblings", 0)
    assert caught.value.reason is Reason.FILE_UNREADABLE
