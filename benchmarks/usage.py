"""What processes use: CPU and memory, of whole process trees (proc(5))."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_TICK = 1 / os.sysconf("SC_CLK_TCK")


class Cpu(NamedTuple):
    """Seconds of CPU, in a program's own code and in the kernel for it."""

    user: float
    system: float

    @property
    def total(self) -> float:
        return self.user + self.system

    def since(self, before: Cpu) -> Cpu:
        return Cpu(self.user - before.user, self.system - before.system)

    def over(self, count: int) -> Cpu:
        """Of each of `count`, in microseconds."""
        return Cpu(self.user * 1e6 / count, self.system * 1e6 / count)


NO_CPU = Cpu(0.0, 0.0)


def cpu(roots: Sequence[int]) -> Cpu:
    """What the processes of these trees have run, in steps of a clock tick (stat)."""
    user = system = 0
    for pid in trees(roots):
        with contextlib.suppress(OSError):
            fields = _after_name(Path(f"/proc/{pid}/stat"))
            user, system = user + int(fields[11]), system + int(fields[12])
    return Cpu(user * _TICK, system * _TICK)


def pss(roots: Sequence[int]) -> int:
    """Bytes of memory of these trees; what several processes share counts once (smaps_rollup)."""
    return _rolled_up(roots, "Pss:")


def rss(roots: Sequence[int]) -> int:
    """The same with all that is resident: what a process takes that has nobody to share with."""
    return _rolled_up(roots, "Rss:")


def _rolled_up(roots: Sequence[int], name: str) -> int:
    found = 0
    for pid in trees(roots):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            found += sum(int(line.split()[1]) for line in lines if line.startswith(name))
    return found << 10


def trees(roots: Sequence[int]) -> list[int]:
    """`roots` and all that descend from them."""
    found, parents = list(roots), _parents()
    for each in found:
        found += [child for child, parent in parents.items() if parent == each and child not in found]
    return found


def cpu_seconds(pid: int) -> float:
    """What all threads of a process have run, in seconds, by the scheduler's own clock (schedstat)."""
    return sum(_scheduled(task) for task in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def thread_seconds(pid: int) -> float:
    """The same of its main thread alone."""
    return _scheduled(Path(f"/proc/{pid}/task/{pid}/schedstat"))


def _scheduled(file: Path) -> float:
    return int(file.read_text().split()[0]) / 1e9


def _parents() -> dict[int, int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(_after_name(stat)[1])
    return parents


def _after_name(stat: Path) -> list[str]:
    """The fields of a stat file from `state` on; a name may hold blanks and brackets."""
    return stat.read_text(errors="replace").rpartition(")")[2].split()
