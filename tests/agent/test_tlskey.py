"""The TLS key inside the TPM, used by Python's ssl: proven by what the TPM's own log says."""

from __future__ import annotations

import asyncio
import gc
import ssl
from collections.abc import Iterator

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

import agent.openssl
from agent.openssl import use_foreign_key
from agent.tlskey import SoftwareTlsKey, TpmTlsKey, _throwaway_certificate, create_csr, self_test
from agent.tpm import Tpm
from foundation.faults import Fault
from foundation.reasons import Reason
from tests.support.swtpm import EmulatedTpm, maker, swtpm

__all__ = ["maker", "swtpm"]  # fixtures

_TPM_CC_SIGN = 0x15D


@pytest.fixture
def tpm(swtpm: EmulatedTpm) -> Iterator[Tpm]:
    with Tpm(swtpm.tcti) as opened:
        yield opened


@pytest.fixture
def key(tpm: Tpm) -> TpmTlsKey:
    return TpmTlsKey(tpm, tpm.create_tls_key())


def contexts(key: TpmTlsKey) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's, each with `key` and asking the other for it."""
    certificate = _throwaway_certificate(key)
    made = []
    for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        context = ssl.SSLContext(protocol)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=certificate)
        key.install(context, (certificate,))
        made.append(context)
    return made[0], made[1]


async def exchange(server: ssl.SSLContext, client: ssl.SSLContext) -> bytes:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(4))
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
        writer.write(b"ping")
        got = await reader.read()
        writer.close()
        return got


def test_the_self_test_counts_what_the_tpms_log_counts(swtpm: EmulatedTpm, key: TpmTlsKey) -> None:
    self_test(key)  # the TPM's first signature is sent twice: it tests the algorithm then
    before, signed = swtpm.command_codes().count(_TPM_CC_SIGN), key.signatures
    assert self_test(key) == 2
    # One more for the certificate that the test makes for itself.
    assert swtpm.command_codes().count(_TPM_CC_SIGN) - before == key.signatures - signed == 3


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_each_handshake_is_signed_in_the_tpm(swtpm: EmulatedTpm, key: TpmTlsKey, run: object) -> None:
    assert callable(run)
    server, client = contexts(key)
    before = swtpm.command_codes().count(_TPM_CC_SIGN)
    assert run(exchange(server, client)) == b"ping"
    assert swtpm.command_codes().count(_TPM_CC_SIGN) - before == 2


def test_two_keys_do_not_mix(swtpm: EmulatedTpm, tpm: Tpm, key: TpmTlsKey) -> None:
    other = TpmTlsKey(tpm, tpm.create_tls_key())
    first, second = contexts(key), contexts(other)
    signed = key.signatures, other.signatures
    assert asyncio.run(exchange(*second)) == b"ping"
    assert (key.signatures, other.signatures) == (signed[0], signed[1] + 2)
    assert asyncio.run(exchange(*first)) == b"ping"
    assert (key.signatures, other.signatures) == (signed[0] + 2, signed[1] + 2)


def test_a_context_keeps_its_key_and_a_dead_key_is_forgotten(tpm: Tpm) -> None:
    gc.collect()
    before = len(agent.openssl._signers)
    key: TpmTlsKey | None = TpmTlsKey(tpm, tpm.create_tls_key())
    assert key
    pair: tuple[ssl.SSLContext, ssl.SSLContext] | None = contexts(key)
    assert len(agent.openssl._signers) == before + 2
    key = None
    gc.collect()
    assert pair
    assert asyncio.run(exchange(*pair)) == b"ping"
    pair = None
    gc.collect()
    assert len(agent.openssl._signers) == before


def test_contexts_come_and_go_without_harm(key: TpmTlsKey) -> None:
    for _ in range(50):
        self_test(key)
        gc.collect(0)
    assert key.signatures == 150


def test_without_the_tpm_the_handshake_fails_and_says_why(swtpm: EmulatedTpm, key: TpmTlsKey) -> None:
    server, client = contexts(key)
    swtpm.power_off()
    with pytest.raises(OSError):  # noqa: PT011  # whichever side fails first
        asyncio.run(asyncio.wait_for(exchange(server, client), 10))
    assert key.fault is not None
    assert key.fault.reason is Reason.TPM_UNAVAILABLE
    with pytest.raises(Fault) as caught:
        self_test(key)
    assert caught.value.reason is Reason.TPM_UNAVAILABLE


