"""Settings, rates and sessions of enrolment, each by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.hotstate import HotStateSettings, MemoryHotState
from foundation.hotstate.redis import RedisHotState
from foundation.hotstate.settings import RedisSettings
from foundation.identifiers import Kind, SpiffeId
from foundation.reasons import Reason
from foundation.wire.enrolment import MAX_BEGIN_BYTES
from pki.enrol.rate import RateTable, source_of
from pki.enrol.sessions import KEY_BYTES, Session, Sessions
from pki.enrol.settings import EnrolmentSettings
from pki.enrol.use import CertificateUse
from pki.tokens import TokenUse
from tests.fakes.clock import ManualClock

EDGE = SpiffeId("fleet.example", Kind.NODE, "edge-1")


def _parse(*, production: bool = False, **given: Any) -> EnrolmentSettings:
    fields = Fields(given, "enrolment", Reason.SETTING_INVALID, unknown=Reason.SETTING_UNKNOWN)
    return EnrolmentSettings.parse(fields, production=production)


def test_the_defaults_are_safe() -> None:
    settings = _parse()
    assert settings.classes == ("hardware",)
    assert settings.without_tpm == ()
    assert settings.pcrs.indices == tuple(range(8))
    assert settings.session == 60
    assert not settings.allows_without_tpm(EDGE)


@pytest.mark.parametrize(
    ("given", "production", "field"),
    [
        ({"classes": []}, False, "classes"),
        ({"classes": ["none"]}, False, "classes"),
        ({"classes": ["hardware", "virtual"]}, True, "classes"),
        ({"without_tpm": ["node/x"]}, True, "without_tpm"),
        ({"without_tpm": ["*"]}, False, "without_tpm"),
        ({"without_tpm": ["operator/x"]}, False, "without_tpm"),
        ({"session": "61s"}, False, "session"),
        ({"session": "0s"}, False, "session"),
        ({"pcrs": {"indices": [7, 0]}}, False, "pcrs.indices"),
        ({"pcrs": {"indices": []}}, False, "pcrs.indices"),
        ({"pcrs": {"bank": "sha1"}}, False, "pcrs.bank"),
        ({"rate": {"burst": 0}}, False, "rate.burst"),
        ({"attestation": {"interval": "500ms"}}, False, "attestation.interval"),
        ({"attestation": {"interval": "2d"}}, False, "attestation.interval"),
        ({"attestation": {"interval": "60s", "holds": "179s"}}, False, "attestation.holds"),
    ],
)
def test_wrong_settings_are_named(given: dict[str, Any], production: bool, field: str) -> None:
    with pytest.raises(Fault) as caught:
        _parse(production=production, **given)
    assert caught.value.reason is Reason.SETTING_INVALID
    assert caught.value.field == f"enrolment.{field}"


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(Fault) as caught:
        _parse(tokens="no")
    assert caught.value.reason is Reason.SETTING_UNKNOWN


@pytest.mark.parametrize(
    ("entry", "allowed"),
    [("node/edge-1", True), ("node/edge-*", True), ("node/*", True), ("node/edge-10", False), ("gateway/*", False)],
)
def test_who_needs_no_tpm_is_named(entry: str, allowed: bool) -> None:
    assert _parse(without_tpm=[entry]).allows_without_tpm(EDGE) is allowed


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 5)), max_size=200))
def test_no_source_gets_more_than_its_rate_and_the_table_never_more_than_its_bound(
    asks: list[tuple[int, float]],
) -> None:
    table, now, granted = RateTable(5, 60, most=40), 0.0, 0
    for source, pause in asks:
        now += pause
        allowed = table.take(str(source), now)
        granted += allowed and source == 0
        assert len(table) <= 40
    assert granted <= 5 + now


def test_the_oldest_source_makes_room() -> None:
    table = RateTable(1, 60, most=2)
    assert [table.take(source, 0.0) for source in ("a", "b", "a", "c")] == [True, True, False, True]
    assert len(table) == 2


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_what_counts_as_one_source(address: str, source: str) -> None:
    assert source_of(address) == source


@given(first=st.binary(max_size=512), secret=st.binary(max_size=32), binding=st.binary(max_size=32))
def test_a_session_comes_back_as_it_was(first: bytes, secret: bytes, binding: bytes) -> None:
    token = TokenUse(bytes(16), EDGE, 1.5, binding)
    session = Session("enrol", first, EDGE, bytes(32), bytes(32), secret, token, "abc")
    assert Session.decode(session.encode()) == session


async def test_the_longest_message_fits_into_hot_state() -> None:
    import base64
    import secrets

    clock = ManualClock()
    sessions = Sessions(MemoryHotState(HotStateSettings(), clock), 60, bytes(KEY_BYTES))
    longest = base64.b64encode(secrets.token_bytes(MAX_BEGIN_BYTES))[:MAX_BEGIN_BYTES]
    session = Session("enrol", longest, EDGE, bytes(32), bytes(32), bytes(32))
    assert await sessions.take(await sessions.open(session), "enrol") == session


async def test_a_session_is_taken_once_and_for_its_purpose() -> None:
    sessions = Sessions(MemoryHotState(HotStateSettings(), ManualClock()), 60, bytes(KEY_BYTES))
    session_id = await sessions.open(Session("enrol", b"", EDGE, bytes(32), bytes(32)))
    assert await sessions.take(session_id, "renew") is None
    assert await sessions.take(session_id, "enrol") is None


async def test_a_note_that_cannot_be_made_refuses_nobody(tmp_path: Path) -> None:
    use = CertificateUse(RedisHotState(RedisSettings(path=tmp_path / "nobody")))
    await use.note("a1")
    with pytest.raises(Fault) as caught:
        await use.was_noted("a1")
    assert caught.value.reason is Reason.HOT_STATE_UNAVAILABLE
