"""A file that only this machine, booted as it was, can read.

Its content is encrypted (AES-256-GCM, NIST SP 800-38D) by a key that the TPM gives back in the boot state in which the
file was first written, and in no other (`agent.tpm_sealing`). The file's head says how the key is kept, and is
authenticated with the content. A node without a TPM has the key in a file beside it, mode 0600: that protects against
other users of the machine, and not against a copied disk.

Laws held here:
- a file is replaced whole; a nonce is never used twice by one key (96 random bits each; a file is written some hundred
  times a day at most);
- what cannot be opened is `Fault(BUNDLE_SEALED)`, never content.
"""

from __future__ import annotations

import base64
import json
import secrets
from pathlib import Path
from typing import Any, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from agent.tpm_values import SealedSecret
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.files import make_private_folder, read_secret, write_secret
from foundation.reasons import Reason
from foundation.wire.enrolment import PcrSelection

KEY_BYTES, _NONCE_BYTES = 32, 12
_VERSION = 1
_MAX_HEAD_BYTES = 8192
_MAX_BLOB_BYTES = 1024


class SealingTpm(Protocol):
    """What is needed of `agent.tpm.Tpm`."""

    def seal(self, selection: PcrSelection, secret: bytes) -> SealedSecret: ...

    def unseal(self, selection: PcrSelection, sealed: SealedSecret) -> bytes: ...


class Lock(Protocol):
    """Keeps keys. Blocks."""

    def lock(self, key: bytes) -> dict[str, Any]:
        """How `key` can be had again, as JSON values."""
        ...

    def unlock(self, head: Fields) -> bytes:
        """The key again, from what `lock` gave. Raises `Fault(BUNDLE_SEALED)`."""
        ...


class TpmLock:
    """Keys sealed to what the PCRs of `selection` hold."""

    def __init__(self, tpm: SealingTpm, selection: PcrSelection) -> None:
        self._tpm = tpm
        self._selection = selection

    def lock(self, key: bytes) -> dict[str, Any]:
        sealed = self._tpm.seal(self._selection, key)
        return {
            "lock": "tpm",
            "bank": self._selection.bank,
            "pcrs": list(self._selection.indices),
            "public": _b64(sealed.public),
            "private": _b64(sealed.private),
        }

    def unlock(self, head: Fields) -> bytes:
        head.one_of("lock", ("tpm",))
        selection = PcrSelection(head.text("bank", max_length=16), head.integers("pcrs", least=0, most=23, count=24))
        public, private = (head.base64(name, max_bytes=_MAX_BLOB_BYTES) for name in ("public", "private"))
        if selection != self._selection:
            raise Fault(Reason.BUNDLE_SEALED, "it was sealed to other PCRs than the settings name", field=head.path)
        return self._tpm.unseal(selection, SealedSecret(public, private))


class SoftwareLock:
    """The key in a file: for nodes without a TPM."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lock(self, key: bytes) -> dict[str, Any]:
        write_secret(self._path, key)
        return {"lock": "software"}

    def unlock(self, head: Fields) -> bytes:
        head.one_of("lock", ("software",))
        try:
            return read_secret(self._path, max_bytes=KEY_BYTES)
        except Fault as fault:
            raise Fault(Reason.BUNDLE_SEALED, "its key is missing", field=head.path) from fault


class Vault:
    """Files of `folder` under one key of `lock`. Methods block, and raise `OSError` where a file cannot be written."""

    def __init__(self, folder: Path, lock: Lock) -> None:
        self._folder = folder
        self._lock = lock
        self._key = b""
        self._head: dict[str, Any] = {}

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """The content of the file `name`; None where there is none. Raises `Fault(BUNDLE_SEALED | FILE_MODE_UNSAFE |
        FILE_UNREADABLE | TPM_UNAVAILABLE)`."""
        path = self._folder / name
        if not path.exists():
            return None
        raw = read_secret(path, max_bytes=max_bytes + _MAX_HEAD_BYTES + 64)
        head, _newline, sealed = raw.partition(b"\n")
        fields = Fields.from_json(head, name, Reason.BUNDLE_SEALED, max_bytes=_MAX_HEAD_BYTES)
        fields.integer("version", least=_VERSION, most=_VERSION)
        nonce = fields.base64("nonce", max_bytes=_NONCE_BYTES)
        try:
            return AESGCM(self._open(fields)).decrypt(nonce, sealed, head)
        except (InvalidTag, ValueError):
            raise Fault(Reason.BUNDLE_SEALED, "it was changed, or its key is another", field=name) from None

    def write(self, name: str, content: bytes) -> None:
        """Replace the file `name`. Raises `OSError`, and `Fault(TPM_UNAVAILABLE | FILE_MODE_UNSAFE)`."""
        make_private_folder(self._folder)
        if not self._key:
            key = secrets.token_bytes(KEY_BYTES)
            self._head, self._key = self._lock.lock(key), key
        nonce = secrets.token_bytes(_NONCE_BYTES)
        head = json.dumps({"version": _VERSION, "nonce": _b64(nonce), **self._head}, separators=(",", ":")).encode()
        write_secret(self._folder / name, head + b"\n" + AESGCM(self._key).encrypt(nonce, content, head))

    def remove(self, *names: str) -> None:
        for name in names:
            (self._folder / name).unlink(missing_ok=True)

    def _open(self, fields: Fields) -> bytes:
        """The file's key, which is this vault's from now on where it had none."""
        told = {name: fields.value(name) for name in fields.names if name not in {"version", "nonce"}}
        if self._key and told == self._head:
            return self._key
        key = self._lock.unlock(fields)
        if not self._key:
            self._head, self._key = told, key
        return key


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
