"""The engine that asks an OPA server, through opa-python-client.

Laws held here:
- what the server does not answer in time and in full, as JSON in UTF-8 and by our schema, is a denial;
- it answers by exactly the policy that this engine was given. Each load stands under a root of its own (`rooted`), so
  that several revisions and several gateways share one server. A mark goes first, then data and modules, then the door,
  the only package that is asked: it opens while the mark is there. A server that restarted in between has lost the
  mark, so a policy that is there in part (its denies missing, say) never answers. What is lost is loaded again, while
  decisions are denials.

The server runs whatever policy it is given, with every builtin that it has: it must listen on loopback, or ask for
our token over TLS, and be ours alone. Policy reaches it only as compiled by `policies.compile`, which allows
no other builtin than `capabilities.json` names.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
from opa_client.errors import DeleteDataError, DeletePolicyError, RegoParseError
from opa_client.opa_async import AsyncOpaClient

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.files import read_secret
from foundation.reasons import Reason
from policies.engine import DECISION_ENTRYPOINT, EXPLAIN_ENTRYPOINT, CompiledPolicy
from policies.model import Answer, Query, parse_answer
from policies.settings import PolicySettings, ServerSettings

MAX_ANSWER_BYTES = 1 << 20
_LOAD_TIMEOUT = 30.0
_CLOSE_TIMEOUT = 2.0
_RELOAD_INTERVAL = 1.0
_CONNECTIONS = 64
_JSON = frozenset({"application/json", "application/json; charset=utf-8"})
# Strings and comments, where `data` means nothing; the package line; `data` where it is no part of a longer name.
_ROOTED = re.compile(
    r'(?P<hidden>`[^`]*`|"(?:\\.|[^"\\\n])*"|#[^\n]*)|(?P<package>\bpackage\s+)|(?P<below>\.\s*)?\bdata\b', re.ASCII
)
_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_DOOR = """package {root}_door.{name}
mark := data.{root}_mark.whole
answer := data.{root}.{target} if mark
"""


class OpaServerEngine:
    """Implements `policies.engine.PolicyEngine`. Made by `load`."""

    def __init__(self, compiled: CompiledPolicy, settings: PolicySettings, clock: Clock) -> None:
        self._compiled = compiled
        self._timeout = settings.decision_timeout
        self._client = _Client(settings.server)
        self._clock = clock
        self._root = ""
        self._loaded_at = clock.monotonic()
        self._reloading: asyncio.Task[None] | None = None

    @classmethod
    async def load(cls, compiled: CompiledPolicy, settings: PolicySettings, clock: Clock) -> OpaServerEngine:
        """The engine, once the server has the policy. Raises `Fault`: `ENGINE_UNREACHABLE`, `ENGINE_TIMEOUT`, or
        `ENGINE_FAILED` when the server refuses it."""
        engine = cls(compiled, settings, clock)
        try:
            await engine._client._init_session()
            await engine._push()
        except BaseException:
            await engine._client.close_connection()
            raise
        return engine

    async def decide(self, query: Query) -> Answer:
        try:
            return parse_answer(await self._ask(DECISION_ENTRYPOINT, query.to_input()))
        except Fault as fault:
            return Answer(False, (fault.reason,))

    def decide_now(self, query: Query) -> Answer | None:
        return None

    async def explain(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        document = await self._ask(EXPLAIN_ENTRYPOINT, asked)
        if not isinstance(document, dict):
            raise Fault(Reason.ENGINE_ANSWER_INVALID, "the explanation is not an object")
        return document

    async def close(self) -> None:
        if self._reloading is not None:
            self._reloading.cancel()
            await asyncio.wait([self._reloading])
        try:
            await self._withdraw(self._root)
        finally:
            await self._client.close_connection()

    async def _ask(self, entrypoint: str, asked: Mapping[str, Any]) -> object:
        result = await self._evaluate(entrypoint, asked)
        if "mark" not in result:
            self._reload()
            raise Fault(Reason.ENGINE_FAILED, "the server has lost the policy")
        return result.get("answer")

    async def _evaluate(self, entrypoint: str, document: Mapping[str, Any]) -> Mapping[str, Any]:
        name = entrypoint.rpartition("/")[2]
        with _faults():
            async with asyncio.timeout(self._timeout):
                answer = await self._client.query_rule(document, f"{self._root}_door", name)
        result = answer.get("result", {}) if isinstance(answer, dict) else None
        if not isinstance(result, dict):
            raise Fault(Reason.ENGINE_ANSWER_INVALID, "the answer is not a result")
        return result

    def _reload(self) -> None:
        """Begin to load again, unless that is under way or was begun less than a second ago."""
        if self._reloading is not None and not self._reloading.done():
            return
        if self._clock.monotonic() - self._loaded_at >= _RELOAD_INTERVAL:
            self._reloading = asyncio.create_task(self._try_push())

    async def _try_push(self) -> None:
        with suppress(Fault):  # the next decision finds the policy still lost, and begins again
            await self._push()

    async def _push(self) -> None:
        """Load the policy under a new root and ask there from now on. Raises `Fault`."""
        self._loaded_at = self._clock.monotonic()
        root = f"sallyport_{secrets.token_hex(12)}"
        try:
            with _faults():
                async with asyncio.timeout(_LOAD_TIMEOUT):
                    await self._push_under(root)
        except Fault:
            await self._withdraw(root)
            raise
        self._root = root

    async def _push_under(self, root: str) -> None:
        await self._client.update_or_create_data({"whole": True}, f"{root}_mark")
        await self._client.update_or_create_data(dict(self._compiled.data), root)
        await self._push_modules(root)
        for entrypoint in (DECISION_ENTRYPOINT, EXPLAIN_ENTRYPOINT):
            name, target = entrypoint.rpartition("/")[2], entrypoint.replace("/", ".")
            await self._put(f"{root}_door/{name}", _DOOR.format(root=root, name=name, target=target))

    async def _push_modules(self, root: str) -> None:
        """The server takes one module at a time and refuses one whose functions it does not have yet: go round until
        all are there. Two files that use functions of each other cannot be loaded in this way."""
        waiting = {path: rooted(text.decode(), root) for path, text in self._compiled.rego.items()}
        while waiting:
            refused: dict[str, str] = {}
            for path, text in waiting.items():
                try:
                    await self._put(f"{root}/{path}", text)
                except RegoParseError as error:
                    refused[path], reason = text, error
            if len(refused) == len(waiting):
                raise Fault(
                    Reason.ENGINE_FAILED,
                    "the server refuses a module; put functions that need each other into one file",
                    field=next(iter(refused)),
                    internal=str(reason)[:1024],
                )
            waiting = refused

    async def _put(self, name: str, text: str) -> None:
        # rego_compat would have the client rewrite what the server refuses, and load something else than was published.
        await self._client.update_policy_from_string(text, name, rego_compat=False)

    async def _withdraw(self, root: str) -> None:
        """Take away what stands under `root`, door first, if the server can be reached. What is left behind answers
        nobody, and is gone when the server restarts."""
        doors = [
            f"{root}_door/{entrypoint.rpartition('/')[2]}" for entrypoint in (DECISION_ENTRYPOINT, EXPLAIN_ENTRYPOINT)
        ]
        with suppress(Fault), _faults():
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                for name in [*doors, *(f"{root}/{path}" for path in self._compiled.rego)]:
                    with suppress(DeletePolicyError):  # it never came to be
                        await self._client.delete_policy(name)
                for name in (root, f"{root}_mark"):
                    with suppress(DeleteDataError):
                        await self._client.delete_data(name)


def rooted(text: str, root: str) -> str:
    """The module `text` with its package and all that it calls `data` moved below `root`. Template strings, which could
    hold references within a string, are not among the features that `capabilities.json` allows."""

    def move(match: re.Match[str]) -> str:
        if match["package"]:
            return f"{match[0]}{root}."
        if match["hidden"] or match["below"]:
            return match[0]
        return f"data.{root}"

    return _ROOTED.sub(move, text)


class _Client(AsyncOpaClient):  # type: ignore[misc] # the library ships no types
    """The library's client with our bounds: no retries (they would outlast a decision's time and hide an outage), no
    redirects, no cookies, answers of a bounded size, and a choice of CA."""

    def __init__(self, settings: ServerSettings) -> None:
        token = read_secret(Path(settings.token_file)).decode().strip() if settings.token_file else None
        super().__init__(
            host=settings.host, port=settings.port, ssl=settings.tls, token=token, retries=0, timeout=_LOAD_TIMEOUT
        )
        self._ca_file = settings.ca_file

    async def _init_session(self) -> None:
        context = ssl.create_default_context(cafile=self._ca_file or None) if self.ssl else None
        self._connector = aiohttp.TCPConnector(ssl=context or True, limit=_CONNECTIONS)
        self._session = aiohttp.ClientSession(
            headers=self.headers,
            connector=self._connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            json_serialize=_to_json,
            timeout=aiohttp.ClientTimeout(total=self.timeout),
        )

    @asynccontextmanager
    async def _request(self, method: str, url: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        async with super()._request(method, url, allow_redirects=False, **options) as response:
            response._body = await _read(response)
            yield response


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The whole body, within its bound, and JSON in UTF-8 as far as the server says."""
    if response.status == HTTPStatus.OK and response.headers.get("Content-Type", "").lower() not in _JSON:
        raise aiohttp.ClientPayloadError("the answer is not JSON in UTF-8")
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            response.close()
            raise aiohttp.ClientPayloadError("the answer is larger than its bound")
    return bytes(body)


@contextmanager
def _faults() -> Iterator[None]:
    """Turns what the client raises into a `Fault`."""
    try:
        yield
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise Fault(reason, internal=f"{type(error).__name__}: {error}"[:1024]) from error


def _reason(error: Exception) -> Reason | None:
    garbled = (
        aiohttp.ContentTypeError,
        aiohttp.ClientPayloadError,
        json.JSONDecodeError,
        UnicodeDecodeError,
        RecursionError,
        LookupError,  # an encoding that does not exist
    )
    if isinstance(error, TimeoutError):
        return Reason.ENGINE_TIMEOUT
    if isinstance(error, aiohttp.ClientConnectionError):
        return Reason.ENGINE_UNREACHABLE
    if isinstance(error, garbled):
        return Reason.ENGINE_ANSWER_INVALID
    if isinstance(error, aiohttp.ClientError | ValueError | TypeError | RegoParseError):
        return Reason.ENGINE_FAILED
    return None
