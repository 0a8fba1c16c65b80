"""The process that puts samples to a candidate revision: of the lowest priority, with an engine of its own.

It is started with the folder of the shadow, and given the policy's public key (PEM) and its bounds as one line of JSON
on standard input; it ends when that ends. In the folder: `candidate.bundle`, which it verifies; the socket that samples
come to; `tally.json`, written anew about once a second; `differences.jsonl`, the differences that are kept as records.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundation.faults import Fault
from foundation.files import SECRET_MODE, write_atomic
from gateway.shadow.tap import SOCKET, listen
from policies.engine import DECISION_ENTRYPOINT
from policies.lifecycle.revision import verify
from policies.model import Answer, parse_answer
from policies.settings import PolicySettings
from policies.shadow import MAX_SAMPLE_BYTES, Sample, Tally, Verdict, parse_sample, verdict_of
from policies.signing import parse_verifying_key
from policies.wasm import WasmEngine

CANDIDATE, TALLY, DIFFERENCES = "candidate.bundle", "tally.json", "differences.jsonl"
READY = b"ready\n"
_LOWEST = 19
_TELL_EVERY = 1.0


def main() -> None:
    """The process."""
    os.nice(_LOWEST)
    folder, order = Path(sys.argv[1]), json.loads(sys.stdin.buffer.readline())
    key = parse_verifying_key(order["policy_key"].encode())
    settings = PolicySettings(decision_timeout=order["decision_timeout"], memory=order["memory"])
    loaded = verify((folder / CANDIDATE).read_bytes(), key, 0)
    evaluator = Evaluator(folder, WasmEngine(loaded.compiled, settings))
    with listen(folder) as samples:
        sys.stdout.buffer.write(READY)
        sys.stdout.buffer.flush()
        try:
            evaluator.run(samples, sys.stdin.fileno())
        finally:
            (folder / SOCKET).unlink(missing_ok=True)


class Evaluator:
    """Asks the candidate, and tells what differs."""

    def __init__(self, folder: Path, engine: WasmEngine) -> None:
        self._folder = folder
        self._engine = engine
        self._tally = Tally()
        self._differences = (folder / DIFFERENCES).open("ab")

    def run(self, samples: socket.socket, until_end_of: int) -> None:
        """Until the descriptor `until_end_of` has nothing more to say."""
        told = time.monotonic()
        while True:
            ready, _, _ = select.select([samples.fileno(), until_end_of], [], [], _TELL_EVERY)
            if samples.fileno() in ready:
                self.take(samples.recv(MAX_SAMPLE_BYTES + 1))
            if until_end_of in ready and not os.read(until_end_of, 1024):
                self.tell()
                return
            if time.monotonic() - told >= _TELL_EVERY:
                self.tell()
                told = time.monotonic()

    def take(self, raw: bytes) -> None:
        """One sample; what is none is passed over."""
        try:
            sample = parse_sample(raw)
        except (ValueError, KeyError, TypeError):
            return
        record = self._tally.add(sample, self._ask(sample))
        if record is not None:
            self._differences.write(json.dumps(record).encode() + b"\n")

    def tell(self) -> None:
        self._differences.flush()
        write_atomic(self._folder / TALLY, json.dumps(self._tally.to_json()).encode(), mode=SECRET_MODE)

    def _ask(self, sample: Sample) -> Verdict:
        document = json.dumps(sample.input, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
        try:
            answer = parse_answer(self._engine.evaluate(DECISION_ENTRYPOINT, document))
        except Fault as fault:
            answer = Answer(False, (fault.reason,))
        return verdict_of(answer, _now(sample.input))


def _now(asked: Mapping[str, Any]) -> float:
    return float(asked["now"])


if __name__ == "__main__":
    main()
