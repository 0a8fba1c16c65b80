"""Wall clocks of processes that can be set while they run; `clock.c` says how."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

_SOURCE = Path(__file__).with_name("clock.c")


class WallClock:
    """What one machine's processes take for the time. They have to be started with `environment`."""

    def __init__(self, folder: Path, library: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "wall-clock"
        self._library = library
        self.set(0)

    @property
    def environment(self) -> Mapping[str, str]:
        return {"LD_PRELOAD": str(self._library), "WALL_CLOCK": str(self._file)}

    @property
    def ahead(self) -> int:
        """By how many seconds it is ahead of the true time; negative when it is behind."""
        (found,) = struct.unpack("=q", self._file.read_bytes())
        return int(found)

    def set(self, ahead: int) -> None:
        """Set it; processes that run notice at once."""
        with self._file.open("r+b" if self._file.exists() else "xb") as file:  # in place: they have it mapped
            file.write(struct.pack("=q", ahead))


def build_library(folder: Path) -> Path:
    """What processes preload, compiled."""
    library = folder / "clock.so"
    words = ["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(_SOURCE)]
    subprocess.run(words, check=True)
    return library
