"""A client of our APIs for commands: over the machine's Unix socket, or over TLS with a client certificate. Blocks."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from foundation.faults import Fault
from foundation.fields import Fields, strict_json
from foundation.reasons import Reason
from foundation.tls import KeyPair, client_context

MAX_ANSWER_BYTES = 128 * 1024 * 1024
SECONDS = 60.0
_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Remote:
    """An API's listener: where it is, what proves us, and the root (PEM) that proves it."""

    host: str
    port: int
    pair: KeyPair
    ca: Path

    @classmethod
    def parse(cls, server: str, pair: KeyPair, ca: Path) -> Remote:
        """`server` is `host:port` or `[IPv6]:port`. Raises `Fault(SETTING_INVALID)`."""
        host, _, port = server.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        number = int(port) if port.isascii() and port.isdecimal() and len(port) <= 5 else 0
        if not host or any(c in host for c in "/@ []?#") or not 0 < number < 65536:
            raise Fault(Reason.SETTING_INVALID, "expected host:port", field="server")
        return cls(host, number, pair, ca)

    @property
    def address(self) -> str:
        """`host:port`, as it stands in a URL (RFC 3986 §3.2)."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class ApiClient:
    """One API, at a Unix socket's path or a `Remote`."""

    def __init__(self, target: Path | Remote, *, timeout: float = SECONDS) -> None:
        self._target = target
        self._timeout = timeout

    @property
    def pair(self) -> KeyPair | None:
        """What proves us; None at a Unix socket."""
        return None if isinstance(self._target, Path) else self._target.pair

    def get(self, path: str, /, **query: object) -> Any:
        """The JSON that the route answers; what is empty or None is left out of the query."""
        asked = {name: str(value) for name, value in query.items() if value not in (None, "")}
        return self._json(self.send("GET", path + (f"?{urlencode(asked)}" if asked else "")))

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON that the route answers to `body`."""
        return self._json(self.send("POST", path, json.dumps(body or {}).encode(), _JSON))

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        """As `post`."""
        return self._json(self.send("PATCH", path, json.dumps(body).encode(), _JSON))

    def pages(self, path: str, **query: object) -> Iterator[dict[str, Any]]:
        """Every item of a listing, page after page."""
        after = ""
        while True:
            page = self.get(path, after=after, limit=1000, **query)
            yield from page["items"]
            after = page["next"]
            if not after:
                return

    def send(self, method: str, path: str, body: bytes = b"", content_type: str = "") -> bytes:
        """The body of a success. Raises `Fault` with the reason of the refusal, or `Fault(SERVER_UNREACHABLE |
        SERVER_UNTRUSTED)`."""
        connection = self._connection()
        try:
            connection.request(method, path, body or None, {"Content-Type": content_type} if body else {})
            response = connection.getresponse()
            answer = response.read(MAX_ANSWER_BYTES + 1)
        except ssl.SSLCertVerificationError as error:
            raise Fault(Reason.SERVER_UNTRUSTED, error.verify_message, field=str(self._target)) from error
        except (OSError, http.client.HTTPException) as error:
            detail = getattr(error, "strerror", None) or type(error).__name__
            raise Fault(Reason.SERVER_UNREACHABLE, detail, field=self._where()) from error
        finally:
            connection.close()
        if len(answer) > MAX_ANSWER_BYTES:
            raise Fault(Reason.MESSAGE_TOO_LARGE, "the answer is too large", field=path)
        if response.status >= 300:
            raise refusal(response.status, answer)
        return answer

    def _connection(self) -> http.client.HTTPConnection:
        if isinstance(self._target, Path):
            return _UnixConnection(self._target, self._timeout)
        context = client_context(_read(self._target.ca), pair=self._target.pair)
        host, port = self._target.host, self._target.port
        return http.client.HTTPSConnection(host, port, timeout=self._timeout, context=context)

    def _where(self) -> str:
        return str(self._target) if isinstance(self._target, Path) else self._target.address

    @staticmethod
    def _json(answer: bytes) -> Any:
        return strict_json(answer, "answer", Reason.MESSAGE_MALFORMED)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def refusal(status: int, body: bytes) -> Fault:
    """The fault that a problem+json body (RFC 9457) tells."""
    try:
        fields = Fields.from_json(body, "problem", Reason.MESSAGE_MALFORMED, max_bytes=1 << 20)
        reason = Reason.from_code(fields.text("reason", max_length=64))
        return Fault(reason, fields.text("detail", ""), field=fields.text("field", ""))
    except (Fault, KeyError):
        return Fault(Reason.INTERNAL, f"the server answers {status} without a reason of ours")


def path_of(*segments: str) -> str:
    """A path of these segments, each escaped (RFC 3986 §3.3)."""
    return "/" + "/".join(quote(segment, safe="") for segment in segments)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "unreadable", field=str(path)) from error
