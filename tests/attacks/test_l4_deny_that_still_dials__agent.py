"""Row "L4 deny that still dials" (envoy#9023), on the node that is called: a service of it sees no SYN of a caller whom
the node refuses, whatever the gateway says, and not one byte of one who was refused while it was dialled."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.services import refuse_all
from foundation.reasons import Reason
from foundation.wire.streams import StreamCall
from tests.fakes.gateway import FakeGateway
from tests.fakes.trust import spiffe
from tests.support.certificates import SmallAuthority
from tests.support.tunnels import Node

CALL = StreamCall(spiffe("edge-x"), ("edge",), "route", "db", "tcp", 1, "d-7")


@pytest.fixture
def service() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.3)
        yield listening


def node_of(gateway: FakeGateway, service: socket.socket) -> Node:
    where = f"tcp://127.0.0.1:{service.getsockname()[1]}"
    return Node(gateway.authority, [gateway.address], services={"db": where})


async def test_whom_the_node_refuses_dials_nothing(tmp_path: Path, service: socket.socket) -> None:
    async with FakeGateway(SmallAuthority(tmp_path)).listening() as gateway:
        node = node_of(gateway, service)
        async with node.running():
            end = await gateway.tunnel()
            for check in (refuse_all, lambda call: Reason.SEGMENT_FORBIDDEN):
                node.services.check = check
                assert await end.call(CALL).answer is check(CALL)
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(service.accept)


async def test_who_is_refused_while_the_service_is_dialled_sends_it_nothing(
    tmp_path: Path, service: socket.socket
) -> None:
    async with FakeGateway(SmallAuthority(tmp_path)).listening() as gateway:
        node = node_of(gateway, service)
        answers = iter([None, Reason.SERVICE_NOT_OFFERED])
        node.services.check = lambda call: next(answers)
        async with node.running():
            caller = (await gateway.tunnel()).call(CALL)
            assert await caller.answer is Reason.SERVICE_NOT_OFFERED
            connection, _ = await asyncio.to_thread(service.accept)
            with pytest.raises(ConnectionResetError), connection:
                connection.recv(1)
