"""Values that the decision log must not tell, kept so that equal ones can still be seen to be equal.

A masked value is `hmac:<key>:<hash>`: HMAC-SHA-256 over its JSON, cut to 128 bits, and before it four bytes that name
the key. Two masked values can be compared when their keys agree. The key is made when it is missing; a new one (remove
the file, restart) makes what was kept before incomparable with what is kept from then on.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from pathlib import Path

from foundation.files import open_key

KEY_BYTES = 32
_HASH_BYTES = 16

Scalar = str | int | float | bool | None


class Mask:
    """Makes masked values under one key."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._prefix = f"hmac:{hashlib.sha256(b'sallyport mask' + key).hexdigest()[:8]}:"

    @classmethod
    def open(cls, path: Path) -> Mask:
        """The mask of the key at `path`, which is made when it is missing. Raises `Fault(FILE_UNREADABLE |
        FILE_MODE_UNSAFE)`."""
        return cls(open_key(path, KEY_BYTES))

    @classmethod
    def forgetful(cls) -> Mask:
        """One whose key is kept nowhere: what it masks is comparable within this process alone."""
        return cls(secrets.token_bytes(KEY_BYTES))

    def value(self, value: Scalar) -> str:
        """`value` masked. 1, 1.0, true and "1" differ."""
        return self._hash(json.dumps(value))

    def target(self, target: str) -> str:
        """A request target with what follows its `?` masked: credentials travel there."""
        path, mark, query = target.partition("?")
        return f"{path}?{self._hash(query)}" if mark else target

    def _hash(self, text: str) -> str:
        digest = hmac.digest(self._key, text.encode("utf-8", "surrogatepass"), "sha256")
        return self._prefix + digest[:_HASH_BYTES].hex()
