"""Settings of the section `decisions`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from foundation.fields import Fields

DEFAULT_DIRECTORY = Path("/var/lib/sallyport/decisions")


@dataclass(frozen=True, slots=True)
class DecisionLogSettings:
    """Where decisions go, how large one segment grows and how much all may take on disk, in bytes. At that bound the
    oldest segments are dropped, counted, and named in the audit log."""

    directory: Path = DEFAULT_DIRECTORY
    segment_bytes: int = 16 << 20
    total_bytes: int = 1 << 30

    @classmethod
    def parse(cls, fields: Fields) -> DecisionLogSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        settings = cls(
            directory=Path(fields.text("directory", str(DEFAULT_DIRECTORY))),
            segment_bytes=fields.size("segment_size", "16MiB"),
            total_bytes=fields.size("total_size", "1GiB"),
        )
        if not 64 << 10 <= settings.segment_bytes <= 1 << 30:
            raise fields.fault("segment_size", "expected 64KiB to 1GiB")
        if settings.total_bytes < 4 * settings.segment_bytes:
            raise fields.fault("total_size", "expected at least four segments")
        fields.finish()
        return settings
