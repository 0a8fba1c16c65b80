"""The authority's API as a node calls it for itself, with its present certificate. Blocks: call off the event loop."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import closing

from agent.channel import Channel
from agent.settings import Address
from foundation.wire.bundle import MAX_NODE_BUNDLE_BYTES, NodeBundle
from foundation.wire.records import MAX_RECEIPT_BYTES, Receipt, RecordBatch

NDJSON = "application/x-ndjson"


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

    def _channel(self) -> Channel:
        return Channel(self._address, self._context(), self._timeout)
