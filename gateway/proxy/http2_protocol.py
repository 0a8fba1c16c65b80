"""h2, as a gateway wants it: what it leaves to others, what it remembers, and what it tells clients of our bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from types import MethodType
from typing import Any

from h2.config import H2Configuration
from h2.connection import ConnectionInputs, ConnectionState, H2Connection, H2ConnectionStateMachine
from h2.errors import ErrorCodes
from h2.settings import ChangedSetting, SettingCodes, Settings
from h2.stream import StreamClosedBy
from hyperframe.frame import Frame, GoAwayFrame

from gateway.proxy.http1 import Limits
from gateway.proxy.http2_budget import MAX_FRAME_BYTES, Http2Settings
from gateway.proxy.http2_encode import PlainEncoder

ALL_STREAMS = (1 << 31) - 1
MAX_OVER = 1024  # streams that are remembered
MAX_ENDED = 16  # of them, those that were not reset
_RESET = frozenset({StreamClosedBy.RECV_RST_STREAM, StreamClosedBy.SEND_RST_STREAM})
_HEADER_TABLE_BYTES = 4096  # what clients may have us remember of their fields (RFC 7541 §4.2)
_FIELD_OVERHEAD = 32  # what a field counts beside its bytes (RFC 9113 §6.5.2)
_FIRST_WINDOW = 65_535  # of a connection (§6.9.2)
_DEFAULTS: Mapping[SettingCodes | int, int] = dict(Settings(client=True))  # what a client has not told (§6.5.2)
_KNOWN = frozenset(SettingCodes)
_CONFIGURATION = H2Configuration(
    client_side=False,
    # `gateway.proxy.http2` judges header lists, and a bad one costs its stream alone; ours are well-formed.
    validate_inbound_headers=False,
    normalize_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)
_HANDLERS = {
    kind: getattr(H2Connection, bound.__name__)
    for kind, bound in H2Connection(_CONFIGURATION)._frame_dispatch_table.items()
}
# h2's, but a client's GOAWAY ends nothing that is under way (§6.8).
_TRANSITIONS = {
    **H2ConnectionStateMachine._transitions,
    **{
        (state, ConnectionInputs.RECV_GOAWAY): (None, state)
        for state in (ConnectionState.IDLE, ConnectionState.SERVER_OPEN)
    },
}


class ClientSettings(Settings):
    """What a client told of itself, each value once: h2 keeps a queue for each, 760 bytes and more. That is for values
    that wait to be acknowledged, and a client's are at once. Unknown settings are ignored (§6.5.2): h2 would keep
    whatever a client names, up to 65,536 of them."""

    def __init__(self) -> None:
        self._client = True
        self._values: Mapping[SettingCodes | int, int] = _DEFAULTS
        self._told: Mapping[SettingCodes | int, int] = {}

    def __getitem__(self, key: SettingCodes | int) -> int:
        return self._values[key]

    def __setitem__(self, key: SettingCodes | int, value: int) -> None:
        """It is in force when `acknowledge` is called; h2 has validated it."""
        if key in _KNOWN:
            self._told = {**self._told, key: value}

    def acknowledge(self) -> dict[SettingCodes | int, ChangedSetting]:
        told, before = self._told, self._values
        if not told:
            return {}
        self._told, self._values = {}, {**before, **told}
        return {key: ChangedSetting(key, before.get(key), value) for key, value in told.items()}

    def __iter__(self) -> Iterator[SettingCodes | int]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class StreamsOver(dict[int, StreamClosedBy | None]):
    """How streams ended. What still comes for one that was reset costs that stream alone, so these are remembered for
    long; of those that ended as they should, it only decides by which name the connection's error goes. h2 remembers
    65,536 of either, which would be megabytes."""

    __slots__ = ("_ended",)

    def __init__(self) -> None:
        super().__init__()
        self._ended: tuple[int, ...] = ()

    def __setitem__(self, number: int, how: StreamClosedBy | None) -> None:
        if how not in _RESET:
            for each in self._ended[: 1 - MAX_ENDED]:
                self.pop(each, None)
            self._ended = (*self._ended[1 - MAX_ENDED :], number)
        super().__setitem__(number, how)
        if len(self) > MAX_OVER:
            del self[next(iter(self))]


class FrameHandlers:
    """Finds the method that takes a frame, by the frame's class: h2 keeps them all bound, for each connection."""

    __slots__ = ("_connection",)

    def __init__(self, connection: H2Connection) -> None:
        self._connection = connection

    def __getitem__(self, kind: type[Frame]) -> Callable[..., Any]:
        return MethodType(_HANDLERS[kind], self._connection)


class ServerProtocol(H2Connection):
    """One connection's state. It is lean, for most connections are idle at any time: our own settings, which never
    change, are one object for all."""

    def __init__(self) -> None:
        super().__init__(_CONFIGURATION)
        self._closed_streams = StreamsOver()
        self._frame_dispatch_table = FrameHandlers(self)  # type: ignore[assignment]  # all that h2 asks of it
        self.remote_settings = ClientSettings()
        self.encoder = PlainEncoder()
        self.state_machine._transitions = _TRANSITIONS

    def greet(self, limits: Limits, settings: Http2Settings) -> None:
        """Tell the client our bounds."""
        self.local_settings = _own_settings(limits, settings)
        self.decoder.max_header_list_size = 2 * _header_list(limits)  # up to here it can be told with 431
        self.initiate_connection()
        self.increment_flow_control_window(settings.connection_window - _FIRST_WINDOW)


@lru_cache(maxsize=16)
def _own_settings(limits: Limits, settings: Http2Settings) -> Settings:
    told = {
        SettingCodes.HEADER_TABLE_SIZE: _HEADER_TABLE_BYTES,
        SettingCodes.ENABLE_PUSH: 0,
        SettingCodes.MAX_CONCURRENT_STREAMS: settings.streams,
        SettingCodes.INITIAL_WINDOW_SIZE: settings.window,
        SettingCodes.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
        SettingCodes.MAX_HEADER_LIST_SIZE: _header_list(limits),
        SettingCodes.ENABLE_CONNECT_PROTOCOL: 1,
    }
    return Settings(client=False, initial_values=told)


def _header_list(limits: Limits) -> int:
    return limits.head_bytes + _FIELD_OVERHEAD * limits.fields


def goaway(last: int) -> bytes:
    """A GOAWAY that lets the streams up to `last` end; h2's own ends the connection at once."""
    return GoAwayFrame(0, last_stream_id=last, error_code=int(ErrorCodes.NO_ERROR)).serialize()
