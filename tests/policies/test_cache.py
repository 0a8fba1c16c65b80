"""The cache's bounds, and what it keeps."""

from __future__ import annotations

import pytest

from foundation.reasons import Reason
from policies.cache import ERRORS, DecisionCache
from policies.model import Answer, Obligation
from policies.settings import CacheSettings

PERMIT = Answer(True, (Reason.GRANTED,), "g", deadline=100.0)
DENIAL = Answer(False, (Reason.NO_GRANT,))


def test_permits_and_denials_are_kept() -> None:
    cache = DecisionCache(CacheSettings())
    cache.put(b"p", PERMIT)
    cache.put(b"d", DENIAL)
    assert cache.get(b"p", 99) is PERMIT
    assert cache.get(b"d", 99) is DENIAL
    assert cache.get(b"x", 99) is None


@pytest.mark.parametrize("reason", sorted(ERRORS, key=lambda reason: reason.code))
def test_an_error_is_not_kept(reason: Reason) -> None:
    cache = DecisionCache(CacheSettings())
    cache.put(b"k", Answer(False, (reason,)))
    cache.put(b"l", Answer(False, (Reason.NO_GRANT, reason)))
    assert len(cache) == 0


def test_an_answer_is_gone_when_its_grant_ends() -> None:
    cache = DecisionCache(CacheSettings())
    cache.put(b"k", PERMIT)
    assert cache.get(b"k", 100.0) is None
    assert len(cache) == 0
    assert cache.size == 0


def test_the_one_longest_unused_goes_first() -> None:
    cache = DecisionCache(CacheSettings(entries=2))
    cache.put(b"a", DENIAL)
    cache.put(b"b", DENIAL)
    cache.get(b"a", 0)
    cache.put(b"c", DENIAL)
    assert [cache.get(key, 0) is not None for key in (b"a", b"b", b"c")] == [True, False, True]


def test_bytes_are_bounded_and_counted_back() -> None:
    cache = DecisionCache(CacheSettings(bytes=20_000))
    big = Answer(True, (Reason.GRANTED,), "g" * 1000, obligations=(Obligation("rate", {"x": "y" * 500}),))
    for number in range(100):
        cache.put(b"%d" % number, big)
        cache.put(b"%d" % number, big)
    assert 0 < len(cache) < 12
    assert cache.size <= 20_000
    cache.clear()
    assert (len(cache), cache.size) == (0, 0)


def test_an_answer_larger_than_the_cache_is_not_kept() -> None:
    cache = DecisionCache(CacheSettings(bytes=1000))
    cache.put(b"k" * 2000, DENIAL)
    assert (len(cache), cache.size) == (0, 0)


def test_a_cache_of_no_entries_keeps_nothing() -> None:
    cache = DecisionCache(CacheSettings(entries=0))
    cache.put(b"k", DENIAL)
    assert cache.get(b"k", 0) is None
