"""What one main process leaves to the next."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.handover import VARIABLE, HandedWorker, Handover, take_over

numbers = st.integers(0, 2**60)
descriptors = st.integers(3, 1 << 20)
handed = st.builds(
    HandedWorker, st.integers(1, 2**30), st.integers(0, 1 << 16), descriptors, st.binary(max_size=30), numbers
)
handovers = st.builds(
    Handover,
    numbers,
    st.dictionaries(st.text(max_size=20), st.lists(descriptors, max_size=4).map(tuple), max_size=4),
    st.lists(handed, max_size=3).map(tuple),
)


@given(handovers)
def test_it_is_read_as_it_was_written(left: Handover) -> None:
    assert Handover.parse(left.to_json()) == left


@given(handovers, st.sampled_from(["version", "sequence", "sockets", "workers"]), st.sampled_from([None, -1, "x", [1]]))
def test_what_is_not_one_is_refused(left: Handover, field: str, value: object) -> None:
    document = json.loads(left.to_json())
    document[field] = value
    with pytest.raises(Fault) as caught:
        Handover.parse(json.dumps(document).encode())
    assert caught.value.reason is Reason.MESSAGE_MALFORMED


def test_the_next_process_finds_it_once_and_keeps_its_descriptors_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    inherited, file = os.memfd_create("socket", 0), os.memfd_create("left", 0)
    left = Handover(7, {"api": (inherited,)}, ())
    os.write(file, left.to_json())
    monkeypatch.setenv(VARIABLE, str(file))
    assert take_over() == left
    assert VARIABLE not in os.environ
    assert not os.get_inheritable(inherited)
    assert take_over() is None
    os.close(inherited)


@pytest.mark.parametrize("value", ["x", "99999"])
def test_a_descriptor_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(Fault):
        take_over()
