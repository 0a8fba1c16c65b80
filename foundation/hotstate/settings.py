"""Settings of the section `hotstate`."""

from __future__ import annotations

from dataclasses import dataclass

from foundation.fields import Fields


@dataclass(frozen=True, slots=True)
class HotStateSettings:
    """In this process: how many entries and bytes it may hold."""

    max_entries: int = 200_000
    max_bytes: int = 256 << 20

    @classmethod
    def parse(cls, fields: Fields) -> HotStateSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        settings = cls(
            max_entries=fields.integer("max_entries", 200_000, least=1),
            max_bytes=fields.size("max_size", "256MiB"),
        )
        fields.finish()
        return settings
