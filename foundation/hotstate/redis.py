"""Hot state at a Redis server (7.0 and later), for gateways that share it.

Laws held here:
- every call is one script, which Redis runs as a whole, and ends within the set time, whatever the server does;
- nothing is sent twice: a call whose answer does not come is refused, whether or not it was done;
- what was put before a loss is never believed after it. Entries stand under a generation, which is of one run of the
  server: a flush begins another, and so do another server and a restart, which may bring back from disk what had been
  taken;
- what the server says is outside data: whatever cannot be read refuses;
- a server that may push entries out, or that only follows another, is refused;
- the password is read from its file for each connection, and stands nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from redis.asyncio.connection import (
    AbstractConnection,
    BlockingConnectionPool,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.credentials import CredentialProvider
from redis.exceptions import OutOfMemoryError, ResponseError

from foundation.faults import Fault
from foundation.files import read_bounded, read_secret
from foundation.hotstate import scripts
from foundation.hotstate.port import Swap, check_batch, check_key, check_ttl, check_value
from foundation.hotstate.settings import RedisSettings
from foundation.reasons import Reason
from foundation.tls import KeyPair, client_context

MAX_ROOTS_BYTES = 1 << 20
MAX_PASSWORD_BYTES = 4096
T = TypeVar("T")
_LOG = logging.getLogger(__name__)


class RedisHotState:
    """Implements `HotState`. It connects when it is called, and again after every failure."""

    def __init__(self, settings: RedisSettings) -> None:
        """Raises `Fault(FILE_UNREADABLE | FILE_MODE_UNSAFE)` when the files for TLS cannot be used."""
        self._settings = settings
        self._pool = _pool(settings, self._greet)
        self._generation_key = f"{settings.namespace}/generation"
        self._generation = ""
        self._answers = True

    async def generation(self) -> str:
        return await self._run(_text, scripts.GENERATION, ())

    async def put_once(self, key: str, value: bytes, ttl: float) -> bool:
        check_value(value)
        return await self._run(bool, scripts.PUT_ONCE, (key,), scripts.MARK + value, _milliseconds(ttl))

    async def get(self, key: str) -> bytes | None:
        return (await self.get_many([key]))[0]

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        check_batch(keys)
        return await self._run(_of(_value, len(keys)), scripts.GET_MANY, keys)

    async def swap(self, swaps: Sequence[Swap], ttl: float) -> list[bool]:
        check_batch(swaps)
        sides = [side for swap in swaps for side in (swap.before, swap.after)]
        for side in sides:
            check_value(side or b"")
        marked = [b"" if side is None else scripts.MARK + side for side in sides]
        keys = [swap.key for swap in swaps]
        return await self._run(_of(bool, len(keys)), scripts.SWAP, keys, _milliseconds(ttl), *marked)

    async def take(self, key: str) -> bytes | None:
        return await self._run(_value, scripts.TAKE, (key,))

    async def delete(self, key: str) -> None:
        await self._run(bool, scripts.DELETE, (key,))

    async def close(self) -> None:
        await self._pool.disconnect()

    # --- one call -------------------------------------------------------------------------------------------

    async def _run(self, read: Callable[[Any], T], script: str, keys: Sequence[str], *arguments: bytes | int) -> T:
        for key in keys:
            check_key(key)
        try:
            async with asyncio.timeout(self._settings.timeout), self._connection() as connection:
                answer = read(await self._evaluate(connection, script, keys, arguments))
        except ResponseError as error:
            raise self._judge(error) from error
        except Exception as error:
            raise self._absent(error) from error
        self._note_answer("")
        return answer

    async def _evaluate(
        self, connection: AbstractConnection, script: str, keys: Sequence[str], arguments: Sequence[bytes | int]
    ) -> Any:
        """A script that finds another generation has done nothing: it is sent again for the present one."""
        while True:
            generation = self._generation
            names = [self._generation_key, *(self._name(generation, key) for key in keys)]
            try:
                return await _ask(connection, "EVAL", script, len(names), *names, generation, *arguments)
            except ResponseError as error:
                if not str(error).startswith(scripts.ANOTHER):
                    raise
                await self._learn(connection)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AbstractConnection]:
        connection: AbstractConnection = await self._pool.get_connection()  # type: ignore[no-untyped-call]  # theirs
        try:
            yield connection
        except BaseException as error:
            if not _is_expected(error):
                await connection.disconnect(nowait=True)
            raise
        finally:
            await self._pool.release(connection)

    def _name(self, generation: str, key: str) -> str:
        return f"{self._settings.namespace}/{generation.partition(':')[2]}/{key}"

    # --- a new connection -----------------------------------------------------------------------------------

    async def _greet(self, connection: AbstractConnection) -> None:
        try:
            await connection.on_connect()
            await self._learn(connection)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise

    async def _learn(self, connection: AbstractConnection) -> None:
        """See which server this is, and which generation it is at. A connection is to one run of a server: its end is
        the connection's."""
        told = _facts(await _ask(connection, "INFO", "server", "memory", "replication", "cluster"))
        _check_server(told)
        run = f"{told['run_id']}:"
        words = (self._generation_key, run, run + secrets.token_hex(12))
        self._generation = _text(await _ask(connection, "EVAL", scripts.LEARN, 1, *words))

    # --- what went wrong ------------------------------------------------------------------------------------

    def _judge(self, error: ResponseError) -> Fault:
        if isinstance(error, OutOfMemoryError):
            return Fault(Reason.OVERLOADED, "hot state is full")
        return self._absent(error)

    def _absent(self, error: Exception) -> Fault:
        what = str(error) or type(error).__name__
        self._note_answer(what)
        if isinstance(error, Fault) and error.reason is Reason.HOT_STATE_UNSAFE:
            return error
        return Fault(Reason.HOT_STATE_UNAVAILABLE, internal=what)

    def _note_answer(self, what: str) -> None:
        if what and self._answers:
            _LOG.error("Redis at %s cannot be used: %s", self._settings.place, what)
        elif not what and not self._answers:
            _LOG.warning("Redis at %s answers again", self._settings.place)
        self._answers = not what


