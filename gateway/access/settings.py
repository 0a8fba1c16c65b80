"""Settings of the section `access_log`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from foundation.fields import Fields


class Format(StrEnum):
    """How a line looks: a JSON object, or NCSA's Common and Combined log formats."""

    JSON = "json"
    COMMON = "common"
    COMBINED = "combined"


class QueryPart(StrEnum):
    """What becomes of a target's query. Its values are often secrets, hence the default."""

    MASK = "mask"  # names stay, values go
    DROP = "drop"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class AccessLogSettings:
    """Section `[access_log]`. Off without a `path`: every decision is on record in the decision log anyway. Sizes in
    bytes. `file_size` and `files`: at that size the file becomes `<path>.1`, and so on up to `files` of them; `buffer`
    is what may wait for the disk, and what does not fit is dropped and counted."""

    path: Path | None = None
    format: Format = Format.JSON
    query: QueryPart = QueryPart.MASK
    file_size: int = 64 << 20
    files: int = 4
    buffer: int = 4 << 20

    @classmethod
    def parse(cls, fields: Fields) -> AccessLogSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        path = fields.text("path", "", max_length=4096)
        settings = cls(
            path=Path(path) if path else None,
            format=Format(fields.one_of("format", tuple(Format), Format.JSON)),
            query=QueryPart(fields.one_of("query", tuple(QueryPart), QueryPart.MASK)),
            file_size=fields.size("file_size", "64MiB"),
            files=fields.integer("files", 4, least=1, most=1000),
            buffer=fields.size("buffer", "4MiB"),
        )
        if settings.file_size < 64 << 10 or settings.buffer < 64 << 10:
            raise fields.fault("file_size", "expected at least 64KiB, for the buffer too")
        fields.finish()
        return settings
