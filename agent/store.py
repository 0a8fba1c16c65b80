"""The node's files: its identity, and a second message whose answer is outstanding.

Laws held here:
- certificate and key change together: both stand in one file, which is replaced in one step;
- a second message is on disk before it is sent, so that a lost answer costs a repetition, not an enrolment;
- files are 0600 in a folder of 0700. The key of a node with a TPM is of no use without that TPM.

Where another program of this machine needs the identity (a gateway, a web server), it finds it in a folder of PEM
files: `tls.pem` holds the key and behind it leaf and issuing CA, in one file so that they change together, and
`root.pem` the authority's root.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.files import make_private_folder, read_secret, write_secret
from foundation.reasons import Reason
from foundation.wire.enrolment import MAX_COMPLETE_BYTES, PURPOSES, Issued

_VERSION = 1
_MAX_FILE_BYTES = 4 * MAX_COMPLETE_BYTES
_MAX_KEY_BYTES = 16 * 1024
_KEY_KINDS = ("tpm", "software")


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A stored TLS key. `kind` is `tpm` (`pem` is a TSS 2.0 key file) or `software` (PKCS #8)."""

    kind: str
    pem: bytes

    def __repr__(self) -> str:
        return f"KeyFile(kind={self.kind})"


@dataclass(frozen=True, slots=True)
class Identity:
    """What the node is: what the authority issued, and the key it was issued for."""

    issued: Issued
    key: KeyFile

    @property
    def root(self) -> bytes:
        """The authority's root, DER."""
        return self.issued.chain[-1]


@dataclass(frozen=True, slots=True)
class Pending:
    """A second message that was, or is about to be, sent. `root` is the pinned root's DER, `spki` the key's DER
    SubjectPublicKeyInfo."""

    purpose: str
    root: bytes
    message: bytes
    key: KeyFile
    spki: bytes


class NodeStore:
    """The files in `folder`. Methods raise `Fault(FILE_UNREADABLE | FILE_MODE_UNSAFE)`."""

    def __init__(self, folder: Path, pem: Path | None = None) -> None:
        """`pem` is the folder for other programs' PEM files; None writes none."""
        self._folder = folder
        self._pem = pem
        self._identity = folder / "identity.json"
        self._pending = folder / "pending.json"

    def identity(self) -> Identity:
        """Raises `Fault(NOT_ENROLLED)` when there is none yet."""
        if not self._identity.exists():
            raise Fault(Reason.NOT_ENROLLED, f"no identity in {self._folder}")
        fields = _read(self._identity)
        identity = Identity(Issued.parse(fields.base64("issued", max_bytes=_MAX_FILE_BYTES)), _key(fields))
        fields.finish()
        if not identity.issued.chain:
            raise fields.fault("issued", "no certificate in it")
        return identity

    def save(self, identity: Identity) -> None:
        """Replace the identity, and with it what was pending."""
        self._write(self._identity, {"issued": _b64(identity.issued.encode()), **_key_fields(identity.key)})
        self.drop_pending()
        self.write_pem(identity)

    def write_pem(self, identity: Identity) -> None:
        """The PEM files for other programs, where they are asked for and differ."""
        if self._pem is None:
            return
        *chain, root = (ssl.DER_cert_to_PEM_cert(der).encode() for der in identity.issued.chain)
        make_private_folder(self._pem)
        for name, content in (("root.pem", root), ("tls.pem", b"".join((identity.key.pem, *chain)))):
            path = self._pem / name
            if not path.exists() or read_secret(path) != content:
                _write_secret(path, content)

    def pending(self) -> Pending | None:
        if not self._pending.exists():
            return None
        fields = _read(self._pending)
        pending = Pending(
            purpose=fields.one_of("purpose", PURPOSES),
            root=fields.base64("root", max_bytes=_MAX_KEY_BYTES),
            message=fields.base64("message", max_bytes=MAX_COMPLETE_BYTES),
            key=_key(fields),
            spki=fields.base64("spki", max_bytes=_MAX_KEY_BYTES),
        )
        fields.finish()
        return pending

    def save_pending(self, pending: Pending) -> None:
        self._write(
            self._pending,
            {
                "purpose": pending.purpose,
                "root": _b64(pending.root),
                "message": _b64(pending.message),
                "spki": _b64(pending.spki),
                **_key_fields(pending.key),
            },
        )

    def drop_pending(self) -> None:
        self._pending.unlink(missing_ok=True)

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Nobody else enrols or renews with this folder meanwhile. Raises `Fault(OVERLOADED)` when another does."""
        make_private_folder(self._folder)
        with open(self._folder / "lock", "w", opener=_private) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Fault(Reason.OVERLOADED, "another enrolment or renewal of this node is under way") from None
            yield

    def _write(self, path: Path, content: dict[str, object]) -> None:
        make_private_folder(self._folder)
        _write_secret(path, json.dumps({"version": _VERSION, **content}, indent=1).encode())


def _write_secret(path: Path, content: bytes) -> None:
    try:
        write_secret(path, content)
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "cannot be written", field=str(path)) from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _read(path: Path) -> Fields:
    raw = read_secret(path, max_bytes=_MAX_FILE_BYTES)
    fields = Fields.from_json(raw, str(path), Reason.FILE_UNREADABLE, max_bytes=_MAX_FILE_BYTES)
    fields.integer("version", least=_VERSION, most=_VERSION)
    return fields


def _key(fields: Fields) -> KeyFile:
    pem = fields.text("key", max_length=_MAX_KEY_BYTES)
    if not pem.isascii():
        raise fields.fault("key", "expected PEM")
    return KeyFile(fields.one_of("key_kind", _KEY_KINDS), pem.encode())


def _key_fields(key: KeyFile) -> dict[str, object]:
    return {"key_kind": key.kind, "key": key.pem.decode()}


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
