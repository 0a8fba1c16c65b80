"""What the main process and its workers say to each other, framed: bytes to messages and back. Values alone.

A frame is one octet of kind, four of length (big-endian), then the body. Orders go down to a worker, reports come up
from it; a side that reads what only the other may say ends the connection, as it does for an unknown kind, a body that
is longer than its kind allows, and a body that is not exactly what its kind says.

Both sides start from the same code, but an upgrade leaves workers of the code before to drain: a kind is never given
another meaning, only new ones are added.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identity import Change, PolicyPublished
from foundation.reasons import Reason
from foundation.wire.changes import MAX_BUNDLE_BYTES, MAX_FACT_BYTES, encode_change, parse_change

_HEADER = struct.Struct(">BI")
_U64 = struct.Struct(">Q")
_F64 = struct.Struct(">d")
_U32 = struct.Struct(">I")
MAX_CONFIGURATION = 4 << 20
MAX_QUESTION = 64 << 10
MAX_KEY = 4096
MAX_ANSWER = 16 << 20
MAX_SOCKETS = 1024
LAST_WORD = 0
"""The number of an answer that nobody asked for: the metrics of a worker that ends."""
_MAX_TEXT = 1024
T = TypeVar("T")


# --- orders: main process to worker --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Configure:
    """The first order. `settings` is the text of sallyport.toml as the main process judged it; `number` names the
    worker's folder of the decision log; `of` is how many share the gateway's limits; `now` is trust time (seconds since
    the Unix epoch); the rest are paths of PEM files."""

    settings: str
    path: str
    number: int
    of: int
    now: float
    certificate: str
    key: str
    root: str


@dataclass(frozen=True, slots=True)
class Changed:
    """Apply one of the authority's changes. `sequence` rises by one with each `Changed` and `Enforce`."""

    sequence: int
    change: Change


@dataclass(frozen=True, slots=True)
class Load:
    """Load a revision beside the one in force. `key` is the policy key (PEM) by which the main process verified it;
    `at` is when it was published, in seconds since the Unix epoch."""

    revision: int
    key: bytes
    bundle: bytes
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Enforce:
    """Decide by the loaded revision from now on."""

    sequence: int
    revision: int


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop a loaded revision: some worker could not load it."""

    revision: int


@dataclass(frozen=True, slots=True)
class Listen:
    """Accept from these of the inherited listening sockets, by their place, and from no others."""

    sockets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Beat:
    """Say where you are. `now` is trust time, in seconds since the Unix epoch."""

    now: float


@dataclass(frozen=True, slots=True)
class Renewed:
    """Certificate, key or root changed on disk: read them anew."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Accept no more, end within `seconds`. What is idle may stay for `grace` seconds, so that a request that is on its
    way is answered."""

    seconds: float
    grace: float


@dataclass(frozen=True, slots=True)
class Ask:
    """A question by name, answered by `Answered` of the same number."""

    number: int
    question: str
    body: bytes


# --- reports: worker to main process -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Configured:
    """The worker has read its settings and opened its records."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Everything up to `sequence` is in force, and what it revokes is cut."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """The revision can be enforced."""

    revision: int


@dataclass(frozen=True, slots=True)
class NotLoaded:
    """The revision cannot be enforced; `reason` is a code."""

    revision: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class SegmentFull:
    """A segment of this worker's decision log is whole; `name` is the first decision in it."""

    name: str


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to question `number`."""

    number: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker cannot go on and ends; `reason` is a code."""

    reason: str
    detail: str
    field: str


Order = Configure | Changed | Load | Enforce | Forget | Listen | Beat | Renewed | Drain | Ask
Report = Configured | Acknowledged | Loaded | NotLoaded | SegmentFull | Answered | Failed
Message = Order | Report


# --- bodies ------------------------------------------------------------------------------------------------


class _Kind(NamedTuple):
    """How one kind of message is written; `most` bounds its body, in bytes."""

    code: int
    type: type
    most: int
    write: Callable[[Any], bytes]
    read: Callable[[bytes], Message]


def _document(message: Any) -> bytes:
    fields = {name: getattr(message, name) for name in message.__dataclass_fields__}
    return json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()


def _fields(body: bytes, most: int) -> Fields:
    return Fields.from_json(body, "control", Reason.MESSAGE_MALFORMED, max_bytes=most)


