"""A call into Wasm that costs little.

`wasmtime.Func.__call__` asks for the function's type and makes type and value objects anew on every call: 45 µs
for the seven arguments of `opa_eval`, more than a lean policy takes. This calls the same C function with arrays made
once. It uses names that the package keeps to itself, so pyproject.toml holds wasmtime to one major version.
"""

from __future__ import annotations

import ctypes

import wasmtime
from wasmtime import _ffi as ffi
from wasmtime._func import maybe_raise_last_exn


class FastCall:
    """`function` of `store`, taking `parameters` 32-bit integers and returning one (or, with `results=0`, none)."""

    def __init__(self, store: wasmtime.Store, function: wasmtime.Func, parameters: int, *, results: int = 1) -> None:
        self._context = store._context()
        self._function = ctypes.byref(function._func)
        self._count = parameters
        self._arguments = (ffi.wasmtime_val_t * parameters)()
        for argument in self._arguments:
            argument.kind = ffi.WASMTIME_I32
        self._unions = [argument.of for argument in self._arguments]
        self._results = results
        self._result = (ffi.wasmtime_val_t * 1)()
        self._await_trap()

    def __call__(self, *values: int) -> int:
        """Raises what `wasmtime.Func.__call__` does: what an import raised, `Trap` or `WasmtimeError`."""
        for union, value in zip(self._unions, values, strict=True):
            union.i32 = value
        error = ffi.wasmtime_func_call(
            self._context, self._function, self._arguments, self._count, self._result, self._results, self._trap_at
        )
        if error or self._trap:
            maybe_raise_last_exn()
            raise wasmtime.WasmtimeError._from_ptr(error) if error else self._taken_trap()
        number: int = self._result[0].of.i32
        return number

    def _taken_trap(self) -> wasmtime.Trap:
        trap = wasmtime.Trap._from_ptr(self._trap)
        self._await_trap()
        return trap

    def _await_trap(self) -> None:
        self._trap = ctypes.POINTER(ffi.wasm_trap_t)()
        self._trap_at = ctypes.byref(self._trap)
