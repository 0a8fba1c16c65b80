"""What the frames of a tunnel say in JSON: who is there, who wants which stream, and the answer.

A node asks a gateway for a stream by `StreamRequest`. The gateway, once it has permitted that, calls the node that
serves it by `StreamCall`; where another worker or another gateway holds that node's tunnel, by `StreamRelay` first.
Each answers with `StreamAnswer`, or with `StreamRefusal`. All are strict: unknown and missing fields are refused.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

from foundation.fields import Fields
from foundation.identifiers import SpiffeId, check_name
from foundation.reasons import Reason
from foundation.wire.tunnel import MAX_DOCUMENT

VERSION = 1
PROTOCOLS = ("tcp", "udp", "http")
AUTHORITY_ROUTE = "sallyport.authority"
"""No route of policy's: it leads to the authority's API, which judges for itself."""
MAX_CERTIFICATE_BYTES = 8 << 10
MAX_SERVICES = 128
MAX_SEGMENTS = 64


@dataclass(frozen=True, slots=True)
class Hello:
    """The first word of either side. `software` names the program and its version, for people. A node tells which
    `services` it has; a gateway which `revision` it enforces."""

    software: str = ""
    services: tuple[str, ...] = ()
    revision: int = 0

    def encode(self) -> bytes:
        return _dump(
            {
                "version": VERSION,
                "software": self.software,
                "services": list(self.services),
                "revision": self.revision,
            }
        )

    @classmethod
    def parse(cls, raw: bytes) -> Hello:
        """Raises `Fault(MESSAGE_MALFORMED)`."""
        fields = _fields(raw, "hello")
        fields.integer("version", least=VERSION, most=VERSION)
        services = fields.texts("services", most=MAX_SERVICES)
        hello = cls(
            fields.text("software", max_length=128),
            tuple(check_name(each, field="hello.services") for each in services),
            fields.integer("revision"),
        )
        fields.finish()
        return hello


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """A node wants to reach `target`, a node's name, over `route`."""

    route: str
    target: str
    protocol: str = "tcp"

    def encode(self) -> bytes:
        return _dump({"route": self.route, "target": self.target, "protocol": self.protocol})

    @classmethod
    def parse(cls, raw: bytes) -> StreamRequest:
        """Raises `Fault(MESSAGE_MALFORMED)`."""
        fields = _fields(raw, "stream")
        request = cls(_name(fields, "route"), _name(fields, "target"), fields.one_of("protocol", PROTOCOLS))
        fields.finish()
        return request


@dataclass(frozen=True, slots=True)
class StreamCall:
    """A gateway has permitted a stream to `service` of the node that it calls: who asks, in which segments that one is,
    over which route, by which revision and decision."""

    source: SpiffeId
    segments: tuple[str, ...]
    route: str
    service: str
    protocol: str
    revision: int
    decision: str

    def encode(self) -> bytes:
        return _dump(
            {
                "source": str(self.source),
                "segments": list(self.segments),
                "route": self.route,
                "service": self.service,
                "protocol": self.protocol,
                "revision": self.revision,
                "decision": self.decision,
            }
        )

    @classmethod
    def parse(cls, raw: bytes) -> StreamCall:
        """Raises `Fault(MESSAGE_MALFORMED)`."""
        fields = _fields(raw, "call")
        call = cls(
            source=SpiffeId.parse(fields.text("source", max_length=2048)),
            segments=fields.texts("segments", most=MAX_SEGMENTS),
            route=_name(fields, "route"),
            service=_name(fields, "service"),
            protocol=fields.one_of("protocol", PROTOCOLS),
            revision=fields.integer("revision"),
            decision=fields.text("decision", max_length=64),
        )
        fields.finish()
        return call


@dataclass(frozen=True, slots=True)
class StreamRelay:
    """A worker or a gateway passes a request on to the one that holds the target's tunnel, which decides again by what
    it knows. `certificate` is the DER that the source proved to the first; `epoch` is the claim by which the target was
    found."""

    request: StreamRequest
    certificate: bytes
    epoch: int
    decision: str

    def encode(self) -> bytes:
        return _dump(
            {
                "route": self.request.route,
                "target": self.request.target,
                "protocol": self.request.protocol,
                "certificate": base64.b64encode(self.certificate).decode("ascii"),
                "epoch": self.epoch,
                "decision": self.decision,
            }
        )

    @classmethod
    def parse(cls, raw: bytes) -> StreamRelay:
        """Raises `Fault(MESSAGE_MALFORMED)`."""
        fields = _fields(raw, "relay")
        relay = cls(
            StreamRequest(_name(fields, "route"), _name(fields, "target"), fields.one_of("protocol", PROTOCOLS)),
            fields.base64("certificate", max_bytes=MAX_CERTIFICATE_BYTES),
            fields.integer("epoch"),
            fields.text("decision", max_length=64),
        )
        fields.finish()
        return relay


@dataclass(frozen=True, slots=True)
class StreamAnswer:
    """A stream is open. `decision` is what permitted it, for `sallyport explain`; empty where who answers knows
    none."""

    decision: str = ""

    def encode(self) -> bytes:
        return _dump({"decision": self.decision})

    @classmethod
    def parse(cls, raw: bytes) -> StreamAnswer:
        """Raises `Fault(MESSAGE_MALFORMED)`."""
        fields = _fields(raw, "opened")
        answer = cls(fields.text("decision", max_length=64))
        fields.finish()
        return answer


@dataclass(frozen=True, slots=True)
class StreamRefusal:
    """A stream is not opened. A code that is not in our vocabulary is read as `INTERNAL`."""

    reason: Reason
    decision: str = ""

    def encode(self) -> bytes:
        return _dump({"reason": self.reason.code, "decision": self.decision})

    @classmethod
    def parse(cls, raw: bytes) -> StreamRefusal:
        """Raises `Fault(MESSAGE_MALFORMED)`."""
        fields = _fields(raw, "refused")
        code, decision = fields.text("reason", max_length=64), fields.text("decision", max_length=64)
        fields.finish()
        return cls(reason_of(code), decision)


def reason_of(code: str) -> Reason:
    """The reason of `code`; `INTERNAL` for one that a newer side knows alone."""
    try:
        return Reason.from_code(code)
    except KeyError:
        return Reason.INTERNAL


def _fields(raw: bytes, path: str) -> Fields:
    return Fields.from_json(raw, path, Reason.MESSAGE_MALFORMED, max_bytes=MAX_DOCUMENT)


def _name(fields: Fields, name: str) -> str:
    return check_name(fields.text(name, max_length=63), field=f"{fields.path}.{name}")


def _dump(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
