"""A private key that stays elsewhere, put into Python's `ssl` (docs/adr/0001-tls-key-in-the-tpm.md).

OpenSSL lets a program put its own functions behind an elliptic-curve key (EC_KEY_METHOD(3)). This module makes such a
key in the very libcrypto that Python's `_ssl` is linked with, and sets it in an `ssl.SSLContext`; a handshake then asks
our function for its signature.

Laws held here:
- nothing is dereferenced on trust: the SSL_CTX is found behind CPython's object header, and is believed only when it
  lies in writable memory and its options read and move as Python's do; anything else is `Fault(TLS_KEY_UNUSABLE)`;
- what OpenSSL may call lives as long as the process: one method, one callback, never freed, and made once, whichever
  threads come first. A key carries a number and no pointer of ours, so nothing can dangle when OpenSSL frees or copies
  it;
- a callback never raises: it answers 0, and the handshake fails.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import ssl
import sys
import threading
import weakref
from ctypes import POINTER, c_char_p, c_int, c_long, c_size_t, c_uint, c_uint64, c_void_p
from pathlib import Path
from typing import Protocol

from foundation.faults import Fault
from foundation.reasons import Reason


class Signer(Protocol):
    """Who holds the key."""

    def sign(self, digest: bytes) -> bytes:
        """An ECDSA signature in DER (RFC 3279 §2.2.3). Called on the thread that does the handshake."""
        ...


_P256_NID = 415
_EVP_PKEY_EC = 408
_CRYPTO_EX_INDEX_EC_KEY = 8
_SSL_CTRL_CHAIN_CERT = 89
_DIGEST_BYTES = 32
_MAX_SIGNATURE_BYTES = 72
_PROBE_OPTION = ssl.OP_CIPHER_SERVER_PREFERENCE  # without effect on a client, and off by default there

_SIGN = ctypes.CFUNCTYPE(
    c_int, c_int, c_void_p, c_int, c_void_p, POINTER(c_uint), c_void_p, c_void_p, c_void_p, use_errno=False
)
_FUNCTIONS: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "SSL_CTX_get_options": (c_uint64, (c_void_p,)),
    "SSL_CTX_use_certificate_ASN1": (c_int, (c_void_p, c_int, c_char_p)),
    "SSL_CTX_use_PrivateKey": (c_int, (c_void_p, c_void_p)),
    "SSL_CTX_check_private_key": (c_int, (c_void_p,)),
    "SSL_CTX_ctrl": (c_long, (c_void_p, c_int, c_long, c_void_p)),
    "d2i_X509": (c_void_p, (c_void_p, POINTER(c_char_p), c_long)),
    "X509_free": (None, (c_void_p,)),
    "EC_KEY_OpenSSL": (c_void_p, ()),
    "EC_KEY_METHOD_new": (c_void_p, (c_void_p,)),
    "EC_KEY_METHOD_set_sign": (None, (c_void_p, _SIGN, c_void_p, c_void_p)),
    "EC_KEY_new_by_curve_name": (c_void_p, (c_int,)),
    "EC_KEY_free": (None, (c_void_p,)),
    "EC_KEY_oct2key": (c_int, (c_void_p, c_char_p, c_size_t, c_void_p)),
    "EC_KEY_set_method": (c_int, (c_void_p, c_void_p)),
    "CRYPTO_get_ex_new_index": (c_int, (c_int, c_long, c_void_p, c_void_p, c_void_p, c_void_p)),
    "EC_KEY_set_ex_data": (c_int, (c_void_p, c_int, c_void_p)),
    "EC_KEY_get_ex_data": (c_void_p, (c_void_p, c_int)),
    "EVP_PKEY_new": (c_void_p, ()),
    "EVP_PKEY_free": (None, (c_void_p,)),
    "EVP_PKEY_assign": (c_int, (c_void_p, c_int, c_void_p)),
    "ERR_clear_error": (None, ()),
}
# Weak: a context keeps its signer alive, and every connection its context.
_signers: weakref.WeakValueDictionary[int, Signer] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)
_making = threading.Lock()


def use_foreign_key(context: ssl.SSLContext, chain: tuple[bytes, ...], point: bytes, signer: Signer) -> None:
    """Make `context` present `chain` (DER, leaf first) and sign with `signer`. `point` is the P-256 public key as an
    uncompressed point (SEC 1 §2.3.3). Raises `Fault(TLS_KEY_UNUSABLE)`; the context is then not to be used."""
    lib = _prepared()
    pointer = _context_pointer(lib, context)
    number = next(_numbers)
    _signers[number] = context._signer = signer  # type: ignore[attr-defined]  # our own attribute: its owner
    key = _foreign_key(lib, point, number)
    try:
        _check(lib, lib.SSL_CTX_use_certificate_ASN1(pointer, len(chain[0]), chain[0]), "certificate")
        for certificate in chain[1:]:
            _add_to_chain(lib, pointer, certificate)
        _check(lib, lib.SSL_CTX_use_PrivateKey(pointer, key), "private key")
        _check(lib, lib.SSL_CTX_check_private_key(pointer), "private key against certificate")
    finally:
        lib.EVP_PKEY_free(key)


def _foreign_key(lib: ctypes.CDLL, point: bytes, number: int) -> int:
    """An EVP_PKEY with our method, the signer's number, and no private part."""
    key = lib.EC_KEY_new_by_curve_name(_P256_NID)
    try:
        _check(lib, lib.EC_KEY_oct2key(key, point, len(point), None), "public point")
        _check(lib, lib.EC_KEY_set_method(key, _method(lib)), "key method")
        _check(lib, lib.EC_KEY_set_ex_data(key, _slot(lib), number), "key's number")
        holder: int = lib.EVP_PKEY_new()
        _check(lib, lib.EVP_PKEY_assign(holder, _EVP_PKEY_EC, key), "key")
    except Fault:
        lib.EC_KEY_free(key)
        raise
    return holder


