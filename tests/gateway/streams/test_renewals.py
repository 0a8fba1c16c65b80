"""A renewal that the authority tells of carries on what is open, no further than the newest certificate."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from foundation.identity import Renewal
from gateway.proxy.identify import Peer
from gateway.streams.renewals import Renewals
from tests.fakes.trust import spiffe


def peer(serial: str, not_after: float = 100.0) -> Peer:
    return Peer(spiffe(), serial, 0.0, not_after, b"")


def test_what_is_open_stays_until_the_newest_ends() -> None:
    renewals = Renewals()
    renewals.opened("a")
    renewals.renewed(Renewal("a", "b", 200.0))
    assert renewals.until(peer("a"), ()) == 200.0
    renewals.renewed(Renewal("b", "c", 300.0))  # nobody is open by b
    assert renewals.until(peer("a"), ()) == 300.0
    assert renewals.until(peer("b"), ()) == 100.0
    renewals.renewed(Renewal("a", "b", 200.0))  # told once more, late
    assert renewals.until(peer("a"), ()) == 300.0


def test_each_of_a_line_is_carried() -> None:
    renewals = Renewals()
    for serial, after in ("a", "b"), ("b", "c"):
        renewals.opened(serial)
        renewals.renewed(Renewal(serial, after, 200.0 + ord(after)))
    assert renewals.until(peer("a"), ()) == renewals.until(peer("b"), ()) == 200.0 + ord("c")


def test_a_revoked_newest_certificate_carries_nothing() -> None:
    renewals = Renewals()
    renewals.opened("a")
    renewals.renewed(Renewal("a", "b", 200.0))
    assert renewals.until(peer("a"), {"b"}) == 100.0


def test_a_shorter_certificate_takes_nothing_away() -> None:
    renewals = Renewals()
    renewals.opened("a")
    renewals.renewed(Renewal("a", "b", 50.0))
    assert renewals.until(peer("a"), ()) == 100.0


def test_one_that_was_missed_carries_nothing() -> None:
    renewals = Renewals()
    renewals.opened("a")
    renewals.renewed(Renewal("b", "c", 300.0))  # a → b was not heard
    assert renewals.until(peer("a"), ()) == 100.0


def test_what_comes_later_was_not_open() -> None:
    renewals = Renewals()
    renewals.renewed(Renewal("a", "b", 200.0))
    renewals.opened("a")
    assert renewals.until(peer("a"), ()) == 100.0


def test_two_that_were_renewed_by_one_go_on_together() -> None:
    renewals = Renewals()
    renewals.opened("a")
    renewals.opened("b")
    renewals.renewed(Renewal("a", "c", 200.0))
    renewals.renewed(Renewal("b", "c", 200.0))
    renewals.closed("b")
    renewals.renewed(Renewal("c", "d", 300.0))
    assert renewals.until(peer("a"), ()) == 300.0


@example([("o", "c", "a"), ("o", "d", "a"), ("r", "d", "a"), ("r", "c", "d"), ("r", "d", "b")])
@given(st.lists(st.tuples(st.sampled_from("ocr"), st.sampled_from("abcde"), st.sampled_from("abcde")), max_size=60))
def test_nothing_is_kept_of_what_is_not_open(steps: list[tuple[str, str, str]]) -> None:
    renewals, opened = Renewals(), []
    for what, one, other in steps:
        if what == "o":
            renewals.opened(one)
            opened.append(one)
        elif what == "c" and one in opened:
            renewals.closed(one)
            opened.remove(one)
        elif what == "r" and one != other:
            renewals.renewed(Renewal(one, other, 200.0))
        assert set(renewals._lines) <= set(opened)
    for serial in opened:
        renewals.closed(serial)
    assert len(renewals) == 0
    assert not renewals._by_newest
    assert not renewals._open
