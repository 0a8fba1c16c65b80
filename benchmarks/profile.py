"""Where the time of a request goes: `python -m benchmarks.profile`, in less than half a minute, as often as you like.

One worker of `sallyport serve` forwards the load of the benchmark `forward`. Three looks, each at a load of its own:
 1. undisturbed: requests a second, latency, and CPU per request, in our code and in the kernel. Judge a change by this
    CPU figure: it moves least when others use the machine;
 2. sampled by py-spy: which functions that CPU went to, alone and with all that they called, in us per request;
 3. traced by strace, where there is one: system calls per request.

The second look is at the worker's main thread, which runs the event loop; the first says what else there is: the
supervisor and other threads. On a busy machine a call that wakes another process, such as a write, looks longer than
its CPU: the other one takes its place meanwhile.

`--calls` runs the server below cProfile instead: how often a function is called per request. It slows the server down,
so its times say little. `--native` lets py-spy look into C (OpenSSL, libuv, llhttp).
"""

from __future__ import annotations

import argparse
import os
import pstats
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.field import stand
from benchmarks.figure import WIDTH
from benchmarks.generator import Generator
from benchmarks.processes import BIN, ROOT, running
from benchmarks.site import Site, serving
from benchmarks.usage import cpu_seconds, thread_seconds, trees

