"""Follows an authority elsewhere: `foundation.ports.ChangeFeed` over HTTPS, one connection for each following.

Laws held here:
- nothing is taken from a server that does not chain to the pinned root, bear the name that was dialled, and be the
  authority by its SPIFFE ID: another gateway's certificate, stolen or not, is no authority;
- silence ends it: heartbeats come every two seconds, and a reader that hears nothing for `silence` stops believing;
- every line is bounded, and strictly one change. A line that is not ends it, for what comes behind cannot be trusted.

Connecting again is the follower's (`gateway.follow`).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from cryptography import x509

from foundation.client import Remote, refusal
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identifiers import SpiffeId
from foundation.identity import Change, Heartbeat, SnapshotNumbers
from foundation.leaf import spiffe_id
from foundation.reasons import Reason
from foundation.tls import KeyPair, peer_certificate
from foundation.wire.changes import MAX_LINE_BYTES, parse_change

SILENCE = 10.0  # seconds; five heartbeats
CONNECT_SECONDS = 10.0
MAX_PROBLEM_BYTES = 64 * 1024
LARGE_LINE = 256 * 1024  # bytes; parsing more than that takes long enough to be done elsewhere


@dataclass(frozen=True, slots=True)
class UpstreamAuthoritySettings:
    """Section `[upstream_authority]`, for the role `gateway`. `api` is the authority's API, what proves us there (key
    and chain in one PEM file, which the agent writes) and the root that proves it; `identity` is the name of the
    authority's own identity (`[authority] server_name` there); `policy_key` holds the policy signing key's public
    half."""

    api: Remote
    policy_key: Path
    identity: str = "sallyport"

    @classmethod
    def parse(cls, fields: Fields) -> UpstreamAuthoritySettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        settings = cls(_remote(fields), Path(fields.text("policy_key")), fields.text("identity", "sallyport"))
        fields.finish()
        return settings


def _remote(fields: Fields) -> Remote:
    address, certificate, root = fields.text("api", max_length=300), fields.text("certificate"), fields.text("root")
    try:
        return Remote.parse(address, KeyPair(Path(certificate), Path(certificate)), Path(root))
    except Fault as fault:
        raise fields.fault("api", fault.detail) from None


class HttpFeed:
    """Implements `foundation.ports.ChangeFeed`.

    address: `host:port`. authority: whom to expect there. context: asked at every connection, so that a renewed
    certificate is used. heard: told the authority's time (seconds since the Unix epoch) of each heartbeat."""

    def __init__(
        self,
        address: str,
        authority: SpiffeId,
        context: Callable[[], ssl.SSLContext],
        heard: Callable[[float], None],
        *,
        silence: float = SILENCE,
    ) -> None:
        self._address = address
        self._authority = authority
        self._context = context
        self._heard = heard
        self._silence = silence

    def follow(self, since: SnapshotNumbers | None) -> AbstractAsyncContextManager[AsyncIterator[Change]]:
        """See `foundation.ports.ChangeFeed.follow`. The iterator raises `Fault` when the connection breaks."""
        return aclosing(self._changes(since))

    async def _changes(self, since: SnapshotNumbers | None) -> AsyncGenerator[Change, None]:
        query = {} if since is None else {name: str(number) for name, number in since._asdict().items()}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=self._silence)
        connector = aiohttp.TCPConnector(ssl=self._context(), limit=1, force_close=True)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session,
                session.get(f"https://{self._address}/v1/feed", params=query, allow_redirects=False) as response,
            ):
                await check_authority(response, self._authority, self._address)
                async for line in lines(response.content.iter_any()):
                    change = await _parse(line)
                    if isinstance(change, Heartbeat):
                        self._heard(change.at)
                    yield change
        except aiohttp.ClientConnectorCertificateError as error:
            raise Fault(Reason.SERVER_UNTRUSTED, str(error.certificate_error), field=self._address) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Fault(Reason.SERVER_UNREACHABLE, type(error).__name__, field=self._address) from error
        raise Fault(Reason.SERVER_UNREACHABLE, "the authority ended the feed", field=self._address)


async def check_authority(response: aiohttp.ClientResponse, authority: SpiffeId, address: str) -> None:
    """The server is the authority, and agrees. Raises `Fault`."""
    if response.status != 200:
        raise refusal(response.status, await response.content.read(MAX_PROBLEM_BYTES))
    if response.connection is None:  # it ended already, and with it what would tell us who that was
        raise Fault(Reason.SERVER_UNREACHABLE, "the authority ended the connection", field=address)
    leaf = peer_certificate(response.connection.transport)
    if leaf is None or _named(leaf) != authority:
        raise Fault(Reason.SERVER_UNTRUSTED, f"it is not {authority}", field=address)


def _named(leaf: bytes) -> SpiffeId | None:
    try:
        return spiffe_id(x509.load_der_x509_certificate(leaf))
    except (ValueError, Fault):
        return None


async def lines(pieces: AsyncIterator[bytes], most: int = MAX_LINE_BYTES) -> AsyncIterator[bytes]:
    """The lines in `pieces`, without their newlines. What follows the last newline is no line. Raises
    `Fault(MESSAGE_TOO_LARGE)` once a line is longer than `most` bytes."""
    rest = bytearray()
    async for piece in pieces:
        *ends, tail = piece.split(b"\n")
        for end in ends:
            yield bytes(_bounded(rest, end, most))
            rest.clear()
        _bounded(rest, tail, most)


def _bounded(line: bytearray, more: bytes, most: int) -> bytearray:
    line += more
    if len(line) > most:
        raise Fault(Reason.MESSAGE_TOO_LARGE, f"a line has at most {most} bytes", field="change")
    return line


async def _parse(line: bytes) -> Change:
    return parse_change(line) if len(line) <= LARGE_LINE else await asyncio.to_thread(parse_change, line)
