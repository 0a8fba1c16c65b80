"""What re-attestation tells about itself: messages by what came of them, and how old what was proven is."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram

from foundation.reasons import Reason

_AGES = (1, 15, 30, 60, 90, 120, 180, 300, 600, 1800)


class AttestationMetrics:
    """`result` is `passed`, `asked` (for a nonce), or the code of the refusal. The age is from the nonce's issue to the
    quote's arrival."""

    def __init__(self, registry: CollectorRegistry, failures: Iterable[Reason] = ()) -> None:
        """Of `failures` the series are there before the first: a rate, and an alert on it, does not see what a series
        begins with."""
        about = "Messages of continuous re-attestation"
        self._attestations = Counter("sallyport_attestations", about, ("result",), registry=registry)
        for reason in failures:
            self._attestations.labels(reason.code)
        about = "Age of the nonce when its quote passed"
        self._age = Histogram("sallyport_attestation_age_seconds", about, buckets=_AGES, registry=registry)
        self._passed, self._asked = (self._attestations.labels(result) for result in ("passed", "asked"))

    def passed(self, age: float) -> None:
        """A quote passed, `age` seconds after its nonce was issued."""
        self._passed.inc()
        self._age.observe(age)

    def asked(self) -> None:
        """A node was given a nonce."""
        self._asked.inc()

    def refused(self, reason: Reason) -> None:
        """A message was refused."""
        self._attestations.labels(reason.code).inc()
