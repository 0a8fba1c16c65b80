"""The embedded engine: policy as WebAssembly, run by wasmtime (OPA's Wasm ABI 1.2 and later).

Laws held here:
- the module has no import but its memory, `opa_abort` and the builtins of `policies.builtins`: no files, no network;
- an evaluation ends by its deadline (of processor time) and stays below its memory bound; either way out is a denial;
- an instance in which an evaluation did not end well is thrown away.

An evaluation runs in the caller's thread and never waits. One engine belongs to one thread; engines made by `another`
share the code and run beside each other, since Wasm runs without the interpreter's lock.
"""

from __future__ import annotations

import ctypes
import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from math import ceil
from typing import Any

import wasmtime

from foundation.faults import Fault
from foundation.reasons import Reason
from policies.builtins import BUILTINS, BuiltinFault
from policies.engine import DECISION_ENTRYPOINT, EXPLAIN_ENTRYPOINT, CompiledPolicy
from policies.fastcall import FastCall
from policies.model import Answer, Query, parse_answer
from policies.settings import PolicySettings

MAX_ANSWER_BYTES = 1 << 20
_PAGE = 65_536
_TICK = 0.005  # seconds, at most
_LOOP_TICKS = 2  # within which an evaluation must end that keeps an event loop waiting
_STANDING = 20  # ticks for which nothing need pass when there is no processor time
_LOAD_TIME = 5.0
_EXPLAIN_TIMES = 10  # an explanation walks through all grants of a route, and nobody's request waits for it
_FIRST_LOOK = 1024
# Keys in one order: the order in which Wasm walks through an object depends on it. No escapes: Wasm takes the pair of
# them that spells U+20000 for U+10000, so that two paths would be one.
_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")).encode


class LoadedPolicy:
    """A compiled policy as native code, and the clock that ends its evaluations. Any thread may make instances of it.
    Raises `Fault(ENGINE_FAILED)` when the module cannot be loaded."""

    def __init__(self, compiled: CompiledPolicy, settings: PolicySettings) -> None:
        config = wasmtime.Config()
        config.epoch_interruption = True
        self._engine = wasmtime.Engine(config)
        self.data = _to_json(compiled.data).encode()
        self._pages = _initial_pages(compiled.wasm), settings.memory // _PAGE
        interval = min(_TICK, settings.decision_timeout / 4)
        self.ticks = ceil(settings.decision_timeout / interval) + 1
        self._load_ticks = ceil(_LOAD_TIME / interval)
        self.ticker = Ticker(self._engine, interval)
        try:
            self._module = wasmtime.Module(self._engine, compiled.wasm)
        except Exception as error:
            self.close()
            raise Fault(Reason.ENGINE_FAILED, "the compiled policy cannot be loaded", internal=str(error)) from error

    def instance(self) -> _Instance:
        """A new instance, with the data on its heap. Raises whatever wasmtime does."""
        store = wasmtime.Store(self._engine)
        store.set_limits(memory_size=self._pages[1] * _PAGE, instances=1, memories=1, tables=1)
        store.set_epoch_deadline(self._load_ticks)
        try:
            self.ticker.begin(store)
            return _Instance(store, self._module, wasmtime.Limits(*self._pages), self.data)
        except BaseException:
            store.close()
            raise
        finally:
            self.ticker.end(store)

    def close(self) -> None:
        """No evaluation may be under way."""
        self.ticker.stop()
        self._engine.close()


