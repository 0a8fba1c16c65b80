"""Which answers of DNS may be dialled."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.upstreams.answers import LEAST_REFRESH, MAX_ANSWERS, acceptable, may_dial, refresh_after

SPECIAL = (
    *("127.0.0.1", "127.8.8.8", "::1", "0.0.0.0", "::", "0.1.2.3"),  # noqa: S104  # nothing listens
    *("169.254.169.254", "169.254.0.1", "fe80::1", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"),
    *("224.0.0.1", "ff02::1", "255.255.255.255", "240.0.0.1"),
    *(
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "::7f00:1",
    ),
)


@pytest.mark.parametrize("answer", SPECIAL)
def test_a_name_leads_to_no_special_address(answer: str) -> None:
    assert not may_dial("service.example", answer, ())


@pytest.mark.parametrize("answer", SPECIAL)
def test_unless_its_pool_lists_the_network(answer: str) -> None:
    assert may_dial("service.example", answer, ("0.0.0.0/0", "::/0"))


@pytest.mark.parametrize("answer", ["10.1.2.3", "192.168.0.9", "172.16.0.1", "8.8.8.8", "2001:4860::8888", "fd12::1"])
def test_ordinary_addresses_are_dialled(answer: str) -> None:
    assert may_dial("service.example", answer, ())
    assert not may_dial("service.example", answer, ("10.9.0.0/16",))


def test_localhost_is_loopback() -> None:
    assert may_dial("localhost", "127.0.0.1", ())
    assert may_dial("db.localhost", "::1", ())
    assert not may_dial("localhost.example", "127.0.0.1", ())


@pytest.mark.parametrize("answer", ["", "10.0.0.1\n", "10.0.0", "localhost", "10.0.0.1/8", "1.2.3.4.5"])
def test_what_is_no_address_is_none(answer: str) -> None:
    assert not may_dial("service.example", answer, ())


@given(st.lists(st.ip_addresses(v=4).map(str), max_size=600))
def test_answers_are_bounded_each_once_and_all_allowed(answers: list[str]) -> None:
    kept = acceptable("service.example", answers, ("0.0.0.0/0",))
    assert len(kept) <= MAX_ANSWERS
    assert len(set(kept)) == len(kept)
    assert set(kept) <= set(answers)


@given(st.ip_addresses(v=4))
def test_an_address_within_an_address_is_judged_as_itself(address: ipaddress.IPv4Address) -> None:
    plain = may_dial("service.example", str(address), ())
    assert may_dial("service.example", f"::ffff:{address}", ()) is plain
    assert may_dial("service.example", str(ipaddress.ip_address(int(address) | 0x64FF9B << 96)), ()) is plain


@given(st.floats(0, 1e9), st.floats(1, 1e5))
def test_look_ups_are_neither_too_rare_nor_too_often(ttl: float, longest: float) -> None:
    assert LEAST_REFRESH <= refresh_after(ttl, longest) <= longest
