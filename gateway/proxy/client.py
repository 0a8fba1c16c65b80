"""Who asked, as an exchange sees it: an HTTP/1.1 connection, or one stream of an HTTP/2 connection.

An exchange says what is to be told, and the client knows how its protocol says it. The other way, a client calls the
exchange's `body_came`, `tunnel_came`, `spoke_early`, `client_full`, `client_drained`, `refuse`, `timed_out`,
`client_gone`, and `answered` once the answer's last byte is out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.proxy.headers import Field
from gateway.proxy.http1 import ResponseHead
from gateway.proxy.identify import Caller
from gateway.proxy.services import ConnectionServices


class Client(Protocol):
    """After `refuse`, `abort` and `end_tunnel` it has forgotten the exchange."""

    @property
    def services(self) -> ConnectionServices: ...

    @property
    def caller(self) -> Caller: ...

    @property
    def via(self) -> bytes:
        """The Via line that tells an upstream which protocol the request came by (RFC 9110 §7.6.3)."""
        ...

    @property
    def has_unread(self) -> bool:
        """Whether bytes came that are not the exchange's yet."""
        ...

    def take_body(self) -> None:
        """The exchange takes the request's body from now on, by `body_came`."""

    def pause_reading(self) -> None:
        """Take no more from the client than is bounded, until `resume_reading`."""

    def resume_reading(self) -> None: ...

    def inform(self, head: ResponseHead) -> None:
        """An informational response (RFC 9110 §15.2)."""

    def respond(
        self, head: ResponseHead, decision: str, payload: bytes, done: bool, trailers: Sequence[Field] = ()
    ) -> None:
        """The final response's head, the id of the decision behind it, and what came of its body; all of it when
        `done`, with the trailers that the client takes."""

    def respond_more(self, payload: bytes, done: bool, trailers: Sequence[Field] = ()) -> None:
        """More of the response's body, as in `respond`; it may be empty."""

    def refuse(self, fault: Fault, decision: str) -> None:
        """Answer with `fault`: no byte of another answer is out."""

    def switch(self, head: ResponseHead, decision: str, data: bytes) -> None:
        """The upstream switched to the protocol asked for, and sent `data`; from now on bytes go by `tunnel` and come
        by `tunnel_came`."""

    def tunnel(self, data: bytes) -> None: ...

    def end_tunnel(self) -> None:
        """End it once what was written has gone out."""

    def abort(self, reason: Reason) -> None:
        """End it now, so that the client cannot take a cut for an end."""
