"""Settings of the section `audit`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from foundation.fields import Fields

DEFAULT_DIRECTORY = Path("/var/lib/sallyport/audit")


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """Where the audit log is. `key` signs its heads (Ed25519, PKCS #8 PEM, 0600); by default it lies in `directory`.
    A segment is closed once it holds `segment_bytes`; `head_every` is how often, in seconds, the newest signed head is
    also written beside the segments."""

    directory: Path = DEFAULT_DIRECTORY
    key: Path | None = None
    segment_bytes: int = 64 << 20
    head_every: float = 5.0

    @classmethod
    def parse(cls, fields: Fields) -> AuditSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        settings = cls(
            directory=Path(fields.text("directory", str(DEFAULT_DIRECTORY))),
            key=Path(fields.text("key")) if fields.has("key") else None,
            segment_bytes=fields.size("segment_size", "64MiB"),
            head_every=fields.duration("head_every", "5s"),
        )
        if not 4096 <= settings.segment_bytes <= 4 << 30:
            raise fields.fault("segment_size", "expected 4KiB to 4GiB")
        fields.finish()
        return settings

    @property
    def key_path(self) -> Path:
        return self.key or self.directory / "audit.key"
