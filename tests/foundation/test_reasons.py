"""The vocabulary is closed, and every code says what happened and what to do."""

from __future__ import annotations

import re

import pytest

from foundation.faults import Fault, problem, retry_after
from foundation.reasons import Reason


def test_no_reason_hides_behind_another() -> None:
    # Members of an Enum with equal values are aliases: one of the two codes would silently vanish.
    assert {name: member.name for name, member in Reason.__members__.items() if member.name != name} == {}


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.code)
def test_every_code_is_documented(reason: Reason) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]{2,62}", reason.code)
    assert Reason.from_code(reason.code) is reason
    assert reason.status == 200 or 400 <= reason.status <= 599
    for text in (reason.meaning, reason.remedy):
        assert 5 < len(text) < 120
        assert text[-1] != "."
    assert reason.meaning != reason.remedy


def test_only_permits_are_ok() -> None:
    assert {reason for reason in Reason if reason.status == 200} == {Reason.GRANTED, Reason.BREAK_GLASS}


def test_whatever_may_pass_by_itself_says_when_to_ask_again() -> None:
    assert {reason for reason in Reason if retry_after(reason)} == {
        reason for reason in Reason if reason.status in {429, 503}
    }


def test_an_unknown_code_is_none() -> None:
    with pytest.raises(KeyError):
        Reason.from_code("NO_GRANT")


def test_a_problem_tells_the_outside_and_keeps_the_inside() -> None:
    body = problem(Fault(Reason.TOKEN_USED, "it was used", field="begin.token", internal="by node-7"))
    assert body == {
        "type": "urn:sallyport:reason:token_used",
        "title": Reason.TOKEN_USED.meaning,
        "status": 403,
        "detail": "it was used",
        "reason": "token_used",
        "field": "begin.token",
        "remedy": Reason.TOKEN_USED.remedy,
    }
    assert "node-7" not in str(Fault(Reason.TOKEN_USED, internal="by node-7"))
