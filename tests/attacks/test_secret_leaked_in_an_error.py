"""Attack class "secret leaked in an error" (CVE-2023-38201): no error body, log or record holds what answers a
challenge, or a token; one attempt per challenge."""

from __future__ import annotations

import base64
import logging
from pathlib import Path

import pytest

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.enrolment import Complete, Token
from pki.enrol import sessions
from pki.enrol.origin import Origin
from pki.issue import IssueRequest
from tests.support.installation import Installation, installation, post
from tests.support.node import Node, node_id, software_node, tpm_node
from tests.support.swtpm import EmulatedTpm, TpmMaker, maker, swtpm

__all__ = ["maker", "swtpm"]
SECRET = bytes(range(200, 232))


def _spellings(secret: bytes) -> list[str]:
    standard = base64.b64encode(secret).decode().rstrip("=")
    return [secret.hex(), standard, base64.urlsafe_b64encode(secret).decode().rstrip("="), repr(secret)[2:-1]]


def _holds(text: str, secret: bytes) -> bool:
    return any(spelling in text for spelling in _spellings(secret))


def _everything(site: Installation, caplog: pytest.LogCaptureFixture, *more: bytes) -> str:
    return caplog.text + repr(site.audit.events) + "".join(body.decode() for body in more)


async def test_a_wrong_proof_tells_nothing_and_ends_the_session(
    tmp_path: Path,
    swtpm: EmulatedTpm,
    maker: TpmMaker,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr("pki.enrol.native.new_secret", lambda: SECRET)
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site, site.enrolling() as address:
        token = await site.token()
        with tpm_node(swtpm) as inner:
            node = Node(inner.prover, origin=Origin("127.0.0.1", site.context(mutual=False).spki_sha256))
            first = node.begin(token)
            _, challenge = await post(address, "/v1/enrol/begin", first, site.stranger())
            right = node.complete(first, challenge)
        parsed = Complete.parse(right)
        wrong = Complete(parsed.session, parsed.evidence, bytes(32)).encode()
        status, refusal = await post(address, "/v1/enrol/complete", wrong, site.stranger())
        assert (status, b"proof_wrong" in refusal) == (403, True)
        status, after = await post(address, "/v1/enrol/complete", right, site.stranger())
        assert (status, b"session_unknown" in after) == (403, True)
        told = _everything(site, caplog, refusal, after)
    assert not _holds(told, SECRET)
    assert not _holds(told, token.secret)
    assert token.encode() not in told


async def test_what_breaks_inside_is_not_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)

    async def broken(request: IssueRequest) -> None:
        raise RuntimeError(f"cannot issue, the secret was {SECRET.hex()}")

    async with installation(tmp_path / "site", without_tpm=("node/*",)) as site, site.enrolling() as address:
        node = Node(software_node().prover, origin=Origin("127.0.0.1", site.context(mutual=False).spki_sha256))
        first = node.begin(await site.token())
        _, challenge = await post(address, "/v1/enrol/begin", first, site.stranger())
        monkeypatch.setattr(site.authority, "issue", broken)
        second = node.complete(first, challenge)
        status, body = await post(address, "/v1/enrol/complete", second, site.stranger())
        told = _everything(site, caplog, body)
    assert status == 500
    assert b"internal" in body
    assert not _holds(told, SECRET)


def test_no_value_that_holds_a_secret_shows_it() -> None:
    token = Token(bytes(32), bytes(16), SECRET)
    session = sessions.Session("enrol", b"", node_id(), bytes(32), bytes(32), SECRET)
    assert not any(_holds(repr(value), SECRET) for value in (token, session, Fault(Reason.PROOF_WRONG)))
