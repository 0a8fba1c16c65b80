"""Enrolment and renewal with a TPM, against an authority that judges with other code than ours."""

from __future__ import annotations

import datetime
import hashlib
import select
import stat
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.verification import PolicyBuilder

from agent.channel import Channel
from agent.enrol import enrol
from agent.renew import is_due, renew
from agent.settings import Address, AgentSettings
from agent.store import NodeStore
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.enrolment import Begin, PcrSelection
from tests.fakes.clock import ManualClock
from tests.support.agent import EagerClock, quiet, settings_for
from tests.support.authority import SmallAuthority
from tests.support.swtpm import EmulatedTpm, TpmMaker, booted, maker, set_up_by_swtpm, swtpm

__all__ = ["maker", "swtpm"]  # fixtures


@pytest.fixture
def authority(tmp_path: Path) -> SmallAuthority:
    return SmallAuthority(tmp_path)


@pytest.mark.parametrize("ek", ["EK-ECC256", "EK-RSA2048", "EK-HIGH-ECC384"])
async def test_each_kind_of_ek_enrols(ek: str, tmp_path: Path, maker: TpmMaker, authority: SmallAuthority) -> None:
    with booted(tmp_path / "tpm", maker, ek) as device, authority.serving() as address:
        settings = settings_for(tmp_path, address, device)
        store = NodeStore(settings.directory)
        identity = await enrol(settings, authority.token, store, EagerClock(), quiet)
    begin = Begin.parse(authority.requests[0][1])
    certificate = x509.load_der_x509_certificate(begin.ek_certificate)
    certificate.verify_directly_issued_by(x509.load_der_x509_certificate(begin.ek_chain[0]))
    assert begin.ek_chain == maker.chain
    assert begin.token == authority.token.encode()
    assert identity.issued.spiffe_id == "spiffe://test/node/edge-1"
    assert identity.key.kind == "tpm"
    assert store.identity() == identity
    assert store.pending() is None
    assert authority.evidence[0].event_log == device.event_log.read_bytes()


async def test_a_device_made_by_swtpm_setup_enrols(tmp_path: Path, authority: SmallAuthority) -> None:
    device, _roots = set_up_by_swtpm(tmp_path / "tpm")
    with device, authority.serving() as address:
        settings = settings_for(tmp_path, address, device)
        await enrol(settings, authority.token, NodeStore(settings.directory), EagerClock(), quiet)
    begin = Begin.parse(authority.requests[0][1])
    assert x509.load_der_x509_certificate(begin.ek_certificate).public_key().key_size == 384
    assert begin.ek_chain == ()


async def test_files_are_private(tmp_path: Path, swtpm: EmulatedTpm, authority: SmallAuthority) -> None:
    with authority.serving() as address:
        settings = settings_for(tmp_path, address, swtpm)
        await enrol(settings, authority.token, NodeStore(settings.directory), EagerClock(), quiet)
    assert stat.S_IMODE(settings.directory.stat().st_mode) == 0o700
    kept = settings.directory / "identity.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    secret = authority.token.encode().encode()
    assert all(secret not in path.read_bytes() for path in settings.directory.iterdir())


async def test_without_a_tpm_a_software_key_proves_possession(tmp_path: Path, authority: SmallAuthority) -> None:
    with authority.serving() as address:
        settings = settings_for(tmp_path, address, None)
        store = NodeStore(settings.directory)
        identity = await enrol(settings, authority.token, store, EagerClock(), quiet)
        assert identity.issued.attestation == "none"
        assert identity.key.kind == "software"
    with authority.serving(mutual=True) as address:
        settings = replace(settings, renewal=Address.parse(address, "renewal"))
        renewed = await renew(settings, store, EagerClock(), quiet)
    assert renewed.key != identity.key


async def test_renewal_takes_a_new_key_over_mutual_tls(
    tmp_path: Path, swtpm: EmulatedTpm, authority: SmallAuthority
) -> None:
    with authority.serving() as address:
        settings = settings_for(tmp_path, address, swtpm)
        store = NodeStore(settings.directory)
        first = await enrol(settings, authority.token, store, EagerClock(), quiet)
    swtpm.shut_down()
    swtpm.boot()  # the key must be there after a reboot
    with authority.serving(mutual=True) as address:
        settings = replace(settings, renewal=Address.parse(address, "renewal"), tcti=swtpm.tcti)
        second = await renew(settings, store, EagerClock(), quiet)
    begin = Begin.parse(authority.requests[-2][1])
    assert (begin.purpose, begin.token, begin.ek_certificate, begin.ek_public) == ("renew", "", b"", b"")
    assert begin.node == "edge-1"
    assert _spki(first.issued.chain[0]) != _spki(second.issued.chain[0])
    assert store.identity() == second


