"""One call on a connection of its own, and how it ended; and those that nobody may make, made over and over."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from foundation.faults import Fault
from foundation.reasons import Reason
from tests.support.processes import wait_until
from tests.support.system import Client

SERVED = "served"
UNREACHABLE = "unreachable"
HUNG_UP = "hung_up"
_OWN_FAILURES = (UNREACHABLE, Reason.TLS_KEY_UNUSABLE.code, Reason.TPM_UNAVAILABLE.code)
_PAUSE = 0.3  # seconds between two attempts of one kind


@dataclass(frozen=True)
class Call:
    """What may be asked of a gateway."""

    method: str = "GET"
    path: str = "/version"
    body: bytes = b""


def outcome(connect: Callable[[], Client], call: Call) -> str:
    """`served`; the reason of its refusal; `hung_up` where the other side ended the connection, in the handshake or
    after; `unreachable` where there was no other side."""
    try:
        with connect() as client:
            answer = client.ask(call.method, call.path, call.body)
            return answer.reason if answer.status >= 400 else SERVED
    except (ssl.SSLError, ConnectionResetError, BrokenPipeError):
        return HUNG_UP
    except (OSError, http.client.HTTPException):
        return UNREACHABLE
    except Fault as fault:
        return fault.reason.code


@dataclass
class Trespasser:
    """Somebody who tries one forbidden thing over and over, whatever happens meanwhile, and notes how each ended."""

    what: str
    attempt: Callable[[], str]
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def refused(self) -> int:
        """How often somebody was there who refused it."""
        return self.outcomes.total() - sum(self.outcomes[each] for each in (SERVED, *_OWN_FAILURES))

    def go_on_until(self, ended: threading.Event) -> None:
        while not ended.is_set():
            self.outcomes[self.attempt()] += 1
            ended.wait(_PAUSE)


class Trespassers:
    """Several at once. `are_refused` is the law of every scenario: trust is never wider than policy."""

    def __init__(self, *members: Trespasser) -> None:
        self._members, self._ended = members, threading.Event()
        self._failed: list[BaseException] = []
        self._threads = [threading.Thread(target=self._watch, args=(each,), name=each.what) for each in members]

    def are_refused(self) -> None:
        """None was ever served; and each has met, from now on, somebody who refused it: it did not fail by itself."""
        for each in self._members:
            wait_until(partial(self._more_refused, each, each.refused), f"{each.what} to be refused")
        assert not self._failed, self._failed
        assert not self.succeeded, f"served: {self.succeeded}"

    @property
    def succeeded(self) -> list[str]:
        return [each.what for each in self._members if each.outcomes[SERVED]]

    def _more_refused(self, member: Trespasser, before: int) -> bool:
        return bool(self.succeeded or self._failed) or member.refused > before

    def _watch(self, member: Trespasser) -> None:
        try:
            member.go_on_until(self._ended)
        except BaseException as error:
            self._failed.append(error)

    def __enter__(self) -> Trespassers:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for each in self._threads:
            each.join()


@contextlib.contextmanager
def trying(*members: Trespasser) -> Iterator[Trespassers]:
    """They try for as long as the block lasts, and have been refused until its end."""
    with Trespassers(*members) as trespassers:
        yield trespassers
        trespassers.are_refused()
