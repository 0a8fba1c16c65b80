"""h2, as a gateway wants it: what it leaves to others, what it remembers, and what it tells clients of our bounds."""

from __future__ import annotations

from h2.config import H2Configuration
from h2.connection import ConnectionInputs, ConnectionState, H2Connection, H2ConnectionStateMachine
from h2.errors import ErrorCodes
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame

from gateway.proxy.http1 import Limits
from gateway.proxy.http2_budget import MAX_FRAME_BYTES, Http2Settings
from gateway.proxy.http2_encode import PlainEncoder

ALL_STREAMS = (1 << 31) - 1
_HEADER_TABLE_BYTES = 4096  # what clients may have us remember of their fields (RFC 7541 §4.2)
_FIELD_OVERHEAD = 32  # what a field counts beside its bytes (RFC 9113 §6.5.2)
_FIRST_WINDOW = 65_535  # of a connection (§6.9.2)
_CONFIGURATION = H2Configuration(
    client_side=False,
    # `gateway.proxy.http2` judges header lists, and a bad one costs its stream alone; ours are well-formed.
    validate_inbound_headers=False,
    normalize_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)
# h2's, but a client's GOAWAY ends nothing that is under way (§6.8).
_TRANSITIONS = {
    **H2ConnectionStateMachine._transitions,
    **{
        (state, ConnectionInputs.RECV_GOAWAY): (None, state)
        for state in (ConnectionState.IDLE, ConnectionState.SERVER_OPEN)
    },
}


class ServerProtocol(H2Connection):
    """One connection's state. It remembers fewer streams that are over than h2's 65,536, which would be megabytes."""

    MAX_CLOSED_STREAMS = 1024

    def __init__(self) -> None:
        super().__init__(_CONFIGURATION)
        self.encoder = PlainEncoder()
        self.state_machine._transitions = _TRANSITIONS

    def greet(self, limits: Limits, settings: Http2Settings) -> None:
        """Tell the client our bounds."""
        header_list = limits.head_bytes + _FIELD_OVERHEAD * limits.fields
        told = {
            SettingCodes.HEADER_TABLE_SIZE: _HEADER_TABLE_BYTES,
            SettingCodes.ENABLE_PUSH: 0,
            SettingCodes.MAX_CONCURRENT_STREAMS: settings.streams,
            SettingCodes.INITIAL_WINDOW_SIZE: settings.window,
            SettingCodes.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
            SettingCodes.MAX_HEADER_LIST_SIZE: header_list,
            SettingCodes.ENABLE_CONNECT_PROTOCOL: 1,
        }
        self.local_settings = Settings(client=False, initial_values=told)
        self.decoder.max_header_list_size = 2 * header_list  # up to here it can be told with 431
        self.initiate_connection()
        self.increment_flow_control_window(settings.connection_window - _FIRST_WINDOW)


def goaway(last: int) -> bytes:
    """A GOAWAY that lets the streams up to `last` end; h2's own ends the connection at once."""
    return GoAwayFrame(0, last_stream_id=last, error_code=int(ErrorCodes.NO_ERROR)).serialize()