class _Password(CredentialProvider):
    """User and password for one more connection."""

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        settings = self._settings
        assert settings.password_file is not None  # noqa: S101 -- there is a provider only where there is a file
        password = read_secret(settings.password_file, max_bytes=MAX_PASSWORD_BYTES).decode().strip("\r\n")
        return (settings.user, password) if settings.user else (password,)


class _TlsConnection(SSLConnection):
    """By our own rules of TLS (`foundation.tls`)."""

    def __init__(self, *, context: ssl.SSLContext, **others: Any) -> None:
        super().__init__(**others)
        self.ssl_context.context = context


def _pool(settings: RedisSettings, greet: Any) -> BlockingConnectionPool:
    words: dict[str, Any] = {"path": str(settings.path)}
    kind: type[AbstractConnection] = UnixDomainSocketConnection
    if settings.path is None:
        words, kind = {"host": settings.host, "port": settings.port}, Connection
    if settings.tls:
        words, kind = {**words, "context": _tls(settings)}, _TlsConnection
    return BlockingConnectionPool(
        max_connections=settings.connections,
        timeout=settings.timeout,
        connection_class=kind,
        db=settings.database,
        protocol=2,
        socket_timeout=settings.timeout,
        socket_connect_timeout=settings.timeout,
        credential_provider=None if settings.password_file is None else _Password(settings),
        redis_connect_func=greet,
        **words,
    )


def _tls(settings: RedisSettings) -> ssl.SSLContext:
    pair = None
    if settings.certificate is not None and settings.key is not None:
        pair = KeyPair(settings.certificate, settings.key)
    assert settings.ca is not None  # noqa: S101 -- the settings ask for it wherever there is TLS
    return client_context(read_bounded(settings.ca, MAX_ROOTS_BYTES), pair=pair, protocols=())


async def _ask(connection: AbstractConnection, *words: str | bytes | int) -> Any:
    await connection.send_command(*words)
    return await connection.read_response()


def _facts(info: Any) -> dict[str, str]:
    """The fields of INFO (https://redis.io/docs/latest/commands/info/)."""
    lines = (line.partition(":") for line in _text(info).splitlines())
    return {name: value for name, colon, value in lines if colon}


def _check_server(told: dict[str, str]) -> None:
    """Raises `Fault(HOT_STATE_UNSAFE)`."""
    wanted = {
        "maxmemory_policy": ("noeviction", "set maxmemory-policy noeviction"),
        "role": ("master", "name the server that takes writes"),
        "cluster_enabled": ("0", "use one server, not a cluster"),
    }
    for name, (value, remedy) in wanted.items():
        if told.get(name) != value:
            raise Fault(Reason.HOT_STATE_UNSAFE, f"Redis says {name} is {told.get(name, 'unknown')}: {remedy}")
    if not told.get("run_id"):
        raise Fault(Reason.HOT_STATE_UNSAFE, "Redis does not say its run_id")


def _is_expected(error: BaseException) -> bool:
    """Whether the connection is as good as before."""
    return isinstance(error, OutOfMemoryError)


def _text(found: Any) -> str:
    return bytes.decode(found)


def _value(found: Any) -> bytes | None:
    if found is None:
        return None
    if not isinstance(found, bytes) or not found.startswith(scripts.MARK):
        raise ValueError("not a value of ours")
    return found[len(scripts.MARK) :]


def _of(read: Callable[[Any], T], count: int) -> Callable[[Any], list[T]]:
    def read_all(found: Any) -> list[T]:
        if not isinstance(found, list) or len(found) != count:
            raise ValueError(f"expected {count} answers")
        return [read(each) for each in found]

    return read_all


def _milliseconds(ttl: float) -> int:
    check_ttl(ttl)
    return math.ceil(ttl * 1000)
