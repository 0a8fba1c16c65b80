"""Answers already given, kept within bounds.

Laws held here:
- a key says everything that an answer can depend on (`policies.projector`); an answer is found under its key alone;
- an error or a time-out is never kept; a denial by policy is kept as a permit is;
- an answer is not given out at or after the end of the grant that it names. `judge` compares the other deadlines.
"""

from __future__ import annotations

from collections import OrderedDict

from foundation.reasons import Reason
from policies.model import Answer
from policies.settings import CacheSettings

# Answers that say nothing of the query.
ERRORS = frozenset(
    {
        Reason.ENGINE_FAILED,
        Reason.ENGINE_TIMEOUT,
        Reason.ENGINE_OVERLOADED,
        Reason.ENGINE_ANSWER_INVALID,
        Reason.ENGINE_UNREACHABLE,
    }
)
_OVERHEAD = 512  # of an entry, in bytes, beside its key and obligations: measured, rounded up


class DecisionCache:
    """At most `entries` answers and about `bytes` bytes; the one longest unused goes first."""

    def __init__(self, settings: CacheSettings) -> None:
        self._settings = settings
        self._answers: OrderedDict[bytes, Answer] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def size(self) -> int:
        """What the entries take, in bytes, by estimate."""
        return self._bytes

    def get(self, key: bytes, now: float) -> Answer | None:
        """The answer under `key` that still holds at `now`, in seconds since the Unix epoch."""
        answer = self._answers.get(key)
        if answer is None:
            return None
        if answer.deadline <= now:
            self._drop(key)
            return None
        self._answers.move_to_end(key)
        return answer

    def put(self, key: bytes, answer: Answer) -> None:
        """Keep `answer`, unless it tells of an error."""
        if not ERRORS.isdisjoint(answer.reasons):
            return
        self._drop(key)
        self._answers[key] = answer
        self._bytes += _size(key, answer)
        while self._answers and self._full():
            self._drop(next(iter(self._answers)))

    def clear(self) -> None:
        self._answers.clear()
        self._bytes = 0

    def _full(self) -> bool:
        return len(self._answers) > self._settings.entries or self._bytes > self._settings.bytes

    def _drop(self, key: bytes) -> None:
        answer = self._answers.pop(key, None)
        if answer is not None:
            self._bytes -= _size(key, answer)


def _size(key: bytes, answer: Answer) -> int:
    obligations = sum(len(repr(obligation)) for obligation in answer.obligations)
    kept = len(answer.input.document) if answer.input is not None else 0
    return _OVERHEAD + len(key) + len(answer.grant) + obligations + kept
