"""What is kept of an HTTP/2 connection that is idle, counted: h2's state of it, which is most of what it costs beside
TLS."""

from __future__ import annotations

import gc
import struct
import tracemalloc

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import RemoteSettingsChanged
from h2.settings import SettingCodes
from h2.stream import StreamClosedBy
from hyperframe.frame import DataFrame, SettingsFrame
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.http1 import Limits
from gateway.proxy.http2_budget import Http2Settings
from gateway.proxy.http2_protocol import MAX_ENDED, MAX_OVER, ServerProtocol, StreamsOver

FIELDS = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"control.example"), (b":path", b"/v1/things")]
RESET = (StreamClosedBy.RECV_RST_STREAM, StreamClosedBy.SEND_RST_STREAM)


def pair() -> tuple[ServerProtocol, H2Connection]:
    """A connection that greeted and was greeted, and its client."""
    server, client = ServerProtocol(), H2Connection(H2Configuration(client_side=True, header_encoding=None))
    server.greet(Limits(), Http2Settings())
    client.initiate_connection()
    exchange(server, client)
    exchange(server, client)  # what was told is acknowledged
    return server, client


def exchange(server: ServerProtocol, client: H2Connection) -> None:
    server.receive_data(client.data_to_send())
    client.receive_data(server.data_to_send())


def serve(server: ServerProtocol, client: H2Connection, count: int) -> None:
    """So many requests, one after another, each answered whole."""
    for _ in range(count):
        number = client.get_next_available_stream_id()
        client.send_headers(number, FIELDS, end_stream=True)
        exchange(server, client)
        server.send_headers(number, [(b":status", b"200")])
        server.send_data(number, b"ok", end_stream=True)
        exchange(server, client)


def kept_bytes(count: int, requests: int) -> float:
    """What one connection keeps after so many requests, its client left out."""
    pair()  # what is made once for all is there
    tracemalloc.start()
    try:
        connections = []
        for _ in range(count):
            server, client = pair()
            serve(server, client, requests)
            connections.append(server)
        del client
        gc.collect()
        return tracemalloc.get_traced_memory()[0] / count
    finally:
        tracemalloc.stop()


def test_an_idle_connection_keeps_little() -> None:
    """h2's own takes three times as much, two thirds of that for settings that are the same everywhere."""
    assert kept_bytes(40, 0) < 6_000


def test_nor_does_one_that_served_much_keep_more() -> None:
    assert kept_bytes(4, 1_500) < 16_000


def test_finished_streams_are_forgotten() -> None:
    server, client = pair()
    serve(server, client, 200)
    assert server.open_inbound_streams == 0
    assert len(server.streams) == 0
    assert len(server._closed_streams) <= MAX_ENDED


def test_our_settings_are_one_object_for_all() -> None:
    one, other = pair()[0], pair()[0]
    assert one.local_settings is other.local_settings
    assert one.local_settings.max_concurrent_streams == Http2Settings().streams


def test_what_a_client_tells_of_itself_is_taken_up_at_once() -> None:
    server, client = pair()
    client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20, SettingCodes.MAX_FRAME_SIZE: 1 << 15})
    (event,) = server.receive_data(client.data_to_send())
    assert isinstance(event, RemoteSettingsChanged)
    changed = event.changed_settings[SettingCodes.INITIAL_WINDOW_SIZE]
    assert (changed.original_value, changed.new_value) == (65_535, 1 << 20)
    assert (server.remote_settings.initial_window_size, server.max_outbound_frame_size) == (1 << 20, 1 << 15)
    other = pair()[0]
    assert other.remote_settings.initial_window_size == 65_535


def test_settings_that_nobody_knows_are_not_kept() -> None:
    """RFC 9113 §6.5.2. A client may name 65,536 of them."""
    server, _ = pair()
    known = set(server.remote_settings)
    for first in range(0x100, 0x4000, 0x800):
        told = b"".join([struct.pack(">HL", number, 1) for number in range(first, first + 0x800)])
        server.receive_data(struct.pack(">HBBBL", len(told) >> 8, len(told) & 0xFF, SettingsFrame.type, 0, 0) + told)
    assert set(server.remote_settings) == known


def test_what_comes_for_a_stream_that_was_reset_costs_that_stream_alone() -> None:
    server, client = pair()
    number = client.get_next_available_stream_id()
    client.send_headers(number, FIELDS)
    exchange(server, client)
    server.reset_stream(number, ErrorCodes.CANCEL)
    serve(server, client, 5 * MAX_ENDED)  # many ended since
    server.data_to_send()
    server.receive_data(DataFrame(number, b"late").serialize())  # no error of the connection
    assert number in server._closed_streams


@given(st.lists(st.sampled_from([*StreamClosedBy, None]), max_size=60))
def test_of_streams_that_are_over_the_last_are_remembered(ways: list[StreamClosedBy | None]) -> None:
    over = StreamsOver()
    for number, how in enumerate(ways):
        over[number] = how
    ended = [number for number, how in enumerate(ways) if how not in RESET]
    assert set(over) == set(range(len(ways))) - set(ended[:-MAX_ENDED])
    assert all(over[number] == ways[number] for number in over)


def test_resets_are_bounded_too() -> None:
    over = StreamsOver()
    for number in range(3 * MAX_OVER):
        over[number] = RESET[0]
    assert set(over) == set(range(2 * MAX_OVER, 3 * MAX_OVER))
