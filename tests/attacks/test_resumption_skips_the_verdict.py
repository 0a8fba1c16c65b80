"""Row "resumption skips the verdict" (CVE-2025-23419, CVE-2025-23048): no session is ever resumed, so every connection
proves its certificate and is judged anew. TLS 1.2, which has other ways to resume, is refused."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from foundation.identity import Revocation
from foundation.reasons import Reason
from foundation.tls import KeyPair
from tests.fakes.trust import spiffe
from tests.support.gateway import HOST, DataPlane, RawUpstream, gateway_to, request_bytes


class BlockingClient:
    """Python's blocking TLS client: the one that can offer a session."""

    def __init__(self, plane: DataPlane, pair: KeyPair) -> None:
        self.context = ssl.create_default_context(cadata=plane.authority.pem.decode())
        self.context.check_hostname = False
        self.context.load_cert_chain(pair.certificate, pair.key)
        self.address = plane.address

    def ask(self, session: ssl.SSLSession | None) -> tuple[bytes, bool, ssl.SSLSession | None]:
        """The answer to one request, whether the session was resumed, and the one to resume next."""
        import socket

        with (
            socket.create_connection(self.address, timeout=10) as plain,
            self.context.wrap_socket(plain, server_hostname=HOST, session=session) as connection,
        ):
            connection.sendall(request_bytes("GET", "/x", "Connection: close"))
            answer = b""
            while data := connection.recv(65536):
                answer += data
            return answer, bool(connection.session_reused), connection.session


async def test_no_session_is_resumed_after_revocation_or_expiry(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(), tmp_path) as plane:
        client = BlockingClient(plane, plane.pair())
        answer, _, session = await asyncio.to_thread(client.ask, None)
        assert answer.startswith(b"HTTP/1.1 200")
        assert session is None or not session.has_ticket
        answer, resumed, _ = await asyncio.to_thread(client.ask, session)
        assert answer.startswith(b"HTTP/1.1 200")
        assert not resumed
        plane.store.apply(Revocation(1, spiffe(), "", "key_compromise", 1.0))
        answer, resumed, _ = await asyncio.to_thread(client.ask, session)
        assert not resumed
        assert Reason.IDENTITY_REVOKED.code.encode() in answer
    assert plane.context.num_tickets == 0


async def test_tls_1_2_is_refused(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(), tmp_path) as plane:
        client = BlockingClient(plane, plane.pair())
        client.context.minimum_version = client.context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError):
            await asyncio.to_thread(client.ask, None)
