"""The kernel's nftables, by its own tool: rules go in on standard input, never on a command line."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from agent.firewall.ruleset import FAMILY, TABLE, Object
from foundation.faults import Fault
from foundation.reasons import Reason

NFT = Path("/usr/sbin/nft")
SECONDS = 20.0
MAX_OUTPUT = 8 << 20
_ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
_MAX_ERROR = 400
_ABSENT = "No such file or directory"
_FORBIDDEN = "Operation not permitted"


class Nft:
    """Commands of `nft`, each in a process of its own, which is killed when it takes too long or writes too much."""

    def __init__(self, program: Path = NFT) -> None:
        self._program = program

    async def execute(self, commands: bytes) -> None:
        """Carry out JSON commands, all or none. Raises `Fault(FIREWALL_UNAVAILABLE | FIREWALL_REFUSED)`."""
        status, _, error = await self._run(("-j", "-f", "-"), commands)
        if status != 0:
            raise _fault(error)

    async def listed(self) -> tuple[Object, ...] | None:
        """Our table as it stands; None where there is none. Raises `Fault(FIREWALL_UNAVAILABLE)`, also when nft cannot
        say: some versions end in the middle of a table with flags that they do not know."""
        status, output, error = await self._run(("-j", "list", "table", FAMILY, TABLE))
        if status != 0 and _ABSENT in error:
            return None
        if status != 0:
            raise Fault(Reason.FIREWALL_UNAVAILABLE, _said(error) or f"nft ended with {status}")
        return _objects(output)

    async def _run(self, words: Sequence[str], given: bytes = b"") -> tuple[int, bytes, str]:
        try:
            with _in_memory(given) as stdin:
                process = await asyncio.create_subprocess_exec(
                    self._program,
                    *words,
                    stdin=stdin,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    env=_ENVIRONMENT,
                )
        except OSError as error:
            raise Fault(Reason.FIREWALL_UNAVAILABLE, f"{self._program}: {error.strerror}") from error
        try:
            async with asyncio.timeout(SECONDS):
                return await _outcome(process)
        except TimeoutError:
            raise Fault(Reason.FIREWALL_UNAVAILABLE, f"nft took more than {SECONDS:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def _in_memory(given: bytes) -> BinaryIO:
    """A file with `given`, on no disk: nft opens /dev/stdin anew, which cannot be done with the sockets that uvloop has
    for pipes. Raises `OSError`."""
    file = os.fdopen(os.memfd_create("nft"), "w+b")
    file.write(given)
    file.seek(0)
    return file


async def _outcome(process: asyncio.subprocess.Process) -> tuple[int, bytes, str]:
    if process.stdout is None or process.stderr is None:
        raise Fault(Reason.FIREWALL_UNAVAILABLE, "nft has no pipes")
    async with asyncio.TaskGroup() as group:
        output = group.create_task(_read(process.stdout))
        error = group.create_task(_read(process.stderr))
    return await process.wait(), output.result(), error.result().decode("utf-8", "replace")


async def _read(stream: asyncio.StreamReader) -> bytes:
    """All of it, as far as it is bounded; the rest is read and left, so that the process can end."""
    found = bytearray()
    while chunk := await stream.read(1 << 16):
        found += chunk[: MAX_OUTPUT - len(found)]
    return bytes(found)


def _objects(output: bytes) -> tuple[Object, ...]:
    try:
        found: Any = json.loads(output)["nftables"]
        objects = tuple(each for each in found if "metainfo" not in each)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Fault(Reason.FIREWALL_UNAVAILABLE, "nft lists what is no JSON") from error
    if not all(isinstance(each, dict) and len(each) == 1 for each in objects):
        raise Fault(Reason.FIREWALL_UNAVAILABLE, "nft lists what is not understood here")
    return objects


def _fault(error: str) -> Fault:
    reason = Reason.FIREWALL_UNAVAILABLE if _FORBIDDEN in error else Reason.FIREWALL_REFUSED
    return Fault(reason, _said(error))


def _said(error: str) -> str:
    return " ".join(error.split())[:_MAX_ERROR]
