"""What nodes offer each other, and the programs that use it: echoes on every address of a host, by TCP and UDP."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator

from tests.support.netns.network import Host

_PATIENCE = 3.0


class Echo:
    """Sends back whatever comes, on one port of all addresses of `host`; keeps from where it came. Usable as a context
    manager."""

    def __init__(self, host: Host, port: int) -> None:
        self.host, self.port = host, port
        self.came_from: list[str] = []
        with host.inside():
            self._servers = (_Streams(("::", port), _EchoStream), _Datagrams(("::", port), _EchoDatagram))
        for server in self._servers:
            server.echo = self
        self._threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in self._servers]

    def __enter__(self) -> Echo:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()


class Conversation:
    """A TCP connection to an echo, straight or through an agent's port. Raises `OSError` where there is no way."""

    def __init__(self, host: Host, address: str, port: int, patience: float = _PATIENCE) -> None:
        with host.inside():
            self._socket = socket.create_connection((address, port), timeout=patience)

    def says(self, text: bytes) -> bool:
        """Whether `text` comes back. False once the connection has ended, or says nothing for long."""
        try:
            self._socket.sendall(text)
            got = b""
            while len(got) < len(text):
                piece = self._socket.recv(len(text) - len(got))
                if not piece:
                    return False
                got += piece
        except OSError:
            return False
        return got == text

    def ending(self) -> str:
        """Wait for its end: `cut`, however it came."""
        with contextlib.suppress(ConnectionError):
            assert self._socket.recv(1) == b"", "nobody asked it anything"
        return "cut"

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def echoes(host: Host, address: str, port: int, protocol: str = "tcp", patience: float = _PATIENCE) -> bool:
    """Whether an echo answers `host` there."""
    try:
        if protocol == "tcp":
            with Conversation(host, address, port, patience) as talk:
                return talk.says(b"hello")
        return _datagram_comes_back(host, address, port, patience)
    except OSError:
        return False


def _datagram_comes_back(host: Host, address: str, port: int, patience: float) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with host.inside():
        asking = socket.socket(family, socket.SOCK_DGRAM)
    with asking:
        asking.settimeout(patience)
        asking.connect((address, port))
        asking.send(b"hello")
        return asking.recv(100) == b"hello"


class _Streams(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    echo: Echo

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class _Datagrams(socketserver.UDPServer):
    address_family = socket.AF_INET6
    echo: Echo


class _EchoStream(socketserver.BaseRequestHandler):
    server: _Streams

    def handle(self) -> None:
        self.server.echo.came_from.append(self.client_address[0])
        with contextlib.suppress(OSError):
            while piece := self.request.recv(65_536):
                self.request.sendall(piece)


class _EchoDatagram(socketserver.BaseRequestHandler):
    server: _Datagrams

    def handle(self) -> None:
        self.server.echo.came_from.append(self.client_address[0])
        data, answering = self.request
        with contextlib.suppress(OSError):
            answering.sendto(data, self.client_address)


@contextlib.contextmanager
def conversing(host: Host, address: str, port: int, count: int) -> Iterator[list[Conversation]]:
    """So many conversations at once."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Conversation(host, address, port)) for _ in range(count)]
