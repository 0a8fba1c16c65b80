"""Whether an address behaves so unlike its pool that it is ejected for a while. Pure values.

Laws held here:
- ejections never take more than their share of a pool, so that no caller and no bad day empties it;
- an ejection ends by itself.
"""

from __future__ import annotations

from typing import NamedTuple

from policies.upstreams import Outlier


class Shown(NamedTuple):
    """What an address showed: failures and 5xx answers in a row, and answers of the present interval, all and bad."""

    failures: int = 0
    errors: int = 0
    answers: int = 0
    bad: int = 0


def verdict(shown: Shown, outlier: Outlier) -> str:
    """Why the address is to be ejected, in words; empty when it is not."""
    if 0 < outlier.consecutive_failures <= shown.failures:
        return f"{shown.failures} failures in a row"
    if 0 < outlier.consecutive_5xx <= shown.errors:
        return f"{shown.errors} answers of 5xx in a row"
    if outlier.failure_percent and shown.answers >= outlier.volume:
        percent = shown.bad * 100 // shown.answers
        if percent >= outlier.failure_percent:
            return f"{percent} % of {shown.answers} answers were bad"
    return ""


def may_eject(ejected: int, addresses: int, share: int) -> bool:
    """Whether one more of `addresses` may be ejected when `ejected` are, at most `share` percent."""
    return (ejected + 1) * 100 <= share * addresses


def ejection_seconds(times: int, outlier: Outlier) -> float:
    """How long the ejection lasts that is the address's `times`-th in a row, counted from 1."""
    return min(outlier.ejection * times, max(outlier.longest, outlier.ejection))
