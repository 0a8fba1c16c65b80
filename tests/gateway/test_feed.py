"""Following an authority elsewhere: whom it believes, what ends it, and what it never takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.client import Remote
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identifiers import Kind
from foundation.identity import Change, Heartbeat, SnapshotNumbers
from foundation.reasons import Reason
from foundation.tls import KeyPair, client_context
from foundation.wire.changes import encode_change
from gateway.feed import HttpFeed, UpstreamAuthoritySettings, lines
from pki.revocation_reason import RevocationReason
from tests.support.feeds import SHORT, answering, following, until_heartbeat
from tests.support.installation import Installation, installation
from tests.support.site import ACTOR

BEAT = Heartbeat(5.0, SnapshotNumbers(1, 2, 3, 4))
LINE = encode_change(BEAT)
SECTION = {"api": "authority.example:8445", "certificate": "/c", "root": "/r", "policy_key": "/p"}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Installation]:
    async with installation(tmp_path / "site") as made, asyncio.timeout(60):
        yield made


@pytest.fixture
async def gateway(site: Installation) -> KeyPair:
    return await site.certify("eu-1", Kind.GATEWAY)


def sending(*pieces: bytes, then: str = "ends") -> Callable[[], AsyncIterator[bytes]]:
    async def play() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece
        if then == "falls silent":
            await asyncio.Event().wait()

    return play


async def taken(feed: HttpFeed) -> tuple[list[Change], Reason]:
    """What was believed, and why it ended."""
    found: list[Change] = []
    try:
        async with feed.follow(None) as changes:
            async for change in changes:
                found.append(change)
    except Fault as fault:
        return found, fault.reason
    raise AssertionError("it ended without a reason")


async def test_each_heartbeat_is_heard(site: Installation, gateway: KeyPair) -> None:
    heard: list[float] = []
    async with (
        site.serving(limits=SHORT) as address,
        following(site, gateway, address.port, heard=heard.append).follow(None) as c,
    ):
        await until_heartbeat(c)
    assert heard == [site.clock.now()]


@pytest.mark.parametrize(
    ("pieces", "then", "reason", "count"),
    [
        ((), "ends", Reason.SERVER_UNREACHABLE, 0),
        ((LINE,), "falls silent", Reason.SERVER_UNREACHABLE, 1),
        ((), "falls silent", Reason.SERVER_UNREACHABLE, 0),
        ((LINE, b'{"type":"joke"}\n', LINE), "falls silent", Reason.MESSAGE_MALFORMED, 1),
        ((LINE, b"\n", LINE), "falls silent", Reason.MESSAGE_MALFORMED, 1),
        ((LINE, LINE[:-1]), "falls silent", Reason.SERVER_UNREACHABLE, 1),
        ((b"x" * 300_000 + b"\n",), "falls silent", Reason.MESSAGE_TOO_LARGE, 0),
    ],
)
async def test_what_ends_it(
    site: Installation, gateway: KeyPair, pieces: tuple[bytes, ...], then: str, reason: Reason, count: int
) -> None:
    async with answering(site, sending(*pieces, then=then)) as port:
        found, why = await taken(following(site, gateway, port, silence=0.2))
    assert found == [BEAT] * count
    assert why is reason


async def test_another_gateway_is_no_authority(site: Installation, gateway: KeyPair) -> None:
    """A stolen gateway's certificate chains to the root and bears the same name, and is not believed a word."""
    await site.certify("eu-2", Kind.GATEWAY)
    async with answering(site, sending(LINE, then="falls silent"), pair="gateway-eu-2") as port:
        found, why = await taken(following(site, gateway, port))
    assert (found, why) == ([], Reason.SERVER_UNTRUSTED)


async def test_a_server_under_another_root_is_told_nothing(
    site: Installation, gateway: KeyPair, tmp_path: Path
) -> None:
    asked: list[bool] = []

    async def play() -> AsyncIterator[bytes]:
        asked.append(True)
        yield LINE

    async with installation(tmp_path / "other") as other, answering(other, play) as port:
        found, why = await taken(following(site, gateway, port))
    assert (found, why, asked) == ([], Reason.SERVER_UNTRUSTED, [])