def test_a_key_that_openssl_does_not_ask_is_found_out(key: TpmTlsKey, monkeypatch: pytest.MonkeyPatch) -> None:
    software = SoftwareTlsKey.generate()
    monkeypatch.setattr(TpmTlsKey, "install", lambda _self, context, chain: software.install(context, chain))
    monkeypatch.setattr(TpmTlsKey, "public_key", software.private_key().public_key(), raising=False)
    monkeypatch.setattr(TpmTlsKey, "private_key", lambda _self: software.private_key())
    key.__dict__.pop("public_key")
    with pytest.raises(Fault, match="0 signatures"):
        self_test(key)


def test_a_certificate_of_another_key_is_refused(tpm: Tpm, key: TpmTlsKey) -> None:
    other = _throwaway_certificate(TpmTlsKey(tpm, tpm.create_tls_key()))
    with pytest.raises(Fault) as caught:
        key.install(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), (other,))
    assert caught.value.reason is Reason.TLS_KEY_UNUSABLE
    # Nothing stays in OpenSSL's error queue for somebody else to find.
    assert self_test(key) == 2


@pytest.mark.parametrize("chain", [(b"",), (b"no certificate",)])
def test_what_is_no_certificate_is_refused(key: TpmTlsKey, chain: tuple[bytes, ...]) -> None:
    good = _throwaway_certificate(key)
    for bad in (chain, (good, *chain)):
        with pytest.raises(Fault, match="tls_key_unusable"):
            key.install(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), bad)


class Elsewhere:
    """Like a context whose layout is another: what stands behind the object header is no SSL_CTX."""

    __slots__ = ("behind_the_header", "choices")

    def __init__(self, behind_the_header: object) -> None:
        self.behind_the_header = behind_the_header
        self.choices = ssl.OP_ALL

    @property
    def options(self) -> int:
        return self.choices

    @options.setter
    def options(self, options: ssl.Options) -> None:
        self.choices = options


@pytest.mark.parametrize("behind", [bytes(8192), b"\xff" * 8192, None])
def test_another_layout_of_sslcontext_is_refused(key: TpmTlsKey, behind: object) -> None:
    with pytest.raises(Fault, match="laid out otherwise"):
        use_foreign_key(Elsewhere(behind), (b"",), b"\x04" + bytes(64), key)  # type: ignore[arg-type]


def test_options_that_do_not_move_are_refused(key: TpmTlsKey, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    library = agent.openssl._library()

    class Still:
        """An SSL_CTX that happens to hold the same options, and is not the context's."""

        options = context.options

        def SSL_CTX_get_options(self, _pointer: int) -> int:  # noqa: N802  # OpenSSL's name
            return self.options

    with pytest.raises(Fault, match="laid out otherwise"):
        agent.openssl._context_pointer(Still(), context)  # type: ignore[arg-type]
    assert agent.openssl._context_pointer(library, context)


def test_an_openssl_without_the_function_is_refused(key: TpmTlsKey, monkeypatch: pytest.MonkeyPatch) -> None:
    agent.openssl._library.cache_clear()
    monkeypatch.setitem(agent.openssl._FUNCTIONS, "EC_KEY_METHOD_gone", (None, ()))
    try:
        with pytest.raises(Fault, match="does not offer EC_KEY_METHOD_gone"):
            self_test(key)
    finally:
        agent.openssl._library.cache_clear()


def test_the_request_for_a_certificate_names_nothing(key: TpmTlsKey) -> None:
    request = x509.load_der_x509_csr(create_csr(key))
    assert request.is_signature_valid
    assert list(request.subject) == []
    assert list(request.extensions) == []


def test_the_key_in_the_tpm_gives_nothing_away(key: TpmTlsKey) -> None:
    private = key.private_key()
    for leak in (private.private_numbers, lambda: private.private_bytes(None, None, None)):
        with pytest.raises(Fault, match="does not leave the TPM"):
            leak()
    with pytest.raises(Fault, match="SHA-256"):
        private.sign(b"", ec.ECDSA(hashes.SHA384()))


def test_a_software_key_serves_from_memory() -> None:
    key = SoftwareTlsKey.generate()
    assert SoftwareTlsKey.parse(key.pem).spki == key.spki
    for bad in (b"", b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"):
        with pytest.raises(Fault, match="tls_key_unusable"):
            SoftwareTlsKey.parse(bad)