SAMPLES_A_SECOND = 400
TRACED_SECONDS = 2.0
OUTERMOST = 0.8  # a function with this share of the samples below it tells nothing
_out = Console(width=WIDTH, highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load")
    parser.add_argument("--top", type=int, default=40, help="functions to print")
    parser.add_argument("--no-cache", action="store_true", help="with the decision cache off")
    parser.add_argument("--native", action="store_true", help="sample C code too")
    parser.add_argument("--calls", action="store_true", help="count calls with cProfile, and nothing else")
    given = parser.parse_args()
    with stand(peers=()) as stands:
        stands.site.set("gateway", workers=1)
        if given.no_cache:
            stands.site.set("policy.cache", entries=0)
        if given.calls:
            _count_calls(stands.generator, stands.site, given.seconds, given.top)
            return
        with serving(stands.site) as served:
            worker = _worker(served)
            main_us = _undisturbed(stands.generator, served, worker, given.seconds)
            _sampled(stands.generator, served, worker, main_us, given)
            _traced(stands.generator, served, worker)


def _worker(served: Site) -> int:
    """The process that carries the data plane."""
    for pid in trees([served.pid]):
        if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise RuntimeError("no worker runs")


def _undisturbed(fleet: Generator, served: Site, worker: int, seconds: float) -> float:
    """Microseconds that the worker's main thread spends on a request."""
    before, before_all = thread_seconds(worker), _all_seconds(served)
    outcome = fleet.offer(served.gateway, seconds=seconds, warmup=2.0)
    share = (thread_seconds(worker) - before) / (_all_seconds(served) - before_all)
    user, system = outcome.cpu
    _out.print(f"{outcome.per_second:.0f} requests/s   p50 {outcome.p50:.2f} ms   p99 {outcome.p99:.2f} ms")
    _out.print(
        f"[bold]{user + system:.1f} us of CPU per request[/bold]: {user:.1f} in our code, {system:.1f} in the kernel; "
        f"{(user + system) * (1 - share):.1f} beside the main thread"
    )
    return (user + system) * share


def _all_seconds(served: Site) -> float:
    return sum(cpu_seconds(pid) for pid in trees([served.pid]))


def _sampled(fleet: Generator, served: Site, worker: int, main_us: float, given: argparse.Namespace) -> None:
    """Shares of the main thread's samples, told as shares of `main_us`."""
    if not (BIN / "py-spy").exists():
        _out.print("no py-spy: pip install '.\\[bench]'")
        return
    file = served.folder / "samples"
    words: list[str | Path] = [BIN / "py-spy", "record", "--pid", str(worker), "--format", "raw"]
    words += ["--output", file, "--duration", str(int(given.seconds)), "--rate", str(SAMPLES_A_SECOND), "--threads"]
    words += ["--native"] if given.native else []
    with running(words, served.folder / "py-spy.log") as spy:
        fleet.offer(served.gateway, seconds=given.seconds, warmup=0.5)
        spy.wait(30)
    alone, within = _functions([line for line in file.read_text().splitlines() if "MainThread" in line])
    whole = sum(alone.values())
    inner = Counter({name: count for name, count in within.items() if count < OUTERMOST * whole})
    _out.print(f"{whole} samples: functions by what they cost alone, then by what they cost with all that they call")
    for order in (alone, inner):
        table = Table("us alone", "us with callees", "function")
        for name, _ in order.most_common(given.top):
            table.add_row(f"{alone[name] * main_us / whole:.1f}", f"{within[name] * main_us / whole:.1f}", name)
        _out.print(table)


def _functions(stacks: Sequence[str]) -> tuple[Counter[str], Counter[str]]:
    """Samples by function: in it, and in it or in what it called. `stacks` are lines `outermost;...;innermost N`."""
    alone: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        frames = [_without_line(frame) for frame in stack.split(";")]
        alone[frames[-1]] += int(count)
        for name in set(frames):
            within[name] += int(count)
    return alone, within


def _without_line(frame: str) -> str:
    """`decide (gateway/proxy/decide.py)` of `decide (gateway/proxy/decide.py:12)`."""
    head, colon, _ = frame.rpartition(":")
    return head.replace(f"{ROOT}/", "") + ")" if colon and frame.endswith(")") else frame


def _traced(fleet: Generator, served: Site, worker: int) -> None:
    """Counts are right although everything is slower: fewer requests share a turn of the event loop than otherwise, so
    the true numbers are a little lower."""
    strace, file = shutil.which("strace"), served.folder / "strace"
    if strace is None:
        _out.print("no strace: no system calls")
        return
    tracer = subprocess.Popen([strace, "-c", "-f", "-q", "-o", file, "-p", str(worker)])
    try:
        time.sleep(0.3)
        outcome = fleet.offer(served.gateway, seconds=TRACED_SECONDS, warmup=0)
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(10)
    requests = outcome.requests
    calls = {words[-1]: int(words[3]) for words in map(str.split, file.read_text().splitlines()) if _is_count(words)}
    most = sorted(calls.items(), key=lambda pair: -pair[1])
    told = "  ".join(f"{name} {count / requests:.2f}" for name, count in most if count / requests >= 0.01)
    _out.print(f"[bold]{sum(calls.values()) / requests:.2f} system calls per request[/bold]: {told}")


def _is_count(words: Sequence[str]) -> bool:
    return len(words) in {5, 6} and words[3].isdigit() and words[-1] != "total"


def _count_calls(fleet: Generator, site: Site, seconds: float, top: int) -> None:
    profile = site.folder / "calls"
    with serving(site, ("-m", "benchmarks.counted", str(profile))) as served:
        worker = _worker(served)
        os.kill(worker, signal.SIGUSR1)
        outcome = fleet.offer(served.gateway, seconds=seconds, warmup=0)
        os.kill(worker, signal.SIGUSR1)
        for _ in range(500):
            if profile.exists():
                break
            time.sleep(0.02)
    requests = outcome.requests
    table = Table("calls per request", "us alone", "us with callees", "function")
    stats = pstats.Stats(str(profile)).get_stats_profile().func_profiles
    for name, each in sorted(stats.items(), key=lambda pair: -pair[1].tottime)[:top]:
        where = f"{name} ({each.file_name.replace(f'{ROOT}/', '')}:{each.line_number})"
        calls = int(each.ncalls.partition("/")[0]) / requests
        table.add_row(
            f"{calls:.2f}", f"{each.tottime * 1e6 / requests:.1f}", f"{each.cumtime * 1e6 / requests:.1f}", where
        )
    _out.print(table)


if __name__ == "__main__":
    main()
