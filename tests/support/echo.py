"""A service for tests: `python -m tests.support.echo PORT`. /echo/ws sends WebSocket messages back."""

from __future__ import annotations

import sys

from aiohttp import WSMsgType, web


async def _websocket(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(protocols=("plain",))
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket


if __name__ == "__main__":
    application = web.Application()
    application.router.add_get("/echo/ws", _websocket)
    web.run_app(application, host="127.0.0.1", port=int(sys.argv[1]), print=None)