class WasmEngine:
    """Implements `policies.engine.PolicyEngine`. Making one compiles the module, which takes a good part of a second of
    processor time: do it in a thread. Raises `Fault(ENGINE_FAILED)` when the module cannot be loaded."""

    def __init__(
        self,
        compiled: CompiledPolicy,
        settings: PolicySettings,
        *,
        loaded: LoadedPolicy | None = None,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        """`loaded` is `compiled` as another engine has it, which must outlive this one. `cpu` gives the calling
        thread's processor time, in seconds; `took` is what the last evaluation took of it."""
        self._compiled = compiled
        self._settings = settings
        self._cpu = cpu
        self.took = 0.0
        self._loaded = loaded or LoadedPolicy(compiled, settings)
        self._owns = loaded is None
        self._closed = False  # a closed engine has no ticker, so nothing would end an evaluation
        self._instance: _Instance | None = None
        try:
            self._instance = self._loaded.instance()
        except Exception as error:
            self.stop()
            raise Fault(Reason.ENGINE_FAILED, "the compiled policy cannot be loaded", internal=str(error)) from error

    def another(self) -> WasmEngine:
        """An engine of the same policy for another thread. Stop it before this one. Raises `Fault(ENGINE_FAILED)`."""
        return WasmEngine(self._compiled, self._settings, loaded=self._loaded, cpu=self._cpu)

    @property
    def is_ready(self) -> bool:
        """Whether an evaluation could begin at once: after one that did not end well, an instance is made anew, which
        takes as long as reading the data does."""
        return self._instance is not None or self._closed

    def restore(self) -> None:
        """Become ready; in any thread, while nothing is evaluated here. What fails now is tried by the next evaluation,
        which tells of it."""
        with suppress(Exception):
            made = self._loaded.instance()
            if self._closed:
                made.close()
            else:
                self._instance = made

    async def decide(self, query: Query) -> Answer:
        return self.decide_now(query)

    def decide_now(self, query: Query) -> Answer:
        """As `decide`: nothing here ever waits."""
        return self._decide(query, self._loaded.ticks)

    def decide_briefly(self, query: Query) -> Answer:
        """As `decide_now`, in a few milliseconds: `ENGINE_TIMEOUT` says only that it takes longer."""
        return self._decide(query, min(_LOOP_TICKS, self._loaded.ticks))

    async def explain(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.explain_now(asked)

    def explain_now(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """As `explain`, for callers that are not asynchronous."""
        document = self._evaluate(EXPLAIN_ENTRYPOINT, asked, _EXPLAIN_TIMES * self._loaded.ticks)
        if not isinstance(document, dict):
            raise Fault(Reason.ENGINE_ANSWER_INVALID, "the explanation is not an object")
        return document

    async def close(self) -> None:
        self.stop()

    def stop(self) -> None:
        """As `close`, for callers that are not asynchronous."""
        if self._closed:
            return
        self._closed = True
        self._discard()
        if self._owns:
            self._loaded.close()

    def _decide(self, query: Query, ticks: int) -> Answer:
        try:
            return parse_answer(self._evaluate(DECISION_ENTRYPOINT, query.to_input(), ticks))
        except Fault as fault:
            return Answer(False, (fault.reason,))

    def _evaluate(self, entrypoint: str, asked: Mapping[str, Any], ticks: int) -> object:
        try:
            document = _to_json(asked).encode()
        except ValueError as error:
            raise Fault(Reason.ENGINE_FAILED, "the query is not JSON in UTF-8") from error
        return self.evaluate(entrypoint, document, ticks)

    def evaluate(self, entrypoint: str, document: bytes, ticks: int = 0) -> object:
        """The value of `entrypoint` for `input` as JSON; `None` when it is undefined. `ticks` bound the time, 0: a
        decision's. Raises `Fault`: `ENGINE_TIMEOUT`, `ENGINE_ANSWER_INVALID` or `ENGINE_FAILED`."""
        if self._closed:
            raise Fault(Reason.ENGINE_FAILED, "the engine is closed")
        try:
            if self._instance is None:
                self._instance = self._loaded.instance()
            answer = self._run(self._instance, entrypoint, document, ticks or self._loaded.ticks)
        except Exception as error:  # whatever went wrong, the instance is not to be trusted again
            self._discard()
            raise Fault(_reason(error), internal=str(error)[:1024]) from error
        return _result(answer)

    def _run(self, instance: _Instance, entrypoint: str, document: bytes, ticks: int) -> bytes:
        ticker, begun = self._loaded.ticker, self._cpu()
        ticker.begin(self)
        try:
            return instance.evaluate(entrypoint, document, ticks)
        finally:
            ticker.end(self)
            self.took = self._cpu() - begun

    def _discard(self) -> None:
        instance, self._instance = self._instance, None
        if instance is not None:
            instance.close()


class _Instance:
    """One instance with the data on its heap."""

    def __init__(self, store: wasmtime.Store, module: wasmtime.Module, pages: wasmtime.Limits, data: bytes) -> None:
        self._store = store
        self._memory = wasmtime.Memory(store, wasmtime.MemoryType(pages))
        imports = [self._import(item) for item in module.imports]
        self._exports = wasmtime.Instance(store, module, imports).exports(store)
        self._eval = FastCall(store, self._function("opa_eval"), 7)
        self._json_parse = FastCall(store, self._function("opa_json_parse"), 2)
        self._heap_ptr_set = FastCall(store, self._function("opa_heap_ptr_set"), 1, results=0)
        self._entrypoints: dict[str, int] = self._load(self._call("entrypoints"))
        self._builtins = {number: name for name, number in self._load(self._call("builtins")).items()}
        self._data = self._parse(data)
        self._heap: int = self._call("opa_heap_ptr_get")

    def evaluate(self, entrypoint: str, document: bytes, ticks: int) -> bytes:
        """The result set for `input` as JSON, as JSON. The heap begins anew behind the data each time."""
        store = self._store
        self._write(self._heap, document)
        end = (self._heap + len(document) + 7) & ~7
        store.set_epoch_deadline(ticks)
        # `opa_eval` takes what it cannot parse for an undefined `input`, of which every `not` is true.
        self._heap_ptr_set(end)
        if self._json_parse(self._heap, len(document)) == 0:
            raise BuiltinFault("the input is not JSON")
        number = self._entrypoints[entrypoint]
        return self._text(self._eval(0, number, self._data, self._heap, len(document), end, 0))

    def close(self) -> None:
        """Free the memory. wasmtime holds what is imported, and so this instance, until then."""
        self._store.close()

    def _import(self, item: wasmtime.ImportType) -> wasmtime.Func | wasmtime.Memory:
        if isinstance(item.type, wasmtime.MemoryType):
            return self._memory
        if not isinstance(item.type, wasmtime.FuncType):
            raise KeyError(item.name)
        if item.name == "opa_abort":
            return wasmtime.Func(self._store, item.type, self._abort)
        if item.name is not None and item.name.startswith("opa_builtin"):
            return wasmtime.Func(self._store, item.type, self._builtin)
        raise KeyError(item.name)

    def _abort(self, address: int) -> None:
        raise BuiltinFault("aborted: " + self._text(address).decode(errors="replace")[:512])

    def _builtin(self, number: int, _context: int, *arguments: int) -> int:
        """A builtin that Wasm asks the host for. An error halts the evaluation: OPA's other way, to carry on as if the
        expression were false, would turn a `not` into a permit."""
        function = BUILTINS.get(self._builtins[number])
        if function is None:
            raise BuiltinFault(f"{self._builtins[number]} is not provided")
        values = [self._load(address) for address in arguments]
        return self._parse(_to_json(function(*values)).encode())

    def _parse(self, document: bytes) -> int:
        """The address of the value that `document` spells."""
        address: int = self._call("opa_malloc", len(document))
        self._write(address, document)
        value = self._json_parse(address, len(document))
        if value == 0:
            raise BuiltinFault("a value is not JSON")
        return value

    def _load(self, value: int) -> Any:
        """The value at an address. Sets arrive as arrays."""
        return json.loads(self._text(self._call("opa_json_dump", value)))

    def _write(self, address: int, content: bytes) -> None:
        missing = address + len(content) + 8 - self._memory.data_len(self._store)
        if missing > 0:
            self._memory.grow(self._store, -(-missing // _PAGE))
        base = ctypes.addressof(self._memory.data_ptr(self._store).contents)
        ctypes.memmove(base + address, content, len(content))

    def _text(self, address: int) -> bytes:
        """The bytes from `address` to the next NUL, never beyond the memory."""
        available = min(self._memory.data_len(self._store) - address, MAX_ANSWER_BYTES)
        if available <= 0 or address <= 0:
            raise BuiltinFault("an address outside the memory")
        base = ctypes.addressof(self._memory.data_ptr(self._store).contents)
        for length in (min(_FIRST_LOOK, available), available):
            text, end, _ = ctypes.string_at(base + address, length).partition(b"\0")
            if end:
                return text
        raise BuiltinFault("an answer without end")

    def _function(self, name: str) -> wasmtime.Func:
        function = self._exports[name]
        if not isinstance(function, wasmtime.Func):
            raise KeyError(name)
        return function

    def _call(self, name: str, *arguments: int) -> Any:
        return self._function(name)(self._store, *arguments)


class Ticker:
    """Moves an engine's epoch on while something is evaluated, so that deadlines pass though Wasm runs without the
    interpreter's lock. Sleeps otherwise.

    What passes is processor time: while the machine has none for whoever evaluates, the epoch stands, for `_STANDING`
    ticks at most. Otherwise a busy machine would break off what takes microseconds."""

    def __init__(self, engine: wasmtime.Engine, interval: float) -> None:
        self._interval = interval
        self._running: dict[int, int] = {}  # who evaluates, and the clock of its thread's processor time
        self._seen: dict[int, float] = {}
        self._stood = 0
        self._awake = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._tick, args=(engine,), name="policy-epoch", daemon=True)
        self._thread.start()

    def begin(self, who: object) -> None:
        """`who` evaluates from now on, in the calling thread."""
        self._running[id(who)] = time.pthread_getcpuclockid(threading.get_ident())
        if not self._awake.is_set():
            self._awake.set()

    def end(self, who: object) -> None:
        self._running.pop(id(who), None)

    def stop(self) -> None:
        self._stopped.set()
        self._awake.set()
        self._thread.join()

    def _tick(self, engine: wasmtime.Engine) -> None:
        while self._awake.wait() and not self._stopped.wait(self._interval):
            if self._has_moved():
                engine.increment_epoch()
            if not self._running:
                self._awake.clear()
                if self._running or self._stopped.is_set():  # it came between the two
                    self._awake.set()

    def _has_moved(self) -> bool:
        """Whether anybody who evaluates has had half an interval of processor time since the last look."""
        before, self._seen = self._seen, {who: _cpu_of(clock) for who, clock in list(self._running.items())}
        moved = any(now - before.get(who, now) >= self._interval / 2 for who, now in self._seen.items())
        self._stood = 0 if moved or self._stood >= _STANDING else self._stood + 1
        return self._stood == 0


def _cpu_of(clock: int) -> float:
    try:
        return time.clock_gettime(clock)
    except OSError:  # its thread has ended
        return 0.0


def _initial_pages(module: bytes) -> int:
    """OPA's module asks for two pages, whatever its constants take; they take no more than the module does."""
    return 16 + -(-len(module) // _PAGE)


def _reason(error: Exception) -> Reason:
    interrupted = isinstance(error, wasmtime.Trap) and error.trap_code == wasmtime.TrapCode.INTERRUPT
    return Reason.ENGINE_TIMEOUT if interrupted else Reason.ENGINE_FAILED


def _result(answer: bytes) -> object:
    try:
        results = json.loads(answer)
        return results[0]["result"] if results else None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise Fault(Reason.ENGINE_ANSWER_INVALID, "the answer is not a result set") from error
