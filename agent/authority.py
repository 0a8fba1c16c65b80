"""The authority's API as a node calls it for itself, with its present certificate. Blocks: call off the event loop."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import closing

from agent.channel import Channel
from agent.settings import Address
from foundation.fields import Fields
from foundation.reasons import Reason
from foundation.wire.bundle import MAX_NODE_BUNDLE_BYTES, NodeBundle
from foundation.wire.records import MAX_RECEIPT_BYTES, Receipt, RecordBatch

NDJSON = "application/x-ndjson"
_MAX_TAKEN_BYTES = 4096
_LATEST = 1e11


class AuthorityApi:
    """`context` gives the node's present TLS context. A connection lives for one call: ten thousand that wait would be
    the authority's to hold. Methods raise as `agent.channel.Channel.ask` does, and `Fault(MESSAGE_MALFORMED)`."""

    def __init__(self, address: Address, context: Callable[[], ssl.SSLContext], timeout: float) -> None:
        self._address = address
        self._context = context
        self._timeout = timeout

    def bundle(self, have: int) -> NodeBundle:
        """This node's bundle, without the archive when the revision in force is `have`."""
        with closing(self._channel()) as channel:
            answer = channel.ask("GET", f"/v1/node/bundle?have={have}", most=MAX_NODE_BUNDLE_BYTES)
        return NodeBundle.parse(answer)

    def deliver(self, batch: RecordBatch) -> Receipt:
        """Hand in records."""
        with closing(self._channel()) as channel:
            answer = channel.ask("POST", "/v1/node/records", batch.encode(), NDJSON, MAX_RECEIPT_BYTES)
        return Receipt.parse(answer)

    def report(self, report: bytes) -> float:
        """Hand in a health report; the authority's time when it took it, in seconds since the Unix epoch."""
        with closing(self._channel()) as channel:
            answer = channel.ask("POST", "/v1/node/health", report, most=_MAX_TAKEN_BYTES)
        fields = Fields.from_json(answer, "answer", Reason.MESSAGE_MALFORMED, max_bytes=_MAX_TAKEN_BYTES)
        at = fields.number("at", most=_LATEST)
        fields.finish()
        return at

    def _channel(self) -> Channel:
        return Channel(self._address, self._context(), self._timeout)
