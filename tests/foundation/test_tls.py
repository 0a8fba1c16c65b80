"""Contexts, by real handshakes: TLS 1.3 alone, no tickets, one regime a context, named roots alone."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.tls import client_context, server_context, spki_sha256
from tests.support.certificates import SmallAuthority

REFUSED = (ssl.SSLError, ConnectionError)
ID = "spiffe://fleet.example/operator/ada"


@pytest.fixture
def authority(tmp_path: Path) -> SmallAuthority:
    return SmallAuthority(tmp_path)


@contextmanager
def _echo(context: ssl.SSLContext) -> Iterator[int]:
    """A server that shakes hands, sends `hello` and hangs up, one connection after the other."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(20)

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(connection, server_side=True) as tls:
                    tls.sendall(b"hello")
            except OSError:
                connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


def _connect(port: int, context: ssl.SSLContext, use: Callable[[ssl.SSLSocket], None] = lambda _: None) -> bytes:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        greeting = tls.recv(16)
        use(tls)
        return greeting


def test_both_sides_speak_1_3_and_get_no_ticket(authority: SmallAuthority) -> None:
    seen: list[tuple[str | None, bool]] = []

    def look(tls: ssl.SSLSocket) -> None:
        seen.append((tls.version(), tls.session is not None and tls.session.has_ticket))

    with _echo(server_context(authority.server(), client_roots=None)) as port:
        assert _connect(port, client_context(authority.pem), look) == b"hello"
    assert seen == [("TLSv1.3", False)]


def test_tls_1_2_is_refused(authority: SmallAuthority) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(cadata=authority.pem.decode())
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with _echo(server_context(authority.server(), client_roots=None)) as port, pytest.raises(REFUSED):
        _connect(port, old)


def test_a_client_without_a_certificate_gets_nothing(authority: SmallAuthority) -> None:
    with _echo(server_context(authority.server(), client_roots=authority.pem)) as port, pytest.raises(REFUSED):
        assert _connect(port, client_context(authority.pem)) != b"hello"


@pytest.mark.parametrize("fault", ["expired", "of another authority", "a server's"])
def test_a_client_with_a_wrong_certificate_gets_nothing(authority: SmallAuthority, tmp_path: Path, fault: str) -> None:
    (tmp_path / "other").mkdir()
    pair = {
        "expired": lambda: authority.client(ID, days=-1),
        "of another authority": lambda: SmallAuthority(tmp_path / "other").client(ID),
        "a server's": lambda: authority.server("another"),
    }[fault]()
    with _echo(server_context(authority.server(), client_roots=authority.pem)) as port, pytest.raises(REFUSED):
        assert _connect(port, client_context(authority.pem, pair=pair)) != b"hello"


def test_a_client_refuses_another_root_and_another_name(authority: SmallAuthority, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    stranger = SmallAuthority(tmp_path / "other")
    for pair in (stranger.server(), authority.server("elsewhere", "elsewhere.example")):
        with _echo(server_context(pair, client_roots=None)) as port, pytest.raises(ssl.SSLCertVerificationError):
            _connect(port, client_context(authority.pem))


def test_a_context_knows_the_key_it_answers_with(authority: SmallAuthority) -> None:
    pair = authority.server()
    leaf = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
    assert server_context(pair, client_roots=None).spki_sha256 == spki_sha256(leaf)


def test_a_key_that_others_may_read_is_not_loaded(authority: SmallAuthority) -> None:
    pair = authority.server()
    pair.key.chmod(0o640)
    with pytest.raises(Fault) as caught:
        server_context(pair, client_roots=None)
    assert caught.value.reason is Reason.FILE_MODE_UNSAFE


def test_a_pair_that_does_not_fit_is_refused(authority: SmallAuthority) -> None:
    wrong = authority.server()._replace(key=authority.server("another").key)
    with pytest.raises(Fault) as caught:
        server_context(wrong, client_roots=None)
    assert caught.value.reason is Reason.FILE_UNREADABLE