def _whole(fields: Fields, message: T) -> T:
    fields.finish()
    return message


def _configure(body: bytes) -> Configure:
    fields = _fields(body, MAX_CONFIGURATION)
    found = Configure(
        settings=fields.text("settings", max_length=MAX_CONFIGURATION),
        path=fields.text("path"),
        number=fields.integer("number", most=1 << 16),
        of=fields.integer("of", least=1, most=1 << 16),
        now=fields.number("now"),
        certificate=fields.text("certificate"),
        key=fields.text("key"),
        root=fields.text("root"),
    )
    return _whole(fields, found)


def _not_loaded(body: bytes) -> NotLoaded:
    fields = _fields(body, MAX_QUESTION)
    revision, reason = fields.integer("revision"), fields.text("reason", max_length=64)
    return _whole(fields, NotLoaded(revision, reason, fields.text("detail")))


def _failed(body: bytes) -> Failed:
    fields = _fields(body, MAX_QUESTION)
    return _whole(fields, Failed(fields.text("reason", max_length=64), fields.text("detail"), fields.text("field")))


def _number_and(body: bytes) -> tuple[int, bytes]:
    return _exactly(_U64, body[: _U64.size]), body[_U64.size :]


def _exactly(form: struct.Struct, body: bytes) -> Any:
    if len(body) != form.size:
        raise Fault(Reason.MESSAGE_MALFORMED, f"expected {form.size} bytes", field="control")
    return form.unpack(body)[0]


def _two(body: bytes) -> tuple[int, int]:
    if len(body) != 2 * _U64.size:
        raise Fault(Reason.MESSAGE_MALFORMED, "expected two numbers", field="control")
    return _exactly(_U64, body[: _U64.size]), _exactly(_U64, body[_U64.size :])


def _time(form_body: bytes) -> float:
    value: float = _exactly(_F64, form_body)
    if not 0 <= value < float("inf"):
        raise Fault(Reason.MESSAGE_MALFORMED, "expected seconds", field="control")
    return value


def _changed(body: bytes) -> Changed:
    sequence, line = _number_and(body)
    change = parse_change(line)
    if isinstance(change, PolicyPublished):
        raise Fault(Reason.MESSAGE_MALFORMED, "a revision goes by `load` and `enforce`", field="control")
    return Changed(sequence, change)


def _listen(body: bytes) -> Listen:
    if len(body) % _U32.size or len(body) > MAX_SOCKETS * _U32.size:
        raise Fault(Reason.MESSAGE_MALFORMED, "expected places of sockets", field="control")
    return Listen(tuple(place for (place,) in _U32.iter_unpack(body)))


def _drain(body: bytes) -> Drain:
    return Drain(_time(body[: _F64.size]), _time(body[_F64.size :]))


def _ask(body: bytes) -> Ask:
    number, rest = _number_and(body)
    name, separator, asked = rest.partition(b"\n")
    if not separator or not name.isascii() or len(name) > _MAX_TEXT:
        raise Fault(Reason.MESSAGE_MALFORMED, "expected the question's name", field="control")
    return Ask(number, name.decode("ascii"), asked)


def _segment(body: bytes) -> SegmentFull:
    if not body.isascii():
        raise Fault(Reason.MESSAGE_MALFORMED, "expected a decision's ID", field="control")
    return SegmentFull(body.decode("ascii"))


def _write_load(message: Load) -> bytes:
    head = _U64.pack(message.revision) + _F64.pack(message.at) + _U32.pack(len(message.key))
    return b"%b%b%b" % (head, message.key, message.bundle)


def _load(body: bytes) -> Load:
    revision, rest = _number_and(body)
    at, rest = _time(rest[: _F64.size]), rest[_F64.size :]
    length, rest = _exactly(_U32, rest[: _U32.size]), rest[_U32.size :]
    if length > min(MAX_KEY, len(rest)):
        raise Fault(Reason.MESSAGE_MALFORMED, "expected a key", field="control")
    return Load(revision, rest[:length], rest[length:], at)


def _empty(message: T) -> Callable[[bytes], T]:
    def read(body: bytes) -> T:
        return message

    return read


