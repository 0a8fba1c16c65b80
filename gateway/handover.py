"""What one main process leaves to the next, which takes its place under the same process ID.

An upgrade executes the new code in the place of the old. Over that, descriptors stay open: the listening sockets, so
that nobody who connects meanwhile is turned away, and the channels to the workers, which serve on. What they are is
written to a file in memory, whose descriptor the new process finds in its environment.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason

VARIABLE = "SALLYPORT_HANDOVER"
VERSION = 1
MAX_BYTES = 128 << 20
MAX_DESCRIPTOR = 1 << 20
MAX_TOLD = 1000
TRIAL_SECONDS = 60.0
_FORM = "handover"


@dataclass(frozen=True, slots=True)
class HandedWorker:
    """A worker that serves on: its process, its number, the descriptor of our end of its channel, what was read of a
    report that was not whole, and up to where it had acknowledged."""

    pid: int
    number: int
    channel: int
    begun: bytes
    acknowledged: int


@dataclass(frozen=True, slots=True)
class Handover:
    """`sockets` are descriptors of listening sockets, by what they are for; `sequence` that of the last order."""

    sequence: int
    sockets: Mapping[str, tuple[int, ...]]
    workers: tuple[HandedWorker, ...]

    def execute(self) -> None:
        """Become the new main process, started as this one was. Raises `OSError`, and then nobody is there to serve."""
        file = os.memfd_create("sallyport-handover", 0)
        os.write(file, self.to_json())
        descriptors = [each for group in self.sockets.values() for each in group]
        for each in (file, *descriptors, *(worker.channel for worker in self.workers)):
            os.set_inheritable(each, True)
        os.environ[VARIABLE] = str(file)
        for number in (signal.SIGHUP, signal.SIGUSR2):  # until the next takes them up: by default they would end it
            signal.signal(number, signal.SIG_IGN)
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606  # the very words that started us

    def to_json(self) -> bytes:
        workers = [
            {
                "pid": each.pid,
                "number": each.number,
                "channel": each.channel,
                "begun": base64.b64encode(each.begun).decode(),
                "acknowledged": each.acknowledged,
            }
            for each in self.workers
        ]
        sockets = {name: list(each) for name, each in self.sockets.items()}
        document = {"version": VERSION, "sequence": self.sequence, "sockets": sockets, "workers": workers}
        return json.dumps(document).encode()

    @classmethod
    def parse(cls, raw: bytes) -> Handover:
        """Raises `Fault(MESSAGE_MALFORMED)`."""
        fields = Fields.from_json(raw, _FORM, Reason.MESSAGE_MALFORMED, max_bytes=MAX_BYTES)
        if fields.integer("version") != VERSION:
            raise fields.fault("version", f"expected {VERSION}: restart instead of upgrading")
        names = fields.section("sockets")
        sockets = {name: names.integers(name, least=3, most=MAX_DESCRIPTOR, count=1024) for name in names.names}
        found = cls(fields.integer("sequence"), sockets, fields.each("workers", _worker, most=1024))
        fields.finish()
        return found


async def try_new_code() -> None:
    """Have the installed code judge the settings as it would at a start. Raises `Fault(NEW_CODE_REFUSED)`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *sys.orig_argv[1:],
        "--check",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(TRIAL_SECONDS):
            _, told = await process.communicate()
    except TimeoutError:
        raise Fault(Reason.NEW_CODE_REFUSED, "it takes too long") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise Fault(Reason.NEW_CODE_REFUSED, told.decode("utf-8", "replace").strip()[-MAX_TOLD:])


def _worker(fields: Fields) -> HandedWorker:
    found = HandedWorker(
        pid=fields.integer("pid", least=1),
        number=fields.integer("number", most=1 << 16),
        channel=fields.integer("channel", least=3, most=MAX_DESCRIPTOR),
        begun=fields.base64("begun", max_bytes=MAX_BYTES),
        acknowledged=fields.integer("acknowledged"),
    )
    fields.finish()
    return found


def take_over() -> Handover | None:
    """What a main process before us left; None when there was none. Nobody whom we start finds it again. Raises
    `Fault(MESSAGE_MALFORMED)`."""
    number = os.environ.pop(VARIABLE, "")
    if not number:
        return None
    try:
        with os.fdopen(int(number), "rb") as file:
            file.seek(0)
            raw = file.read(MAX_BYTES)
    except (OSError, ValueError) as error:
        raise Fault(Reason.MESSAGE_MALFORMED, "no descriptor of a file", field=VARIABLE) from error
    left = Handover.parse(raw)
    descriptors = [each for group in left.sockets.values() for each in group]
    for each in (*descriptors, *(worker.channel for worker in left.workers)):
        os.set_inheritable(each, False)
    return left