async def test_a_lost_answer_is_asked_for_again_with_the_same_bytes(
    tmp_path: Path, swtpm: EmulatedTpm, authority: SmallAuthority
) -> None:
    authority.lose_answers = 2
    with authority.serving() as address:
        settings = settings_for(tmp_path, address, swtpm)
        identity = await enrol(settings, authority.token, NodeStore(settings.directory), EagerClock(), quiet)
    sent = [raw for path, raw in authority.requests if path == "/v1/enrol/complete"]
    assert len(sent) == 3
    assert len(set(sent)) == 1
    assert len(authority.results) == 1
    assert identity.issued.chain[0] in next(iter(_chains(authority)))


async def test_the_next_run_takes_up_what_was_lost(
    tmp_path: Path, swtpm: EmulatedTpm, authority: SmallAuthority
) -> None:
    authority.lose_answers = 100
    with authority.serving() as address:
        settings = settings_for(tmp_path, address, swtpm)
        store = NodeStore(settings.directory)
        with pytest.raises(Fault) as caught:
            await enrol(settings, authority.token, store, EagerClock(), quiet)
        assert caught.value.reason is Reason.SERVER_UNREACHABLE
        pending = store.pending()
        assert pending is not None
        authority.lose_answers = 0
        await enrol(settings, authority.token, store, EagerClock(), quiet)
    assert [path for path, _ in authority.requests].count("/v1/enrol/begin") == 1
    assert authority.requests[-1][1] == pending.message
    assert len(authority.results) == 1


async def test_what_the_authority_no_longer_takes_is_begun_anew(
    tmp_path: Path, swtpm: EmulatedTpm, authority: SmallAuthority
) -> None:
    with authority.serving() as address:
        settings = settings_for(tmp_path, address, swtpm)
        store = NodeStore(settings.directory)
        authority.lose_answers = 100
        with pytest.raises(Fault):
            await enrol(settings, authority.token, store, EagerClock(), quiet)
        authority.lose_answers = 0
        authority.results.clear()  # it was restored from a backup: session and result are gone
        await enrol(settings, authority.token, store, EagerClock(), quiet)
    assert [path for path, _ in authority.requests].count("/v1/enrol/begin") == 2
    assert store.pending() is None


async def test_a_refusal_carries_the_authoritys_reason_and_leaves_nothing(
    tmp_path: Path, swtpm: EmulatedTpm, authority: SmallAuthority
) -> None:
    authority.refuse = Reason.ENROLMENT_REFUSED
    with authority.serving() as address:
        settings = settings_for(tmp_path, address, swtpm)
        store = NodeStore(settings.directory)
        with pytest.raises(Fault) as caught:
            await enrol(settings, authority.token, store, EagerClock(), quiet)
    assert caught.value.reason is Reason.ENROLMENT_REFUSED
    assert caught.value.detail == "as the test asked"
    assert store.pending() is None
    with pytest.raises(Fault, match="not_enrolled"):
        store.identity()


async def test_nothing_is_said_to_a_server_without_the_tokens_root(
    tmp_path: Path, swtpm: EmulatedTpm, authority: SmallAuthority
) -> None:
    stranger = SmallAuthority(tmp_path)
    with stranger.serving() as address:
        settings = settings_for(tmp_path, address, swtpm)
        await _refused(settings, authority, Reason.SERVER_UNTRUSTED)
    assert stranger.requests == []


async def test_nothing_is_said_to_a_server_that_only_shows_the_root(
    tmp_path: Path, swtpm: EmulatedTpm, authority: SmallAuthority
) -> None:
    impostor = SmallAuthority(tmp_path)  # its own keys, our root appended to its chain
    impostor.server_pem.write_bytes(impostor.server_pem.read_bytes() + authority.root.public_bytes(Encoding.PEM))
    with impostor.serving() as address:
        await _refused(settings_for(tmp_path, address, swtpm), authority, Reason.SERVER_UNTRUSTED)
    assert impostor.requests == []


async def test_nothing_is_said_to_a_server_of_another_name(tmp_path: Path) -> None:
    authority = SmallAuthority(tmp_path, names=("127.0.0.2",))
    with authority.serving() as address:
        await _refused(settings_for(tmp_path, address, None), authority, Reason.SERVER_UNTRUSTED)
    assert authority.requests == []


async def test_nothing_is_said_to_a_server_whose_certificate_has_ended(
    tmp_path: Path, authority: SmallAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=2)
    builder = PolicyBuilder().time(later)
    monkeypatch.setattr("agent.channel.verification.PolicyBuilder", lambda: builder)
    with authority.serving() as address:
        await _refused(settings_for(tmp_path, address, None), authority, Reason.SERVER_UNTRUSTED)
    assert authority.requests == []


async def test_both_messages_go_over_one_connection(tmp_path: Path, authority: SmallAuthority) -> None:
    with authority.serving() as address:
        settings = settings_for(tmp_path, address, None)
        await enrol(settings, authority.token, NodeStore(settings.directory), EagerClock(), quiet)
    assert authority.connections == 1


