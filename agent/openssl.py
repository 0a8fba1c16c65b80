"""A private key that stays elsewhere, put into Python's `ssl` (docs/adr/0001-tls-key-in-the-tpm.md).

OpenSSL lets a program put its own functions behind an elliptic-curve key (EC_KEY_METHOD(3)). This module makes such a
key in the very libcrypto that Python's `_ssl` is linked with, and sets it in an `ssl.SSLContext`; a handshake then asks
our function for its signature.

Laws held here:
- nothing is dereferenced on trust: the SSL_CTX is found behind CPython's object header, and is believed only when it
  lies in writable memory and its options read and move as Python's do; anything else is `Fault(TLS_KEY_UNUSABLE)`;
- what OpenSSL may call lives as long as the process: one method, one callback, never freed. Keys are told apart by
  their public point, so no pointer of ours can dangle when OpenSSL frees or copies a key;
- a callback never raises: it answers 0, and the handshake fails.
"""

from __future__ import annotations

import ctypes
import functools
import ssl
import sys
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_long, c_size_t, c_uint, c_uint64, c_void_p
from pathlib import Path

from foundation.faults import Fault
from foundation.reasons import Reason

Signer = Callable[[bytes], bytes]
"""From a digest to an ECDSA signature in DER (RFC 3279 §2.2.3). Called on the thread that does the handshake."""

_P256_NID = 415
_EVP_PKEY_EC = 408
_UNCOMPRESSED = 4
_POINT_BYTES = 65
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
    "EC_KEY_get0_group": (c_void_p, (c_void_p,)),
    "EC_KEY_get0_public_key": (c_void_p, (c_void_p,)),
    "EC_POINT_point2oct": (c_size_t, (c_void_p, c_void_p, c_int, c_char_p, c_size_t, c_void_p)),
    "EVP_PKEY_new": (c_void_p, ()),
    "EVP_PKEY_free": (None, (c_void_p,)),
    "EVP_PKEY_assign": (c_int, (c_void_p, c_int, c_void_p)),
    "ERR_clear_error": (None, ()),
}
_signers: dict[bytes, Signer] = {}


def use_foreign_key(context: ssl.SSLContext, chain: tuple[bytes, ...], point: bytes, signer: Signer) -> None:
    """Make `context` present `chain` (DER, leaf first) and sign with `signer`. `point` is the P-256 public key as an
    uncompressed point (SEC 1 §2.3.3). Raises `Fault(TLS_KEY_UNUSABLE)`; the context is then not to be used."""
    lib = _library()
    pointer = _context_pointer(lib, context)
    _signers[point] = signer
    key = _foreign_key(lib, point)
    try:
        _check(lib, lib.SSL_CTX_use_certificate_ASN1(pointer, len(chain[0]), chain[0]), "certificate")
        for certificate in chain[1:]:
            _add_to_chain(lib, pointer, certificate)
        _check(lib, lib.SSL_CTX_use_PrivateKey(pointer, key), "private key")
        _check(lib, lib.SSL_CTX_check_private_key(pointer), "private key against certificate")
    finally:
        lib.EVP_PKEY_free(key)


def forget_foreign_key(point: bytes) -> None:
    """Handshakes with this key fail from now on."""
    _signers.pop(point, None)


def _foreign_key(lib: ctypes.CDLL, point: bytes) -> int:
    """An EVP_PKEY with our method and no private part."""
    key = lib.EC_KEY_new_by_curve_name(_P256_NID)
    try:
        _check(lib, lib.EC_KEY_oct2key(key, point, len(point), None), "public point")
        _check(lib, lib.EC_KEY_set_method(key, _method(lib)), "key method")
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
def _callback() -> ctypes._FuncPointer:
    return _SIGN(_sign)


def _sign(
    _type: int, digest: int, length: int, out: int, out_length: ctypes._Pointer[c_uint], _kinv: int, _r: int, key: int
) -> int:
    """ECDSA_sign as EC_KEY_METHOD_set_sign(3) has it: 1 with `out` filled, or 0."""
    try:
        signer = _signers[_public_point(_library(), key)]
        if length != _DIGEST_BYTES:
            return 0
        signature = signer(ctypes.string_at(digest, length))
        if not 0 < len(signature) <= _MAX_SIGNATURE_BYTES:
            return 0
        ctypes.memmove(out, signature, len(signature))
        out_length[0] = len(signature)
    except Exception:  # it must not pass through C; the signer keeps what went wrong
        return 0
    return 1


def _public_point(lib: ctypes.CDLL, key: int) -> bytes:
    out = ctypes.create_string_buffer(_POINT_BYTES)
    group, point = lib.EC_KEY_get0_group(key), lib.EC_KEY_get0_public_key(key)
    size = lib.EC_POINT_point2oct(group, point, _UNCOMPRESSED, out, len(out), None)
    return out.raw[:size]


def _check(lib: ctypes.CDLL, result: int | None, what: str) -> None:
    if not result:
        lib.ERR_clear_error()  # else Python's ssl would report it at its next, unrelated call
        raise _unusable(f"OpenSSL refuses the {what}")


def _unusable(detail: str) -> Fault:
    return Fault(Reason.TLS_KEY_UNUSABLE, detail, field="tls_key")