def _add_to_chain(lib: ctypes.CDLL, pointer: int, der: bytes) -> None:
    start = c_char_p(der)
    certificate = lib.d2i_X509(None, ctypes.byref(start), len(der))
    _check(lib, certificate, "chain certificate")
    if not lib.SSL_CTX_ctrl(pointer, _SSL_CTRL_CHAIN_CERT, 0, certificate):  # 0: it owns the certificate now
        lib.X509_free(certificate)
        raise _unusable("OpenSSL refuses a chain certificate")


def _context_pointer(lib: ctypes.CDLL, context: ssl.SSLContext) -> int:
    """The SSL_CTX inside `context`: the first field behind the object header of CPython's PySSLContext."""
    pointer = c_void_p.from_address(id(context) + object.__basicsize__).value or 0
    if pointer % ctypes.sizeof(c_void_p) or not _is_writable_memory(pointer):
        raise _unusable("the interpreter's SSLContext is laid out otherwise")
    before = context.options
    try:
        for options in (before, before ^ _PROBE_OPTION):
            context.options = options
            if lib.SSL_CTX_get_options(pointer) != context.options:
                raise _unusable("the interpreter's SSLContext is laid out otherwise")
    finally:
        context.options = before
    return pointer


def _is_writable_memory(pointer: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, permissions = line.split(maxsplit=2)[:2]
        first, end = (int(edge, 16) for edge in span.split("-"))
        if first <= pointer < end:
            return permissions.startswith("rw")
    return False


def _prepared() -> ctypes.CDLL:
    """The library, with all that is made once for it: two threads that made it at once would each have their own, and
    a key that carries its number in the one's slot would be looked up in the other's."""
    with _making:
        lib = _library()
        _method(lib)
        _slot(lib)
        return lib


@functools.cache
def _library() -> ctypes.CDLL:
    """The libraries that `_ssl` itself is linked with: its handle resolves names in them and no others."""
    import _ssl  # noqa: PLC0415  # an implementation's module: only where its file is asked for

    if sys.implementation.name != "cpython" or sys.platform != "linux":
        raise _unusable(f"not supported on {sys.implementation.name}, {sys.platform}")
    lib = ctypes.CDLL(getattr(_ssl, "__file__", None))
    for name, (result, arguments) in _FUNCTIONS.items():
        try:
            function = getattr(lib, name)
        except AttributeError:
            raise _unusable(f"{ssl.OPENSSL_VERSION} does not offer {name}") from None
        function.restype, function.argtypes = result, arguments
    return lib


@functools.cache
def _method(lib: ctypes.CDLL) -> int:
    """OpenSSL's own method for EC keys, with our signing. Cached for ever, with the callback that it points to."""
    method: int = lib.EC_KEY_METHOD_new(lib.EC_KEY_OpenSSL())
    lib.EC_KEY_METHOD_set_sign(method, _callback(), None, None)
    return method


@functools.cache
def _slot(lib: ctypes.CDLL) -> int:
    """Where a key carries its signer's number (CRYPTO_get_ex_new_index(3))."""
    slot: int = lib.CRYPTO_get_ex_new_index(_CRYPTO_EX_INDEX_EC_KEY, 0, None, None, None, None)
    return slot


@functools.cache
def _callback() -> ctypes._FuncPointer:
    return _SIGN(_sign)


def _sign(
    _type: int, digest: int, length: int, out: int, out_length: ctypes._Pointer[c_uint], _kinv: int, _r: int, key: int
) -> int:
    """ECDSA_sign as EC_KEY_METHOD_set_sign(3) has it: 1 with `out` filled, or 0."""
    try:
        lib = _library()
        signer = _signers[lib.EC_KEY_get_ex_data(key, _slot(lib))]
        if length != _DIGEST_BYTES:
            return 0
        signature = signer.sign(ctypes.string_at(digest, length))
        if not 0 < len(signature) <= _MAX_SIGNATURE_BYTES:
            return 0
        ctypes.memmove(out, signature, len(signature))
        out_length[0] = len(signature)
    except Exception:  # it must not pass through C; the signer keeps what went wrong
        return 0
    return 1


def _check(lib: ctypes.CDLL, result: int | None, what: str) -> None:
    if not result:
        lib.ERR_clear_error()  # else Python's ssl would report it at its next, unrelated call
        raise _unusable(f"OpenSSL refuses the {what}")


def _unusable(detail: str) -> Fault:
    return Fault(Reason.TLS_KEY_UNUSABLE, detail, field="tls_key")
