"""What the main process is asked to do meanwhile: in which order, by whom, and what came of it."""

from __future__ import annotations

import asyncio
import signal

import pytest

from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.errands import MAX_KEPT, MAX_WAITING, SYSTEM, Asked, Errands, Progress


async def next_of(errands: Errands) -> Asked | None:
    found = await errands.next()
    return found.asked if found else None


async def test_what_is_asked_is_done_once_and_a_stop_comes_first() -> None:
    errands = Errands()
    for what in (Asked.UPGRADE, Asked.RELOAD, Asked.RELOAD):
        errands.ask(what)
    assert [await next_of(errands), await next_of(errands)] == [Asked.RELOAD, Asked.UPGRADE]
    errands.ask(Asked.RELOAD)
    errands.ask(Asked.STOP)
    assert [await next_of(errands), await next_of(errands)] == [None, None]


async def test_a_signal_is_an_errand_of_the_system() -> None:
    errands, loop = Errands(), asyncio.get_running_loop()
    errands.listen_to_signals()
    try:
        signal.raise_signal(signal.SIGHUP)
        found = await errands.next()
        assert found is not None
        assert (found.asked, found.actor, found.progress) == (Asked.RELOAD, SYSTEM, Progress.BEGUN)
        signal.raise_signal(signal.SIGTERM)
        assert await errands.next() is None
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
            loop.remove_signal_handler(number)


async def test_what_comes_while_one_is_done_is_another() -> None:
    errands = Errands()
    first = errands.ask(Asked.RELOAD, "ada")
    assert errands.ask(Asked.RELOAD, "ada") is first
    assert errands.ask(Asked.RELOAD, "bob") is not first
    assert await errands.next() is first
    assert errands.ask(Asked.RELOAD, "ada") is not first


async def test_whoever_asked_finds_what_came_of_it() -> None:
    errands = Errands()
    errands.ask(Asked.RELOAD, "ada")
    found = await errands.next()
    assert found is not None
    found.done(("certificate",), Fault(Reason.SETTING_INVALID, "expected a number", field="gateway.workers"))
    (told,) = [each.to_json() for each in errands.known]
    assert (told["number"], told["asked"], told["actor"], told["progress"]) == (1, "reload", "ada", "done")
    assert told["taken"] == ["certificate"]
    assert (told["problem"]["reason"], told["problem"]["field"]) == ("setting_invalid", "gateway.workers")


async def test_what_waits_and_what_is_kept_is_bounded_but_a_signal_is_never_turned_away() -> None:
    errands = Errands()
    for number in range(MAX_WAITING):
        errands.ask(Asked.UPGRADE, f"op-{number}")
    with pytest.raises(Fault) as caught:
        errands.ask(Asked.UPGRADE, "one-more")
    assert caught.value.reason is Reason.OVERLOADED
    errands.ask(Asked.RELOAD)
    assert await next_of(errands) is Asked.RELOAD
    for _ in range(MAX_WAITING):
        await errands.next()
    assert len(errands.known) == MAX_KEPT
