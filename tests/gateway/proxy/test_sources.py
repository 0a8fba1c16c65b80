"""Handshakes for each source address: a bucket each, a /64 for IPv6, and a bounded table."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.sources import ROUNDING, SourceRates, source_of


def test_a_burst_and_then_the_rate() -> None:
    rates = SourceRates(10, 5)
    assert [rates.admits("203.0.113.1", 100.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert [rates.admits("203.0.113.1", 100.1) for _ in range(2)] == [True, False]
    assert rates.admits("203.0.113.2", 100.1)
    assert [rates.admits("203.0.113.1", 200.0) for _ in range(6)] == [True] * 5 + [False]


def test_what_is_refused_costs_nothing() -> None:
    rates = SourceRates(1, 1)
    assert rates.admits("203.0.113.1", 0.0)
    assert not any(rates.admits("203.0.113.1", 0.9) for _ in range(100))
    assert rates.admits("203.0.113.1", 1.0)


def test_addresses_of_one_host_are_one_source() -> None:
    one = source_of("2001:db8:1:2::1")
    assert one == source_of("2001:db8:1:2:ffff:ffff:ffff:ffff") == source_of("2001:DB8:1:2::9%eth0")
    assert one != source_of("2001:db8:1:3::1")
    assert source_of("::ffff:203.0.113.1") == source_of("203.0.113.1") != source_of("203.0.113.2")
    assert source_of("no address") == "no address"


def test_the_table_is_bounded_and_whoever_knocks_stays_in_it() -> None:
    rates = SourceRates(1, 2, most=100)
    for number in range(10_000):
        rates.admits(f"198.51.{number >> 8}.{number & 255}", 0.0)
        rates.admits("203.0.113.1", 0.0)
    assert len(rates) == 100
    assert not rates.admits("203.0.113.1", 0.0)


@given(st.integers(1, 50), st.integers(1, 50), st.lists(st.floats(0, 2), max_size=200))
def test_no_source_gets_more_than_its_burst_and_rate(per_second: int, burst: int, pauses: list[float]) -> None:
    rates, now, admitted = SourceRates(per_second, burst), 1000.0, 0
    for pause in pauses:
        now += pause
        admitted += rates.admits("203.0.113.1", now)
        assert admitted <= burst + (now - 1000.0 + ROUNDING) * per_second + 1e-6