async def test_a_server_that_hung_up_meanwhile_is_connected_to_again(tmp_path: Path) -> None:
    authority = SmallAuthority(tmp_path, impatient=True)
    with authority.serving() as address:
        settings = settings_for(tmp_path, address, None)
        where = Address.parse(address, "authority")
        channel, _root = Channel.pinned(where, authority.token.root_sha256, 5.0)
        with closing(channel):
            select.select([channel._http.sock], [], [], 5.0)  # its goodbye has come
            with pytest.raises(Fault) as caught:
                channel.post("/v1/enrol/begin", b"")
        assert caught.value.reason is not Reason.SERVER_UNREACHABLE
        await enrol(settings, authority.token, NodeStore(settings.directory), EagerClock(), quiet)


async def test_a_server_whose_key_is_not_the_authoritys_is_a_relay(
    tmp_path: Path, swtpm: EmulatedTpm, authority: SmallAuthority
) -> None:
    authority.claimed_spki = hashlib.sha256(b"the authority behind the relay").digest()
    with authority.serving() as address:
        await _refused(settings_for(tmp_path, address, swtpm), authority, Reason.SERVER_UNTRUSTED)
    assert [path for path, _ in authority.requests] == ["/v1/enrol/begin"]


async def test_a_certificate_for_another_key_is_not_kept(
    tmp_path: Path, swtpm: EmulatedTpm, authority: SmallAuthority
) -> None:
    authority.issue_for_other_key = True
    with authority.serving() as address:
        settings = settings_for(tmp_path, address, swtpm)
        await _refused(settings, authority, Reason.SERVER_UNTRUSTED)
    assert not (settings.directory / "identity.json").exists()
    assert NodeStore(settings.directory).pending() is None


async def test_told_to_come_later_the_message_stays(tmp_path: Path, authority: SmallAuthority) -> None:
    with authority.serving() as address:
        settings = settings_for(tmp_path, address, None)
        store = NodeStore(settings.directory)
        authority.refuse_complete = Reason.ENROLMENT_RATE_LIMITED
        await _refused(settings, authority, Reason.ENROLMENT_RATE_LIMITED)
        assert store.pending() is not None
        authority.refuse_complete = None
        await enrol(settings, authority.token, store, EagerClock(), quiet)
    assert [path for path, _ in authority.requests].count("/v1/enrol/begin") == 1


async def test_a_token_of_another_authority_begins_there(tmp_path: Path, authority: SmallAuthority) -> None:
    authority.lose_answers = 100
    with authority.serving() as address:
        settings = settings_for(tmp_path, address, None)
        await _refused(settings, authority, Reason.SERVER_UNREACHABLE)
    other = SmallAuthority(tmp_path)
    with other.serving() as address:
        settings = settings_for(tmp_path, address, None)
        store = NodeStore(settings.directory)
        identity = await enrol(settings, other.token, store, EagerClock(), quiet)
    assert identity.root == other.root.public_bytes(Encoding.DER)
    assert store.pending() is None


async def test_a_bank_that_is_not_active_is_named(tmp_path: Path, authority: SmallAuthority) -> None:
    authority.pcrs = PcrSelection("sha384", (0, 7))
    device, _roots = set_up_by_swtpm(tmp_path / "tpm")
    with device, authority.serving() as address:
        await _refused(settings_for(tmp_path, address, device), authority, Reason.QUOTE_SELECTION)


async def test_one_at_a_time(tmp_path: Path, authority: SmallAuthority) -> None:
    settings = settings_for(tmp_path, "127.0.0.1:1", None)
    with NodeStore(settings.directory).exclusively():
        await _refused(settings, authority, Reason.OVERLOADED)


async def test_an_absent_tpm_is_named(tmp_path: Path, authority: SmallAuthority) -> None:
    with authority.serving() as address:
        settings = replace(settings_for(tmp_path, address, None), attestation="tpm", tcti="device:/dev/no-tpm")
        await _refused(settings, authority, Reason.TPM_UNAVAILABLE)
    assert authority.requests == []


async def test_due_is_what_the_authority_said(tmp_path: Path, authority: SmallAuthority) -> None:
    with authority.serving() as address:
        settings = settings_for(tmp_path, address, None)
        identity = await enrol(settings, authority.token, NodeStore(settings.directory), EagerClock(), quiet)
    assert not is_due(identity, ManualClock(identity.issued.renew_after - 1))
    assert is_due(identity, ManualClock(identity.issued.renew_after))


async def _refused(settings: AgentSettings, authority: SmallAuthority, reason: Reason) -> None:
    with pytest.raises(Fault) as caught:
        await enrol(settings, authority.token, NodeStore(settings.directory), EagerClock(), quiet)
    assert caught.value.reason is reason, caught.value


def _spki(certificate: bytes) -> bytes:
    key = x509.load_der_x509_certificate(certificate).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _chains(authority: SmallAuthority) -> list[tuple[bytes, ...]]:
    from foundation.wire.enrolment import Issued

    return [Issued.parse(raw).chain for raw in authority.results.values()]