_ORDERS = (
    _Kind(1, Configure, MAX_CONFIGURATION, _document, _configure),
    _Kind(
        2,
        Changed,
        MAX_FACT_BYTES + _U64.size,
        lambda m: _U64.pack(m.sequence) + encode_change(m.change)[:-1],
        _changed,
    ),
    _Kind(3, Load, MAX_BUNDLE_BYTES + MAX_KEY + _U64.size + _F64.size + _U32.size, _write_load, _load),
    _Kind(
        4,
        Enforce,
        2 * _U64.size,
        lambda m: _U64.pack(m.sequence) + _U64.pack(m.revision),
        lambda b: Enforce(*_two(b)),
    ),
    _Kind(5, Forget, _U64.size, lambda m: _U64.pack(m.revision), lambda b: Forget(_exactly(_U64, b))),
    _Kind(6, Listen, MAX_SOCKETS * _U32.size, lambda m: b"".join(_U32.pack(each) for each in m.sockets), _listen),
    _Kind(7, Beat, _F64.size, lambda m: _F64.pack(m.now), lambda b: Beat(_time(b))),
    _Kind(8, Renewed, 0, lambda m: b"", _empty(Renewed())),
    _Kind(9, Drain, 2 * _F64.size, lambda m: _F64.pack(m.seconds) + _F64.pack(m.grace), _drain),
    _Kind(10, Ask, MAX_QUESTION, lambda m: b"%b%b\n%b" % (_U64.pack(m.number), m.question.encode(), m.body), _ask),
)
_REPORTS = (
    _Kind(128, Configured, 0, lambda m: b"", _empty(Configured())),
    _Kind(129, Acknowledged, _U64.size, lambda m: _U64.pack(m.sequence), lambda b: Acknowledged(_exactly(_U64, b))),
    _Kind(130, Loaded, _U64.size, lambda m: _U64.pack(m.revision), lambda b: Loaded(_exactly(_U64, b))),
    _Kind(131, NotLoaded, MAX_QUESTION, _document, _not_loaded),
    _Kind(132, SegmentFull, 64, lambda m: m.name.encode("ascii"), _segment),
    _Kind(133, Answered, MAX_ANSWER, lambda m: _U64.pack(m.number) + m.body, lambda b: Answered(*_number_and(b))),
    _Kind(134, Failed, MAX_QUESTION, _document, _failed),
)
_BY_TYPE = {kind.type: kind for kind in (*_ORDERS, *_REPORTS)}


def encode(message: Message) -> bytes:
    """The frame of `message`. Raises `Fault(MESSAGE_TOO_LARGE)`."""
    kind = _BY_TYPE[type(message)]
    body = kind.write(message)
    if len(body) > kind.most:
        raise _too_large(kind.most)
    return _HEADER.pack(kind.code, len(body)) + body


class Frames:
    """Takes bytes as they come, and gives whole messages. After a fault it gives nothing more."""

    def __init__(self, kinds: tuple[_Kind, ...], begun: bytes = b"") -> None:
        self._kinds = {kind.code: kind for kind in kinds}
        self._held = bytearray(begun)

    @classmethod
    def of_orders(cls) -> Frames:
        """What a worker reads."""
        return cls(_ORDERS)

    @classmethod
    def of_reports(cls, begun: bytes = b"") -> Frames:
        """What the main process reads. `begun` is the frame that was not whole yet when somebody else stopped."""
        return cls(_REPORTS, begun)

    @property
    def begun(self) -> bytes:
        """What is here of a frame that is not whole."""
        return bytes(self._held)

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are whole with `data`. Raises `Fault(MESSAGE_MALFORMED | MESSAGE_TOO_LARGE)`, at the header
        when that tells already."""
        self._held += data
        while (body := self._next()) is not None:
            yield body

    def _next(self) -> Message | None:
        if len(self._held) < _HEADER.size:
            return None
        code, length = _HEADER.unpack_from(self._held)
        kind = self._kinds.get(code)
        if kind is None:
            raise Fault(Reason.MESSAGE_MALFORMED, f"unknown kind {code}", field="control")
        if length > kind.most:
            raise _too_large(kind.most)
        end = _HEADER.size + length
        if len(self._held) < end:
            return None
        body = bytes(self._held[_HEADER.size : end])
        del self._held[:end]
        return kind.read(body)


def _too_large(most: int) -> Fault:
    return Fault(Reason.MESSAGE_TOO_LARGE, f"at most {most} bytes are allowed", field="control")
