"""Starts and stops the shadow evaluation of one candidate, and reads what it found.

Laws held here:
- a candidate is loaded only when its signature verifies; it raises no floor, and nothing is ever enforced by it;
- that it began and ended is on the audit log before it does;
- what it found stays in the folder, bounded, until another begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from foundation.faults import Fault
from foundation.files import SECRET_MODE, make_private_folder, write_atomic
from foundation.ports import AuditEvent, AuditLog
from foundation.reasons import Reason
from gateway.shadow.evaluator import CANDIDATE, DIFFERENCES, READY, TALLY
from policies.lifecycle.revision import LoadedRevision, verify
from policies.settings import PolicySettings
from policies.signing import VerifyingKey, public_pem

_ABOUT = "candidate.json"
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
_MAX_READ = 4 << 20


class ShadowRunner:
    """One candidate at a time, in a process of its own."""

    def __init__(
        self, folder: Path, key: Callable[[], VerifyingKey], settings: PolicySettings, audit: AuditLog
    ) -> None:
        """`key` gives the policy key that is pinned now."""
        self._folder = folder
        self._key = key
        self._settings = settings
        self._audit = audit
        self._process: asyncio.subprocess.Process | None = None
        self._changing = asyncio.Lock()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self, bundle: bytes, actor: str) -> Mapping[str, Any]:
        """Begin to ask the revision in `bundle` what is asked of the one in force. Raises `Fault`: `CONFLICT` while one
        runs, what `verify` raises, `ENGINE_FAILED` when it does not load."""
        async with self._changing:
            if self.is_running:
                raise Fault(Reason.CONFLICT, "a candidate is being tried already: stop it first")
            loaded = await asyncio.to_thread(verify, bundle, self._key(), 0)
            about = {"revision": loaded.number, "digest": loaded.digest}
            await self._audit.append(AuditEvent("policy.shadow_started", actor, _subject(loaded), detail=about))
            await asyncio.to_thread(self._lay_out, bundle, about)
            self._process = await self._spawn()
            return self.status()

    async def stop(self, actor: str) -> Mapping[str, Any]:
        """End it; what it found stays. Raises `Fault(NOT_FOUND)` when none runs."""
        async with self._changing:
            if not self.is_running:
                raise Fault(Reason.NOT_FOUND, "no candidate is being tried")
            about = self._read(_ABOUT)
            await self._audit.append(
                AuditEvent("policy.shadow_stopped", actor, f"revision/{about.get('revision', 0)}", detail=about)
            )
            await self._end()
            return self.status()

    async def close(self) -> None:
        async with self._changing:
            await self._end()

    def status(self) -> Mapping[str, Any]:
        """What was found so far, by the present candidate or the one before."""
        return {"running": self.is_running, **self._read(_ABOUT), **self._read(TALLY), "records": self._records()}

    def _lay_out(self, bundle: bytes, about: Mapping[str, Any]) -> None:
        make_private_folder(self._folder)
        for name in (TALLY, DIFFERENCES):
            (self._folder / name).unlink(missing_ok=True)
        write_atomic(self._folder / CANDIDATE, bundle, mode=SECRET_MODE)
        write_atomic(self._folder / _ABOUT, json.dumps(about).encode(), mode=SECRET_MODE)

    async def _spawn(self) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gateway.shadow.evaluator",
            str(self._folder),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # a terminal's interrupt is for us, and ends it by its standard input
        )
        order = {
            "policy_key": public_pem(self._key()).decode(),
            "decision_timeout": self._settings.decision_timeout,
            "memory": self._settings.memory,
        }
        try:
            assert process.stdin is not None  # noqa: S101 - as asked for
            assert process.stdout is not None  # noqa: S101
            process.stdin.write(json.dumps(order).encode() + b"\n")
            async with asyncio.timeout(_START_SECONDS):
                if await process.stdout.readline() == READY:
                    return process
        except (TimeoutError, ConnectionError):
            pass
        except BaseException:
            await _kill(process)
            raise
        await _kill(process)
        raise Fault(Reason.ENGINE_FAILED, "the candidate did not load")

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        await _kill(process)

    def _records(self) -> list[Any]:
        """The differences that were kept, the newest last."""
        try:
            with (self._folder / DIFFERENCES).open("rb") as file:
                return [json.loads(line) for line in file.read(_MAX_READ).splitlines() if line.endswith(b"}")]
        except (OSError, ValueError):
            return []

    def _read(self, name: str) -> dict[str, Any]:
        try:
            with (self._folder / name).open("rb") as file:
                found = json.loads(file.read(_MAX_READ))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


async def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _subject(loaded: LoadedRevision) -> str:
    return f"revision/{loaded.number}"
