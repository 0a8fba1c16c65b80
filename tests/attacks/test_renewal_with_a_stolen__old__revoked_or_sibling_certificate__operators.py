"""Class "renewal with a stolen, old, revoked or sibling certificate", of operators: whoever holds an older certificate,
or another operator's, gets nothing by it, and the attempt is on record."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from cryptography import x509

from foundation.identifiers import Kind
from foundation.leaf import spiffe_id
from foundation.tls import KeyPair, client_context
from pki.pending_pair import PendingPair
from pki.revocation_reason import RevocationReason
from tests.support.enforced import Enforced
from tests.support.installation import Installation, installation

RENEWAL = "/v1/self/certificate"


class Renewals:
    """An authority with the real policy, and whoever asks it."""

    def __init__(self, site: Installation, policy: Enforced, port: int, folder: Path) -> None:
        self.site = site
        self._policy = policy
        self._url = f"https://localhost:{port}{RENEWAL}"
        self._folder = folder

    async def renew(self, pair: KeyPair, kept_as: str, **more: Any) -> tuple[PendingPair, dict[str, Any]]:
        """By the certificate of `pair`; the answer, and what waits for it as `kept_as`."""
        await self._policy.catch_up()
        waiting = PendingPair.open(KeyPair(self._folder / f"{kept_as}.pem", self._folder / f"{kept_as}.key"))
        body = {"csr": base64.b64encode(waiting.request()).decode(), **more}
        context = client_context(self.site.root_pem, pair=pair)
        async with aiohttp.ClientSession() as session, session.post(self._url, json=body, ssl=context) as response:
            answer: dict[str, Any] = json.loads(await response.read())
        return waiting, answer


@asynccontextmanager
async def _renewals(tmp_path: Path) -> AsyncIterator[Renewals]:
    async with installation(tmp_path / "site") as site:
        policy = Enforced(site)
        await policy.load()
        async with site.serving(policy.authorizer) as address:
            yield Renewals(site, policy, address.port, tmp_path)


async def test_a_stolen_certificate_is_found_out(tmp_path: Path) -> None:
    async with _renewals(tmp_path) as asked:
        stolen = await asked.site.certify("ada", Kind.OPERATOR, ("viewer",))
        mine, answer = await asked.renew(stolen, "mine")
        mine.keep(answer["pem"].encode())
        _, theirs = await asked.renew(stolen, "theirs")
        assert theirs["reason"] == "certificate_superseded"
        assert asked.site.reasons("renew.refused") == ["certificate_superseded"]
        _, following = await asked.renew(mine.pair, "following")
    assert "pem" in following


async def test_a_revoked_one_renews_nothing(tmp_path: Path) -> None:
    async with _renewals(tmp_path) as asked:
        pair = await asked.site.certify("ada", Kind.OPERATOR, ("viewer",))
        serial = (await asked.site.authority.inventory.get(asked.site.id("ada", Kind.OPERATOR))).current_serial
        await asked.site.authority.revocations.revoke_certificate(serial, RevocationReason.KEY_COMPROMISE, "test")
        _, answer = await asked.renew(pair, "next")
    assert answer["reason"] == "identity_revoked"


async def test_who_calls_is_who_is_renewed(tmp_path: Path) -> None:
    async with _renewals(tmp_path) as asked:
        pair = await asked.site.certify("ada", Kind.OPERATOR, ("viewer",))
        _, refused = await asked.renew(pair, "as-admin", name="admin")
        _, answer = await asked.renew(pair, "as-admin")
    assert refused["reason"] == "message_malformed"
    (certificate, _) = x509.load_pem_x509_certificates(answer["pem"].encode())
    assert spiffe_id(certificate).name == "ada"
