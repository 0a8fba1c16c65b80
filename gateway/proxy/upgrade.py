"""Whether an upstream that switched protocols switched to the one that was decided. Pure values."""

from __future__ import annotations

import base64
import hashlib

from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.proxy.headers import value_of
from gateway.proxy.http1 import RequestHead, ResponseHead

_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3


def check_switched(asked: RequestHead, answered: ResponseHead) -> None:
    """The upstream must have switched to the protocol that was decided, and prove it where the protocol can (RFC 6455
    §4.2.2). Raises `Fault(UPSTREAM_INVALID)`."""
    if not asked.upgrade or answered.upgrade != asked.upgrade:
        raise Fault(Reason.UPSTREAM_INVALID, "the upstream switched to a protocol that was not asked for")
    if answered.upgrade == b"websocket" and value_of(answered.fields, b"sec-websocket-accept") != websocket_accept(
        value_of(asked.fields, b"sec-websocket-key")
    ):
        raise Fault(Reason.UPSTREAM_INVALID, "the upstream's Sec-WebSocket-Accept is wrong")


def websocket_accept(key: bytes) -> bytes:
    """The proof that a WebSocket server read `key` (RFC 6455 §4.2.2, step 5.4)."""
    digest = hashlib.sha1(key + _WEBSOCKET_GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest)
