"""Which certificates were seen in use: how a second holder of an older one shows.

The notes live in hot state. Without one an older certificate is refused all the same, only without an alarm. So nobody
is refused because a note could not be made.
"""

from __future__ import annotations

import contextlib

from foundation.faults import Fault
from foundation.hotstate import HotState

NOTED_SECONDS = 24 * 3600.0  # the longest life of a certificate that renews itself


class CertificateUse:
    """Notes by serial (lower-case hex). Whoever authenticates a caller may note its certificate."""

    def __init__(self, hot: HotState) -> None:
        self._hot = hot

    async def note(self, serial: str) -> None:
        """The certificate of this serial was used just now."""
        with contextlib.suppress(Fault):
            await self._hot.put_once(_key(serial), b"1", NOTED_SECONDS)

    async def was_noted(self, serial: str) -> bool:
        """Raises `Fault(HOT_STATE_UNAVAILABLE)`."""
        return await self._hot.get(_key(serial)) is not None


def _key(serial: str) -> str:
    return f"certificate-used/{serial}"