async def test_a_name_that_the_authority_does_not_bear_is_refused(site: Installation, gateway: KeyPair) -> None:
    async with answering(site, sending(LINE), host="127.0.0.2") as port:
        found, why = await taken(following(site, gateway, port, host="127.0.0.2"))
    assert (found, why) == ([], Reason.SERVER_UNTRUSTED)


async def test_nobody_there_is_a_fault(site: Installation, gateway: KeyPair) -> None:
    async with site.serving(limits=SHORT) as address:
        port = address.port
    assert await taken(following(site, gateway, port)) == ([], Reason.SERVER_UNREACHABLE)


async def test_a_revoked_gateway_is_cut_off_and_kept_out(site: Installation, gateway: KeyPair) -> None:
    async with site.serving(limits=SHORT) as address:
        feed = following(site, gateway, address.port)

        async def follow_on() -> None:
            async with feed.follow(None) as changes:
                await until_heartbeat(changes)
                await site.authority.revocations.revoke_identity(
                    site.id("eu-1", Kind.GATEWAY), RevocationReason.KEY_COMPROMISE, ACTOR
                )
                async for _ in changes:
                    site.clock.advance(1)  # the next heartbeat asks again whether it may go on

        async def advance() -> None:
            while True:
                await asyncio.sleep(0.01)
                site.clock.advance(0.5)

        ticking = asyncio.create_task(advance())
        with pytest.raises(Fault) as caught:
            await follow_on()
        ticking.cancel()
        assert caught.value.reason is Reason.SERVER_UNREACHABLE
        assert await taken(feed) == ([], Reason.IDENTITY_REVOKED)


async def test_a_renewed_certificate_is_used_from_the_next_connection_on(site: Installation, gateway: KeyPair) -> None:
    pairs = [gateway, await site.certify("eu-2", Kind.GATEWAY)]
    async with site.serving(limits=SHORT) as address:
        feed = following(site, gateway, address.port, context=lambda: client_context(site.root_pem, pair=pairs.pop(0)))
        await site.authority.inventory.quarantine(site.id("eu-2", Kind.GATEWAY), ACTOR)
        async with feed.follow(None) as changes:
            assert await until_heartbeat(changes)
        assert await taken(feed) == ([], Reason.IDENTITY_QUARANTINED)


@given(content=st.lists(st.binary(max_size=9).filter(lambda raw: b"\n" not in raw)), data=st.data())
@settings(max_examples=100)
def test_lines_do_not_depend_on_how_they_arrive(content: list[bytes], data: st.DataObject) -> None:
    raw = b"".join(line + b"\n" for line in content) + b"no end"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]

    async def arriving() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def read() -> list[bytes]:
        return [line async for line in lines(arriving(), 9)]

    assert asyncio.run(read()) == content


@pytest.mark.parametrize("pieces", [[b"0123456789\n"], [b"01234", b"56789"], [b"\n0123456789"]])
async def test_a_line_without_an_end_is_not_read_for_ever(pieces: list[bytes]) -> None:
    async def arriving() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    with pytest.raises(Fault) as caught:
        async for _ in lines(arriving(), 9):
            pass
    assert caught.value.reason is Reason.MESSAGE_TOO_LARGE


def test_its_settings_name_one_pair_and_one_root() -> None:
    section = Fields(SECTION | {"identity": "root-1"}, "upstream_authority", Reason.SETTING_INVALID)
    found = UpstreamAuthoritySettings.parse(section)
    pair = KeyPair(Path("/c"), Path("/c"))
    assert found == UpstreamAuthoritySettings(Remote("authority.example", 8445, pair, Path("/r")), Path("/p"), "root-1")
    assert Remote("::1", 1, pair, Path("/r")).address == "[::1]:1"


@pytest.mark.parametrize("api", ["", "authority", "authority:0", "authority:70000", "https://a:1", "a/b:1", ":1"])
def test_a_wrong_address_is_refused_by_its_name(api: str) -> None:
    section = Fields(SECTION | {"api": api}, "upstream_authority", Reason.SETTING_INVALID)
    with pytest.raises(Fault) as caught:
        UpstreamAuthoritySettings.parse(section)
    assert caught.value.field == "upstream_authority.api"
