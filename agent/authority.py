"""The authority's API as a node calls it for itself, with its present certificate. Blocks: call off the event loop.

One of these belongs to one part of the agent, which calls it from one thread at a time.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable

from agent.channel import Channel
from agent.settings import Address
from foundation.wire.bundle import MAX_NODE_BUNDLE_BYTES, NodeBundle
from foundation.wire.records import MAX_RECEIPT_BYTES, Receipt, RecordBatch

NDJSON = "application/x-ndjson"


class AuthorityApi:
    """`context` is asked at every call: another object than before means another certificate, hence another connection.
    Methods raise as `agent.channel.Channel.ask` does, and `Fault(MESSAGE_MALFORMED)`."""

    def __init__(self, address: Address, context: Callable[[], ssl.SSLContext], timeout: float) -> None:
        self._address = address
        self._context = context
        self._timeout = timeout
        self._used: tuple[ssl.SSLContext, Channel] | None = None

    def bundle(self, have: int) -> NodeBundle:
        """This node's bundle, without the archive when the revision in force is `have`."""
        try:
            path = f"/v1/node/bundle?have={have}"
            return NodeBundle.parse(self._channel().ask("GET", path, most=MAX_NODE_BUNDLE_BYTES))
        finally:
            self.close()  # the next one is minutes away

    def deliver(self, batch: RecordBatch) -> Receipt:
        """Hand in records. The connection stays open for more."""
        answer = self._channel().ask("POST", "/v1/node/records", batch.encode(), NDJSON, MAX_RECEIPT_BYTES)
        return Receipt.parse(answer)

    def close(self) -> None:
        used, self._used = self._used, None
        if used is not None:
            used[1].close()

    def _channel(self) -> Channel:
        context = self._context()
        if self._used is None or self._used[0] is not context:
            self.close()
            self._used = context, Channel(self._address, context, self._timeout)
        return self._used[1]
